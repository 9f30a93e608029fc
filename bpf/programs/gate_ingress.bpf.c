// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Ingress of a pod's eth0 and lo: notes when a container's ports were last used, and while the
 * container sleeps redirects what it must see to the pod's tap instead of letting the kernel,
 * which has no socket for it, answer.
 */
#include "gate.bpf.h"

#include <stddef.h>

/* IPv6 extension headers followed before a packet is given up on and passed. */
#define MAX_EXTENSIONS 6

GATE_MAP(netns, __u64, struct netns_value, 16384);
GATE_MAP(ports, struct port_key, struct port_value, 65536);
GATE_MAP(activity, struct port_key, __u64, 65536);
GATE_MAP(other_activity, __u64, __u64, 16384);
GATE_MAP(flows, struct flow_key, __u32, 131072);
GATE_MAP(counters, __u64, struct counters, 16384);

struct packet {
	__u16 local_port;
	__u16 remote_port;
	__u8 proto;
	__u8 tcp_flags;
	__u32 payload; /* bytes behind the TCP header */
};

struct l4 {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
};

struct extension {
	__u8 next;
	__u8 length;
	__be16 fragment_offset;
};

/* bpf_skb_load_bytes(), without the call for the usual packet whose headers are in one piece. */
static __always_inline int load(struct __sk_buff *ctx, __u32 offset, void *to, __u32 size)
{
	void *from = (void *)(long)ctx->data + offset;

	if (from + size > (void *)(long)ctx->data_end)
		return bpf_skb_load_bytes(ctx, offset, to, size);
	__builtin_memcpy(to, from, size);
	return 0;
}

/* `end` is where the IP packet ends, which is not where a padded frame does. */
static __always_inline int parse_l4(struct __sk_buff *ctx, __u32 offset, __u32 end, struct packet *p)
{
	struct l4 l4 = {};

	if (p->proto == IPPROTO_TCP) {
		if (load(ctx, offset, &l4, sizeof(l4)))
			return -1;
		__u32 data = offset + ((l4.offset >> 4) << 2);
		p->tcp_flags = l4.flags;
		p->payload = end > data ? end - data : 0;
	} else if (p->proto == IPPROTO_UDP) {
		if (load(ctx, offset, &l4, 4))
			return -1;
	} else {
		return -1;
	}
	p->local_port = bpf_ntohs(l4.dest);
	p->remote_port = bpf_ntohs(l4.source);
	return 0;
}

static __always_inline int parse_v4(struct __sk_buff *ctx, struct packet *p)
{
	struct iphdr ip;

	if (load(ctx, ETH_HLEN, &ip, sizeof(ip)))
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
	struct ipv6hdr ip;
	__u32 offset = ETH_HLEN + sizeof(ip);

	if (load(ctx, ETH_HLEN, &ip, sizeof(ip)))
		return -1;
	__u32 length = bpf_ntohs(ip.payload_len);
	__u32 end = length ? offset + length : ctx->len;
	__u8 next = ip.nexthdr;

	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension ext;

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

		return load(ctx, source, flow->remote, 16) || load(ctx, source + 16, flow->local, 16);
	}
	__u32 source = ETH_HLEN + offsetof(struct iphdr, saddr);

	flow->remote[10] = flow->remote[11] = 0xff;
	flow->local[10] = flow->local[11] = 0xff;
	return load(ctx, source, flow->remote + 12, 4) || load(ctx, source + 4, flow->local + 12, 4);
}

/* Sends a packet to the pod's tap. */
static __always_inline int hold(__u64 *cookie, __u32 tap)
{
	struct counters *count = bpf_map_lookup_elem(&counters, cookie);

	if (count)
		__sync_fetch_and_add(&count->held, 1);
	return bpf_redirect(tap, 0);
}

/* Drops a packet that is for a sleeping connection and asks for nothing. */
static __always_inline int drop(__u64 *cookie)
{
	struct counters *count = bpf_map_lookup_elem(&counters, cookie);

	if (count)
		__sync_fetch_and_add(&count->dropped, 1);
	return GATE_DROP;
}

SEC("classifier")
int gate_ingress(struct __sk_buff *ctx)
{
	__u64 cookie = netns_cookie(ctx);
	struct netns_value *pod = bpf_map_lookup_elem(&netns, &cookie);

	if (!pod)
		return GATE_PASS;

	struct packet p = {};
	int unknown = -1;

	if (ctx->protocol == bpf_htons(ETH_P_IP))
		unknown = parse_v4(ctx, &p);
	else if (ctx->protocol == bpf_htons(ETH_P_IPV6))
		unknown = parse_v6(ctx, &p);
	if (unknown)
		return GATE_PASS;

	int tcp = p.proto == IPPROTO_TCP;
	/* A segment that only acknowledges, or keeps alive, says nothing about use. */
	int used = !tcp || p.payload || (p.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
	struct port_key key = { .netns = cookie, .port = p.local_port, .proto = p.proto };
	__u32 tap = pod->tap_ifindex;

	/* Somebody in the pod sleeps. */
	if (tap) {
		struct flow_key flow = {
			.netns = cookie,
			.local_port = p.local_port,
			.remote_port = p.remote_port,
		};

		if (tcp && !load_addresses(ctx, &flow) && bpf_map_lookup_elem(&flows, &flow))
			return used ? hold(&cookie, tap) : drop(&cookie);

		struct port_value *port = bpf_map_lookup_elem(&ports, &key);
		int asks = !tcp || (p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;

		if (port && port->mode == MODE_HOLD && asks)
			return hold(&cookie, tap);
	}
	if (!used)
		return GATE_PASS;

	__u64 *last = bpf_map_lookup_elem(&activity, &key);

	/* No managed port: for TCP, a connection that the pod has opened. */
	if (!last && tcp)
		last = bpf_map_lookup_elem(&other_activity, &cookie);
	if (last)
		*last = bpf_ktime_get_coarse_ns();
	return GATE_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
