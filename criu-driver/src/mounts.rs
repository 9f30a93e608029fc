//! Which of a container's mounts are external to CRIU, and where they come from.
//!
//! CRIU dumps and makes anew what has no other home: `proc`, `sysfs`, `mqueue`, `devpts`, and a
//! `tmpfs` that only the container has, unless it is a small one ([`tmpfs`](crate::tmpfs)). Every
//! mount that shows something of the host is external: bind mounts, cgroup hierarchies, devices, a
//! `tmpfs` of the pod.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::spec::{Mount, Spec};
use crate::subject::{ExternalMount, Source};
use crate::tmpfs::Tmpfs;

/// The mounts of a container cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A list of mounts cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The list.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A line of such a list is not as documented in proc(5).
    #[error("{} has the line {line:?}", path.display())]
    Format {
        /// The list.
        path: PathBuf,
        /// The line.
        line: String,
    },
}

/// One line of `/proc/<pid>/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// `major:minor` of the file system.
    pub device: String,
    /// What of the file system is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Options of this mount alone.
    pub options: String,
    /// Type of the file system.
    pub kind: String,
    /// Options of the file system.
    pub super_options: String,
}

/// The external mounts of the running container with the init process `pid`.
///
/// `rootfs` bind sources are taken from the container's OCI spec; for whatever else shows the
/// host, the source is found among the caller's own mounts.
///
/// # Errors
/// When the mounts of the process or of the caller cannot be read.
pub fn external(spec: &Spec, pid: i32) -> Result<Vec<ExternalMount>, MountError> {
    let inside = read(&PathBuf::from(format!("/proc/{pid}/mountinfo")))?;
    let host = read(Path::new("/proc/self/mountinfo"))?;
    let mut mounts = choose(&binds(spec), &inside, &host);
    for mount in &mut mounts {
        // CRIU does not follow a symbolic link there: it would bind the link itself.
        if let Source::Host(path) = &mut mount.source
            && let Ok(real) = fs::canonicalize(&path)
        {
            *path = real;
        }
    }
    // In a user namespace, owners are not what they look like from here.
    if spec.namespace("user").is_none() {
        let own = inside.iter().filter(|mount| dumped_by_criu(mount, &host));
        for mount in own {
            let Some(tmpfs) = Tmpfs::look(pid, mount, &inside) else {
                continue;
            };
            mounts.push(ExternalMount {
                inside: mount.point.clone(),
                source: Source::Tmpfs(tmpfs),
                options: mount.options.clone(),
            });
        }
    }
    Ok(mounts)
}

/// Destination and source of the bind mounts in a spec.
fn binds(spec: &Spec) -> Vec<(PathBuf, PathBuf)> {
    let is_bind = |mount: &Mount| {
        let option = |option: &String| option == "bind" || option == "rbind";
        mount.kind == "bind" || mount.options.iter().any(option)
    };
    spec.mounts
        .iter()
        .filter(|mount| is_bind(mount))
        .filter_map(|mount| Some((normal(&mount.destination), mount.source.clone()?)))
        .collect()
}

/// Without `.`, `..` and double slashes; always absolute.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            _ => {}
        }
    }
    result
}

fn choose(
    binds: &[(PathBuf, PathBuf)],
    inside: &[MountInfo],
    host: &[MountInfo],
) -> Vec<ExternalMount> {
    let mut result: Vec<ExternalMount> = Vec::new();
    for mount in inside {
        let root = Path::new("/");
        if mount.point == root || dumped_by_criu(mount, host) {
            continue;
        }
        // Of several on one point, the last is the one that shows; a spec may say so too.
        let by_spec = binds.iter().rev().find(|(point, _)| *point == mount.point);
        let source = match by_spec {
            Some((_, source)) => Some(source.clone()),
            None => on_host(mount, host),
        };
        let Some(source) = source else {
            // CRIU knows better than to guess: it dumps the mount or says why not.
            continue;
        };
        result.retain(|known| known.inside != mount.point);
        result.push(ExternalMount {
            inside: mount.point.clone(),
            source: Source::Host(source),
            options: mount.options.clone(),
        });
    }
    result
}

/// File systems that belong to the container alone.
fn dumped_by_criu(mount: &MountInfo, host: &[MountInfo]) -> bool {
    match mount.kind.as_str() {
        "proc" | "sysfs" | "mqueue" | "devpts" | "tmpfs" => {
            !host.iter().any(|other| other.device == mount.device)
                || mount.kind == "proc"
                || mount.kind == "sysfs"
        }
        _ => false,
    }
}

/// Where the caller sees what `mount` shows.
fn on_host(mount: &MountInfo, host: &[MountInfo]) -> Option<PathBuf> {
    host.iter()
        .filter(|other| other.device == mount.device)
        .filter_map(|other| {
            let rest = mount.root.strip_prefix(&other.root).ok()?;
            Some((other.root.as_os_str().len(), other.point.join(rest)))
        })
        // The closest mount, and of those the first, which nothing mounted later can be below.
        .max_by_key(|(length, path)| (*length, std::cmp::Reverse(path.as_os_str().len())))
        .map(|(_, path)| normal(&path))
}

fn read(path: &Path) -> Result<Vec<MountInfo>, MountError> {
    let text = fs::read_to_string(path).map_err(|source| MountError::Read {
        path: path.to_owned(),
        source,
    })?;
    text.lines()
        .map(|line| {
            parse(line).ok_or_else(|| MountError::Format {
                path: path.to_owned(),
                line: line.to_owned(),
            })
        })
        .collect()
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`
fn parse(line: &str) -> Option<MountInfo> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(2);
    let mut file_system = after.split(' ');
    Some(MountInfo {
        device: fields.next()?.to_owned(),
        root: unescape(fields.next()?),
        point: unescape(fields.next()?),
        options: fields.next()?.to_owned(),
        kind: file_system.next()?.to_owned(),
        super_options: file_system.nth(1)?.to_owned(),
    })
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let field = field.as_bytes();
    let mut result = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                result.push(value);
                rest = &after[3..];
            }
            None => {
                result.push(byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(result).into()
}

#[cfg(test)]
mod tests;
