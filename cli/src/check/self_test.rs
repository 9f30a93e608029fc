//! A real checkpoint and restore, as the shim makes them: runc starts a small process, CRIU dumps it, and the
//! restored one has to go on counting with the memory that it had.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use oci_spec::runtime::Spec;
use podmotion_criu_driver::{
    Criu, DumpControl, DumpRequest, Freezer, InheritedPipe, RestoreRequest, Subject, images, mounts,
};
use podmotion_model::config::NodeConfig;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};
use tempfile::TempDir;

use super::{Context, Verdict, criu, process};
use crate::human::took;

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
    container.ask(1).context("before the checkpoint")?;
    let started = Instant::now();
    container.dump(criu)?;
    let dumped = started.elapsed();
    let started = Instant::now();
    container.restore(criu)?;
    let restored = started.elapsed();
    container.ask(2).context("after the restore")?;
    let micros = |time: Duration| took(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    Ok(format!(
        "checkpoint in {}, restore in {}, state intact",
        micros(dumped),
        micros(restored)
    ))
}

/// The process in its container. Both are gone when it is dropped.
struct Container {
    runc: PathBuf,
    id: String,
    dir: TempDir,
    pid: i32,
    subject: Subject,
    input: File,
    output: File,
    restored: bool,
}

/// Ends what is below a control group and removes the container, also when only half of it was made.
struct Remains<'a> {
    runc: &'a Path,
    id: &'a str,
    state: PathBuf,
}

impl Drop for Remains<'_> {
    fn drop(&mut self) {
        // Fails when nothing was made.
        let _ = runc(self.runc, &self.state)
            .args(["delete", "--force", self.id])
            .output();
    }
}

fn runc(binary: &Path, state: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg("--root").arg(state);
    command
}

impl Container {
    fn start(config: &NodeConfig) -> Result<Self> {
        let parent = &config.checkpoint.directory;
        images::make(parent)?;
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .with_context(|| format!("make a directory in {}", parent.display()))?;
        let id = format!("podmotion-self-test-{}", std::process::id());
        make_bundle(dir.path(), &id)?;
        let binary: PathBuf = AsRef::<Path>::as_ref(&config.runc.binary).to_owned();
        let (output, theirs) = rustix::pipe::pipe().context("make a pipe")?;
        let (stdin, input) = rustix::pipe::pipe().context("make a pipe")?;
        let state = dir.path().join("state");
        let pid_file = dir.path().join("pid");
        let remains = Remains {
            runc: &binary,
            id: &id,
            state: state.clone(),
        };
        let log = dir.path().join("runc.log");
        let status = runc(&binary, &state)
            .arg("--log")
            .arg(&log)
            .args(["run", "--detach", "--pid-file"])
            .arg(&pid_file)
            .arg("--bundle")
            .arg(dir.path())
            .arg(&id)
            .stdin(Stdio::from(copy(&stdin)?))
            .stdout(Stdio::from(copy(&theirs)?))
            .stderr(Stdio::from(copy(&theirs)?))
            .status()
            .with_context(|| format!("run {}", binary.display()))?;
        if !status.success() {
            bail!("{} run: {status}: {}", binary.display(), last_line(&log));
        }
        let pid = fs::read_to_string(&pid_file)
            .with_context(|| format!("read {}", pid_file.display()))?
            .parse()
            .context("runc's pid file")?;
        let subject = subject(dir.path(), pid, [theirs, stdin])?;
        // From here on the container itself does that.
        std::mem::forget(remains);
        Ok(Self {
            runc: binary,
            id,
            dir,
            pid,
            subject,
            input: File::from(input),
            output: File::from(output),
            restored: false,
        })
    }

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
        drop(Remains {
            runc: &self.runc,
            id: &self.id,
            state: self.dir.path().join("state"),
        });
    }
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
    let spec = Spec::load(dir.join("config.json")).context("read the container's configuration")?;
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
