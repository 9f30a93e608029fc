//! Where a container's cgroup is, and what it says about the container's use of resources.

mod files;
mod stats_v1;
mod stats_v2;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where cgroup file systems are mounted.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file or folder cannot be read or written.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// `read`, `write` or `look at`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The process is in no cgroup that the shim can see.
    #[error("process {pid} is in no cgroup")]
    None {
        /// The process.
        pid: i32,
    },
    /// The statistics do not encode.
    #[error("encode metrics")]
    Encode {
        /// The encoder's error.
        #[source]
        source: protobuf::Error,
    },
}

/// A cgroup, in all hierarchies that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// One folder for each controller.
    V1(Arc<BTreeMap<String, PathBuf>>),
    /// The one folder of the unified hierarchy.
    V2(PathBuf),
}

impl Cgroup {
    /// The cgroup that a process is in.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn of_process(pid: i32) -> Result<Self, CgroupError> {
        let membership = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
        let cgroup = if is_unified()? {
            unified_path(&membership).map(Self::V2)
        } else {
            let mounts = read(Path::new("/proc/self/mountinfo"))?;
            Some(Self::V1(Arc::new(controller_paths(
                &membership,
                &v1_mounts(&mounts),
            ))))
        };
        cgroup.ok_or(CgroupError::None { pid })
    }

    /// Puts a process into the cgroup of this path, which must exist.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn join(path: &str, pid: u32) -> Result<(), CgroupError> {
        let relative = path.trim_start_matches('/');
        let folders = if is_unified()? {
            vec![Path::new(MOUNT_POINT).join(relative)]
        } else {
            let mounts = read(Path::new("/proc/self/mountinfo"))?;
            let folders = v1_mounts(&mounts)
                .into_values()
                .map(|mount| mount.join(relative));
            folders.filter(|folder| folder.is_dir()).collect()
        };
        for folder in folders {
            let file = folder.join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(|source| CgroupError::File {
                operation: "write",
                path: file,
                source,
            })?;
        }
        Ok(())
    }

    /// The folder of one controller; in the unified hierarchy it is the same for all.
    #[must_use]
    pub fn folder(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V1(folders) => folders.get(controller).map(PathBuf::as_path),
            Self::V2(folder) => Some(folder),
        }
    }

    /// The folders in all hierarchies, each once.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        match self {
            Self::V1(folders) => {
                let different: BTreeSet<_> = folders.values().cloned().collect();
                different.into_iter().collect()
            }
            Self::V2(folder) => vec![folder.clone()],
        }
    }

    /// CPU time used in all; none where the kernel does not count it.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        match self {
            Self::V1(_) => {
                let file = self.folder("cpuacct")?.join("cpuacct.usage");
                fs::read_to_string(file)
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
                    .map(Duration::from_nanos)
            }
            Self::V2(folder) => {
                let stat = fs::read_to_string(folder.join("cpu.stat")).ok()?;
                let usage = stat
                    .lines()
                    .find_map(|line| line.strip_prefix("usage_usec "))?;
                usage.trim().parse().ok().map(Duration::from_micros)
            }
        }
    }

    /// Bytes of memory that belong to no file, of the group and those below it; none where the
    /// kernel does not count them.
    #[must_use]
    pub fn anonymous_memory(&self) -> Option<u64> {
        let name = match self {
            Self::V1(_) => "total_rss",
            Self::V2(_) => "anon",
        };
        let stat = files::Keyed::read(self.folder("memory")?, "memory.stat");
        stat.find(name)
    }

    /// The use of resources, as the metrics message that containerd expects for this hierarchy.
    /// What a kernel does not have is left out.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn metrics(&self) -> Result<Any, CgroupError> {
        let (name, value) = match self {
            Self::V1(_) => (
                "io.containerd.cgroups.v1.Metrics",
                stats_v1::read(self).write_to_bytes(),
            ),
            Self::V2(folder) => {
                fs::metadata(folder).map_err(|source| CgroupError::File {
                    operation: "look at",
                    path: folder.clone(),
                    source,
                })?;
                (
                    "io.containerd.cgroups.v2.Metrics",
                    stats_v2::read(folder).write_to_bytes(),
                )
            }
        };
        let value = value.map_err(|source| CgroupError::Encode { source })?;
        Ok(Any {
            type_url: name.to_owned(),
            value,
            ..Any::default()
        })
    }
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::File {
        operation: "read",
        path: path.to_owned(),
        source,
    })
}

/// Whether the machine has only the unified hierarchy. With a hybrid layout it counts as v1.
fn is_unified() -> Result<bool, CgroupError> {
    let status = statfs(MOUNT_POINT).map_err(|errno| CgroupError::File {
        operation: "look at",
        path: MOUNT_POINT.into(),
        source: errno.into(),
    })?;
    Ok(status.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

fn unified_path(membership: &str) -> Option<PathBuf> {
    let path = membership
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(MOUNT_POINT).join(path))
}

/// Where each controller of version 1 is mounted. Named hierarchies are left out.
fn v1_mounts(mountinfo: &str) -> BTreeMap<String, PathBuf> {
    let mut mounts = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else {
            continue;
        };
        let mut file_system = file_system.split(' ');
        if file_system.next() != Some("cgroup") {
            continue;
        }
        let (Some(mount_point), Some(options)) = (mount.split(' ').nth(4), file_system.nth(1))
        else {
            continue;
        };
        for controller in options.split(',').filter(|option| !option.contains('=')) {
            mounts
                .entry(controller.to_owned())
                .or_insert_with(|| mount_point.into());
        }
    }
    mounts
}

fn controller_paths(
    membership: &str,
    mounts: &BTreeMap<String, PathBuf>,
) -> BTreeMap<String, PathBuf> {
    let mut folders = BTreeMap::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        for controller in controllers.split(',') {
            if let Some(mount) = mounts.get(controller) {
                folders.insert(
                    controller.to_owned(),
                    mount.join(path.trim_start_matches('/')),
                );
            }
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs cgroup rw
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
28 25 0:25 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
29 25 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";

    #[test]
    fn hybrid_paths() {
        let membership = "5:memory:/kubepods/pod1\n4:cpu,cpuacct:/kubepods/pod1\n0::/other\n";
        let folders = controller_paths(membership, &v1_mounts(MOUNTS));
        assert_eq!(
            folders["memory"],
            Path::new("/sys/fs/cgroup/memory/kubepods/pod1")
        );
        assert_eq!(
            folders["cpuacct"],
            Path::new("/sys/fs/cgroup/cpu,cpuacct/kubepods/pod1")
        );
        assert_eq!(folders.len(), 3);
    }

    #[test]
    fn unified_paths() {
        let path = unified_path("0::/kubepods.slice/a.scope\n").unwrap();
        assert_eq!(path, Path::new("/sys/fs/cgroup/kubepods.slice/a.scope"));
        assert_eq!(unified_path("5:memory:/a\n"), None);
    }
}
