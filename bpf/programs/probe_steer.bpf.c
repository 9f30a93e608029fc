// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A pod's network namespace: gives the connection requests of probes that gate_ingress has marked to
 * the pod's responder, whether the application listens or not. Everything else is looked up as ever.
 */
#include "probes.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* cookie of the network namespace */
	__type(value, __u32);
} responders SEC(".maps");

SEC("sk_lookup")
int probe_steer(struct bpf_sk_lookup *ctx)
{
	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;

	struct flow_key key = {
		.local_port = ctx->local_port,
		.remote_port = bpf_ntohs(ctx->remote_port),
	};

	if (ctx->family == AF_INET) {
		put_v4(key.local, ctx->local_ip4);
		put_v4(key.remote, ctx->remote_ip4);
	} else {
		put_v6(key.local, ctx->local_ip6);
		put_v6(key.remote, ctx->remote_ip6);
	}

	struct probe_value *probe = bpf_map_lookup_elem(&probes, &key);

	if (!probe || !probe->steered_to)
		return SK_PASS;

	__u64 netns = probe->steered_to;
	struct bpf_sock *responder = bpf_map_lookup_elem(&responders, &netns);

	if (!responder)
		return SK_PASS;
	bpf_sk_assign(ctx, responder, 0);
	bpf_sk_release(responder);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
