//! Programs of a Debian suite in a private folder with their own libraries and loader, so that they run on any machine.
//!
//! The loader's path in a program must be absolute, the library path is forced (`DT_RPATH`, which wins over the environment) and
//! absolute as well: a bundle works only where it was made for.

mod origin;
mod tree;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Cache, Item, Work, files};
use crate::arch::Arch;
use crate::{elf, process};
pub use origin::{Origin, read_origins};
use tree::Tree;

/// Counts up whenever bundles are made in another way.
pub(super) const RECIPE: u32 = 2;

/// Where Debian's `base-files` keeps the licence texts that packages' own copyright files refer to.
const COMMON_LICENSES: &str = "/usr/share/common-licenses";

/// What to take from which packages.
pub struct Bundle {
    pub name: &'static str,
    pub why: &'static str,
    /// Folder in the cache.
    pub place: &'static str,
    pub suite: &'static str,
    /// The first one's version is the bundle's.
    pub packages: &'static [&'static str],
    /// Programs: path in its package, path in the bundle. A path ending in `/` takes the folder's programs.
    pub programs: &'static [(&'static str, &'static str)],
    /// Folders of data: path in its package, path in the bundle.
    pub data: &'static [(&'static str, &'static str)],
    pub links: &'static [(&'static str, &'static str)],
    /// Program in the bundle, its arguments and what its answer must contain.
    pub trial: (&'static str, &'static [&'static str], &'static str),
}

impl Item for Bundle {
    fn name(&self) -> &str {
        self.name
    }

    fn why(&self) -> &str {
        self.why
    }

    fn needs(&self) -> &[&str] {
        &["packages"]
    }

    fn place(&self) -> Option<&str> {
        Some(self.place)
    }

    fn links(&self) -> &[(&str, &str)] {
        self.links
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok(self.made_from())
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        self.assemble(work, Arch::host()?, partial, &work.cache.path(self.place))
    }

    fn check(&self, place: &Path) -> Result<()> {
        let (program, args, expected) = self.trial;
        // Network plugins answer to this variable, everything else to its arguments.
        let mut trial = process::command(place.join(program));
        trial.args(args).env("CNI_COMMAND", "VERSION");
        // The answer counts, not the exit status: some fail after telling their version.
        let said = process::answer(&mut trial)?;
        ensure!(
            said.contains(expected),
            "{} should say {expected:?} and says: {said}",
            process::describe(&trial)
        );
        Ok(())
    }
}

impl Bundle {
    /// All that decides what is in the bundle.
    pub(super) fn made_from(&self) -> String {
        format!(
            "{RECIPE} {} {:?} {:?} {:?} {:?}",
            self.suite, self.packages, self.programs, self.data, self.trial
        )
    }

    /// Makes the bundle for `arch` at `partial`, to be run from `target`. Returns its version.
    pub(super) fn assemble(
        &self,
        work: &Work<'_>,
        arch: Arch,
        partial: &Path,
        target: &Path,
    ) -> Result<String> {
        work.ui
            .step(&format!("fetching from Debian {}", self.suite));
        let suite = work.apt.suite_for(self.suite, arch)?;
        let debs = suite.fetch(self.packages)?;
        let common = suite.fetch(&["base-files"])?;
        work.ui.step(&format!("unpacking {} packages", debs.len()));
        let unpacked = files::with_suffix(partial, ".unpacked");
        files::remove(&unpacked)?;
        let tree = Tree::unpack(&debs, &unpacked)?;
        let texts = origin::unpack_texts(&common, &unpacked)?;
        work.ui.step("collecting programs and libraries");
        let used = self.collect(&tree, partial, target)?;
        origin::write(&tree, &used, &texts, self.suite, partial)?;
        files::remove(&unpacked)?;
        debs.iter()
            .find(|deb| Some(&deb.package.as_str()) == self.packages.first())
            .map(|deb| deb.version.clone())
            .context("apt brought everything but the package itself")
    }

    /// Returns the names of the packages that something was taken from.
    fn collect(&self, tree: &Tree<'_>, partial: &Path, target: &Path) -> Result<BTreeSet<String>> {
        let mut used = BTreeSet::new();
        let mut programs = Vec::new();
        for (from, to) in self.programs {
            for (source, name) in tree.programs(from, to)? {
                let path = partial.join(name);
                used.insert(tree.owner(&source)?);
                files::copy(&source, &path)?;
                programs.push(path);
            }
        }
        for (from, to) in self.data {
            used.extend(tree.copy_dir(from, &partial.join(to))?);
        }
        let lib = partial.join("lib");
        let mut objects = programs.clone();
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let mut take = |name: &str| -> Result<PathBuf> {
            let library = tree.library(name)?;
            used.insert(tree.owner(library)?);
            let copy = lib.join(name);
            files::copy(library, &copy)?;
            Ok(copy)
        };
        while let Some(object) = objects.pop() {
            for name in needed(&object)? {
                if wanted.insert(name.clone()) {
                    objects.push(take(&name)?);
                }
            }
        }
        let lib_target = target.join("lib");
        for program in &programs {
            let Some(loader) = elf::interpreter(program)? else {
                continue;
            };
            let name = Path::new(&loader)
                .file_name()
                .and_then(|name| name.to_str())
                .with_context(|| format!("{} has the loader {loader}", program.display()))?;
            if wanted.insert(name.to_owned()) {
                take(name)?;
            }
            patchelf(
                program,
                &["--set-interpreter", &text(&lib_target.join(name))?],
            )?;
            patchelf(
                program,
                &["--force-rpath", "--set-rpath", &text(&lib_target)?],
            )?;
        }
        for name in wanted.iter().filter(|name| !is_libc(name)) {
            let path = lib.join(name);
            patchelf(
                &path,
                &["--force-rpath", "--set-rpath", &text(&lib_target)?],
            )?;
        }
        Ok(used)
    }
}

/// A bundle that setup brings only when it is named, or needed by what is.
pub struct OnDemand(pub Bundle);

impl Item for OnDemand {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn why(&self) -> &str {
        self.0.why()
    }

    fn needs(&self) -> &[&str] {
        self.0.needs()
    }

    fn by_default(&self) -> bool {
        false
    }

    fn place(&self) -> Option<&str> {
        self.0.place()
    }

    fn recipe(&self, cache: &Cache) -> Result<String> {
        self.0.recipe(cache)
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        self.0.make(work, partial)
    }

    fn check(&self, place: &Path) -> Result<()> {
        self.0.check(place)
    }
}

/// Libraries that `object` names; none for a static program.
fn needed(object: &Path) -> Result<Vec<String>> {
    if elf::interpreter(object)?.is_none() && !is_library(object) {
        return Ok(Vec::new());
    }
    let names = process::output(
        process::command("patchelf")
            .arg("--print-needed")
            .arg(object),
    )?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn is_library(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().contains(".so"))
}

/// The C library and the loader find each other without a path, and a patched loader crashes.
fn is_libc(name: &str) -> bool {
    name.starts_with("ld-") || name.starts_with("libc.so")
}

fn patchelf(file: &Path, args: &[&str]) -> Result<()> {
    process::output(process::command("patchelf").args(args).arg(file)).map(drop)
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_and_c_library_stay_unpatched() {
        for arch in Arch::ALL {
            assert!(is_libc(arch.loader()));
        }
        assert!(is_libc("libc.so.6"));
        assert!(!is_libc("libcap.so.2"));
    }
}
