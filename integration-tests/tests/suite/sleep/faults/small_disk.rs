//! A disk with little room.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Node, PATIENCE, Settings};

/// A small file system in memory, for the checkpoints of containers that start while it lives.
pub(crate) struct SmallDisk {
    folder: PathBuf,
    _settings: Settings,
}

impl SmallDisk {
    /// With these options of tmpfs, and more in our runtime's configuration.
    pub(crate) fn new(node: &Node, options: &str, settings: &str) -> Result<Self> {
        let folder = node.folder().join("small");
        std::fs::create_dir_all(&folder).context("make a mount point")?;
        let directory = format!("checkpoint.directory = \"{}\"", folder.display());
        let disk = Self {
            folder,
            _settings: node.set(&format!("{directory}\n{settings}"))?,
        };
        disk.mount(options)?;
        Ok(disk)
    }

    pub(crate) fn mount(&self, options: &str) -> Result<()> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&self.folder)
            .status()
            .context("run mount")?;
        ensure!(status.success(), "mount {options}: {status}");
        Ok(())
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until no more than `bytes` of it are taken. The kernel gives the room of a removed file
    /// back after its name.
    pub(crate) fn wait_emptied(&self, bytes: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disk = rustix::fs::statvfs(&self.folder).context("look at the disk")?;
            let used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize;
            if used <= bytes {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{used} bytes are taken");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many files and directories there are.
    pub(crate) fn files(&self) -> Result<u64> {
        let disk = rustix::fs::statvfs(&self.folder).context("look at the disk")?;
        Ok(disk.f_files - disk.f_ffree)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What cannot be unmounted goes with the test's mount namespace.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.folder)
            .status();
    }
}
