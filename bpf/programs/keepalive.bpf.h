/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Keepalives of connections that sleep without a socket: the answers that it would give.
 */
#ifndef PODMOTION_KEEPALIVE_BPF_H
#define PODMOTION_KEEPALIVE_BPF_H

#include "packet.bpf.h"

GATE_MAP(counters, __u64, struct counters, 16384);

/* Drops a packet that is for a sleeping connection and asks for nothing. */
static __always_inline int drop(__u64 *cookie)
{
	struct counters *count = bpf_map_lookup_elem(&counters, cookie);

	if (count)
		__sync_fetch_and_add(&count->dropped, 1);
	return GATE_DROP;
}

/* A TCP header with no options but the timestamps, as they are laid out by everybody. */
struct tcp_segment {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
	__be32 timestamps; /* two NOPs, kind, length */
	__be32 value;
	__be32 echo;
};

#define TCP_PLAIN 20
#define TCP_WITH_TIMESTAMPS 32
#define TIMESTAMPS bpf_htonl(0x0101080a)

/*
 * Whether a segment is a keepalive: nothing but the acknowledgement of all that the sleeping socket
 * has sent, with the sequence number before the one that is due. The exact number matters: an
 * answer to anything that could be an answer itself would go to and fro for ever between two
 * sleeping ends. What this program answers has the number that is due.
 */
static __always_inline int is_keepalive(const struct packet *p, const struct flow_value *flow)
{
	return flow->window && p->tcp_flags == TCP_ACK && !p->payload &&
	       p->seq + 1 == flow->rcv_nxt && p->ack == flow->snd_nxt;
}

/* Swaps two neighbours of `size` bytes. Does not touch checksums: their sum stays the same. */
static __always_inline int swap(struct __sk_buff *ctx, __u32 offset, __u32 size)
{
	__u8 both[32] = {};
	__u8 swapped[32];

	if (bpf_skb_load_bytes(ctx, offset, both, 2 * size))
		return -1;
	__builtin_memcpy(swapped, both + size, size);
	__builtin_memcpy(swapped + size, both, size);
	return bpf_skb_store_bytes(ctx, offset, swapped, 2 * size, 0);
}

/* The answer may have as far to go as the keepalive has come. */
static __always_inline int turn_ip(struct __sk_buff *ctx)
{
	const __u8 ttl = 64;

	if (ctx->protocol == bpf_htons(ETH_P_IPV6)) {
		__u32 hops = ETH_HLEN + offsetof(struct ipv6hdr, hop_limit);

		return swap(ctx, ETH_HLEN + offsetof(struct ipv6hdr, saddr), 16) ||
		       bpf_skb_store_bytes(ctx, hops, &ttl, 1, BPF_F_RECOMPUTE_CSUM);
	}
	/* The checksum goes by 16 bits: this byte and the protocol behind it. */
	__be16 before = 0, after = bpf_htons(ttl << 8 | IPPROTO_TCP);
	__u32 at = ETH_HLEN + offsetof(struct iphdr, ttl);
	__u32 check = ETH_HLEN + offsetof(struct iphdr, check);

	if (swap(ctx, ETH_HLEN + offsetof(struct iphdr, saddr), 4) ||
	    bpf_skb_load_bytes(ctx, at, &before, 2) || bpf_skb_store_bytes(ctx, at, &after, 2, 0))
		return -1;
	return bpf_l3_csum_replace(ctx, check, before, after, 2);
}

static __always_inline int turn_tcp(struct __sk_buff *ctx, const struct packet *p,
				    const struct flow_value *flow)
{
	struct tcp_segment asked = {};
	struct tcp_segment answer;

	if (p->tcp_header == TCP_WITH_TIMESTAMPS) {
		if (bpf_skb_load_bytes(ctx, p->l4, &asked, TCP_WITH_TIMESTAMPS) ||
		    asked.timestamps != TIMESTAMPS)
			return -1;
	} else if (p->tcp_header != TCP_PLAIN || bpf_skb_load_bytes(ctx, p->l4, &asked, TCP_PLAIN)) {
		return -1;
	}
	answer = asked;
	answer.source = asked.dest;
	answer.dest = asked.source;
	answer.seq = bpf_htonl(flow->snd_nxt);
	answer.ack = bpf_htonl(flow->rcv_nxt);
	answer.window = bpf_htons(flow->window);
	/* The socket's clock stands still: the last time that the peer has seen of it. */
	answer.value = asked.echo;
	answer.echo = asked.value;

	__s64 change = bpf_csum_diff((__be32 *)&asked, sizeof(asked), (__be32 *)&answer, sizeof(answer), 0);

	if (change < 0)
		return -1;
	if (p->tcp_header == TCP_WITH_TIMESTAMPS) {
		if (bpf_skb_store_bytes(ctx, p->l4, &answer, TCP_WITH_TIMESTAMPS, 0))
			return -1;
	} else if (bpf_skb_store_bytes(ctx, p->l4, &answer, TCP_PLAIN, 0)) {
		return -1;
	}
	return bpf_l4_csum_replace(ctx, p->l4 + offsetof(struct tcp_segment, check), 0, change, 0);
}

/*
 * Sends a keepalive back as the answer that the sleeping socket would give. Without one the peer
 * takes the connection for dead after some minutes.
 */
static __always_inline int answer(struct __sk_buff *ctx, __u64 *cookie, const struct packet *p,
				  const struct flow_value *flow)
{
	if (turn_tcp(ctx, p, flow) || turn_ip(ctx) || swap(ctx, 0, ETH_ALEN))
		return drop(cookie);

	struct counters *count = bpf_map_lookup_elem(&counters, cookie);

	if (count)
		__sync_fetch_and_add(&count->answered, 1);
	/* lo wants a route attached, see tap_ingress. */
	if (ctx->ifindex == LOOPBACK_IFINDEX)
		return bpf_redirect_neigh(LOOPBACK_IFINDEX, NULL, 0, 0);
	return bpf_redirect(ctx->ifindex, 0);
}

#endif
