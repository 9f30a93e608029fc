use proptest::prelude::*;

use super::*;

fn list(text: &str) -> Vec<MountInfo> {
    text.lines().map(|line| parse(line).unwrap()).collect()
}

const HOST: &str = "\
20 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
21 20 0:5 / /dev rw,relatime shared:2 - devtmpfs devtmpfs rw
22 20 0:20 / /sys rw - sysfs sysfs rw
23 22 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
24 20 0:40 / /run/containerd/sandboxes/s1/shm rw - tmpfs shm rw
25 20 0:21 / /proc rw - proc proc rw
";

const INSIDE: &str = "\
100 50 254:0 /var/lib/rootfs / rw,relatime master:1 - ext4 /dev/vda rw
101 100 0:60 / /proc rw,nosuid - proc proc rw
102 100 0:61 / /dev rw,nosuid - tmpfs tmpfs rw
103 102 0:62 / /dev/pts rw - devpts devpts rw
104 102 0:40 / /dev/shm rw,nosuid - tmpfs shm rw
105 100 254:0 /var/lib/kubelet/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw
106 100 254:0 /srv/my\\040data /data ro,relatime - ext4 /dev/vda rw
107 100 0:20 / /sys ro - sysfs sysfs rw
108 107 0:63 / /sys/fs/cgroup rw - tmpfs tmpfs rw
109 108 0:25 /pod/c1 /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory
110 101 0:61 /null /proc/keys rw,nosuid - tmpfs tmpfs rw
111 101 0:60 /sys /proc/sys ro - proc proc rw
112 101 0:5 /null /proc/kcore rw - devtmpfs devtmpfs rw
";

fn source(source: &Source) -> String {
    match source {
        Source::Host(path) => path.display().to_string(),
        Source::Tmpfs(tmpfs) => panic!("not of the host: {tmpfs:?}"),
    }
}

fn found(binds: &[(&str, &str)]) -> Vec<(String, String, String)> {
    let binds: Vec<_> = binds
        .iter()
        .map(|(point, source)| (PathBuf::from(point), PathBuf::from(source)))
        .collect();
    choose(&binds, &list(INSIDE), &list(HOST))
        .into_iter()
        .map(|mount| {
            (
                mount.inside.display().to_string(),
                source(&mount.source),
                mount.options,
            )
        })
        .collect()
}

#[test]
fn what_shows_the_host_is_external_and_nothing_else() {
    let points: Vec<_> = found(&[]).into_iter().map(|(point, ..)| point).collect();
    assert_eq!(
        points,
        [
            "/dev/shm",
            "/etc/hosts",
            "/data",
            "/sys/fs/cgroup/memory",
            "/proc/kcore"
        ]
    );
}

#[test]
fn sources_are_found_among_the_host_s_mounts_with_the_options() {
    let mounts = found(&[]);
    let of = |point: &str| mounts.iter().find(|(p, ..)| p == point).unwrap().clone();
    assert_eq!(of("/data").1, "/srv/my data");
    assert_eq!(of("/data").2, "ro,relatime");
    assert_eq!(
        of("/sys/fs/cgroup/memory").1,
        "/sys/fs/cgroup/memory/pod/c1"
    );
    assert_eq!(of("/dev/shm").1, "/run/containerd/sandboxes/s1/shm");
    assert_eq!(of("/proc/kcore").1, "/dev/null");
}

#[test]
fn the_spec_s_source_goes_before_a_guess() {
    let mounts = found(&[("/etc/hosts", "/run/pod/hosts")]);
    let hosts = mounts.iter().find(|(p, ..)| p == "/etc/hosts").unwrap();
    assert_eq!(hosts.1, "/run/pod/hosts");
}

#[test]
fn of_two_mounts_on_one_point_the_upper_one_counts() {
    let inside = format!("{INSIDE}113 106 254:0 /srv/upper /data rw - ext4 /dev/vda rw\n");
    let mounts = choose(&[], &list(&inside), &list(HOST));
    let data: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.inside == Path::new("/data"))
        .collect();
    assert_eq!(data.len(), 1);
    assert_eq!(source(&data[0].source), "/srv/upper");
}

#[test]
fn destinations_are_compared_without_dots_and_slashes() {
    assert_eq!(
        normal(Path::new("etc//./a/../hosts/")),
        Path::new("/etc/hosts")
    );
}

#[test]
fn a_line_of_another_shape_is_an_error() {
    assert_eq!(parse("36 35 98:0 /"), None);
}

proptest! {
    /// A container chooses the names of its mount points.
    #[test]
    fn any_line_is_read_or_refused(
        point in "[a-z\\\\0-9 /é-]{0,20}",
        line in "[ -~]{0,60}",
    ) {
        let _ = parse(&line);
        let _ = unescape(&point);
        let _ = parse(&format!("36 35 98:0 / {point} rw - tmpfs tmpfs rw"));
    }
}
