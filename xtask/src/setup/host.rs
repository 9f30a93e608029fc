//! Packages of the machine itself, through its own apt: what compiles, patches and makes file systems.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Cache, Item, Work};
use crate::process;

/// Packages by their names in Debian and Ubuntu, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("ca-certificates", "downloads over TLS"),
    ("clang", "compiles the BPF programs"),
    ("dbus-daemon", "the bus that tells kubelets of a shutdown"),
    ("debian-archive-keyring", "verifies what comes from Debian"),
    ("e2fsprogs", "makes the virtual machine's disk"),
    ("gcc", "links, and compiles the pause program"),
    ("iproute2", "network namespaces of the tests"),
    ("iptables", "the bridge plugin's masquerading"),
    ("libbpf-dev", "headers of the BPF programs"),
    ("libc6-dev", "static linking"),
    ("linux-libc-dev", "kernel headers of the BPF programs"),
    ("mmdebstrap", "makes root file systems"),
    (
        "openssh-client",
        "keys for, and commands in, the virtual machine",
    ),
    ("patchelf", "gives programs their own libraries"),
    ("procps", "`ps`, which the tests run"),
    ("python3-pip", "fetches schemas for the chart's tests"),
    ("xz-utils", "unpacks packages"),
    ("zstd", "unpacks packages"),
];

/// How long to wait for another package manager to finish, in seconds.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=600";

/// The machine's packages.
pub struct Packages;

impl Item for Packages {
    fn name(&self) -> &str {
        "packages"
    }

    fn why(&self) -> &str {
        "packages of this machine to compile and to make file systems with"
    }

    fn place(&self) -> Option<&str> {
        None
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok(PACKAGES.iter().flat_map(|(name, _)| [*name, " "]).collect())
    }

    fn present(&self, _cache: &Cache) -> Result<bool> {
        Ok(missing(PACKAGES)?.is_empty())
    }

    fn make(&self, work: &Work<'_>, _partial: &Path) -> Result<String> {
        install(work, PACKAGES)
    }

    fn check(&self, _place: &Path) -> Result<()> {
        Ok(())
    }
}

/// Installs those of `packages` that are missing and says how many they were.
pub fn install(work: &Work<'_>, packages: &[(&'static str, &str)]) -> Result<String> {
    let missing = missing(packages)?;
    for (package, purpose) in packages {
        if missing.contains(package) {
            work.ui.step(&format!("{package}: {purpose}"));
        }
    }
    update()?;
    process::output(
        apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(&missing),
    )?;
    Ok(format!("{} installed", missing.len()))
}

/// Refreshes the machine's package lists.
pub fn update() -> Result<()> {
    process::output(apt_get().arg("update"))
        .map(drop)
        .context("the package lists of this machine")
}

fn apt_get() -> Command {
    let mut command = process::command("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "-q",
        "-o",
        LOCK_TIMEOUT,
        "-o",
        "Dpkg::Use-Pty=0",
    ]);
    command
}

/// Those of `packages` that this machine does not have.
pub fn missing(packages: &[(&'static str, &str)]) -> Result<Vec<&'static str>> {
    // dpkg-query fails when it knows nothing of one of the names, and still lists the others.
    let output = process::command("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages.iter().map(|(name, _)| name))
        .output()
        .context("cannot start dpkg-query: setup works on Debian and Ubuntu")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    Ok(packages
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| {
            !listed
                .lines()
                .any(|line| line.split_once(' ') == Some((name, "installed")))
        })
        .collect())
}
