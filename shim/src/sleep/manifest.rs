//! What a checkpoint says about itself.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use podmotion_criu_driver::{
    Criu,
    images::{self, ImagesError},
};
use podmotion_model::manifest::{Container, Manifest, Platform, Pod};

use super::status::Identity;

/// The machine, as a checkpoint made on it depends on it.
pub fn platform(criu: &Criu) -> Platform {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Platform {
        criu_version: criu
            .version()
            .map(|version| version.to_string())
            .unwrap_or_default(),
        kernel_release: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        cpu_baseline: cpu_features(&cpu),
    }
}

/// The features of the first CPU: `flags` on x86_64, `Features` on arm64.
fn cpu_features(cpuinfo: &str) -> BTreeSet<String> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| matches!(name.trim(), "flags" | "Features"))
        .map(|(_, features)| {
            features
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
}

/// What a checkpoint says about itself.
pub struct Checkpoint<'a> {
    /// The machine that it is made on.
    pub platform: &'a Platform,
    /// Whose it is.
    pub identity: &'a Identity,
    /// Ports that wake the container.
    pub ports: &'a BTreeSet<u16>,
    /// Bytes of memory in it.
    pub memory_bytes: u64,
    /// Whether it is to be restored lazily.
    pub lazy: bool,
}

impl Checkpoint<'_> {
    /// Completes the images of a dump: from here on they can be restored.
    pub fn complete(&self, directory: &Path) -> Result<(), ImagesError> {
        let identity = self.identity;
        let named = |text: &String| (!text.is_empty()).then(|| text.clone());
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let manifest = Manifest {
            container: Container {
                id: identity.id.clone(),
                name: identity.name.clone(),
                namespace: identity.namespace.clone(),
                pod: named(&identity.pod_name).map(|name| Pod {
                    uid: identity.pod_uid.clone(),
                    name,
                    namespace: identity.pod_namespace.clone(),
                }),
                image: named(&identity.image),
            },
            platform: self.platform.clone(),
            ports: self.ports.clone(),
            memory_bytes: self.memory_bytes,
            lazy: self.lazy,
            created_unix_ms: u64::try_from(created.as_millis()).unwrap_or(u64::MAX),
            files: images::describe(directory)?,
        };
        images::write_manifest(directory, &manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_features_of_both_architectures() {
        let intel = "processor\t: 0\nflags\t\t: fpu sse2 avx\nbugs\t: x\n\nflags\t\t: other\n";
        let arm = "processor\t: 0\nFeatures\t: fp asimd\n";
        assert_eq!(
            cpu_features(intel),
            BTreeSet::from(["avx", "fpu", "sse2"].map(String::from))
        );
        assert_eq!(
            cpu_features(arm),
            BTreeSet::from(["asimd", "fp"].map(String::from))
        );
        assert!(cpu_features("").is_empty());
    }
}
