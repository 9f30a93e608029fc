//! What the kernel must have, by what it says about how it was built. The self-test uses all of it; this
//! says beforehand, and by name, what is missing.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::GzDecoder;

use crate::files::{self, FileError, failed};
use crate::host::Host;

/// The oldest kernel that has all of it.
const OLDEST: (u32, u32) = (5, 15);

/// Options of the kernel's configuration, and what lacks without them.
const OPTIONS: [(&str, &str); 20] = [
    ("CHECKPOINT_RESTORE", "CRIU cannot look into processes"),
    ("NAMESPACES", "there are no containers"),
    ("UTS_NS", "there are no containers"),
    ("IPC_NS", "there are no containers"),
    ("PID_NS", "there are no containers"),
    ("NET_NS", "there are no containers"),
    (
        "USERFAULTFD",
        "memory cannot be filled in while a container runs: no light sleep, no lazy restore",
    ),
    ("FHANDLE", "CRIU cannot find files that processes watch"),
    ("EVENTFD", "CRIU cannot restore event descriptors"),
    ("EPOLL", "CRIU cannot restore epoll descriptors"),
    ("UNIX_DIAG", "CRIU cannot see Unix sockets"),
    ("INET_DIAG", "neither CRIU nor the gate can see TCP sockets"),
    ("PACKET_DIAG", "CRIU cannot see packet sockets"),
    ("NETLINK_DIAG", "CRIU cannot see netlink sockets"),
    ("BPF_SYSCALL", "the gate's programs cannot be loaded"),
    (
        "CGROUP_BPF",
        "the kubelet's probes cannot be told from other traffic",
    ),
    ("NET_CLS_BPF", "the gate's programs cannot be attached"),
    ("DEBUG_INFO_BTF", "the gate's programs cannot be loaded"),
    (
        "SECCOMP",
        "containers with a seccomp filter cannot be checkpointed",
    ),
    ("TUN", "packets cannot be held for a sleeping container"),
];

/// What was found on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Its release.
    pub release: String,
    /// How it was built, where that can be told.
    pub options: Option<String>,
}

impl Kernel {
    /// Looks at the running one.
    ///
    /// # Errors
    /// When a file of it cannot be read.
    pub fn look(host: &Host) -> Result<Self, FileError> {
        let proc = Path::new("/proc/sys/kernel/osrelease");
        let release = std::fs::read_to_string(proc).map_err(failed("read", proc))?;
        let release = release.trim().to_owned();
        let options = options(host, &release)?;
        Ok(Self { release, options })
    }

    /// What is missing, each with what it is for.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if numbers(&self.release).is_none_or(|found| found < OLDEST) {
            let (major, minor) = OLDEST;
            missing.push(format!(
                "the kernel is Linux {}: {major}.{minor} is the oldest that works",
                self.release
            ));
        }
        let Some(options) = &self.options else {
            return missing;
        };
        let has = |option: &str| {
            let line = |line: &str| {
                let value = line.strip_prefix("CONFIG_")?.strip_prefix(option)?;
                Some(["=y", "=m"].contains(&value))
            };
            options.lines().filter_map(line).any(|set| set)
        };
        for (option, without) in OPTIONS {
            if !has(option) {
                missing.push(format!(
                    "the kernel is built without CONFIG_{option}: {without}"
                ));
            }
        }
        missing
    }
}

/// Where distributions keep it.
fn options(host: &Host, release: &str) -> Result<Option<String>, FileError> {
    let packed = Path::new("/proc/config.gz");
    match File::open(packed) {
        Ok(file) => {
            let mut text = String::new();
            let read = GzDecoder::new(file).read_to_string(&mut text);
            return read.map(|_| Some(text)).map_err(failed("read", packed));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", packed)(error)),
    }
    for path in [
        format!("/boot/config-{release}"),
        format!("/usr/lib/modules/{release}/config"),
        format!("/lib/modules/{release}/config"),
    ] {
        let seen = host.at(&path).map_err(failed("find", Path::new(&path)))?;
        if let Some(text) = files::read(&seen)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(release: &str, without: &[&str]) -> Kernel {
        let options = OPTIONS
            .iter()
            .map(|(option, _)| match without.contains(option) {
                true => format!("# CONFIG_{option} is not set\nCONFIG_{option}_MORE=y\n"),
                false => format!("CONFIG_{option}=m\n"),
            })
            .collect();
        Kernel {
            release: release.into(),
            options: Some(options),
        }
    }

    #[test]
    fn each_option_that_is_missing_is_named_with_what_it_is_for() {
        assert!(kernel("5.15.0-91-generic", &[]).missing().is_empty());
        for (option, without) in OPTIONS {
            let missing = kernel("6.1.0", &[option]).missing();
            let expected = format!("the kernel is built without CONFIG_{option}: {without}");
            assert_eq!(missing, [expected]);
        }
    }

    #[test]
    fn an_old_kernel_is_named_and_one_that_says_nothing_is_left_to_the_self_test() {
        let missing = kernel("5.4.0-1103-azure", &["TUN"]).missing();
        assert_eq!(missing.len(), 2);
        assert!(
            missing[0].contains("Linux 5.4.0-1103-azure: 5.15"),
            "{missing:?}"
        );
        let silent = Kernel {
            options: None,
            ..kernel("6.1.0", &[])
        };
        assert!(silent.missing().is_empty());
    }
}
