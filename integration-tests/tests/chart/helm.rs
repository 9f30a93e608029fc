//! The chart, and Helm to render it with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Tools, Versions};
use serde_json::Value;

/// The project's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the folder is below the root")
        .to_owned()
}

/// The chart's folder.
pub fn chart() -> PathBuf {
    root().join("runtimeclass/chart")
}

/// A program or file that setup has brought.
pub fn cached(path: &str) -> Result<PathBuf> {
    Tools::new(Versions::default())?.cached(path)
}

/// Helm with these arguments.
pub fn helm(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(cached("tools/helm/bin/helm")?);
    command
        .args(arguments)
        .current_dir(root().join("runtimeclass"))
        .output()
        .with_context(|| format!("run {command:?}"))
}

/// What `helm template` makes of the chart, for a release of the usual name.
pub fn template(namespace: &str, arguments: &[&str]) -> Result<String> {
    let first = [
        "template",
        "komodor-podmotion",
        "chart",
        "--namespace",
        namespace,
    ];
    let output = helm(&[&first, arguments].concat())?;
    ensure!(
        output.status.success(),
        "helm template {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("what helm renders is not UTF-8")
}

/// What it makes of one of the files in `tests/values`.
pub fn template_case(case: &str) -> Result<String> {
    let values = format!("chart/tests/values/{case}.yaml");
    template("komodor-podmotion-system", &["--values", &values])
}

/// Names of the files in `tests/values`, sorted.
pub fn cases() -> Result<Vec<String>> {
    let folder = chart().join("tests/values");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        names.push(stem.context("a name that is not UTF-8")?.to_owned());
    }
    names.sort();
    ensure!(!names.is_empty(), "{} is empty", folder.display());
    Ok(names)
}

/// The objects of a text of YAML documents.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).context("what helm renders is not YAML")?;
    Ok(documents
        .into_iter()
        .filter(|object| !object.is_null())
        .collect())
}

/// Reads a file of the chart.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Compares a generated file, or writes it with `UPDATE=1`.
pub fn is_current(path: &Path, wanted: &str) -> Result<()> {
    if std::env::var_os("UPDATE").is_some() {
        let parent = path.parent().context("a file in a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        std::fs::write(path, wanted).with_context(|| format!("write {}", path.display()))?;
    }
    let found = read(path)?;
    if found == wanted {
        return Ok(());
    }
    let line = found
        .lines()
        .zip(wanted.lines())
        .position(|(found, wanted)| found != wanted)
        .unwrap_or_else(|| found.lines().count().min(wanted.lines().count()));
    anyhow::bail!(
        "{} is not current from line {}: it has\n{}\nand should have\n{}\nrun `UPDATE=1 cargo test -p \
         podmotion-integration-tests --test chart`",
        path.display(),
        line + 1,
        found.lines().nth(line).unwrap_or("nothing"),
        wanted.lines().nth(line).unwrap_or("nothing"),
    )
}
