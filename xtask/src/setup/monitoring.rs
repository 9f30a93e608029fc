//! What PodMonitors and PrometheusRules are: the definitions that Prometheus' operator brings, from its module.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Cache, Item, Work, files, go};
use crate::process;

/// Release of the operator; the one that `go.mod` names too.
const VERSION: &str = "0.85.0";

const MODULE: &str = "github.com/prometheus-operator/prometheus-operator";

/// Files of the module, in its folder of definitions.
const DEFINITIONS: &[&str] = &[
    "monitoring.coreos.com_podmonitors.yaml",
    "monitoring.coreos.com_prometheusrules.yaml",
];

/// Two definitions of custom resources.
pub struct Monitoring;

impl Item for Monitoring {
    fn name(&self) -> &str {
        "monitoring"
    }

    fn why(&self) -> &str {
        "definitions of PodMonitor and PrometheusRule, to check the chart's"
    }

    fn needs(&self) -> &[&str] {
        &["packages", "go"]
    }

    fn needs_root(&self) -> bool {
        false
    }

    fn place(&self) -> Option<&str> {
        Some("tools/monitoring")
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        let digest = go::pinned(&module())?;
        Ok(format!("{VERSION} {DEFINITIONS:?} {digest}"))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        files::make_dir(partial)?;
        work.ui.step("fetching its module");
        let said = process::output(
            go::command(work.cache)
                .current_dir(module())
                .args(["mod", "download", "-json"])
                .arg(format!("{MODULE}@v{VERSION}")),
        )?;
        let said: Value = serde_json::from_str(&said)
            .with_context(|| format!("what go says about {MODULE} is not JSON"))?;
        let folder = said["Dir"]
            .as_str()
            .with_context(|| format!("go does not say where {MODULE} is"))?;
        let folder = Path::new(folder).join("example/prometheus-operator-crd");
        for name in DEFINITIONS {
            files::copy(&folder.join(name), &partial.join(name))?;
        }
        Ok(VERSION.to_owned())
    }

    fn check(&self, place: &Path) -> Result<()> {
        for name in DEFINITIONS {
            let path = place.join(name);
            let text = String::from_utf8_lossy(&files::read(&path)?).into_owned();
            ensure!(
                text.contains("kind: CustomResourceDefinition"),
                "{} is no definition",
                path.display()
            );
        }
        Ok(())
    }
}

/// The module that pins the operator's.
fn module() -> PathBuf {
    crate::project_root().join("integration-tests/monitoring")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_names_the_same_version() {
        let text = std::fs::read_to_string(module().join("go.mod")).expect("readable");
        let wanted = format!("{MODULE} v{VERSION}");
        assert!(text.lines().any(|line| line.ends_with(&wanted)));
    }
}
