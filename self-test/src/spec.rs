//! The runtime specification of the self-test's containers, as CRI makes a pod's.

use std::path::Path;

use serde_json::{Value, json};

use crate::client::NAMESPACE;
use crate::scenario::Depth;

/// Type URLs under which containerd passes JSON of the runtime specification.
pub(crate) const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
pub(crate) const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// The name of the container that sleeps.
pub(crate) const APP: &str = "app";

/// Where a container sees the program.
const PROGRAM: &str = "/podmotion-self-test-app";

/// What containerd allows root in a container.
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What both containers of a pod have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod<'a> {
    /// The sandbox's id.
    pub(crate) sandbox: &'a str,
    /// How deep it sleeps.
    pub(crate) depth: Depth,
    /// The program on the node.
    pub(crate) app: &'a Path,
    /// Where the node puts control groups, and whether systemd makes them.
    pub(crate) cgroups: Cgroups<'a>,
}

/// Where control groups go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cgroups<'a> {
    /// systemd makes them.
    pub(crate) systemd: bool,
    /// What they are in, if not in what is always there.
    pub(crate) parent: Option<&'a str>,
}

impl Cgroups<'_> {
    /// `linux.cgroupsPath` of a container.
    fn path(self, id: &str) -> String {
        match (self.systemd, self.parent) {
            (true, parent) => format!("{}:podmotion:{id}", parent.unwrap_or("system.slice")),
            (false, parent) => format!("{}/{id}", parent.unwrap_or("").trim_end_matches('/')),
        }
    }
}

impl Pod<'_> {
    /// The sandbox, which keeps the namespaces.
    pub(crate) fn sandbox(&self) -> Value {
        self.container(
            self.sandbox,
            "sandbox",
            &["pause"],
            &|kind| json!({ "type": kind }),
        )
    }

    /// The application in the namespaces of the sandbox, whose process is `pid` on the node.
    pub(crate) fn app(&self, id: &str, pid: u32, command: &[&str]) -> Value {
        self.container(id, "container", command, &|kind| {
            let link = match kind {
                "network" => "net",
                kind => kind,
            };
            json!({ "type": kind, "path": format!("/proc/{pid}/ns/{link}") })
        })
    }

    fn container(
        &self,
        id: &str,
        kind: &str,
        command: &[&str],
        shared: &dyn Fn(&str) -> Value,
    ) -> Value {
        let own = ["pid", "mount"].map(|kind| json!({ "type": kind }));
        let namespaces: Vec<_> = own
            .into_iter()
            .chain(["network", "ipc", "uts"].map(shared))
            .collect();
        let mut mounts = system_mounts();
        mounts.push(
            json!({"destination": PROGRAM, "type": "bind", "source": self.app,
            "options": ["bind", "ro"]}),
        );
        json!({
            "ociVersion": "1.0.2",
            "process": process(command),
            "root": {"path": "rootfs"},
            "mounts": mounts,
            "annotations": self.annotations(kind),
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "cgroupsPath": self.cgroups.path(id),
                "namespaces": namespaces,
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/scsi", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                    "/proc/sysrq-trigger"],
            },
        })
    }

    fn annotations(&self, kind: &str) -> Value {
        json!({
            "io.kubernetes.cri.container-type": kind,
            "io.kubernetes.cri.sandbox-id": self.sandbox,
            "io.kubernetes.cri.sandbox-namespace": NAMESPACE,
            "io.kubernetes.cri.sandbox-name": self.depth.as_str(),
            "io.kubernetes.cri.container-name": APP,
            "komodor.com/podmotion-scaledown-duration": "1h",
            "komodor.com/podmotion-deep-sleep-after": match self.depth {
                Depth::Light => "never",
                Depth::Deep => "0",
            },
        })
    }
}

/// A process of a container: the program with `arguments`.
pub(crate) fn process(arguments: &[&str]) -> Value {
    let words: Vec<_> = [PROGRAM]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    json!({
        "terminal": false,
        "user": {"uid": 0, "gid": 0},
        "args": words,
        "env": ["PATH=/"],
        "cwd": "/",
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": CAPABILITIES,
            "permitted": CAPABILITIES,
        },
        "noNewPrivileges": true,
    })
}

fn system_mounts() -> Vec<Value> {
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_are_where_they_leave_nothing() {
        let path = |systemd, parent| Cgroups { systemd, parent }.path("one");
        assert_eq!(path(false, None), "/one");
        assert_eq!(path(false, Some("/test/")), "/test/one");
        assert_eq!(path(true, None), "system.slice:podmotion:one");
        assert_eq!(path(true, Some("a.slice")), "a.slice:podmotion:one");
    }

    #[test]
    fn the_application_joins_the_sandbox() {
        let pod = Pod {
            sandbox: "box",
            depth: Depth::Deep,
            app: Path::new("/opt/app"),
            cgroups: Cgroups {
                systemd: false,
                parent: None,
            },
        };
        let app = pod.app("one", 7, &["serve"]);
        let namespaces = app["linux"]["namespaces"].as_array().unwrap();
        let network = namespaces.iter().find(|one| one["type"] == "network");
        assert_eq!(network.unwrap()["path"], "/proc/7/ns/net");
        let pid = namespaces.iter().find(|one| one["type"] == "pid").unwrap();
        assert_eq!(pid["path"], Value::Null);
        assert_eq!(
            app["annotations"]["komodor.com/podmotion-deep-sleep-after"],
            "0"
        );
        assert_eq!(app["process"]["args"], json!([PROGRAM, "serve"]));
        let network = &pod.sandbox()["linux"]["namespaces"][2];
        assert_eq!(*network, json!({"type": "network"}));
    }
}
