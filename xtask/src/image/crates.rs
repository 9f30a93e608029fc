//! The crates that are in programs: those that cargo links in for an architecture, not those that only build.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use cargo_metadata::Metadata;
use serde::Deserialize;

use crate::arch::Arch;
use crate::{dist, process};

/// Crates with the text of a licence, but not its name: (crate, licence).
const KNOWN_BY_TEXT: [(&str, &str); 1] = [("rust-criu", "MIT")];

/// Name and version of a crate; nothing that Podmotion is built from has two of the same.
pub type Id = (String, String);

/// A crate that is in a program.
#[derive(Clone, Debug)]
pub struct Crate {
    /// Licence as an SPDX expression.
    pub licence: String,
    /// SHA-256 of its package, none for the workspace's own.
    pub checksum: Option<String>,
    /// Folder of its sources.
    pub folder: PathBuf,
    /// Crates that it uses.
    pub uses: BTreeSet<Id>,
}

/// Every crate that is in one of some programs.
#[derive(Debug, Default)]
pub struct Crates {
    /// Those that programs are made of.
    pub roots: BTreeSet<Id>,
    /// All of them.
    pub all: BTreeMap<Id, Crate>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The crates in the programs of `packages`, as they are when all of [`dist::PROGRAMS`] are built together for `arch`.
///
/// # Errors
/// When cargo does not answer, or a crate has no licence that can be read.
pub fn linked(arch: Arch, packages: &[&str]) -> Result<Crates> {
    let mut tree = process::command(process::cargo());
    tree.current_dir(crate::project_root()).args([
        "tree",
        "--locked",
        "--target",
        arch.triple(),
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "depth",
        "--format",
        " {p}",
    ]);
    // What one program asks of a crate, the others get as well: all are named, as they are to build them.
    for (package, _) in dist::PROGRAMS {
        tree.args(["--package", package]);
    }
    let edges = parse_tree(&process::output(&mut tree)?)?;
    let lock = crate::project_root().join("Cargo.lock");
    let lock: Lock = toml::from_str(
        &std::fs::read_to_string(&lock)
            .with_context(|| format!("cannot read {}", lock.display()))?,
    )
    .with_context(|| format!("cannot parse {}", lock.display()))?;
    collect(packages, &edges, &dist::metadata()?, &lock)
}

fn collect(
    packages: &[&str],
    edges: &BTreeMap<Id, BTreeSet<Id>>,
    metadata: &Metadata,
    lock: &Lock,
) -> Result<Crates> {
    let mut crates = Crates::default();
    crates.roots.extend(
        edges
            .keys()
            .filter(|(name, _)| packages.contains(&name.as_str()))
            .cloned(),
    );
    let mut queue: Vec<Id> = crates.roots.iter().cloned().collect();
    while let Some(id) = queue.pop() {
        if crates.all.contains_key(&id) {
            continue;
        }
        let (name, version) = &id;
        let package = metadata
            .packages
            .iter()
            .find(|it| it.name.as_str() == name && it.version.to_string() == *version)
            .with_context(|| format!("cargo metadata has no {name} {version}"))?;
        let licence = package
            .license
            .as_deref()
            .or_else(|| known_by_text(name))
            .with_context(|| format!("{name} {version} names no licence"))?;
        let uses = edges.get(&id).cloned().unwrap_or_default();
        queue.extend(uses.iter().cloned());
        let checksum = lock
            .package
            .iter()
            .find(|it| it.name == *name && it.version == *version)
            .and_then(|it| it.checksum.clone());
        let known = Crate {
            licence: expression(licence)
                .with_context(|| format!("the licence of {name} {version}"))?,
            checksum,
            folder: package
                .manifest_path
                .parent()
                .with_context(|| format!("{name} {version} has no folder"))?
                .into(),
            uses,
        };
        crates.all.insert(id, known);
    }
    Ok(crates)
}

/// The licence of a crate that has a text and does not name it.
fn known_by_text(name: &str) -> Option<&'static str> {
    KNOWN_BY_TEXT
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, licence)| *licence)
}

/// A licence as SPDX writes it: older crates have a slash for OR.
fn expression(licence: &str) -> Result<String> {
    let canonical = spdx::Expression::canonicalize(licence)
        .with_context(|| format!("{licence:?} is no SPDX expression"))?
        .unwrap_or_else(|| licence.to_owned());
    spdx::Expression::parse(&canonical)
        .with_context(|| format!("{licence:?} is no SPDX expression"))?;
    Ok(canonical)
}

/// Reads `cargo tree --prefix depth --format " {p}"`: what each crate uses. What was printed before has no children below it
/// and a mark behind.
fn parse_tree(tree: &str) -> Result<BTreeMap<Id, BTreeSet<Id>>> {
    let mut edges: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    let mut above: Vec<Id> = Vec::new();
    for line in tree.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let mut word = || words.next();
        let parsed = (|| {
            let depth: usize = word()?.parse().ok()?;
            let name = word()?.to_owned();
            let version = word()?.strip_prefix('v')?.to_owned();
            Some((depth, (name, version)))
        })();
        let (depth, id) = parsed.with_context(|| format!("cargo tree has the line {line:?}"))?;
        above.truncate(depth);
        if let Some(parent) = above.last() {
            edges.entry(parent.clone()).or_default().insert(id.clone());
        }
        edges.entry(id.clone()).or_default();
        above.push(id);
    }
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, version: &str) -> Id {
        (name.to_owned(), version.to_owned())
    }

    #[test]
    fn the_tree_is_read_by_its_depths() {
        let tree = "0 a v1.0.0 (/src/a)\n1 b v0.2.0\n2 c v3.0.0-rc.1\n1 d v1.0.0\n\n0 d v1.0.0\n1 c v3.0.0-rc.1 (*)\n";
        let edges = parse_tree(tree).expect("parsed");
        let uses = |name: &str, version: &str| -> Vec<String> {
            edges[&id(name, version)]
                .iter()
                .map(|(name, _)| name.clone())
                .collect()
        };
        assert_eq!(uses("a", "1.0.0"), ["b", "d"]);
        assert_eq!(uses("b", "0.2.0"), ["c"]);
        assert_eq!(uses("d", "1.0.0"), ["c"]);
        assert!(uses("c", "3.0.0-rc.1").is_empty());
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error() {
        let error = parse_tree("0 a v1.0.0\nwhat\n").expect_err("not a crate");
        assert!(error.to_string().contains("what"), "{error}");
    }

    #[test]
    fn licences_are_written_as_spdx_does() {
        assert_eq!(
            expression("MIT/Apache-2.0").expect("old form"),
            "MIT OR Apache-2.0"
        );
        assert_eq!(
            expression("Apache-2.0 AND ISC").expect("as it is"),
            "Apache-2.0 AND ISC"
        );
        assert!(expression("my own").is_err());
    }

    #[test]
    fn what_only_builds_is_in_no_program() {
        let crates = linked(Arch::Arm64, &["podmotion-shim"]).expect("crates");
        let names: BTreeSet<&str> = crates.all.keys().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains("podmotion-pager") && names.contains("tokio"));
        for absent in [
            "podmotion-installer",
            "serde_derive",
            "ttrpc-codegen",
            "proptest",
        ] {
            assert!(!names.contains(absent), "{absent}");
        }
        let (_, tokio) = crates
            .all
            .iter()
            .find(|((name, _), _)| name == "tokio")
            .expect("tokio");
        assert_eq!(tokio.licence, "MIT");
        assert_eq!(tokio.checksum.as_ref().map(String::len), Some(64));
    }
}
