//! Plain manifests for those without Helm: what the chart renders, less what is only of use to Helm.

use anyhow::{Result, ensure};

use crate::helm::{is_current, objects, root, template};

const HEAD: &str = "# Made from runtimeclass/chart, and compared with it in a test.\n";

/// What the chart renders with these settings, for the usual namespace.
fn plain(settings: &[&str]) -> Result<String> {
    let mut arguments = vec!["--set", "namespace.name=komodor-podmotion-system"];
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    let text = template("default", &arguments)?;
    let mut out = String::from(HEAD);
    for document in text.split("---\n").filter(|part| !part.trim().is_empty()) {
        out.push_str("---\n");
        out.push_str(&without_helm(document));
    }
    Ok(out)
}

/// Leaves out the lines that mean something to Helm alone, and the head of a group that has nothing left.
fn without_helm(document: &str) -> String {
    let is_helms = |line: &str| {
        let line = line.trim_start();
        ["# Source:", "helm.sh/", "app.kubernetes.io/managed-by:"]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let lines: Vec<&str> = document.lines().collect();
    let mut kept: Vec<&str> = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        if is_helms(line) {
            // A comment on it goes too.
            while kept.last().is_some_and(|last| {
                last.trim_start().starts_with('#') && lines[..number].contains(last)
            }) {
                kept.pop();
            }
            let head = kept
                .last()
                .is_some_and(|last| last.ends_with("annotations:"));
            let indent = |line: &str| line.len() - line.trim_start().len();
            let last = lines
                .get(number + 1)
                .is_none_or(|next| indent(next) < indent(line));
            if head && last {
                kept.pop();
            }
            continue;
        }
        kept.push(line);
    }
    kept.join("\n") + "\n"
}

#[test]
fn plain_manifests_are_what_the_chart_renders() -> Result<()> {
    let folder = root().join("runtimeclass/manifests");
    is_current(&folder.join("podmotion.yaml"), &plain(&[])?)?;
    is_current(
        &folder.join("uninstall/podmotion.yaml"),
        &plain(&["uninstall.enabled=true"])?,
    )
}

#[test]
fn plain_manifests_know_nothing_of_helm() -> Result<()> {
    let text = plain(&[])?;
    ensure!(!text.to_lowercase().contains("helm.sh"), "{text}");
    for object in objects(&text)? {
        ensure!(object["metadata"]["name"].is_string(), "{object:#}");
        ensure!(object["metadata"]["annotations"] != serde_json::json!({}));
        ensure!(
            !object["metadata"]
                .as_object()
                .is_some_and(|metadata| metadata.get("annotations").is_some_and(|a| a.is_null()))
        );
    }
    Ok(())
}
