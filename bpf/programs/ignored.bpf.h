/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Traffic that the node's configuration says is not use: of some networks, and HTTP/1 requests of
 * some user agents.
 */
#ifndef PODMOTION_IGNORED_BPF_H
#define PODMOTION_IGNORED_BPF_H

#include "packet.bpf.h"

#define MAX_AGENTS 8
#define MAX_AGENT 32
/* How much of a segment is searched for the user agent. */
#define MAX_HEAD 512

struct ignored {
	__u32 networks; /* how many there are */
	__u32 agents;
	__u8 agent_lengths[MAX_AGENTS];
	__u8 agent[MAX_AGENTS][MAX_AGENT];
};

struct network_key {
	__u32 prefix; /* bits */
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
};

/* The beginning of a segment, and room to read past its end: too much for the stack. */
struct head {
	__u8 bytes[MAX_HEAD + MAX_AGENT + 8];
	__u32 agent; /* where the user agent begins */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ignored);
} ignored SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, struct network_key);
	__type(value, __u8);
} ignored_networks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct head);
} heads SEC(".maps");

static __always_inline int is_ignored_network(const __u8 *remote)
{
	struct network_key key = { .prefix = 128 };

	__builtin_memcpy(key.address, remote, sizeof(key.address));
	return bpf_map_lookup_elem(&ignored_networks, &key) != NULL;
}

/*
 * Whether the TCP payload at `offset` is a request whose user agent begins as an ignored one. By
 * itself, so that the verifier walks its loops once.
 */
__noinline int is_ignored_agent(struct __sk_buff *ctx, __u32 offset, __u32 length)
{
	/* "\nuser-agent:", each byte with the bit that makes capitals small. */
	const __u64 line = 0x67612d726573752aULL;
	const __u32 rest = 0x3a746e65;
	const __u64 small = 0x2020202020202020ULL;
	__u32 zero = 0, at;
	struct ignored *list = bpf_map_lookup_elem(&ignored, &zero);
	struct head *head = bpf_map_lookup_elem(&heads, &zero);

	if (!list || !head)
		return 0;
	if (length > MAX_HEAD)
		length = MAX_HEAD;
	if (!length || bpf_skb_load_bytes(ctx, offset, head->bytes, length))
		return 0;
	for (at = 0; at < MAX_HEAD; at++) {
		__u64 *begin = (__u64 *)(head->bytes + at);
		__u32 *end = (__u32 *)(head->bytes + at + 8);

		if (at + 12 >= length)
			return 0;
		if ((*begin | small) == line && (*end | (__u32)small) == rest && head->bytes[at] == '\n')
			break;
	}
	/* Through memory: the verifier is to forget which of the places it is. */
	*(volatile __u32 *)&head->agent = at + 12;
	at = *(volatile __u32 *)&head->agent & (MAX_HEAD - 1);
	if (head->bytes[at] == ' ')
		at++;
	for (__u32 i = 0; i < MAX_AGENTS && i < list->agents; i++) {
		__u32 wanted = list->agent_lengths[i];

		if (at + wanted > length)
			continue;
		for (__u32 k = 0; k < MAX_AGENT; k++) {
			if (k >= wanted)
				return 1;
			if (head->bytes[at + k] != list->agent[i][k])
				break;
			if (k + 1 == MAX_AGENT)
				return 1;
		}
	}
	return 0;
}

/*
 * Whether a packet does not count although it is one that would. With user agents to look for, the
 * beginning and the end of a connection say nothing about use: its requests do.
 */
static __always_inline int is_ignored(struct __sk_buff *ctx, const struct packet *p, const __u8 *remote)
{
	__u32 zero = 0;
	struct ignored *list = bpf_map_lookup_elem(&ignored, &zero);

	if (!list)
		return 0;
	if (list->networks && is_ignored_network(remote))
		return 1;
	if (!list->agents || p->proto != IPPROTO_TCP)
		return 0;
	return !p->payload || is_ignored_agent(ctx, p->l4 + p->tcp_header, p->payload);
}

#endif
