//! Kubernetes, compiled from its modules: there is nothing to download where only registries of modules are at hand.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Cache, Item, Work, go};
use crate::process;

/// Release of Kubernetes; the one that `go.mod` names too.
const VERSION: &str = "1.34.4";

const PROGRAMS: [&str; 6] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

/// The programs of a cluster, each one static file.
pub struct Kubernetes;

impl Item for Kubernetes {
    fn name(&self) -> &str {
        "kubernetes"
    }

    fn why(&self) -> &str {
        "API server, controllers, scheduler, kubelet and kubectl of the tests' clusters"
    }

    fn needs(&self) -> &[&str] {
        &["packages", "go"]
    }

    fn needs_root(&self) -> bool {
        false
    }

    fn is_compiled(&self) -> bool {
        true
    }

    fn place(&self) -> Option<&str> {
        Some("kubernetes")
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        let digest = go::pinned(&module())?;
        Ok(format!("{VERSION} {PROGRAMS:?} {digest}"))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        let (major, minor) = release(VERSION)?;
        let version = "k8s.io/component-base/version";
        let flags = format!(
            "-s -w -X {version}.gitVersion=v{VERSION} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
        );
        // As many linkers at once as there are processors: each takes two gigabytes.
        work.ui.step("compiling it (five minutes on two cores)");
        let packages = PROGRAMS.map(|program| format!("k8s.io/kubernetes/cmd/{program}"));
        go::build(work, &module(), partial, &flags, &packages)?;
        Ok(VERSION.to_owned())
    }

    fn check(&self, place: &Path) -> Result<()> {
        let kubelet = place.join("bin/kubelet");
        let said = process::output(process::command(&kubelet).arg("--version"))?;
        ensure!(
            said.contains(VERSION),
            "{} should be {VERSION} and says: {said}",
            kubelet.display()
        );
        Ok(())
    }
}

/// The module that names the programs.
fn module() -> PathBuf {
    crate::project_root().join("integration-tests/kubernetes")
}

/// Major and minor of a version such as `1.34.4`.
fn release(version: &str) -> Result<(&str, &str)> {
    let (major, rest) = version.split_once('.').context("a version with no minor")?;
    let (minor, _) = rest.split_once('.').context("a version with no patch")?;
    Ok((major, minor))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_module_names_the_same_version_and_programs() {
        let read = |name: &str| fs::read_to_string(module().join(name)).expect("readable");
        let wanted = format!("k8s.io/kubernetes v{VERSION}");
        assert!(read("go.mod").lines().any(|line| line.ends_with(&wanted)));
        let tools = read("tools.go");
        for program in PROGRAMS {
            let import = format!("\"k8s.io/kubernetes/cmd/{program}\"");
            assert!(tools.contains(&import), "{program}");
        }
    }
}
