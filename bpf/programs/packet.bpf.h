/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a packet to its protocol, ports and addresses.
 */
#ifndef PODMOTION_PACKET_BPF_H
#define PODMOTION_PACKET_BPF_H

#include "gate.bpf.h"

#include <stddef.h>

/* IPv6 extension headers followed before a packet is given up on and passed. */
#define MAX_EXTENSIONS 6

struct packet {
	__u32 l4; /* where the TCP or UDP header is */
	__u32 payload; /* bytes behind the TCP header */
	__u32 seq;
	__u32 ack;
	__u16 local_port;
	__u16 remote_port;
	__u8 proto;
	__u8 tcp_flags;
	__u8 tcp_header; /* its length, bytes */
};

struct l4_ports {
	__be16 source;
	__be16 dest;
};

struct l4 {
	struct l4_ports ports;
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
	__be16 window;
};

struct extension {
	__u8 next;
	__u8 length;
	__be16 fragment_offset;
};

/*
 * bpf_skb_load_bytes(), without the call for the usual packet whose headers are in one piece. `to` is
 * a pointer to what is there, whose type decides in how large pieces it is read. It is to be
 * initialised: the verifier of Linux 6.18 refuses, with a word on a bug of its own, a helper that is
 * the first to write to a deep part of the stack.
 */
#define load(ctx, offset, to)                                                                      \
	({                                                                                         \
		typeof(to) from = (void *)(long)(ctx)->data + (offset);                            \
		int failed = 0;                                                                    \
                                                                                                   \
		if ((void *)(from + 1) > (void *)(long)(ctx)->data_end)                            \
			failed = bpf_skb_load_bytes(ctx, offset, to, sizeof(*(to)));               \
		else                                                                               \
			*(to) = *from;                                                             \
		failed;                                                                            \
	})

/* `end` is where the IP packet ends, which is not where a padded frame does. */
static __always_inline int parse_l4(struct __sk_buff *ctx, __u32 offset, __u32 end, struct packet *p)
{
	struct l4 l4 = {};

	if (p->proto == IPPROTO_TCP) {
		if (load(ctx, offset, &l4))
			return -1;
		p->tcp_header = (l4.offset >> 4) << 2;
		p->tcp_flags = l4.flags;
		p->seq = bpf_ntohl(l4.seq);
		p->ack = bpf_ntohl(l4.ack);
		__u32 data = offset + p->tcp_header;
		p->payload = end > data ? end - data : 0;
	} else if (p->proto == IPPROTO_UDP) {
		if (load(ctx, offset, &l4.ports))
			return -1;
	} else {
		return -1;
	}
	p->l4 = offset;
	p->local_port = bpf_ntohs(l4.ports.dest);
	p->remote_port = bpf_ntohs(l4.ports.source);
	return 0;
}

static __always_inline int parse_v4(struct __sk_buff *ctx, struct packet *p)
{
	struct iphdr ip = {};

	if (load(ctx, ETH_HLEN, &ip))
		return -1;
	/*
	 * Only the first fragment has ports. The others wait in the reassembly queue for it, whether it
	 * comes at once or after the container has been woken.
	 */
	if (ip.frag_off & bpf_htons(IP_OFFSET_MASK))
		return -1;
	p->proto = ip.protocol;
	/* Packets above 64 KB ("BIG TCP") have no length. */
	__u32 length = bpf_ntohs(ip.tot_len);
	__u32 end = length ? ETH_HLEN + length : ctx->len;
	return parse_l4(ctx, ETH_HLEN + (ip.ihl << 2), end, p);
}

static __always_inline int parse_v6(struct __sk_buff *ctx, struct packet *p)
{
	struct ipv6hdr ip = {};
	__u32 offset = ETH_HLEN + sizeof(ip);

	if (load(ctx, ETH_HLEN, &ip))
		return -1;
	__u32 length = bpf_ntohs(ip.payload_len);
	__u32 end = length ? offset + length : ctx->len;
	__u8 next = ip.nexthdr;

	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension ext = {};

		if (next == IPPROTO_TCP || next == IPPROTO_UDP)
			break;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			return -1;
		if (bpf_skb_load_bytes(ctx, offset, &ext, sizeof(ext)))
			return -1;
		if (next == IPPROTO_FRAGMENT) {
			/* The offset is in the upper 13 bits; see parse_v4. */
			if (ext.fragment_offset & bpf_htons(0xfff8))
				return -1;
			offset += 8;
		} else {
			offset += (ext.length + 1) << 3;
		}
		next = ext.next;
	}
	p->proto = next;
	return parse_l4(ctx, offset, end, p);
}

/* The addresses as they are in the key of a flow. */
static __always_inline int load_addresses(struct __sk_buff *ctx, struct flow_key *flow)
{
	if (ctx->protocol == bpf_htons(ETH_P_IPV6)) {
		__u32 source = ETH_HLEN + offsetof(struct ipv6hdr, saddr);

		return bpf_skb_load_bytes(ctx, source, flow->remote, 16) ||
		       bpf_skb_load_bytes(ctx, source + 16, flow->local, 16);
	}
	__u32 source = ETH_HLEN + offsetof(struct iphdr, saddr);

	flow->remote[10] = flow->remote[11] = 0xff;
	flow->local[10] = flow->local[11] = 0xff;
	return bpf_skb_load_bytes(ctx, source, flow->remote + 12, 4) ||
	       bpf_skb_load_bytes(ctx, source + 4, flow->local + 12, 4);
}

#endif
