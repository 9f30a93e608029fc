//! `cargo xtask arm64`: how far Podmotion works on arm64, tried on a machine that is not.
//!
//! Each program runs under emulation of single programs. Then an emulated machine boots a distribution's kernel, loads the
//! BPF programs, and puts containers of a real containerd to sleep (`machine.sh`).

mod cpio;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use walkdir::WalkDir;

use crate::arch::Arch;
use crate::setup::{self, Cache, Criu, files};
use crate::{dist, process};
use cpio::Cpio;

/// What the machine does, as its first process.
const INIT: &str = include_str!("machine.sh");

/// What the machine says at the end of each step, and after the last.
const PASSED: &str = "step passed: ";
const FAILED: &str = "step failed: ";
const ENDED: &str = "steps ended";

/// How long the machine may take, in seconds: emulation is slow, and everything happens in memory.
const PATIENCE: &str = "900";

/// Programs that say who they are in another way than the others: (program, arguments, what they say).
const MANNERS: [(&str, &[&str], &str); 2] = [
    (
        "containerd-shim-podmotion-v1",
        &["-v"],
        env!("CARGO_PKG_VERSION"),
    ),
    ("podmotion-responder", &[], "started by Podmotion's shim"),
];

/// Arguments of `cargo xtask arm64`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Take the programs from this folder instead of compiling them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// What the machine has said of its steps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    passed: Vec<String>,
    failed: Vec<String>,
    ended: bool,
}

/// Runs the command.
///
/// # Errors
/// When something cannot be made or a step has failed.
pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::from_env()?;
    let criu = Criu::item(Arch::Arm64);
    setup::ensure(&[setup::QEMU_USER, setup::ARM64, criu])?;
    let programs = match &args.programs {
        Some(dir) => dir.clone(),
        None => dist::build(Arch::Arm64)?,
    };
    for (_, program) in dist::PROGRAMS {
        let said = try_program(&cache, &programs, program)?;
        println!("{program}: {said}");
    }
    let machine = cache.path(setup::ARM64_PLACE);
    let work = dist::target_dir()?.join("arm64");
    files::make_dir(&work)?;
    let initrd = work.join("initrd");
    let trees = [
        (machine.join("root"), String::new()),
        (
            Criu::dir(&cache, Arch::Arm64),
            "opt/podmotion/criu/".to_owned(),
        ),
    ];
    let mut single: Vec<(PathBuf, String)> = dist::PROGRAMS
        .iter()
        .map(|(_, program)| {
            (
                programs.join(program),
                format!("opt/podmotion/bin/{program}"),
            )
        })
        .collect();
    single.push((machine.join("image.tar"), "image.tar".to_owned()));
    write_initrd(&initrd, &trees, &single)?;
    let report = boot(&cache, &machine.join("vmlinuz"), &initrd)?;
    files::remove(&initrd)?;
    for step in &report.passed {
        println!("arm64: passed: {step}");
    }
    for step in &report.failed {
        println!("arm64: FAILED: {step}");
    }
    ensure!(report.ended, "the arm64 machine has not come to its end");
    ensure!(
        report.failed.is_empty() && !report.passed.is_empty(),
        "{} of {} steps failed on arm64",
        report.failed.len(),
        report.failed.len() + report.passed.len()
    );
    Ok(())
}

/// Runs a program under emulation, and returns what it says of itself.
fn try_program(cache: &Cache, dir: &Path, program: &str) -> Result<String> {
    let (_, args, expected) = MANNERS
        .into_iter()
        .find(|(name, ..)| *name == program)
        .unwrap_or((program, &["--version"], env!("CARGO_PKG_VERSION")));
    let mut command = setup::emulated(cache, Arch::Arm64, &dir.join(program))?;
    let said = process::answer(command.args(args))?;
    ensure!(
        said.contains(expected),
        "{} should say {expected:?} and says: {said}",
        process::describe(&command)
    );
    Ok(said.trim().to_owned())
}

/// Writes the machine's first file system: folders with all that is in them, and single files, each with its place.
fn write_initrd(
    out: &Path,
    trees: &[(PathBuf, String)],
    single: &[(PathBuf, String)],
) -> Result<()> {
    let file = fs::File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut cpio = Cpio::new(GzEncoder::new(file, Compression::fast()));
    for folder in [
        "new",
        "opt",
        "opt/podmotion",
        "opt/podmotion/bin",
        "opt/podmotion/criu",
    ] {
        cpio.directory(folder)?;
    }
    cpio.program("init", INIT.as_bytes())?;
    for (tree, place) in trees {
        for entry in WalkDir::new(tree).min_depth(1).sort_by_file_name() {
            let entry = entry.with_context(|| format!("cannot list {}", tree.display()))?;
            let name = entry
                .path()
                .strip_prefix(tree)
                .ok()
                .and_then(Path::to_str)
                .with_context(|| format!("{} cannot be named", entry.path().display()))?;
            let name = format!("{place}{name}");
            if entry.file_type().is_dir() {
                cpio.directory(&name)?;
            } else {
                cpio.program(&name, &files::read(entry.path())?)?;
            }
        }
    }
    for (path, name) in single {
        cpio.program(name, &files::read(path)?)?;
    }
    cpio.finish()?
        .finish()
        .map(drop)
        .with_context(|| format!("cannot write {}", out.display()))
}

/// Boots the machine, repeats what it says and returns how its steps went.
fn boot(cache: &Cache, kernel: &Path, initrd: &Path) -> Result<Report> {
    let mut command = process::command("timeout");
    command
        .args(["--signal", "KILL", PATIENCE])
        .arg(cache.path("tools/qemu-arm/bin/qemu-system-aarch64"))
        .args(["-machine", "virt", "-cpu", "max", "-smp", "2", "-m", "3072"])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        .args(["-append", "console=ttyAMA0 panic=-1 quiet"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdout(Stdio::piped());
    let line = process::describe(&command);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let stdout = child.stdout.take().context("the machine has no console")?;
    let mut report = Report::default();
    for said in BufReader::new(stdout).split(b'\n') {
        let said = said.context("cannot read the machine's console")?;
        let said = String::from_utf8_lossy(&said).trim_end().to_owned();
        println!("    {said}");
        report.add(&said);
    }
    child
        .wait()
        .with_context(|| format!("cannot wait for {line}"))?;
    Ok(report)
}

impl Report {
    fn add(&mut self, line: &str) {
        if let Some(step) = line.strip_prefix(PASSED) {
            self.passed.push(step.to_owned());
        } else if let Some(step) = line.strip_prefix(FAILED) {
            self.failed.push(step.to_owned());
        } else if line == ENDED {
            self.ended = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_the_console() {
        let mut report = Report::default();
        for line in [
            "[    1.0] kernel: step passed: not a step",
            "step passed: one",
            "step failed: two",
        ] {
            report.add(line);
        }
        assert_eq!(report.passed, ["one"]);
        assert_eq!(report.failed, ["two"]);
        assert!(!report.ended);
        report.add("steps ended");
        assert!(report.ended);
    }

    #[test]
    fn the_machine_says_what_is_read() {
        for said in [PASSED, FAILED, ENDED] {
            assert!(INIT.contains(said), "{said}");
        }
    }
}
