//! The place all tests of one binary run in.
//!
//! Invariant: nothing outside of `/var/tmp/podmotion-test/<pid>` and the control groups called
//! `podmotion-test-<pid>` is changed on the host, and both are gone after [`Machine::leave`]. A run that was
//! killed is swept up by the next one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::cgroup::{CgroupDriver, Groups};
use crate::process;
use crate::tools::Tools;

const BASE: &str = "/var/tmp/podmotion-test";
const PREFIX: &str = "podmotion-test-";

/// What programs know systemd by and ask it through: the host's stay in the machine's own `/run`.
const SYSTEMD: &[&str] = &[
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/systemd/system",
];

static MACHINE: OnceLock<Machine> = OnceLock::new();
static PINNED: Mutex<bool> = Mutex::new(false);

/// Private namespaces, a work folder and a control group for one test binary.
#[derive(Debug)]
pub struct Machine {
    name: String,
    work: PathBuf,
    groups: Groups,
    /// Mount points there were at first. The host's can still go, so they are no concern of a test.
    mounts: BTreeSet<String>,
}

impl Machine {
    /// Enters new mount and network namespaces, with an own `/run`, `/sys/fs/bpf` and
    /// `/var/lib/podmotion`, and changes to `/etc`, `/opt` and `/var/lib` kept to itself. Containers get
    /// their control groups from [`CgroupDriver::from_env`].
    ///
    /// The caller must be root and have no second thread yet.
    pub fn enter() -> Result<&'static Self> {
        ensure!(nix::unistd::geteuid().is_root(), "these tests need root");
        let threads = fs::read_dir("/proc/self/task")
            .context("count threads")?
            .count();
        ensure!(
            threads == 1,
            "namespaces must be entered before threads start"
        );
        let driver = CgroupDriver::from_env()?;
        Self::sweep()?;
        let pid = std::process::id();
        let name = format!("{PREFIX}{pid}");
        let machine = Self {
            groups: Groups::new(driver, &name),
            name,
            work: Path::new(BASE).join(pid.to_string()),
            mounts: mount_points()?.into_iter().collect(),
        };
        create(&machine.work)?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .context("enter new mount and network namespaces")?;
        do_mount(
            "none",
            "/",
            None,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None,
        )?;
        machine.own_run()?;
        do_mount(
            "bpf",
            "/sys/fs/bpf",
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=700"),
        )?;
        for top in ["/etc", "/opt", "/var/lib", "/var/log"] {
            machine.overlay(top)?;
        }
        let images = machine.work.join("checkpoints");
        create(&images)?;
        create(Path::new("/var/lib/podmotion"))?;
        create(Path::new("/etc/podmotion"))?;
        let source = images.to_str().context("work folder's name is not UTF-8")?;
        do_mount(source, "/var/lib/podmotion", None, MsFlags::MS_BIND, None)?;
        machine.network()?;
        MACHINE
            .set(machine)
            .map_err(|_| anyhow!("the machine was entered twice"))?;
        Self::get()
    }

    /// Removes what killed runs have left.
    pub fn sweep() -> Result<()> {
        sweep(CgroupDriver::from_env()?).context("sweep up what killed runs left")
    }

    /// The machine entered before.
    pub fn get() -> Result<&'static Self> {
        MACHINE
            .get()
            .context("Machine::enter must come first, in main")
    }

    /// The name of this run and of its control groups.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a program of this run has in its environment: [`Machine::leave`] ends it then.
    pub fn mark(&self) -> (&'static str, &str) {
        (process::MARK, &self.name)
    }

    /// Who makes the control groups of containers.
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.groups.driver()
    }

    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// A folder on disk, removed at the end.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Pins the gate's BPF programs, at the first call.
    pub(crate) fn pin_programs(&self, tools: &Tools) -> Result<()> {
        let mut pinned = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*pinned {
            pin_programs(&tools.installer()?)?;
            *pinned = true;
        }
        Ok(())
    }

    /// Mount points that have come since the machine was entered, its own included.
    pub(crate) fn new_mounts(&self) -> Result<Vec<String>> {
        let mut points = mount_points()?;
        points.retain(|point| !self.mounts.contains(point));
        Ok(points)
    }

    /// Kills what still runs and removes folders, mounts and control groups. To be called last in `main`.
    pub fn leave(&self) -> Result<()> {
        clean(&self.name, &self.groups, &self.work)
    }

    /// An empty `/run`, but for the way to systemd where that makes the control groups.
    fn own_run(&self) -> Result<()> {
        let kept = match self.groups.driver() {
            CgroupDriver::Cgroupfs => &[],
            CgroupDriver::Systemd => SYSTEMD,
        };
        let copies = kept
            .iter()
            .map(|path| {
                let copy = open_tree(CWD, *path, OpenTreeFlags::OPEN_TREE_CLONE)
                    .with_context(|| format!("copy the mount of {path}"))?;
                Ok((*path, copy))
            })
            .collect::<Result<Vec<_>>>()?;
        do_mount(
            "tmpfs",
            "/run",
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )?;
        for (path, copy) in copies {
            let stat = rustix::fs::fstat(&copy).with_context(|| format!("look at {path}"))?;
            let path = Path::new(path);
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                create(path)?;
            } else {
                create(path.parent().context("a file in no folder")?)?;
                fs::write(path, "").with_context(|| format!("create {}", path.display()))?;
            }
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&copy, "", CWD, path, flags)
                .with_context(|| format!("mount the host's {}", path.display()))?;
        }
        Ok(())
    }

    /// Lets the harness write below `top` without the host seeing it.
    fn overlay(&self, top: &str) -> Result<()> {
        let folder = self.work.join("overlay").join(top.trim_start_matches('/'));
        let (upper, work) = (folder.join("upper"), folder.join("work"));
        create(&upper)?;
        create(&work)?;
        let options = format!(
            "lowerdir={top},upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        do_mount(
            "overlay",
            top,
            Some("overlay"),
            MsFlags::empty(),
            Some(&options),
        )
    }

    /// The loopback device up, and addresses usable at once.
    fn network(&self) -> Result<()> {
        usable_addresses()?;
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        create(Path::new("/run/netns"))
    }
}

/// Switches IPv6's duplicate detection off in the caller's network namespace: it would cost each pod a second.
pub(crate) fn usable_addresses() -> Result<()> {
    for which in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/accept_dad");
        fs::write(&path, "0").with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

fn mount_points() -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.map(str::to_owned).collect())
}

fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}

fn do_mount(
    source: &str,
    target: &str,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    mount(Some(source), target, kind, flags, options)
        .with_context(|| format!("mount {source} on {target}"))
}

/// Pins the gate's BPF programs where the caller is.
pub(crate) fn pin_programs(installer: &Path) -> Result<()> {
    run(Command::new(installer).arg("bpf"))
        .map(drop)
        .context("pin the gate's programs")
}

/// Runs a short program; its output is in the error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes what runs left that did not get to [`Machine::leave`].
fn sweep(driver: CgroupDriver) -> Result<()> {
    // Suites that start at the same time would take things away from under each other.
    create(Path::new(BASE))?;
    let folder = File::open(BASE).with_context(|| format!("open {BASE}"))?;
    folder.lock().with_context(|| format!("lock {BASE}"))?;
    let Ok(entries) = fs::read_dir(BASE) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(&pid).exists() {
            let name = format!("{PREFIX}{pid}");
            clean(&name, &Groups::new(driver, &name), &entry.path())?;
        }
    }
    Ok(())
}

fn clean(name: &str, groups: &Groups, work: &Path) -> Result<()> {
    process::kill_run(name, groups)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    // Newest first: mounts on mounts come off in order. The overlays hold the folder too.
    for line in mounts.lines().rev() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        let ours = Path::new(point).starts_with(work)
            || line.contains(&format!("upperdir={}/", work.display()))
            || line.contains(&format!("{}/checkpoints", work.display()));
        if ours {
            umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmount {point}"))?;
        }
    }
    groups.remove()?;
    fs::remove_dir_all(work).with_context(|| format!("remove {}", work.display()))
}
