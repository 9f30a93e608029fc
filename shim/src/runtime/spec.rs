//! What the shim needs to know from a bundle's `config.json`.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

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
    pub annotations: HashMap<String, String>,
    /// The Linux part.
    pub linux: Linux,
}

/// The used part of `linux`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    /// Where the container's cgroup is to be: a path, or `slice:prefix:name` for systemd.
    pub cgroups_path: String,
    /// The container's namespaces.
    pub namespaces: Vec<Namespace>,
}

/// One entry of `linux.namespaces`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `pid`, `network` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The namespace to join; empty for one of its own.
    pub path: String,
}

impl Spec {
    /// Reads the configuration of a bundle.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn read(bundle: &Path) -> Result<Self, SpecError> {
        let path = bundle.join("config.json");
        let json = std::fs::read(&path).map_err(|source| SpecError::Read {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&json).map_err(|source| SpecError::Parse { path, source })
    }

    /// Whether the container's other processes end by themselves when its first one does: the
    /// kernel sees to it only in a pid namespace of the container's own.
    #[must_use]
    pub fn has_own_pid_namespace(&self) -> bool {
        self.linux
            .namespaces
            .iter()
            .any(|ns| ns.kind == "pid" && ns.path.is_empty())
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
    fn systemd_cgroup() {
        let systemd = r#"{"linux":{"cgroupsPath":"kubepods-pod1.slice:cri-containerd:abc"}}"#;
        assert!(spec(systemd).wants_systemd_cgroup());
        assert!(!spec(r#"{"linux":{"cgroupsPath":"/kubepods/pod1/abc"}}"#).wants_systemd_cgroup());
        assert!(!spec(r#"{"linux":{"cgroupsPath":"/a:b:c"}}"#).wants_systemd_cgroup());
    }
}
