/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections of probes, as probe_sockops notes them and a shim its own.
 *
 * The only map that programs fill. The oldest entries make room for new ones, so that an end that
 * nobody has seen costs nothing.
 */
#ifndef PODMOTION_PROBES_BPF_H
#define PODMOTION_PROBES_BPF_H

#include "gate.bpf.h"

struct probe_value {
	__u64 steered_to; /* cookie of the network namespace whose responder has it, or 0 */
	__u64 time; /* when it was opened, ns; 0 once it has ended */
};

/*
 * The key's netns is 0, for the namespace that a connection comes from is not the one that it goes
 * to. Only over lo, whose addresses say nothing by themselves, it is that of the connection.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct probe_value);
} probes SEC(".maps");

/*
 * A connection request that comes later than this after the connection was noted is another's that
 * has got the same addresses and ports, such as a masqueraded client.
 */
#define PROBE_FRESH_NS (60 * 1000000000ULL)

#define AF_INET 2
#define AF_INET6 10

static __always_inline void put_v4(__u8 *to, __u32 ip)
{
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &ip, sizeof(ip));
}

/* The four words of an address are fields of a program's context, which are read one by one. */
#define put_v6(to, words)                                                                          \
	do {                                                                                       \
		for (int i = 0; i < 4; i++) {                                                      \
			__u32 word = *(volatile __u32 *)&(words)[i];                               \
                                                                                                   \
			__builtin_memcpy((to) + 4 * i, &word, sizeof(word));                       \
		}                                                                                  \
	} while (0)

#endif
