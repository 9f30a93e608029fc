//! The same container without us: `runc checkpoint` and `runc restore`, with the same CRIU.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podmotion_integration_tests::{Container, Machine, Netns, PATIENCE};
use serde_json::{Value, json};

use super::memory::PORT;

/// What kept connections and files need; the same that our own dumps ask of CRIU.
const OPTIONS: &[&str] = &["--tcp-established", "--ext-unix-sk", "--file-locks"];

/// A packet that CRIU's network lock drops is sent again after a second: a new connection each time
/// finds the end of the restore exactly.
const ATTEMPT: Duration = Duration::from_millis(5);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A container of runc's own, made from the bundle of one of containerd's.
pub struct Plain {
    runc: PathBuf,
    path: String,
    folder: PathBuf,
    id: String,
    netns: Arc<Netns>,
    /// Its standard output, which no sleep may end.
    output: PipeWriter,
}

impl Plain {
    /// Runs the program of `model`, with its own network and its own writable layer.
    pub fn run(model: &Container) -> Result<Self> {
        let machine = Machine::get()?;
        let tools = model.node().tools();
        let id = format!("plain-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (reader, output) = pipe().context("make a pipe")?;
        let criu = tools.criu()?;
        let criu = criu.parent().context("CRIU's folder")?;
        let plain = Self {
            runc: tools.runc()?,
            path: format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", criu.display()),
            folder: machine.work().join(&id),
            netns: Arc::new(Netns::new()?),
            output,
            id,
        };
        plain.make_bundle(model).context("make a bundle")?;
        let bundle = plain.folder.join("bundle");
        let mut run = plain.command("run")?;
        run.arg("--detach").arg("--bundle").arg(bundle);
        plain.finish(run.arg(&plain.id))?;
        wait_for_start(reader)?;
        Ok(plain)
    }

    fn make_bundle(&self, model: &Container) -> Result<()> {
        let theirs = model
            .node()
            .run_folder()
            .join("state/io.containerd.runtime.v2.task/k8s.io")
            .join(model.id());
        let path = theirs.join("config.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut spec: Value =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
        let bundle = self.folder.join("bundle");
        let folders = ["upper", "work", "bundle/rootfs", "images", "logs"];
        for folder in folders.map(|name| self.folder.join(name)) {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower(&theirs.join("rootfs"))?,
            self.folder.join("upper").display(),
            self.folder.join("work").display()
        );
        mount(
            Some("overlay"),
            &bundle.join("rootfs"),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("mount the root file system")?;
        self.adapt(&mut spec)?;
        let path = bundle.join("config.json");
        fs::write(&path, spec.to_string()).with_context(|| format!("write {}", path.display()))
    }

    fn adapt(&self, spec: &mut Value) -> Result<()> {
        let machine = Machine::get()?;
        spec["root"]["path"] = json!("rootfs");
        spec["annotations"] = json!(HashMap::<String, String>::new());
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/{}", machine.name(), self.id));
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        for namespace in namespaces.context("a container without namespaces")? {
            if namespace["type"] == "network" {
                namespace["path"] = json!(self.netns.path());
            }
        }
        Ok(())
    }

    /// Puts it away. The time until it is gone, with its memory.
    pub fn checkpoint(&self) -> Result<Duration> {
        let mut command = self.command("checkpoint")?;
        command.args(OPTIONS);
        self.add_folders(&mut command);
        let started = Instant::now();
        self.finish(command.arg(&self.id))?;
        Ok(started.elapsed())
    }

    /// Brings it back. The time from the start of runc to the first byte of an answer of the program,
    /// and the answer.
    pub fn restore(&self) -> Result<(Duration, String)> {
        let mut command = self.command("restore")?;
        command.args(OPTIONS).arg("--detach");
        command.arg("--bundle").arg(self.folder.join("bundle"));
        self.add_folders(&mut command);
        let address = SocketAddr::new(self.netns.ipv4(), PORT);
        let started = Instant::now();
        let mut child = command
            .arg(&self.id)
            .spawn()
            .with_context(|| format!("run {command:?}"))?;
        let (mut stream, first) = loop {
            match ask(address) {
                Ok(answer) => break answer,
                Err(_) if started.elapsed() < PATIENCE => {}
                Err(error) => bail!("no answer after {command:?}: {error}"),
            }
            if let Some(status) = child.try_wait().context("wait for runc")? {
                ensure!(status.success(), "{command:?}: {status}\n{}", self.log());
            }
        };
        let took = started.elapsed();
        let status = child.wait().context("wait for runc")?;
        ensure!(status.success(), "{command:?}: {status}\n{}", self.log());
        let mut answer = vec![first];
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("set the read timeout")?;
        stream.read_to_end(&mut answer).context("read the answer")?;
        let images = self.folder.join("images");
        fs::remove_dir_all(&images)
            .and_then(|()| fs::create_dir(&images))
            .with_context(|| format!("empty {}", images.display()))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (_, body) = answer.split_once("\r\n\r\n").context("no headers")?;
        Ok((took, body.to_owned()))
    }

    fn add_folders(&self, command: &mut Command) {
        command.arg("--image-path").arg(self.folder.join("images"));
        command.arg("--work-path").arg(self.folder.join("logs"));
    }

    fn command(&self, verb: &str) -> Result<Command> {
        let output = || self.output.try_clone().context("copy a descriptor");
        let mut command = Command::new(&self.runc);
        command
            .env("PATH", &self.path)
            .arg("--root")
            .arg(self.folder.join("state"))
            .arg("--log")
            .arg(self.folder.join("runc.log"))
            .arg(verb)
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?);
        Ok(command)
    }

    fn finish(&self, command: &mut Command) -> Result<()> {
        let status = command
            .status()
            .with_context(|| format!("run {command:?}"))?;
        ensure!(status.success(), "{command:?}: {status}\n{}", self.log());
        Ok(())
    }

    /// What runc complains about.
    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("runc.log")).unwrap_or_default()
    }
}

impl Drop for Plain {
    /// Best effort: the machine's end takes what is left.
    fn drop(&mut self) {
        if let Ok(mut command) = self.command("delete") {
            let _ = self.finish(command.arg("--force").arg(&self.id));
        }
        let _ = umount2(&self.folder.join("bundle/rootfs"), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The read-only layers of an overlay that is mounted there.
fn lower(point: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    mounts
        .lines()
        .filter(|line| line.split(' ').nth(4).map(Path::new) == Some(point))
        .find_map(|line| {
            let options = line.rsplit(' ').next()?;
            let mut options = options.split(',');
            options.find_map(|option| option.strip_prefix("lowerdir=").map(str::to_owned))
        })
        .with_context(|| format!("{} is no overlay", point.display()))
}

/// Waits until the program listens, and has its output read from then on.
fn wait_for_start(reader: PipeReader) -> Result<()> {
    let mut reader = BufReader::new(reader);
    let mut said = String::new();
    while !said.contains("listening") {
        let read = reader.read_line(&mut said).context("read its output")?;
        ensure!(read > 0, "it ended: {said}");
    }
    thread::Builder::new()
        .spawn(move || std::io::copy(&mut reader, &mut std::io::sink()))
        .context("start a thread")?;
    Ok(())
}

/// The connection and the first byte of an answer, if one comes.
fn ask(address: SocketAddr) -> std::io::Result<(TcpStream, u8)> {
    let mut stream = match TcpStream::connect_timeout(&address, ATTEMPT) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            thread::sleep(ATTEMPT / 10);
            return Err(error);
        }
        other => other?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    Ok((stream, first[0]))
}
