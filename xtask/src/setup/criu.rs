//! The CRIU bundle as it goes to a node, for each architecture.
//!
//! It is the same as the machine's own, but for the folder that it runs from.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::bundle::Bundle;
use super::{Cache, Item, QEMU_USER, Work};
use crate::arch::Arch;
use crate::process;

/// Where the bundle is on a node: loader and library paths in it are absolute.
pub const HOME: &str = "/opt/podmotion/criu";

/// What is in it, on this machine and on nodes.
pub const CRIU: Bundle = Bundle {
    name: "criu",
    why: "CRIU 4.2 or newer with its own libraries; the machine's own is never used",
    place: "criu",
    suite: "forky",
    packages: &["criu"],
    programs: &[("usr/sbin/criu", "bin/criu")],
    data: &[],
    links: &[],
    trial: ("bin/criu", &["--version"], "Version: 4.2"),
};

/// The bundle for nodes of one architecture.
pub struct Criu(pub Arch);

impl Criu {
    /// Name of the item.
    pub fn item(arch: Arch) -> &'static str {
        match arch {
            Arch::Amd64 => "criu-amd64",
            Arch::Arm64 => "criu-arm64",
        }
    }

    /// Where the bundle is in `cache`.
    pub fn dir(cache: &Cache, arch: Arch) -> PathBuf {
        cache.path(place(arch))
    }
}

impl Item for Criu {
    fn name(&self) -> &str {
        Self::item(self.0)
    }

    fn why(&self) -> &str {
        "CRIU with its own libraries, as it goes into an image"
    }

    fn needs(&self) -> &[&str] {
        // The other architecture's is tried out under emulation.
        match Arch::host() {
            Ok(host) if host == self.0 => &["packages"],
            _ => &["packages", QEMU_USER],
        }
    }

    fn by_default(&self) -> bool {
        false
    }

    fn place(&self) -> Option<&str> {
        Some(place(self.0))
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok(format!("{} {HOME} {:?}", CRIU.made_from(), self.0))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        CRIU.assemble(work, self.0, partial, Path::new(HOME))
    }

    fn check(&self, place: &Path) -> Result<()> {
        let (program, args, expected) = CRIU.trial;
        let mut trial = run(&Cache::from_env()?, self.0, place, program)?;
        let said = process::output(trial.args(args))?;
        ensure!(
            said.contains(expected),
            "{} should say {expected:?} and says: {said}",
            process::describe(&trial)
        );
        Ok(())
    }
}

/// Runs a program of the bundle at `place`, which is not the folder that it was made for: with the bundle's loader and
/// libraries, and under emulation where they are another machine's.
fn run(cache: &Cache, arch: Arch, place: &Path, program: &str) -> Result<Command> {
    let lib = place.join("lib");
    let mut command = super::emulated(cache, arch, &lib.join(arch.loader()))?;
    command
        .arg("--library-path")
        .arg(&lib)
        .arg(place.join(program));
    Ok(command)
}

fn place(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "nodes/criu-amd64",
        Arch::Arm64 => "nodes/criu-arm64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_made_for_the_folder_where_the_shim_looks_for_it() {
        let config = std::fs::read_to_string(crate::project_root().join("config.toml.example"))
            .expect("the example of the configuration");
        let (program, _, _) = CRIU.trial;
        assert!(config.contains(&format!("\"{HOME}/{program}\"")), "{HOME}");
    }

    #[test]
    fn bundles_of_two_architectures_are_made_from_different_things() {
        let cache = Cache::from_env().expect("cache");
        let [one, two] = Arch::ALL.map(|arch| Criu(arch).recipe(&cache).expect("recipe"));
        assert_ne!(one, two);
    }
}
