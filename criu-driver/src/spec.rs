//! What is used of a bundle's `config.json`. No more of it is read: every container has a shim that keeps this.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

/// The configuration, in its bundle.
const FILE: &str = "config.json";

/// Why a bundle's configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file is not an OCI configuration.
    #[error("parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

/// The used part of an OCI runtime configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// The container's annotations.
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: HashMap<String, String>,
    /// The root file system.
    #[serde(deserialize_with = "null_is_default")]
    pub root: Root,
    /// What is mounted in it, in this order.
    #[serde(deserialize_with = "null_is_default")]
    pub mounts: Vec<Mount>,
    /// The Linux part.
    #[serde(deserialize_with = "null_is_default")]
    pub linux: Linux,
}

/// The used part of `root`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Where it is, absolute or in the bundle.
    pub path: PathBuf,
}

impl Default for Root {
    fn default() -> Self {
        Self {
            path: PathBuf::from("rootfs"),
        }
    }
}

/// The used part of an entry of `mounts`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where it is in the container.
    pub destination: PathBuf,
    /// Type of the file system.
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// What is mounted; of a bind mount, a path on the host.
    pub source: Option<PathBuf>,
    /// Options as mount(8) has them.
    #[serde(deserialize_with = "null_is_default")]
    pub options: Vec<String>,
}

/// The used part of `linux`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    /// Where the container's cgroup is to be: a path, or `slice:prefix:name` for systemd.
    #[serde(deserialize_with = "null_is_default")]
    pub cgroups_path: String,
    /// The container's namespaces.
    #[serde(deserialize_with = "null_is_default")]
    pub namespaces: Vec<Namespace>,
}

/// One entry of `linux.namespaces`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `pid`, `network` and so on.
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// The namespace to join; empty for one of its own.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
}

impl Spec {
    /// Reads the configuration of a bundle.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn read(bundle: &Path) -> Result<Self, SpecError> {
        parse(&bundle.join(FILE))
    }

    /// Has the bundle's container join the namespaces of the process `to` in place of `from`'s.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn move_namespaces(bundle: &Path, from: i32, to: i32) -> Result<(), SpecError> {
        let path = bundle.join(FILE);
        let mut json: serde_json::Value = parse(&path)?;
        let from = format!("/proc/{from}/ns/");
        let namespaces = json.pointer_mut("/linux/namespaces");
        for namespace in namespaces
            .and_then(|list| list.as_array_mut())
            .into_iter()
            .flatten()
        {
            let joined = namespace.get_mut("path");
            if let Some(serde_json::Value::String(path)) = joined
                && let Some(kind) = path.strip_prefix(&from)
            {
                *path = format!("/proc/{to}/ns/{kind}");
            }
        }
        std::fs::write(&path, json.to_string()).map_err(|source| SpecError::Write { path, source })
    }

    /// The container's namespace of a kind (`pid`, `ipc`, ...); `None` where it is its runtime's.
    #[must_use]
    pub fn namespace(&self, kind: &str) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|ns| ns.kind == kind)
    }

    /// The process whose pid namespace the container joins.
    #[must_use]
    pub fn joined_pid(&self) -> Option<i32> {
        let process = self.namespace("pid")?.path.strip_prefix("/proc/")?;
        process.strip_suffix("/ns/pid")?.parse().ok()
    }

    /// Whether the container's other processes end by themselves when its first one does: the
    /// kernel sees to it only in a pid namespace of the container's own.
    #[must_use]
    pub fn has_own_pid_namespace(&self) -> bool {
        self.namespace("pid").is_some_and(|ns| ns.path.is_empty())
    }

    /// Whether it is the sandbox of a pod, as containerd's CRI plugin marks it.
    #[must_use]
    pub fn is_sandbox(&self) -> bool {
        let kind = self.annotations.get("io.kubernetes.cri.container-type");
        kind.is_some_and(|kind| kind == "sandbox")
    }

    /// Whether the cgroup path is in the form that only systemd's driver understands.
    #[must_use]
    pub fn wants_systemd_cgroup(&self) -> bool {
        let path = &self.linux.cgroups_path;
        !path.contains('/') && path.split(':').count() == 3
    }
}

/// What has nothing can be `null` as well as missing: Go writes a list without a value so.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, SpecError> {
    let json = std::fs::read(path).map_err(|source| SpecError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&json).map_err(|source| SpecError::Parse {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn pid_namespace() {
        let own = r#"{"linux":{"namespaces":[{"type":"network"},{"type":"pid"}]}}"#;
        assert!(spec(own).has_own_pid_namespace());
        let joined = r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#;
        assert!(!spec(joined).has_own_pid_namespace());
        assert!(!spec("{}").has_own_pid_namespace());
    }

    #[test]
    fn namespaces_are_joined_where_the_process_is_now() {
        let bundle = tempfile::tempdir().unwrap();
        let json = r#"{"hostname":"a","linux":{"namespaces":[{"type":"mount"},
            {"type":"pid","path":"/proc/12/ns/pid"},{"type":"ipc","path":"/proc/120/ns/ipc"}]}}"#;
        std::fs::write(bundle.path().join(FILE), json).unwrap();
        assert_eq!(Spec::read(bundle.path()).unwrap().joined_pid(), Some(12));
        Spec::move_namespaces(bundle.path(), 12, 34).unwrap();
        let moved = std::fs::read_to_string(bundle.path().join(FILE)).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&moved).unwrap(),
            serde_json::from_str::<serde_json::Value>(&json.replace("/12/", "/34/")).unwrap()
        );
        assert_eq!(spec("{}").joined_pid(), None);
        let file = r#"{"linux":{"namespaces":[{"type":"pid","path":"/run/ns/pid"}]}}"#;
        assert_eq!(spec(file).joined_pid(), None);
    }

    #[test]
    fn root_and_mounts() {
        let all = r#"{"root":{"path":"/images/a","readonly":true},"mounts":[
            {"destination":"/proc","type":"proc"},
            {"destination":"/data","source":"/srv","options":["rbind","ro"]}],
            "process":{"execCPUAffinity":{"initial":"0-1"}}}"#;
        let all = spec(all);
        assert_eq!(all.root.path, Path::new("/images/a"));
        let [proc, data] = &all.mounts[..] else {
            panic!("{all:?}");
        };
        assert!(proc.kind == "proc" && proc.source.is_none() && proc.options.is_empty());
        assert_eq!(data.source.as_deref(), Some(Path::new("/srv")));
        assert_eq!(data.options, ["rbind", "ro"]);
        assert_eq!(spec("{}").root.path, Path::new("rootfs"));
    }

    #[test]
    fn null_is_nothing() {
        let nothing = r#"{"annotations":null,"root":null,"mounts":null,"linux":null}"#;
        let nothing = spec(nothing);
        assert!(nothing.annotations.is_empty() && nothing.mounts.is_empty());
        assert_eq!(nothing.root.path, Path::new("rootfs"));
        let inside = r#"{"mounts":[{"destination":"/a","type":null,"source":null,"options":null}],
            "linux":{"cgroupsPath":null,"namespaces":[{"type":"pid","path":null}]}}"#;
        let inside = spec(inside);
        assert!(inside.mounts[0].kind.is_empty() && inside.has_own_pid_namespace());
        let none = r#"{"linux":{"namespaces":null}}"#;
        assert!(spec(none).namespace("pid").is_none());
    }

    #[test]
    fn systemd_cgroup() {
        let systemd = r#"{"linux":{"cgroupsPath":"kubepods-pod1.slice:cri-containerd:abc"}}"#;
        assert!(spec(systemd).wants_systemd_cgroup());
        assert!(!spec(r#"{"linux":{"cgroupsPath":"/kubepods/pod1/abc"}}"#).wants_systemd_cgroup());
        assert!(!spec(r#"{"linux":{"cgroupsPath":"/a:b:c"}}"#).wants_systemd_cgroup());
    }
}
