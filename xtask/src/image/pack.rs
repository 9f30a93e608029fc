//! Puts one image together from files that are there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use super::source::Source;
use crate::arch::Arch;
use crate::dist;
use crate::elf;
use crate::setup::oci::{self, Content, Image, Packed};
use crate::setup::{CRIU_HOME, files};

/// The folder of an image with all that is in it.
pub const HOME: &str = "podmotion";
/// Where the CRIU bundle is in the installer's image.
pub const CRIU: &str = "podmotion/criu";

const MANAGER: &str = "podmotion-manager";
/// Not for nodes: they go where `kubectl` is.
const ELSEWHERE: [&str; 1] = ["kubectl-podmotion"];

/// Where the sources are.
const REPOSITORY: &str = "https://github.com/komodorio/podmotion";

const MEBIBYTE: u64 = 1 << 20;

/// The images that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What puts Podmotion on a node, with all that goes there.
    Installer,
    /// What runs on each node beside it.
    Manager,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Installer, Self::Manager];

    /// Last part of the image's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Installer => "installer",
            Self::Manager => "manager",
        }
    }

    /// (package, program) of what is in it.
    pub fn programs(self) -> Vec<(&'static str, &'static str)> {
        dist::PROGRAMS
            .into_iter()
            .filter(|(_, program)| !ELSEWHERE.contains(program))
            .filter(|(_, program)| (*program == MANAGER) == (self == Self::Manager))
            .collect()
    }

    /// Bytes that a node may have to fetch for it.
    fn limit(self) -> u64 {
        match self {
            Self::Installer => 40 * MEBIBYTE,
            Self::Manager => 15 * MEBIBYTE,
        }
    }

    fn entrypoint(self) -> &'static str {
        match self {
            Self::Installer => "/podmotion/bin/podmotion-installer",
            Self::Manager => "/podmotion/bin/podmotion-manager",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Installer => {
                "Puts Podmotion on a node and takes it off again. Needs root, a privileged container and the node's file system."
            }
            Self::Manager => {
                "Shows a cluster what sleeps on a node. Needs root, since the sockets of the node's shims are root's."
            }
        }
    }

    fn licences(self) -> &'static str {
        match self {
            // The programs; the gate's BPF programs; CRIU with its libraries.
            Self::Installer => {
                "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause) AND GPL-2.0-only AND LGPL-2.1-or-later"
            }
            Self::Manager => "Apache-2.0",
        }
    }
}

/// What an image is made from.
pub struct Parts<'a> {
    /// Which image.
    pub kind: Kind,
    /// Of what architecture its programs are.
    pub arch: Arch,
    /// Version of Podmotion.
    pub version: &'a str,
    /// The sources.
    pub source: &'a Source,
    /// Folder with the programs.
    pub programs: &'a Path,
    /// The CRIU bundle for nodes.
    pub criu: &'a Path,
    /// The image's SBOM.
    pub sbom: &'a [u8],
    /// Licence texts of what is linked into the programs.
    pub notices: &'a str,
}

impl Parts<'_> {
    /// Labels of the image; `title` and `description` of the kind.
    pub fn labels(&self) -> Result<BTreeMap<String, String>> {
        let mut labels = BTreeMap::from(
            [
                ("title", format!("podmotion-{}", self.kind.name())),
                ("description", self.kind.description().to_owned()),
                ("version", self.version.to_owned()),
                ("source", REPOSITORY.to_owned()),
                ("licenses", self.kind.licences().to_owned()),
                ("created", oci::timestamp(self.source.time)?),
            ]
            .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value)),
        );
        if let Some(revision) = &self.source.revision {
            labels.insert(
                "org.opencontainers.image.revision".to_owned(),
                revision.clone(),
            );
        }
        Ok(labels)
    }

    /// Puts the image together, with layers in the folder `work`.
    ///
    /// # Errors
    /// When a part is missing or does not fit, or the image is larger than it may be.
    pub fn pack(&self, name: &str, work: &Path) -> Result<Packed> {
        let mut layers = Vec::new();
        // First what changes least often: a node that has it does not fetch it again.
        if self.kind == Kind::Installer {
            layers.push(self.layer(work, "criu", self.bundle()?)?);
        }
        layers.push(self.layer(work, "programs", self.programs()?)?);
        let image = Image {
            name,
            architecture: self.arch.name(),
            entrypoint: &[self.kind.entrypoint()],
            command: &[],
            env: &["PATH=/podmotion/bin"],
            labels: &self.labels()?,
            created: self.source.time,
        };
        let packed = oci::pack(&image, &layers)?;
        check_size(&packed, self.kind.limit())
            .with_context(|| format!("{name} for {}", self.arch.name()))?;
        Ok(packed)
    }

    fn layer(
        &self,
        work: &Path,
        name: &str,
        content: BTreeMap<String, Content>,
    ) -> Result<PathBuf> {
        let layer = work.join(format!(
            "{}-{}-{name}.tar.gz",
            self.kind.name(),
            self.arch.name()
        ));
        oci::write_gzip_layer(&layer, &with_folders(content), self.source.time)?;
        Ok(layer)
    }

    fn bundle(&self) -> Result<BTreeMap<String, Content>> {
        bundle(self.criu, self.arch, CRIU)
    }

    fn programs(&self) -> Result<BTreeMap<String, Content>> {
        let mut content = BTreeMap::new();
        for (_, program) in self.kind.programs() {
            let path = self.programs.join(program);
            ensure!(
                path.exists(),
                "there is no {}; `cargo xtask build --arch {}` makes it",
                path.display(),
                self.arch.name()
            );
            elf::check_machine(&path, self.arch)?;
            let loader = elf::interpreter(&path)?;
            ensure!(
                loader.is_none(),
                "{} asks for the loader {loader:?}, and an image has none",
                path.display()
            );
            content.insert(format!("{HOME}/bin/{program}"), Content::File(path));
        }
        let licence = crate::project_root().join("LICENSE");
        content.insert(format!("{HOME}/LICENSE"), Content::File(licence));
        for (name, text) in [
            ("THIRD-PARTY-LICENCES", self.notices.as_bytes()),
            ("sbom.spdx.json", self.sbom),
        ] {
            content.insert(format!("{HOME}/{name}"), Content::Bytes(text.to_vec()));
        }
        Ok(content)
    }
}

fn check_size(packed: &Packed, limit: u64) -> Result<()> {
    let size = packed.layers_size();
    ensure!(
        size <= limit,
        "the layers have {size} bytes; {limit} is what a node may have to fetch"
    );
    Ok(())
}

/// What is in the CRIU bundle at `dir`, as it goes below `place`.
///
/// # Errors
/// When it is for another architecture or another folder, or lacks what it may not be passed on without.
pub fn bundle(dir: &Path, arch: Arch, place: &str) -> Result<BTreeMap<String, Content>> {
    let program = dir.join("bin/criu");
    elf::check_machine(&program, arch)?;
    let loader = elf::interpreter(&program)?.unwrap_or_default();
    let wanted = format!("{CRIU_HOME}/lib/{}", arch.loader());
    ensure!(
        loader == wanted,
        "{} has the loader {loader}; on a node it is {wanted}",
        program.display()
    );
    for needed in ["SOURCE", "licences/criu", "licences/texts/GPL-2"] {
        ensure!(
            dir.join(needed).exists(),
            "the bundle {} has no {needed}: it may not be passed on without",
            dir.display()
        );
    }
    let mut content = BTreeMap::new();
    for entry in WalkDir::new(dir).min_depth(1) {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        if entry.file_type().is_dir() {
            continue;
        }
        ensure!(
            entry.file_type().is_file(),
            "{} is neither a file nor a folder",
            entry.path().display()
        );
        let relative = entry
            .path()
            .strip_prefix(dir)
            .ok()
            .and_then(Path::to_str)
            .with_context(|| format!("{} cannot be named", entry.path().display()))?;
        content.insert(
            format!("{place}/{relative}"),
            Content::File(entry.path().to_owned()),
        );
    }
    Ok(content)
}

/// The same with an entry for each folder above one.
pub fn with_folders(content: BTreeMap<String, Content>) -> BTreeMap<String, Content> {
    let folders: Vec<String> = content
        .keys()
        .flat_map(|name| name.match_indices('/').map(|(at, _)| name[..at].to_owned()))
        .collect();
    let mut all = content;
    for folder in folders {
        all.entry(folder).or_insert(Content::Directory);
    }
    all
}

/// Makes an empty folder at `path`.
///
/// # Errors
/// When what is there cannot be removed.
pub fn empty(path: &Path) -> Result<()> {
    files::remove(path)?;
    files::make_dir(path)
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
