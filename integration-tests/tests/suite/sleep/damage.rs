//! An image of light sleep that is damaged while the container sleeps: it is ended, and says why. It never goes on
//! with memory that is not its own.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Client, Container, Depth, Node, Runtime};

use super::compression::{at_once, wait_compressed};
use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::damage::a_corrupted_image_ends_the_container",
        corrupted,
    ),
    ("sleep::damage::a_short_image_ends_the_container", short),
    (
        "sleep::damage::a_corrupted_image_that_is_compressed_ends_the_container",
        corrupted_compressed,
    ),
    (
        "sleep::damage::a_disk_that_fails_ends_the_container",
        disk_fails,
    ),
    ("sleep::damage::a_deleted_image_wakes_all_the_same", deleted),
];

fn counter(node: &Node) -> Result<Container> {
    ensure!(node.depth() == Depth::Light);
    let app = App::counter()
        .mem_mb(20)
        .annotation("scaledown-duration", "1h")
        .annotation("deep-sleep-after", "never");
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// The files of a container's moved memory, below the folder for checkpoints.
fn images(checkpoints: &Path, container: &Container) -> PathBuf {
    checkpoints.join(format!("{}.memory", container.id()))
}

fn files(images: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(images)
        .with_context(|| format!("list {}", images.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect()
}

/// Its wake fails, it is killed, and its status says for one of these reasons.
fn ensure_ended(container: &Container, reasons: &[&str]) -> Result<()> {
    // Its answer depends on whether the damage shows before the processes run.
    container.wake().err();
    let exit = container.wait()?;
    ensure!(exit.status == 128 + 9, "{exit:?}");
    let status = container
        .sleeper()
        .wait_until("its end, and why", |status| {
            status.state == "stopped" && !status.last_error.is_empty()
        })?;
    let said = &status.last_error;
    ensure!(
        reasons.iter().any(|reason| said.contains(reason)),
        "none of {reasons:?}: {said}"
    );
    container.delete_task()?;
    Ok(())
}

fn corrupted(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    container.sleep()?;
    corrupt(&container)?;
    ensure_ended(&container, &["does not match its checksum"])
}

fn corrupted_compressed(node: &Node, _: Runtime) -> Result<()> {
    let _settings = at_once(node)?;
    let container = counter(node)?;
    container.sleep()?;
    let status = wait_compressed(&container)?;
    ensure!(status.last_sleep.compression == "lz4", "{status:?}");
    corrupt(&container)?;
    ensure_ended(&container, &["does not match its checksum"])
}

fn corrupt(container: &Container) -> Result<()> {
    for path in files(&images(&checkpoints(), container))? {
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        for byte in bytes.iter_mut().step_by(512) {
            *byte ^= 0x55;
        }
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&bytes)?;
    }
    Ok(())
}

fn short(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    container.sleep()?;
    for path in files(&images(&checkpoints(), &container))? {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(file.metadata()?.len() / 2)?;
    }
    ensure_ended(&container, &["ends within"])
}

/// A file system on a file, which is cut off while it is mounted.
struct Disk {
    backing: File,
    mounted: PathBuf,
}

impl Disk {
    fn mount(folder: &Path) -> Result<Self> {
        let (image, mounted) = (folder.join("disk"), folder.join("mounted"));
        fs::create_dir_all(&mounted).context("make a mount point")?;
        let backing = File::create(&image).context("make a disk")?;
        backing.set_len(200 << 20).context("make a disk")?;
        let make = ["-q", "-F", "-O", "^has_journal"];
        run(Command::new("mkfs.ext4").args(make).arg(&image))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &mounted]))?;
        Ok(Self { backing, mounted })
    }

    /// What was written is on the disk and not in memory, and the disk gives nothing back.
    fn fail(&self, files: &[PathBuf]) -> Result<()> {
        for path in files {
            let file = File::open(path)?;
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        self.backing.set_len(0).context("cut the disk off")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is busy goes with the test's mount namespace, and the loop device with it.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.mounted)
            .status();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn disk_fails(node: &Node, _: Runtime) -> Result<()> {
    let disk = Disk::mount(&node.folder().join("failing"))?;
    let directory = disk.mounted.display();
    let _settings = node.set(&format!("checkpoint.directory = \"{directory}\"\n"))?;
    let container = counter(node)?;
    container.sleep()?;
    disk.fail(&files(&images(&disk.mounted, &container))?)?;
    // Before Linux 6.16 a loop device reads zeros behind its end.
    ensure_ended(
        &container,
        &["Input/output error", "does not match its checksum"],
    )
}

fn deleted(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    let address = container.address(8080)?;
    ensure!(visit(address)? == 1);
    container.sleep()?;
    let images = images(&checkpoints(), &container);
    fs::remove_dir_all(&images).with_context(|| format!("remove {}", images.display()))?;
    let answer = Client::default().get(address, "/mem")?;
    ensure!(answer.body.contains("\"mem_ok\": true"), "{answer:?}");
    container
        .sleeper()
        .wait_until("all of its memory", |status| {
            status.state == "running" && status.awake_reason.is_some()
        })?;
    ensure!(visit(address)? == 2);
    Ok(())
}

fn checkpoints() -> PathBuf {
    PathBuf::from("/var/lib/podmotion/checkpoints")
}
