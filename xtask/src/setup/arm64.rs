//! What an emulated arm64 machine boots: a distribution's kernel, and a root file system of what `podmotion check` and a
//! container need beside Podmotion itself.
//!
//! `arm64/` holds `vmlinuz`, `root/` and `image.tar`, an image with busybox.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use super::bundle::Bundle;
use super::oci::{self, Content, Image};
use super::{Cache, Item, Work, files, items};
use crate::arch::Arch;
use crate::{elf, process};

/// Name of the item.
pub const ARM64: &str = "arm64-machine";
/// Where it is in the cache.
pub const ARM64_PLACE: &str = "arm64";
/// The image that is in it.
pub const IMAGE: &str = "podmotion.test/busybox:1";

/// Counts up whenever it is made in another way.
const RECIPE: u32 = 1;

const SUITE: &str = "trixie";
const PACKAGES: &[&str] = &["linux-image-cloud-arm64", "busybox-static"];

/// Kernel modules, for CRIU, for the gate and for containers. What they need comes along.
const MODULES: &[&str] = &[
    "af_packet_diag",
    "netlink_diag",
    "raw_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "nf_tables",
    "cls_bpf",
    "sch_ingress",
    "tun",
    "overlay",
    "veth",
];

/// Programs with their own libraries: (bundle, folder in the machine).
fn bundles() -> [(Bundle, &'static str); 2] {
    [
        (items::newest_containerd(), "opt/containerd"),
        (items::newest_runc(), "opt/runc"),
    ]
}

/// The machine.
pub struct Machine;

impl Item for Machine {
    fn name(&self) -> &str {
        ARM64
    }

    fn why(&self) -> &str {
        "kernel and containerd of an arm64 machine, for `cargo xtask arm64`"
    }

    fn needs(&self) -> &[&str] {
        &["packages", "qemu-arm"]
    }

    fn by_default(&self) -> bool {
        false
    }

    fn place(&self) -> Option<&str> {
        Some(ARM64_PLACE)
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        let bundles = bundles().map(|(bundle, place)| format!("{place} {}", bundle.made_from()));
        Ok(format!(
            "{RECIPE} {SUITE} {PACKAGES:?} {MODULES:?} {bundles:?}"
        ))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        work.ui.step(&format!("fetching from Debian {SUITE}"));
        let debs = work.apt.suite_for(SUITE, Arch::Arm64)?.fetch(PACKAGES)?;
        let unpacked = files::with_suffix(partial, ".unpacked");
        files::remove(&unpacked)?;
        let mut version = None;
        for deb in &debs {
            if deb.package.starts_with("linux-image-") || deb.package == "busybox-static" {
                deb.unpack(&unpacked)?;
            }
            if deb.package == PACKAGES[0] {
                version = Some(deb.version.clone());
            }
        }
        let root = partial.join("root");
        files::copy(&kernel(&unpacked)?, &partial.join("vmlinuz"))?;
        files::copy(&unpacked.join("usr/bin/busybox"), &root.join("bin/busybox"))?;
        work.ui.step("unpacking kernel modules");
        modules(&unpacked, &root.join("modules"))?;
        files::remove(&unpacked)?;
        image(&root.join("bin/busybox"), partial)?;
        for (bundle, place) in bundles() {
            let home = Path::new("/").join(place);
            bundle.assemble(work, Arch::Arm64, &root.join(place), &home)?;
        }
        version.context("apt brought no kernel")
    }

    fn check(&self, place: &Path) -> Result<()> {
        elf::check_machine(&place.join("root/bin/busybox"), Arch::Arm64)
    }
}

fn kernel(unpacked: &Path) -> Result<PathBuf> {
    let boot = unpacked.join("boot");
    let failed = || format!("cannot list {}", boot.display());
    for entry in fs::read_dir(&boot).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("{} has no kernel", boot.display())
}

/// Unpacks [`MODULES`] and what they need into `out`; `order` there has their names in the order of loading.
fn modules(unpacked: &Path, out: &Path) -> Result<()> {
    let mut known = BTreeMap::new();
    for entry in WalkDir::new(unpacked.join("usr/lib/modules")) {
        let entry = entry.context("cannot list the kernel's modules")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(".ko.xz") {
            known.insert(name.replace('-', "_"), entry.path().to_owned());
        }
    }
    files::make_dir(out)?;
    let mut order = Vec::new();
    for name in MODULES {
        module(name, &known, out, &mut order)?;
    }
    files::write(&out.join("order"), (order.join("\n") + "\n").as_bytes())
}

fn module(
    name: &str,
    known: &BTreeMap<String, PathBuf>,
    out: &Path,
    order: &mut Vec<String>,
) -> Result<()> {
    if order.iter().any(|it| it == name) {
        return Ok(());
    }
    let packed = known
        .get(name)
        .with_context(|| format!("the kernel has no module {name}"))?;
    let file = out.join(format!("{name}.ko"));
    let mut xz = process::command("xz");
    xz.arg("-dc")
        .arg(packed)
        .stderr(std::process::Stdio::inherit());
    let unpacked = xz.output().context("cannot start xz")?;
    ensure!(
        unpacked.status.success(),
        "{}: {}",
        process::describe(&xz),
        unpacked.status
    );
    for needed in depends(&unpacked.stdout) {
        module(&needed, known, out, order)?;
    }
    files::write(&file, &unpacked.stdout)?;
    order.push(name.to_owned());
    Ok(())
}

/// Names of the modules that a module needs, as its `.modinfo` has them.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|it| it == key) else {
        return Vec::new();
    };
    let value = module[at + key.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// An image with busybox and nothing else, `image.tar` in `dir`.
fn image(busybox: &Path, dir: &Path) -> Result<()> {
    let layer = dir.join("layer.partial");
    let content = BTreeMap::from([
        ("bin".to_owned(), Content::Directory),
        ("bin/busybox".to_owned(), Content::File(busybox.to_owned())),
    ]);
    oci::write_gzip_layer(&layer, &content, oci::EPOCH)?;
    let image = Image {
        name: IMAGE,
        architecture: Arch::Arm64.name(),
        entrypoint: &["/bin/busybox"],
        command: &[],
        env: &[],
        labels: &BTreeMap::new(),
        created: oci::EPOCH,
    };
    oci::write_archive(&dir.join("image.tar"), &image, std::slice::from_ref(&layer))?;
    files::remove(&layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        let of = |text: &str| depends(text.as_bytes());
        assert_eq!(
            of("\0license=GPL\0depends=nfnetlink,lib-crc32c\0name=x\0"),
            ["nfnetlink", "lib_crc32c"]
        );
        assert!(of("\0depends=\0name=x\0").is_empty());
        assert!(of("\0name=x\0").is_empty());
    }
}
