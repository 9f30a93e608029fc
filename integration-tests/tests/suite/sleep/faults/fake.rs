//! A CRIU that fails when told to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Node, PATIENCE, Settings};

/// In front of the real CRIU while it lives.
pub(in crate::sleep) struct Fake {
    folder: PathBuf,
    _settings: Settings,
}

/// What it does; each in place of the real CRIU's work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sleep) enum Mode {
    /// Nothing: the real one works.
    Real,
    /// Ends at once.
    ExitDump,
    /// Never answers.
    HangDump,
    /// Writes something to the directory of the images and ends.
    HalfDump,
    /// Writes to the directory of the images for a while once the shim is gone, and ends. Notes a call `Lost` where it
    /// cannot write there, and `End` at the end.
    LateDump,
    /// Ends at once, with an error.
    ExitRestore,
    /// The lazy-pages daemon ends at once, with an error.
    ExitLazy,
}

const SCRIPT: &str = r#"#!/bin/sh
mode=$(cat '@folder@/mode')
case "$*" in
*lazy-pages*) what=Lazy ;;
*) if grep -q /podmotion/work/ /proc/self/mountinfo; then what=Restore; else what=Dump; fi ;;
esac
echo $what >> '@folder@/calls'
case $mode in
"Exit$what")
	echo "Error (fake/cr.c:7): cannot $what" >&2
	exit 1 ;;
"Hang$what")
	exec sleep 1000 ;;
"Half$what")
	for images in /var/lib/podmotion/checkpoints/*; do echo half > "$images/pages-1.img"; done
	exit 1 ;;
"Late$what")
	while kill -0 $PPID; do sleep 0.01; done 2>/dev/null
	for n in $(seq 50); do
		for images in /var/lib/podmotion/checkpoints/*; do echo late > "$images/late-$n.img" || echo Lost >> '@folder@/calls'; done
		sleep 0.01
	done
	echo End >> '@folder@/calls'
	exit 1 ;;
esac
exec '@real@' "$@"
"#;

impl Fake {
    /// For the containers that start from now on, with more settings.
    pub(in crate::sleep) fn new(node: &Node, settings: &str) -> Result<Self> {
        let folder = node.folder().join("fake-criu");
        fs::create_dir_all(&folder).context("make a folder for the fake CRIU")?;
        let binary = folder.join("criu");
        let real = node.tools().criu()?;
        let script = SCRIPT
            .replace("@folder@", &folder.display().to_string())
            .replace("@real@", &real.display().to_string());
        fs::write(&binary, script).context("write the fake CRIU")?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
            .context("make the fake CRIU executable")?;
        let settings = format!("criu.binary = \"{}\"\n{settings}", binary.display());
        let fake = Self {
            folder,
            _settings: node.set(&settings)?,
        };
        fake.set(Mode::Real)?;
        Ok(fake)
    }

    /// What it does from now on. Forgets its calls.
    pub(in crate::sleep) fn set(&self, mode: Mode) -> Result<()> {
        let word = match mode {
            Mode::Real => "Real",
            Mode::ExitDump => "ExitDump",
            Mode::HangDump => "HangDump",
            Mode::HalfDump => "HalfDump",
            Mode::LateDump => "LateDump",
            Mode::ExitRestore => "ExitRestore",
            Mode::ExitLazy => "ExitLazy",
        };
        fs::write(self.folder.join("calls"), "").context("forget the calls")?;
        fs::write(self.folder.join("mode"), word).context("set the fake CRIU's mode")
    }

    /// What it was called for.
    pub(in crate::sleep) fn calls(&self) -> Result<Vec<String>> {
        let calls = fs::read_to_string(self.folder.join("calls")).context("read the calls")?;
        Ok(calls.lines().map(str::to_owned).collect())
    }

    /// Waits until it has noted `call`. Nothing tells.
    pub(in crate::sleep) fn wait_call(&self, call: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.calls()?.iter().any(|one| one == call) {
            ensure!(Instant::now() < deadline, "no call {call}");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Takes it away.
    pub(in crate::sleep) fn remove(&self) -> Result<()> {
        fs::rename(self.folder.join("criu"), self.folder.join("away")).context("take CRIU away")
    }

    /// Puts it back.
    pub(in crate::sleep) fn put_back(&self) -> Result<()> {
        fs::rename(self.folder.join("away"), self.folder.join("criu")).context("put CRIU back")
    }
}
