//! A real checkpoint and restore, as the shim makes them: runc starts a small process, CRIU dumps it, and the
//! restored one has to go on counting with the memory that it had.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use podmotion_cli::human::took;
use podmotion_criu_driver::spec::Spec;
use podmotion_criu_driver::{
    Criu, DumpControl, DumpRequest, Freezer, InheritedPipe, RestoreRequest, Subject, images, mounts,
};
use podmotion_model::config::NodeConfig;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};
use tempfile::TempDir;

use super::{Context, Verdict, criu, process};

/// How the directory's name begins. `gc` removes what an interrupted check leaves.
pub const PREFIX: &str = ".self-test-";

/// For each step, on a machine that is overloaded.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it.
pub fn run(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let config = context.config()?;
    let criu = criu::configured(context)?;
    Ok(match sleep_and_wake(&config, &criu) {
        Ok(seen) => Verdict::ok(seen),
        Err(error) => Verdict::failed(
            format!("{error:#}"),
            "see the other checks: runc, criu, criu-kernel, suspend-seccomp, checkpoints",
        ),
    })
}

fn sleep_and_wake(config: &NodeConfig, criu: &Criu) -> Result<String> {
    let mut container = Container::start(config)?;
    let started = Instant::now();
    container.dump(criu)?;
    let dumped = started.elapsed();
    let started = Instant::now();
    container.restore(criu)?;
    let restored = started.elapsed();
    container.talk.ask(2).context("after the restore")?;
    let micros = |time: Duration| took(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    Ok(format!(
        "checkpoint in {}, restore in {}, state intact",
        micros(dumped),
        micros(restored)
    ))
}

/// The process in its container, which has answered once. Both are gone when it is dropped.
struct Container {
    pid: i32,
    subject: Subject,
    talk: Talk,
    restored: bool,
    // In this order: runc's record is in the directory.
    _record: Record,
    dir: TempDir,
}

/// What runc knows of the container; removed when dropped, with its processes.
struct Record {
    runc: PathBuf,
    state: PathBuf,
    id: String,
}

impl Record {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(&self.state);
        command
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Fails when nothing was made.
        let _ = self
            .command()
            .args(["delete", "--force", &self.id])
            .output();
    }
}

/// The other ends of the process's pipes.
struct Talk {
    input: File,
    output: File,
}

impl Talk {
    /// Asks for the `count`-th time.
    fn ask(&mut self, count: usize) -> Result<()> {
        self.input.write_all(b"\n").context("ask the process")?;
        let answer = self.read_line()?;
        let expected = process::expected(count);
        ensure!(
            answer == expected,
            "the process says {answer:?} and not {expected:?}: its state is not what it was"
        );
        Ok(())
    }

    fn read_line(&mut self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).context("convert the time left")?;
            let mut fds = [PollFd::new(&self.output, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout)).context("wait for the process")? == 0 {
                bail!("the process does not answer in {PATIENCE:?}");
            }
            let mut byte = [0];
            match rustix::io::read(&self.output, &mut byte).context("listen to the process")? {
                0 => bail!("the process has ended"),
                _ if byte == [b'\n'] => return Ok(String::from_utf8_lossy(&line).into_owned()),
                _ => line.extend(byte),
            }
        }
    }
}

impl Container {
    fn start(config: &NodeConfig) -> Result<Self> {
        let parent = &config.checkpoint.directory;
        images::make(parent)?;
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .with_context(|| format!("make a directory in {}", parent.display()))?;
        let binary: &Path = config.runc.binary.as_ref();
        let record = Record {
            runc: binary.to_owned(),
            state: dir.path().join("state"),
            id: format!("podmotion-self-test-{}", std::process::id()),
        };
        make_bundle(dir.path(), &record.id)?;
        let (output, theirs) = rustix::pipe::pipe().context("make a pipe")?;
        let (stdin, input) = rustix::pipe::pipe().context("make a pipe")?;
        let pid = run_detached(&record, dir.path(), &stdin, &theirs)?;
        let mut talk = Talk {
            input: File::from(input),
            output: File::from(output),
        };
        talk.ask(1).context("before the checkpoint")?;
        Ok(Self {
            pid,
            subject: subject(dir.path(), pid, [theirs, stdin])?,
            talk,
            restored: false,
            _record: record,
            dir,
        })
    }

    fn dump(&self, criu: &Criu) -> Result<()> {
        let images = self.dir.path().join("images");
        let work = self.dir.path().join("work");
        images::create(&images)?;
        images::create(&work)?;
        let request = DumpRequest::new(self.pid, &images, &work);
        let control = DumpControl::new().context("prepare the checkpoint")?;
        criu.dump(&self.subject, &request, &control, &|_| Ok(()))?;
        Ok(())
    }

    fn restore(&mut self, criu: &Criu) -> Result<()> {
        let images = self.dir.path().join("images");
        let work = self.dir.path().join("work");
        let request = RestoreRequest::new(&images, &work);
        self.pid = criu.restore(&self.subject, &request)?.pid;
        self.restored = true;
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What cannot be ended or removed shows in the next check, and `gc` removes the directory.
        if let Some(Ok(freezer)) = self.subject.freezer.as_deref().map(Freezer::new) {
            let _ = freezer.end_processes(PATIENCE);
        }
        if self.restored {
            let _ = waitpid(Pid::from_raw(self.pid), WaitOptions::empty());
        }
    }
}

/// Has runc start the process; returns its pid.
fn run_detached(record: &Record, bundle: &Path, stdin: &OwnedFd, output: &OwnedFd) -> Result<i32> {
    let (log, pid_file) = (bundle.join("runc.log"), bundle.join("pid"));
    let status = record
        .command()
        .arg("--log")
        .arg(&log)
        .args(["run", "--detach", "--pid-file"])
        .arg(&pid_file)
        .arg("--bundle")
        .arg(bundle)
        .arg(&record.id)
        .stdin(Stdio::from(copy(stdin)?))
        .stdout(Stdio::from(copy(output)?))
        .stderr(Stdio::from(copy(output)?))
        .status()
        .with_context(|| format!("run {}", record.runc.display()))?;
    if !status.success() {
        bail!(
            "{} run: {status}: {}",
            record.runc.display(),
            last_line(&log)
        );
    }
    let text =
        fs::read_to_string(&pid_file).with_context(|| format!("read {}", pid_file.display()))?;
    text.parse()
        .with_context(|| format!("a pid in {}, not {text:?}", pid_file.display()))
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().context("copy a descriptor")
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .next_back()
        .unwrap_or("it says nothing")
        .to_owned()
}

/// This program alone in a root file system, with the host's network.
fn make_bundle(dir: &Path, id: &str) -> Result<()> {
    let rootfs = dir.join("rootfs");
    for folder in ["proc", "dev"] {
        let path = rootfs.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    let program = std::env::current_exe().context("find this program")?;
    let target = rootfs.join("podmotion");
    fs::copy(&program, &target)
        .with_context(|| format!("copy {} to {}", program.display(), target.display()))?;
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| serde_json::json!({ "type": kind }));
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/podmotion", "self-test-process"],
            "env": ["PATH=/"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": namespaces, "cgroupsPath": format!("/{id}")},
    });
    let path = dir.join("config.json");
    fs::write(&path, spec.to_string()).with_context(|| format!("write {}", path.display()))
}

/// The container as the driver wants it described.
fn subject(dir: &Path, pid: i32, stdio: [OwnedFd; 2]) -> Result<Subject> {
    let spec = Spec::read(dir)?;
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let cgroups: Vec<PathBuf> = text.lines().filter_map(cgroup).collect();
    let has = |folder: &&PathBuf, file: &str| folder.join(file).exists();
    let v1 = cgroups.iter().find(|folder| has(folder, "freezer.state"));
    let freezer = v1.or_else(|| cgroups.iter().find(|folder| has(folder, "cgroup.freeze")));
    ensure!(
        freezer.is_some(),
        "the container's cgroup has no freezer: {text}"
    );
    Ok(Subject {
        rootfs: dir.join("rootfs"),
        mounts: mounts::external(&spec, pid)?,
        join: Vec::new(),
        freezer: freezer.cloned(),
        cgroups,
        stdio: stdio
            .into_iter()
            .map(InheritedPipe::new)
            .collect::<std::io::Result<_>>()
            .context("look at a pipe")?,
    })
}

/// The directory of a line of `/proc/PID/cgroup`, `NUMBER:CONTROLLERS:PATH`, where the process has one of its own.
fn cgroup(line: &str) -> Option<PathBuf> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let below = path.strip_prefix('/').filter(|below| !below.is_empty())?;
    let places: &[&str] = match controllers {
        "" => &["", "unified"],
        name => &[name.strip_prefix("name=").unwrap_or(name)],
    };
    let folders = places
        .iter()
        .map(|place| Path::new("/sys/fs/cgroup").join(place).join(below));
    folders.into_iter().find(|folder| folder.is_dir())
}
