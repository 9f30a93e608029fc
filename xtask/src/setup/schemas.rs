//! Schemas of the objects of many releases of Kubernetes, from a package that has them; API servers of all these releases would
//! take an hour to compile.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use super::{Cache, Item, Work, files};
use crate::process;

/// A package of PyPI that carries the schemas as JSON. No program of it is run.
const PACKAGE: &str = "kubernetes-validate";

/// A release of the package.
#[derive(Debug)]
struct Release {
    version: &'static str,
    /// SHA-256 of its one file.
    digest: &'static str,
    /// The minor releases of Kubernetes to take from it.
    minors: RangeInclusive<u32>,
}

const RELEASES: &[Release] = &[
    Release {
        version: "1.31.0",
        digest: "6ff0493132eaaeeec43b90abf97aebb2afe21741da785bc03b983688179c935d",
        minors: 23..=30,
    },
    Release {
        version: "1.37.0",
        digest: "85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9",
        minors: 31..=37,
    },
];

/// `<minor>.json` for each release of Kubernetes: its definitions, in which a field that does not exist is an error.
pub struct Schemas;

impl Item for Schemas {
    fn name(&self) -> &str {
        "schemas"
    }

    fn why(&self) -> &str {
        "what objects look like in each release of Kubernetes, for the chart's tests"
    }

    fn needs(&self) -> &[&str] {
        &["packages"]
    }

    fn needs_root(&self) -> bool {
        false
    }

    fn place(&self) -> Option<&str> {
        Some("tools/schemas")
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok(format!("1 {PACKAGE} {RELEASES:?}"))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        files::make_dir(partial)?;
        for release in RELEASES {
            let package = format!("{PACKAGE}=={}", release.version);
            work.ui.step(&format!("fetching {package}"));
            let folder = files::with_suffix(partial, ".wheel");
            files::remove(&folder)?;
            files::make_dir(&folder)?;
            let wanted = files::with_suffix(partial, ".txt");
            let line = format!("{package} --hash=sha256:{}\n", release.digest);
            files::write(&wanted, line.as_bytes())?;
            process::output(
                process::command("pip3")
                    .args(["download", "--quiet", "--disable-pip-version-check"])
                    .args(["--no-deps", "--only-binary=:all:", "--require-hashes"])
                    .arg("--dest")
                    .arg(&folder)
                    .arg("--requirement")
                    .arg(&wanted),
            )?;
            files::remove(&wanted)?;
            let wheel = only_file(&folder)?;
            process::output(
                process::command("python3")
                    .args(["-m", "zipfile", "-e"])
                    .args([&wheel, &folder]),
            )?;
            for minor in release.minors.clone() {
                let definitions = folder.join(format!(
                    "kubernetes_validate/kubernetes-json-schema/v1.{minor}.0-local-strict/_definitions.json"
                ));
                files::copy(&definitions, &partial.join(format!("1.{minor}.json")))?;
            }
            files::remove(&folder)?;
        }
        Ok(RELEASES
            .iter()
            .map(|release| release.version)
            .collect::<Vec<_>>()
            .join(" "))
    }

    fn check(&self, place: &Path) -> Result<()> {
        for minor in RELEASES.iter().flat_map(|release| release.minors.clone()) {
            let path = place.join(format!("1.{minor}.json"));
            let text = files::read(&path)?;
            let schema: serde_json::Value = serde_json::from_slice(&text)
                .with_context(|| format!("{} is not JSON", path.display()))?;
            ensure!(
                schema["$defs"]["io.k8s.api.apps.v1.DaemonSet"].is_object(),
                "{} does not know DaemonSets",
                path.display()
            );
        }
        Ok(())
    }
}

/// The one file of a folder.
fn only_file(folder: &Path) -> Result<PathBuf> {
    let files: Vec<_> = WalkDir::new(folder)
        .into_iter()
        .filter_map(|entry| Some(entry.ok()?.into_path()))
        .filter(|path| path.is_file())
        .collect();
    match <[_; 1]>::try_from(files) {
        Ok([file]) => Ok(file),
        Err(files) => anyhow::bail!("{} should hold one file: {files:?}", folder.display()),
    }
}
