//! A virtual machine with what nearly every user has: a distribution's kernel, systemd and cgroup v2.
//!
//! `vm/` holds `disk.img` (raw, sparse; boot an overlay of it, so that it stays clean), `vmlinuz`, `initrd` and the `key` of its
//! root user. It starts containerd and the SSH server, and takes its address from DHCP.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::rootfs::{self, RootFs};
use super::{Cache, Item, Work, files};
use crate::process;

/// Counts up whenever the machine is made in another way.
const RECIPE: u32 = 2;

const SUITE: &str = "trixie";
const PACKAGES: &[&str] = &[
    "containerd",
    "containernetworking-plugins",
    "dbus",
    "iproute2",
    "iptables",
    "kmod",
    "linux-image-cloud-amd64",
    "openssh-server",
    "procps",
    "python3-minimal",
    "runc",
    "systemd-sysv",
    "udev",
];
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*/*.gz",
];

/// Size of the disk in bytes; it takes what is on it and no more.
const DISK_BYTES: u64 = 8 << 30;

/// Files of the machine: path, content. What they set is explained in the comments that go there too.
const CONFIGURATION: &[(&str, &str)] = &[
    ("etc/fstab", "/dev/vda / ext4 defaults 0 1\n"),
    ("etc/hostname", "podmotion-vm\n"),
    (
        "etc/hosts",
        "127.0.0.1 localhost podmotion-vm\n::1 localhost\n",
    ),
    (
        "etc/systemd/network/20-wired.network",
        "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
    ),
    (
        "etc/modules-load.d/podmotion.conf",
        "# Modules in a distribution's kernel that the gate needs.\nsch_ingress\ncls_bpf\ntun\n",
    ),
    (
        "etc/ssh/sshd_config.d/podmotion.conf",
        "# No look-ups: there is no name server.\nUseDNS no\nPasswordAuthentication no\n",
    ),
];

/// Switched off: they cost minutes of an emulated processor and do nothing for a machine that lives for one test.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "systemd-networkd-wait-online.service",
];

/// The virtual machine.
pub struct Vm;

impl Item for Vm {
    fn name(&self) -> &str {
        "vm"
    }

    fn why(&self) -> &str {
        "virtual machine with a distribution's kernel, systemd and cgroup v2"
    }

    fn needs(&self) -> &[&str] {
        &["packages", "qemu"]
    }

    fn place(&self) -> Option<&str> {
        Some("vm")
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok(format!(
            "{RECIPE} {SUITE} {PACKAGES:?} {LEFT_OUT:?} {DISK_BYTES} {CONFIGURATION:?} {MASKED:?}"
        ))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        files::make_dir(partial)?;
        work.ui.step("making the root file system (about a minute)");
        let tar = partial.join("root.tar");
        RootFs {
            suite: SUITE,
            packages: PACKAGES,
            left_out: LEFT_OUT,
        }
        .write_tar(work, &tar)?;
        work.ui.step("configuring it");
        let root = partial.join("root");
        rootfs::unpack(&tar, &root)?;
        files::remove(&tar)?;
        configure(&root)?;
        make_key(partial, &root)?;
        let version = take_kernel(&root, partial)?;
        work.ui.step("making the disk");
        make_disk(&root, &partial.join("disk.img"))?;
        files::remove(&root)?;
        Ok(version)
    }

    fn check(&self, place: &Path) -> Result<()> {
        let disk = place.join("disk.img");
        process::output(process::command("e2fsck").args(["-f", "-n"]).arg(&disk)).map(drop)
    }
}

fn configure(root: &Path) -> Result<()> {
    for (path, content) in CONFIGURATION {
        let path = root.join(path);
        files::make_parent(&path)?;
        files::write(&path, content.as_bytes())?;
    }
    // The root file system comes without it, and the kernel's device files are mounted there.
    files::make_dir(&root.join("dev"))?;
    for (verb, units) in [
        ("enable", ["systemd-networkd.service"].as_slice()),
        ("mask", MASKED),
    ] {
        process::output(rootfs::inside(root).args(["systemctl", verb]).args(units))?;
    }
    Ok(())
}

/// Makes a key pair at `dir/key` that lets one in as root.
fn make_key(dir: &Path, root: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let key = dir.join("key");
    process::output(
        process::command("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "podmotion-vm", "-f"])
            .arg(&key),
    )?;
    let ssh = root.join("root/.ssh");
    files::make_dir(&ssh)?;
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot protect {}", ssh.display()))?;
    files::copy(&dir.join("key.pub"), &ssh.join("authorized_keys"))
}

/// Copies the one kernel in `root` and its initial file system to `dir`, and returns its version.
fn take_kernel(root: &Path, dir: &Path) -> Result<String> {
    let boot = root.join("boot");
    let kernel = the_one(&boot, "vmlinuz-")?;
    files::copy(&kernel, &dir.join("vmlinuz"))?;
    files::copy(&the_one(&boot, "initrd.img-")?, &dir.join("initrd"))?;
    let name = kernel.file_name().unwrap_or_default().to_string_lossy();
    Ok(name.trim_start_matches("vmlinuz-").to_owned())
}

fn the_one(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(
        found.len() == 1,
        "{} should have one {prefix}* and has {}",
        dir.display(),
        found.len()
    );
    Ok(found.remove(0))
}

fn make_disk(root: &Path, disk: &Path) -> Result<()> {
    let file = File::create(disk).with_context(|| format!("cannot create {}", disk.display()))?;
    file.set_len(DISK_BYTES)
        .with_context(|| format!("cannot size {}", disk.display()))?;
    process::output(
        process::command("mke2fs")
            .args(["-q", "-t", "ext4", "-L", "podmotion", "-d"])
            .arg(root)
            .arg(disk),
    )
    .map(drop)
}
