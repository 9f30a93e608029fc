// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Ingress of a pod's eth0 and lo: notes when a container's ports were last used, and while the
 * container sleeps redirects what it must see to the pod's tap instead of letting the kernel,
 * which has no socket for it, answer.
 *
 * Probes are not use, and where the pod has a responder for them they go there.
 */
#include "ignored.bpf.h"
#include "keepalive.bpf.h"
#include "packet.bpf.h"
#include "probes.bpf.h"

GATE_MAP(netns, __u64, struct netns_value, 16384);
GATE_MAP(ports, struct port_key, struct port_value, 65536);
GATE_MAP(flows, struct flow_key, struct flow_value, 131072);

/*
 * A use that follows another within this time is neither noted nor looked at: under load, no packet
 * costs more than a look at the clock, and other CPUs keep their copies of what would be written.
 */
#define USE_TICK_NS (50 * 1000000ULL)

#define TCP_CONTROL (TCP_SYN | TCP_FIN | TCP_RST)

/* Sends a packet to the pod's tap. */
static __always_inline int hold(__u64 *cookie, __u32 tap)
{
	struct counters *count = bpf_map_lookup_elem(&counters, cookie);

	if (count)
		__sync_fetch_and_add(&count->held, 1);
	return bpf_redirect(tap, 0);
}

static __always_inline int is_recent(__u64 last, __u64 now)
{
	return now - last < USE_TICK_NS;
}

/*
 * Nearly every packet: TCP over IPv4, no options, headers in one piece, in the middle of a connection
 * with a port of a container that is awake, and that is in use or asked for nothing. Does for it what the parser and gate_ingress() do for all, in half of the instructions;
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
	    ip->frag_off & bpf_htons(IP_OFFSET_MASK) || tcp->syn || tcp->fin || tcp->rst)
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
	return bpf_ntohs(ip->tot_len) <= sizeof(*ip) + (tcp->doff << 2) ||
	       is_recent(port->activity, bpf_ktime_get_coarse_ns());
}

static __always_inline void note_probe(struct port_value *port)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (port->probe_last) {
		__u64 gap = now - port->probe_last;
		__u64 before = port->probe_gap - port->probe_gap / 4;

		port->probe_gap = gap > before ? gap : before;
	}
	port->probe_last = now;
}

enum sender {
	SENDER_CLIENT,
	SENDER_PROBE, /* for the application */
	SENDER_STEERED, /* for the responder */
};

/* Who has sent a segment that is not a mere acknowledgement. `key` is that of `probes`. */
static __always_inline enum sender sender(const struct packet *p, struct port_value *port,
					  struct netns_value *pod, const struct flow_key *key,
					  __u64 cookie)
{
	struct probe_value *probe = bpf_map_lookup_elem(&probes, key);

	if (!probe || (port && port->flags & PORT_COUNT_PROBES))
		return SENDER_CLIENT;
	if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		if (!probe->time || bpf_ktime_get_ns() - probe->time > PROBE_FRESH_NS) {
			bpf_map_delete_elem(&probes, key);
			return SENDER_CLIENT;
		}
		/* What the shim itself opens comes over lo. */
		if (port && !key->netns) {
			note_probe(port);
			if (port->flags & PORT_STEER)
				probe->steered_to = cookie;
		} else if (pod && !key->netns) {
			pod->other_probe = bpf_ktime_get_coarse_ns();
		}
	} else if (p->tcp_flags & (TCP_FIN | TCP_RST)) {
		probe->time = 0;
	}
	return probe->steered_to ? SENDER_STEERED : SENDER_PROBE;
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
	int used = !tcp || p.payload || (p.tcp_flags & TCP_CONTROL);
	struct port_key key = { .netns = cookie, .port = p.local_port, .proto = p.proto };
	struct port_value *probed = bpf_map_lookup_elem(&ports, &key);
	struct port_value *port = probed && !(probed->flags & PORT_PROBED) ? probed : NULL;
	int awake = port && port->mode == MODE_AWAKE;

	if (awake && !used)
		return GATE_PASS;

	struct netns_value *pod = NULL;

	if (!awake) {
		pod = bpf_map_lookup_elem(&netns, &cookie);
		if (!pod)
			return GATE_PASS;
	}

	struct flow_key flow_key = {
		.local_port = p.local_port,
		.remote_port = p.remote_port,
	};

	__u64 now = bpf_ktime_get_coarse_ns();
	__u64 last = port ? port->activity : pod ? pod->other_activity : now;
	int recent = is_recent(last, now);

	if (awake && recent && !(p.tcp_flags & TCP_CONTROL))
		return GATE_PASS;
	if (load_addresses(ctx, &flow_key))
		return GATE_PASS;

	int counts = used && !recent;

	if (tcp && used && (!recent || p.tcp_flags & TCP_CONTROL)) {
		flow_key.netns = ctx->ifindex == LOOPBACK_IFINDEX ? cookie : 0;
		switch (sender(&p, probed, pod, &flow_key, cookie)) {
		case SENDER_STEERED:
			return GATE_PASS;
		case SENDER_PROBE:
			counts = 0;
			break;
		case SENDER_CLIENT:
			break;
		}
	}
	if (counts && is_ignored(ctx, &p, flow_key.remote))
		counts = 0;
	if (awake) {
		if (counts)
			port->activity = now;
		return GATE_PASS;
	}

	__u32 tap = pod->tap_ifindex;

	/* Somebody in the pod sleeps. */
	if (tap && tcp) {
		flow_key.netns = cookie;

		struct flow_value *flow = bpf_map_lookup_elem(&flows, &flow_key);

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
	if (!counts)
		return GATE_PASS;
	if (port)
		port->activity = now;
	else if (tcp)
		/* No managed port: a connection that the pod has opened. */
		pod->other_activity = now;
	return GATE_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
