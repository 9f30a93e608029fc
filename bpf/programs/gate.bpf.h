/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the gate's programs share: the maps' layout (mirrored by src/layout.rs), the identity of the
 * network namespace and the parser.
 *
 * The maps belong to user space, all but that of probes. A program only looks entries up and changes
 * numbers inside of them, it never creates one: what user space removes stays removed, and no packet
 * can fill a map.
 */
#ifndef PODMOTION_GATE_BPF_H
#define PODMOTION_GATE_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Let other programs on the interface, and then the stack, see the packet. */
#define GATE_PASS TC_ACT_UNSPEC
#define GATE_DROP TC_ACT_SHOT

/* The kernel gives every network namespace's loopback this index. */
#define LOOPBACK_IFINDEX 1

#define MODE_AWAKE 0
#define MODE_HOLD 1
/* Awake, but a sleeping container of the pod has connections with this port. */
#define MODE_SHARED 2

/* Probes go to the responder of the network namespace. */
#define PORT_STEER 1
/* Probes are use. */
#define PORT_COUNT_PROBES 2
/* To everything but probes the port is one that nobody has. */
#define PORT_PROBED 4

#define IP_OFFSET_MASK 0x1fff
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct netns_value {
	__u32 tap_ifindex; /* 0 while nobody in the pod is held */
	__u32 eth_ifindex; /* 0 for a pod with nothing but its loopback */
	__u64 other_activity; /* last use of a TCP port that is not managed, ns */
	__u64 other_probe; /* last connection request of a probe for such a port, ns */
};

struct port_key {
	__u64 netns;
	__u16 port; /* host order */
	__u8 proto;
	__u8 pad[5];
};

struct port_value {
	__u32 container;
	__u16 mode;
	__u16 flags;
	__u64 activity; /* last use, ns */
	__u64 probe_last; /* last connection request of a probe, ns */
	__u64 probe_gap; /* the longest recent time between two of them, ns */
};

struct flow_key {
	__u64 netns;
	__u8 local[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 remote[16];
	__u16 local_port; /* host order */
	__u16 remote_port;
	__u32 pad;
};

struct flow_value {
	__u32 container;
	__u32 rcv_nxt; /* the next byte that the sleeping socket waits for */
	__u32 snd_nxt; /* the next that it would send */
	__u16 window; /* as in its segments; 0 while nothing but the container is known */
	__u16 alive; /* the socket is there: the kernel answers what asks for nothing */
};

struct counters {
	__u64 held;
	__u64 dropped;
	__u64 answered;
	__u64 returned;
};

/*
 * BPF_F_NO_PREALLOC: few of the entries a node may need exist at a time, and entries are only
 * created from user space, where allocation is cheap to wait for.
 */
#define GATE_MAP(name, key_type, value_type, entries)                                              \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_HASH);                                                   \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
		__uint(max_entries, entries);                                                      \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	} name SEC(".maps")

/* The part of the kernel's types that leads from a packet to its network namespace. */
struct net {
	__u64 net_cookie;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct net_device {
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
} __attribute__((preserve_access_index));

#ifdef GATE_KERNEL_CONTEXT
/*
 * The packet as the kernel has it, with its fields read by plain loads: the kernel function
 * bpf_cast_to_kern_ctx() of Linux 6.2, which costs nothing. The loader puts its number, another one
 * in every kernel, in place of this one.
 */
#define GATE_CAST_TO_KERNEL_CONTEXT 0x706f646d

static __always_inline struct sk_buff *kernel_context(struct __sk_buff *ctx)
{
	struct sk_buff *skb;

	asm volatile("r1 = %[ctx]\n\t"
		     "call %[function]\n\t"
		     "%[skb] = r0"
		     : [skb] "=r"(skb)
		     : [ctx] "r"(ctx), [function] "i"(GATE_CAST_TO_KERNEL_CONTEXT)
		     : "r0", "r1", "r2", "r3", "r4", "r5");
	return skb;
}
#endif

/*
 * The cookie of the network namespace that the packet is in. bpf_get_netns_cookie(), which programs
 * of this type have since Linux 6.15, is no help: it tells that of the packet's socket, and without
 * one, as nearly always on ingress, that of the first namespace.
 */
static __always_inline __u64 netns_cookie(struct __sk_buff *ctx)
{
#ifdef GATE_KERNEL_CONTEXT
	return kernel_context(ctx)->dev->nd_net.net->net_cookie;
#else
	struct sk_buff *skb = (struct sk_buff *)ctx;

	return BPF_CORE_READ(skb, dev, nd_net.net, net_cookie);
#endif
}

#endif
