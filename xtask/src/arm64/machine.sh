#!/bin/busybox sh
# First process of the emulated machine: gets it going, takes its steps and switches it off.
# Each step ends with a line that `cargo xtask arm64` reads.

if [ "$1" != inside ]; then
    # runc cannot leave the kernel's first root file system: everything moves to another.
    /bin/busybox mount -t tmpfs -o size=80% root /new
    /bin/busybox cp -a /bin /opt /modules /image.tar /init /new/
    cd /new || exit
    /bin/busybox mkdir -p dev etc proc root run sys tmp var/lib
    exec /bin/busybox switch_root /new /init inside
fi

/bin/busybox --install -s /bin
export PATH=/opt/podmotion/bin:/opt/containerd/bin:/opt/runc/bin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
while read -r module; do
    insmod "/modules/$module.ko" || echo "no module $module"
done </modules/order
ip link set lo up

step() {
    name=$1
    shift
    if "$@"; then
        echo "step passed: $name"
    else
        echo "step failed: $name"
    fi
}

# Waits for at most a minute until a command succeeds.
within_a_minute() {
    tries=300
    until "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        usleep 200000
    done
}

criu_has_all_it_needs() {
    /opt/podmotion/criu/bin/criu check
}

kernel_takes_the_programs() {
    podmotion-installer bpf --mount
}

# Of the checks those that look at the node, not at its containerd.
node_is_fit() {
    podmotion check kernel-version userfaultfd pidfd-getfd suspend-seccomp pagemap-scan freezer btf tun \
        bpf-load bpf-pins gate runc criu criu-kernel
}

checkpoint_and_restore() {
    podmotion check self-test
}

containerd_answers() {
    containerd >/run/containerd.log 2>&1 &
    within_a_minute ctr version >/dev/null 2>&1 && ctr images import /image.tar
}

# A network namespace as a pod has it, and an interface that leads there.
pod_network() {
    mkdir -p /run/netns
    touch /run/netns/pod
    unshare --net=/run/netns/pod ip link set lo up &&
        in_pod ip link add eth0 type veth &&
        in_pod ip link set veth0 netns 1 &&
        in_pod ip addr add 10.77.0.2/24 dev eth0 &&
        in_pod ip link set eth0 up &&
        ip addr add 10.77.0.1/24 dev veth0 &&
        ip link set veth0 up
}

in_pod() {
    nsenter --net=/run/netns/pod "$@"
}

ask() {
    nc 10.77.0.2 "$port" </dev/null
}

# Its count, who asked, and that its memory is as it was.
answers() {
    case $(ask) in
    "$1 "*" whole") ;;
    *) return 1 ;;
    esac
}

is_asleep() {
    podmotion ps | tee /dev/stderr | grep -q "$1"
}

# A container that counts in its memory falls asleep, and the next connection wakes it: it goes on counting.
sleep_and_wake() {
    id=$1 port=$2 depth=$3 annotation=$4
    ctr run --detach --runtime io.containerd.podmotion.v1 --with-ns network:/run/netns/pod \
        --mount type=bind,src=/opt/podmotion/bin,dst=/opt,options=rbind:ro \
        --annotation "komodor.com/podmotion-ports-map=$id=$port" --annotation "$annotation" \
        podmotion.test/busybox:1 "$id" /opt/podmotion-self-test-app serve "$port" 16 || return
    within_a_minute answers 1 || return
    answers 2 || return
    podmotion sleep "$id" || return
    is_asleep "$depth" || return
    answers 3 || return
    podmotion inspect "$id"
    answers 4 || return
    # The next one is in the same network.
    ctr tasks rm --force "$id"
}

for program in /opt/podmotion/bin/*; do
    echo "$program"
done
step "CRIU finds all that it needs in the kernel" criu_has_all_it_needs
step "the kernel takes the BPF programs" kernel_takes_the_programs
step "the node is fit" node_is_fit
step "a process is checkpointed and restored" checkpoint_and_restore
step "containerd answers" containerd_answers
step "a pod's network is there" pod_network
step "a container sleeps light and wakes" sleep_and_wake light 8080 light komodor.com/podmotion-deep-sleep-after=never
step "a container sleeps deep and wakes" sleep_and_wake deep 8081 deep komodor.com/podmotion-deep-sleep-after=0
echo "steps ended"
poweroff -f
