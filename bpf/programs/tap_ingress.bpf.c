// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Ingress of a pod's tap: what the shim writes back goes to the interface it was taken from.
 */
#include "gate.bpf.h"

#include <linux/if_packet.h>

GATE_MAP(netns, __u64, struct netns_value, 16384);
GATE_MAP(counters, __u64, struct counters, 16384);

SEC("classifier")
int tap_ingress(struct __sk_buff *ctx)
{
	__u64 cookie = netns_cookie(ctx);
	struct netns_value *netns_entry = bpf_map_lookup_elem(&netns, &cookie);
	__u32 macs[3] = {};

	if (!netns_entry || bpf_skb_load_bytes(ctx, 0, macs, sizeof(macs)))
		return GATE_DROP;

	struct counters *count = bpf_map_lookup_elem(&counters, &cookie);

	if (count)
		__sync_fetch_and_add(&count->returned, 1);
	/*
	 * Only lo has frames with both addresses zero. They are sent through lo with a route attached,
	 * as the sender's own were: without one the kernel checks a frame from lo like one from outside
	 * and drops it, for its source is an address of this host.
	 */
	if (!(macs[0] | macs[1] | macs[2])) {
		/* Marked as for another host: it is not the tap's address. lo does not look again. */
		bpf_skb_change_type(ctx, PACKET_HOST);
		return bpf_redirect_neigh(LOOPBACK_IFINDEX, 0, 0, 0);
	}
	if (!netns_entry->eth_ifindex)
		return GATE_DROP;
	return bpf_redirect(netns_entry->eth_ifindex, BPF_F_INGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
