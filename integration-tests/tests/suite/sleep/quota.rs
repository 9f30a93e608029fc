//! What all images of a node may take together, and images that nobody can need any more.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{
    App, Container, Depth, Node, PATIENCE, Runtime, refusal, wait_gone,
};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::faults::{SmallDisk, wait_no_images};
use super::{counter, visit};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[(
    "sleep::quota::of_two_the_quota_lets_one_sleep",
    of_two_the_quota_lets_one_sleep,
)];

/// What only light sleep can show.
pub(super) const LIGHT: &[(&str, Body)] = &[
    (
        "sleep::quota::of_many_at_once_the_quota_lets_some_sleep",
        of_many_at_once_the_quota_lets_some_sleep,
    ),
    (
        "sleep::quota::no_checkpoint_beyond_the_quota",
        no_checkpoint_beyond_the_quota,
    ),
    (
        "sleep::quota::images_of_before_a_reboot_are_removed",
        images_of_before_a_reboot_are_removed,
    ),
];

/// Room for one image of a container with 40 MB, not for two.
const ONE: &str = "checkpoint.quota = \"80MiB\"\n";

fn start(node: &Node, app: App) -> Result<Container> {
    let container = node.run(app.mem_mb(40))?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// Asks for sleep and is told of the quota.
fn ensure_refused(container: &Container) -> Result<()> {
    let Err(refused) = container.sleep() else {
        bail!("it sleeps");
    };
    let told = refusal(&refused).context("no answer")?;
    ensure!(
        told.contains("would exceed the quota of 80MiB (83886080 bytes)"),
        "{told}"
    );
    Ok(())
}

fn of_two_the_quota_lets_one_sleep(node: &Node, _: Runtime) -> Result<()> {
    let disk = SmallDisk::new(node, "size=400m", ONE)?;
    let (first, second) = (start(node, counter())?, start(node, counter())?);
    first.sleep()?;
    ensure_refused(&second)?;
    let status = second.sleeper().wait_reason("quota")?;
    ensure!(
        status.state == "running" && status.counters.sleeps_failed == 0,
        "{status:?}"
    );
    ensure!(visit(second.address(8080)?)? == 1);
    drop(first);
    second.sleep()?;
    ensure!(visit(second.address(8080)?)? == 2);
    drop(second);
    // Of what is reserved nothing stays.
    let left: BTreeSet<_> = names(disk.folder())?;
    let locks = [".lock", ".shims"].map(str::to_owned);
    ensure!(left == BTreeSet::from(locks), "{left:?}");
    Ok(())
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn of_many_at_once_the_quota_lets_some_sleep(node: &Node, _: Runtime) -> Result<()> {
    let _disk = SmallDisk::new(node, "size=800m", ONE)?;
    let containers = (0..4)
        .map(|_| start(node, counter()))
        .collect::<Result<Vec<_>>>()?;
    let asleep: usize = thread::scope(|scope| {
        let sleep = |container| scope.spawn(move || Container::sleep(container).is_ok());
        let asked: Vec<_> = containers.iter().map(sleep).collect();
        let answers = asked.into_iter().map(|one| one.join());
        answers
            .map(|slept| usize::from(slept.unwrap_or(false)))
            .sum()
    });
    ensure!(asleep == 1, "{asleep} sleep");
    for container in &containers {
        // Whoever is refused is told so before the reason is looked for.
        container
            .sleeper()
            .wait_until("sleep or why not", |status| {
                status.state == "asleep" || status.awake_reason.name == "quota"
            })?;
    }
    Ok(())
}

fn no_checkpoint_beyond_the_quota(node: &Node, _: Runtime) -> Result<()> {
    ensure!(node.depth() == Depth::Light);
    let disk = SmallDisk::new(node, "size=400m", ONE)?;
    let app = counter().annotation("deep-sleep-after", "100ms");
    let container = start(node, app)?;
    container.sleep()?;
    let status = container
        .sleeper()
        .wait_until("a checkpoint that is not made", |status| {
            status.counters.sleeps_failed == 1
        })?;
    ensure!(
        status.depth == "light"
            && status
                .last_error
                .contains("would exceed the quota of 80MiB ("),
        "{status:?}"
    );
    ensure!(!disk.folder().join(container.id()).exists());
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}

fn kill(pid: i32) -> Result<()> {
    kill_process(Pid::from_raw(pid).context("pid 0")?, Signal::KILL).context("kill a process")?;
    wait_gone(pid, PATIENCE)
}

/// All processes are gone at once and `/run` is empty; what is on the disk is still there.
fn reboot(node: &Node, containers: &[&Container]) -> Result<()> {
    let pids: Vec<Vec<u32>> = containers
        .iter()
        .map(|container| container.pids())
        .collect::<Result<_>>()?;
    // First whoever would clear up.
    node.kill9()?;
    for shim in node.shims()? {
        kill(shim.pid)?;
    }
    for pid in pids.into_iter().flatten() {
        // A container in deep sleep names its process of before.
        if Path::new("/proc").join(pid.to_string()).exists() {
            kill(pid.try_into()?)?;
        }
    }
    let run = node.run_folder();
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    for point in table
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
    {
        if Path::new(point).starts_with(&run) {
            unmount(point, UnmountFlags::DETACH).with_context(|| format!("unmount {point}"))?;
        }
    }
    for entry in fs::read_dir(&run).context("list what is to go")?.flatten() {
        let path = entry.path();
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    for container in containers {
        let socket = PathBuf::from(format!("/run/podmotion/shims/{}.sock", container.id()));
        fs::remove_file(&socket).with_context(|| format!("remove {}", socket.display()))?;
    }
    Ok(())
}

fn images_of_before_a_reboot_are_removed(node: &Node, _: Runtime) -> Result<()> {
    let own = Node::start(node.versions())?;
    let folder = own.folder().join("checkpoints");
    let directory = format!("checkpoint.directory = \"{}\"\n", folder.display());
    let _settings = own.set(&directory)?;
    let deep = start(&own, counter().annotation("deep-sleep-after", "0"))?;
    let light = start(&own, counter().annotation("deep-sleep-after", "never"))?;
    deep.sleep()?;
    light.sleep()?;
    light.wake()?;
    light
        .sleeper()
        .wait_until("all of its memory", |status| status.awake_reason.is_some())?;
    let images = [
        folder.join(deep.id()),
        folder.join(format!("{}.memory", light.id())),
    ];
    ensure!(images.iter().all(|one| one.exists()), "no images");
    reboot(&own, &[&deep, &light])?;
    own.start_again()?;
    ensure!(images.iter().all(|one| one.exists()), "removed by nobody");

    let next = start(&own, counter())?;
    let left = names(&folder)?;
    ensure!(
        !images.iter().any(|one| one.exists()),
        "images of before are left: {left:?}"
    );
    for name in left.iter().filter(|name| name.starts_with(".gone-")) {
        wait_no_images(&folder.join(name))?;
    }
    next.sleep()?;
    // Now there is a shim that may own what is there.
    let others = folder.join("of-whom");
    fs::create_dir(&others).context("make a directory")?;
    let another = start(&own, counter())?;
    another.sleep()?;
    ensure!(others.exists(), "another shim's images are gone");
    ensure!(visit(next.address(8080)?)? == 1 && visit(another.address(8080)?)? == 1);
    Ok(())
}
