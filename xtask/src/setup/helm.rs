//! Helm, compiled from its module like Kubernetes.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{Cache, Item, Work, go};
use crate::process;

/// Release of Helm; the one that `go.mod` names too.
const VERSION: &str = "3.19.5";

/// The release of Kubernetes that Helm renders for when it asks no API server, as its own builds have it.
const KUBERNETES: (&str, &str) = ("1", "34");

/// The program `helm`, one static file.
pub struct Helm;

impl Item for Helm {
    fn name(&self) -> &str {
        "helm"
    }

    fn why(&self) -> &str {
        "renders and installs the chart"
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
        Some("tools/helm")
    }

    fn links(&self) -> &[(&str, &str)] {
        &[("tools/bin/helm", "tools/helm/bin/helm")]
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        let digest = go::pinned(&module())?;
        Ok(format!("{VERSION} {KUBERNETES:?} {digest}"))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        let (major, minor) = KUBERNETES;
        let helm = "helm.sh/helm/v3";
        let releases = ["pkg/chartutil", "pkg/lint/rules"].map(|package| {
            format!(
                "-X {helm}/{package}.k8sVersionMajor={major} -X {helm}/{package}.k8sVersionMinor={minor}"
            )
        });
        let flags = format!(
            "-s -w -X {helm}/internal/version.version=v{VERSION} {}",
            releases.join(" ")
        );
        work.ui.step("compiling it (three minutes on two cores)");
        let packages = [format!("{helm}/cmd/helm")];
        go::build(work, &module(), partial, &flags, &packages)?;
        Ok(VERSION.to_owned())
    }

    fn check(&self, place: &Path) -> Result<()> {
        let helm = place.join("bin/helm");
        let said = process::output(process::command(&helm).args(["version", "--short"]))?;
        ensure!(
            said.contains(VERSION),
            "{} should be {VERSION} and says: {said}",
            helm.display()
        );
        Ok(())
    }
}

/// The module that names the program.
fn module() -> PathBuf {
    crate::project_root().join("integration-tests/helm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_names_the_same_version() {
        let text = std::fs::read_to_string(module().join("go.mod")).expect("readable");
        let wanted = format!("helm.sh/helm/v3 v{VERSION}");
        assert!(text.lines().any(|line| line.ends_with(&wanted)));
    }
}
