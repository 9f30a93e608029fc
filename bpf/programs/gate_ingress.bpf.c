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
GATE_MAP(flows, struct flow_key, struct flow_value, 131072);
GATE_MAP(counters, __u64, struct counters, 16384);

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

/* Without a write if the clock has not ticked: other CPUs keep their copies. */
static __always_inline void note(__u64 *last)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (*last != now)
		*last = now;
}

/*
 * Nearly every packet: TCP over IPv4, no options, headers in one piece, to a port of a container that
 * is awake. Does for it what the parser and gate_ingress() do for all, in half of the instructions;
 * whatever is different is left to them. Returns whether the packet has been seen to.
 */
static __always_inline int is_usual(struct __sk_buff *ctx, __u64 cookie)
{
	const struct iphdr *ip = (void *)(long)ctx->data + ETH_HLEN;
	const struct tcphdr *tcp = (const void *)(ip + 1);
	/* Version and length of the header. */
	const __u8 plain = 0x45;

	if ((void *)(tcp + 1) > (void *)(long)ctx->data_end || ctx->protocol != bpf_htons(ETH_P_IP) ||
	    *(const __u8 *)ip != plain || ip->protocol != IPPROTO_TCP || !ip->tot_len ||
	    ip->frag_off & bpf_htons(IP_OFFSET_MASK))
		return 0;

	/* The key's second half in one store: it is read in one piece, which must not wait for two. */
	struct port_key key = { .netns = cookie };
	__u64 half = bpf_ntohs(tcp->dest) | IPPROTO_TCP << 16;

	_Static_assert(offsetof(struct port_key, port) == 8 && offsetof(struct port_key, proto) == 10 &&
			       sizeof(key) == 16,
		       "layout");
	__builtin_memcpy(&key.port, &half, sizeof(half));

	struct port_value *port = bpf_map_lookup_elem(&ports, &key);

	if (!port || port->mode != MODE_AWAKE)
		return 0;
	if (tcp->syn || tcp->fin || tcp->rst ||
	    bpf_ntohs(ip->tot_len) > sizeof(*ip) + (tcp->doff << 2))
		note(&port->activity);
	return 1;
}

SEC("classifier")
int gate_ingress(struct __sk_buff *ctx)
{
	__u64 cookie = netns_cookie(ctx);

	if (is_usual(ctx, cookie))
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
	struct port_value *port = bpf_map_lookup_elem(&ports, &key);

	if (port && port->mode == MODE_AWAKE) {
		if (used)
			note(&port->activity);
		return GATE_PASS;
	}

	struct netns_value *pod = bpf_map_lookup_elem(&netns, &cookie);

	if (!pod)
		return GATE_PASS;

	__u32 tap = pod->tap_ifindex;

	/* Somebody in the pod sleeps. */
	if (tap && tcp) {
		struct flow_key flow_key = {
			.netns = cookie,
			.local_port = p.local_port,
			.remote_port = p.remote_port,
		};
		struct flow_value *flow = NULL;

		if (!load_addresses(ctx, &flow_key))
			flow = bpf_map_lookup_elem(&flows, &flow_key);
		if (flow && used)
			return hold(&cookie, tap);
		if (flow && flow->alive)
			return GATE_PASS;
		if (flow)
			return is_keepalive(&p, flow) ? answer(ctx, &cookie, &p, flow) :
							drop(&cookie);
	}

	int asks = !tcp || (p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;

	if (tap && asks && port && port->mode == MODE_HOLD)
		return hold(&cookie, tap);
	if (!used)
		return GATE_PASS;
	if (port)
		note(&port->activity);
	else if (tcp)
		/* No managed port: a connection that the pod has opened. */
		note(&pod->other_activity);
	return GATE_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
