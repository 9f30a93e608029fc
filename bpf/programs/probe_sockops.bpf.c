// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Root of the control groups: notes the connections that the node's kubelets open, before the first
 * packet leaves.
 *
 * A kubelet is a process of root's in the node's namespaces with one of the names that the shims have
 * admitted. What runs in a container has other namespaces, whatever it calls itself.
 */
#include "probes.bpf.h"

#define TASK_COMM_LEN 16

struct kubelet_key {
	__u32 mount_namespace;
	__u32 pid_namespace;
	char name[TASK_COMM_LEN];
};

GATE_MAP(kubelets, struct kubelet_key, __u8, 64);

/* The part of the kernel's types that leads from a task to its name, user and namespaces. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct mnt_namespace {
	struct ns_common ns;
} __attribute__((preserve_access_index));

struct pid_namespace {
	struct ns_common ns;
} __attribute__((preserve_access_index));

struct nsproxy {
	struct mnt_namespace *mnt_ns;
} __attribute__((preserve_access_index));

struct upid {
	int nr;
	struct pid_namespace *ns;
} __attribute__((preserve_access_index));

struct pid {
	unsigned int level;
	struct upid numbers[1];
} __attribute__((preserve_access_index));

typedef struct {
	unsigned int val;
} kuid_t;

struct cred {
	kuid_t uid;
} __attribute__((preserve_access_index));

struct task_struct {
	const struct cred *cred;
	struct task_struct *group_leader;
	struct nsproxy *nsproxy;
	struct pid *thread_pid;
	char comm[TASK_COMM_LEN];
} __attribute__((preserve_access_index));

/* The innermost PID namespace that the task has a number in, which is the one that it is in. */
static __always_inline __u32 pid_namespace(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	struct upid *upid = &pid->numbers[0];

	upid = (void *)upid + BPF_CORE_READ(pid, level) * bpf_core_type_size(struct upid);
	return BPF_CORE_READ(upid, ns, ns.inum);
}

static __always_inline int is_kubelet(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct kubelet_key key = {};

	/* The number is that of the first user namespace: what is root only in its own has another. */
	if (BPF_CORE_READ(task, cred, uid.val))
		return 0;
	key.mount_namespace = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	key.pid_namespace = pid_namespace(task);
	/* A thread can have a name of its own. */
	BPF_CORE_READ_STR_INTO(&key.name, task, group_leader, comm);
	return bpf_map_lookup_elem(&kubelets, &key) != NULL;
}

SEC("sockops")
int probe_sockops(struct bpf_sock_ops *ctx)
{
	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB || !is_kubelet())
		return 1;

	struct probe_value value = { .time = bpf_ktime_get_ns() };
	/* Seen from the pod: here is the remote end. */
	struct flow_key key = {
		.local_port = bpf_ntohl(ctx->remote_port),
		.remote_port = ctx->local_port,
	};

	if (ctx->family == AF_INET) {
		put_v4(key.local, ctx->remote_ip4);
		put_v4(key.remote, ctx->local_ip4);
	} else if (ctx->family == AF_INET6) {
		put_v6(key.local, ctx->remote_ip6);
		put_v6(key.remote, ctx->local_ip6);
	} else {
		return 1;
	}
	bpf_map_update_elem(&probes, &key, &value, BPF_ANY);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
