//! A small test image, for tests that need a shell and nothing else: it unpacks in no time.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::images::{BASE, BASE_PLACE, architecture, base_version, check_archive};
use super::oci::{self, Image};
use super::{Cache, Item, Work, files, rootfs};
use crate::process;

/// Counts up whenever the image is made in another way.
const RECIPE: u32 = 1;

/// `podmotion.test/busybox:1`: the Debian's busybox with its libraries, under all of its names.
pub struct Busybox;

impl Item for Busybox {
    fn name(&self) -> &str {
        "busybox-image"
    }

    fn why(&self) -> &str {
        "small test image podmotion.test/busybox:1"
    }

    fn needs(&self) -> &[&str] {
        &["packages", BASE]
    }

    fn place(&self) -> Option<&str> {
        Some("images/busybox.tar")
    }

    fn recipe(&self, cache: &Cache) -> Result<String> {
        Ok(format!("{RECIPE} base {}", base_version(cache)))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        let base = work.cache.path(BASE_PLACE).join("root");
        let root = files::with_suffix(partial, ".root");
        files::remove(&root)?;
        busybox(&base, &root)?;
        let layer = files::with_suffix(partial, ".layer");
        pack(&root, &layer)?;
        let image = Image {
            name: "podmotion.test/busybox:1",
            architecture: &architecture()?,
            entrypoint: &[],
            command: &["/bin/sh"],
            env: &[],
            labels: &BTreeMap::new(),
            created: oci::EPOCH,
        };
        oci::write_archive(partial, &image, std::slice::from_ref(&layer))?;
        files::remove(&layer)?;
        files::remove(&root)?;
        Ok("1".to_owned())
    }

    fn check(&self, place: &Path) -> Result<()> {
        check_archive(place)?;
        let size = std::fs::metadata(place)
            .with_context(|| format!("cannot look at {}", place.display()))?
            .len();
        ensure!(
            size < 16 << 20,
            "{} has {size} bytes, that is not small",
            place.display()
        );
        Ok(())
    }
}

/// Makes a root file system with the busybox of `base` under all of its names.
pub(super) fn busybox(base: &Path, root: &Path) -> Result<()> {
    copy_program(base, root, "/bin/busybox")?;
    let names = process::answer(rootfs::inside(base).args(["busybox", "--list"]))?;
    for name in names.lines().filter(|name| *name != "busybox") {
        let link = root.join("bin").join(name);
        symlink("busybox", &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    for folder in ["dev", "etc", "proc", "root", "sys", "tmp"] {
        files::make_dir(&root.join(folder))?;
    }
    Ok(())
}

/// Copies a program or library of `base` to the same path in `root`, with the libraries that it is linked with.
pub(super) fn copy_program(base: &Path, root: &Path, path: &str) -> Result<()> {
    copy(base, root, path)?;
    let linked = process::answer(rootfs::inside(base).args(["ldd", path]))?;
    for library in linked
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
    {
        if !root.join(library.trim_start_matches('/')).exists() {
            copy(base, root, library)?;
        }
    }
    Ok(())
}

/// Packs all of `root` as a layer that is the same every time.
pub(super) fn pack(root: &Path, layer: &Path) -> Result<()> {
    process::output(
        process::command("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
            .args(["--mtime=@0", "-cf"])
            .arg(layer)
            .arg("-C")
            .arg(root)
            .arg("."),
    )
    .map(drop)
}

/// Copies the file that `path` is inside `base`, links followed, to the same path in `root`.
fn copy(base: &Path, root: &Path, path: &str) -> Result<()> {
    let relative = path.trim_start_matches('/');
    let real = process::answer(rootfs::inside(base).args(["readlink", "-f", path]))?;
    files::copy(
        &base.join(real.trim().trim_start_matches('/')),
        &root.join(relative),
    )
}
