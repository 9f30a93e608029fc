//! The second disk: everything that the tests need in the virtual machine, and that it does not have.
//!
//! ```text
//! for the suite                          for a node
//!   start       runs it: src/vm/start.sh   podmotion/  what is in the installer's image
//!   suite       this program               kubelet     of the cache
//!   bin/        our own programs           images/     test images
//!   cache-path  where the cache is
//!               outside: CRIU's libraries
//!               are only found there
//!   cache/      a cache as the tests
//!               expect it, with the
//!               distribution's programs
//!               under the names of their
//!               versions, and a smaller
//!               test image
//! ```

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::machine::{Machine, run};
use crate::tools::{ContainerdVersion, RuncVersion, Runtime, Tools, Versions};

/// Size in bytes; the file takes what is on it and no more.
const BYTES: u64 = 1 << 30;

/// The distribution's release lines, as `vm::SUITE` of setup has them.
const VERSIONS: Versions = Versions {
    containerd: ContainerdVersion::V1_7,
    runc: RuncVersion::V1_1,
};

/// Programs of the distribution: folder in the cache, folder in the virtual machine, names.
const DISTRIBUTION: &[(&str, &str, &[&str])] = &[
    (
        "containerd-1.7/bin",
        "/usr/bin",
        &["containerd", "ctr", "containerd-shim-runc-v2"],
    ),
    ("runc-1.1/bin", "/usr/sbin", &["runc"]),
    ("cni", "/usr/lib/cni", &["bridge", "host-local", "loopback"]),
];

/// Files of the cache: name outside, name inside.
const CACHED: &[(&str, &str)] = &[
    ("images/busybox.tar", "images/busybox.tar"),
    ("images/pause.tar", "images/pause.tar"),
    ("images/apps.tar", "images/apps.tar"),
];

/// Who runs the machine's containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    /// Those that tests start.
    OfTests,
    /// The distribution's own, as its unit says.
    Own,
}

/// A disk for one [`super::Vm`].
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    daemon: Daemon,
}

impl Disk {
    /// containerd and runc that tests on it can use.
    pub const VERSIONS: Versions = VERSIONS;

    /// The program to run inside.
    pub const START: &str = "/podmotion/start";

    /// Makes one to run tests from, in the machine's work folder. `suite` is their program.
    pub fn of_suite(tools: &Tools, suite: &Path) -> Result<Self> {
        let tree = tree()?;
        let cache = tree.join("cache");
        create(&cache)?;
        let start = tree.join("start");
        fs::write(&start, include_str!("start.sh"))
            .and_then(|()| fs::set_permissions(&start, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("write {}", start.display()))?;
        copy(suite, &tree.join("suite"))?;
        let shim = tools.shim(Runtime::Podmotion)?;
        let (responder, installer) = (tools.responder()?, tools.installer()?);
        for program in [shim, responder, installer, tools.self_test_app()?] {
            let name = program.file_name().context("a program without a name")?;
            copy(&program, &tree.join("bin").join(name))?;
        }
        let outside = tools.cache().as_os_str();
        fs::write(tree.join("cache-path"), outside.as_bytes()).context("write the cache's path")?;
        for (from, to) in CACHED {
            copy(&tools.cached(from)?, &cache.join(to))?;
        }
        run(Command::new("cp")
            .arg("-a")
            .arg(tools.cached("criu")?)
            .arg(&cache))?;
        for (folder, inside, names) in DISTRIBUTION {
            let folder = cache.join(folder);
            create(&folder)?;
            for name in *names {
                let link = folder.join(name);
                symlink(Path::new(inside).join(name), &link)
                    .with_context(|| format!("link {}", link.display()))?;
            }
        }
        Self::pack(&tree, Daemon::OfTests)
    }

    /// Makes one to put Podmotion on the machine from, in the machine's work folder. `image` is the
    /// installer's, as an archive.
    pub fn of_node(tools: &Tools, image: &Path) -> Result<Self> {
        let tree = tree()?;
        unpack(image, &tree)?;
        copy(
            &tools.cached("kubernetes/bin/kubelet")?,
            &tree.join("kubelet"),
        )?;
        for (from, to) in CACHED {
            copy(&tools.cached(from)?, &tree.join(to))?;
        }
        Self::pack(&tree, Daemon::Own)
    }

    fn pack(tree: &Path, daemon: Daemon) -> Result<Self> {
        let path = tree.with_extension("img");
        File::create(&path)
            .and_then(|file| file.set_len(BYTES))
            .with_context(|| format!("create {}", path.display()))?;
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
            .arg(tree)
            .arg(&path))?;
        fs::remove_dir_all(tree).with_context(|| format!("remove {}", tree.display()))?;
        Ok(Self { path, daemon })
    }

    pub(super) fn daemon(&self) -> Daemon {
        self.daemon
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Where what is to be on a disk is gathered.
fn tree() -> Result<PathBuf> {
    let tree = Machine::get()?.work().join("vm-disk/tree");
    create(&tree)?;
    Ok(tree)
}

/// Unpacks what is in an image, an archive of one platform, into `tree`.
fn unpack(archive: &Path, tree: &Path) -> Result<()> {
    let blobs = tree.with_extension("oci");
    create(&blobs)?;
    run(Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(&blobs))?;
    let read = |path: &Path| -> Result<serde_json::Value> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    };
    let blob = |descriptor: &serde_json::Value| -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str();
        let digest = digest.and_then(|digest| digest.strip_prefix("sha256:"));
        Ok(blobs
            .join("blobs/sha256")
            .join(digest.context("no digest")?))
    };
    let index = read(&blobs.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0])?)?;
    for layer in manifest["layers"].as_array().context("no layers")? {
        run(Command::new("tar")
            .arg("-xzf")
            .arg(blob(layer)?)
            .arg("-C")
            .arg(tree))?;
    }
    fs::remove_dir_all(&blobs).with_context(|| format!("remove {}", blobs.display()))
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// Copies a file, and makes the folder that it goes to.
fn copy(from: &Path, to: &Path) -> Result<()> {
    create(to.parent().context("a file in no folder")?)?;
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}
