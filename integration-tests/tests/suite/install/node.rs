//! The installer on a node, and what is there before and after.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{Node, Runtime};

/// What it says when it waits for somebody to restart containerd.
pub(crate) const RESTART: &str = "containerd has to be restarted now";

/// Folders of the node in which every file counts.
const FOLDERS: [&str; 6] = [
    "/etc/containerd",
    "/etc/podmotion",
    "/opt/podmotion",
    "/var/lib/podmotion",
    "/run/podmotion",
    "/sys/fs/bpf",
];

/// Settings with which containers sleep at once and whatever else the machine does.
const SETTINGS: &str = "sleep.scaledown_duration = \"1s\"\n\
    sleep.deep_sleep_after = \"never\"\n\
    pressure.min_memory = 0\npressure.min_disk = 0\npressure.wake_min_memory = 0\n\
    checkpoint.quota = 0\n";

/// What to install.
pub(super) struct Source {
    folder: PathBuf,
    /// Nothing in it runs.
    small: bool,
}

impl Source {
    /// The programs as they are built, and the CRIU of the cache.
    pub(super) fn real(node: &Node) -> Result<Self> {
        let tools = node.tools();
        let source = Self::empty(node, "source", false)?;
        for program in [
            tools.shim(Runtime::Podmotion)?,
            tools.responder()?,
            tools.cli()?,
            tools.self_test_app()?,
        ] {
            let name = program.file_name().context("a program without a name")?;
            let target = source.folder.join("bin").join(name);
            fs::copy(&program, &target).with_context(|| format!("copy {}", program.display()))?;
        }
        let criu = tools.cached("criu")?;
        for part in ["bin", "lib"] {
            let copied = Command::new("cp")
                .arg("-a")
                .arg(criu.join(part))
                .arg(source.folder.join("criu"))
                .status();
            ensure!(copied.context("run cp")?.success(), "copy CRIU's {part}");
        }
        Ok(source)
    }

    /// Small files in their places.
    pub(super) fn small(node: &Node, name: &str) -> Result<Self> {
        let source = Self::empty(node, name, true)?;
        for file in ["bin/containerd-shim-podmotion-v1", "criu/bin/criu"] {
            let path = source.folder.join(file);
            fs::write(&path, name).with_context(|| format!("write {}", path.display()))?;
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
        Ok(source)
    }

    fn empty(node: &Node, name: &str, small: bool) -> Result<Self> {
        let folder = node.folder().join(name);
        for part in ["bin", "criu/bin"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("config.toml"), SETTINGS)?;
        Ok(Self { folder, small })
    }

    /// The arguments of an installation.
    pub(super) fn install(&self) -> Vec<String> {
        let source = self.folder.display().to_string();
        let config = format!("{source}/config.toml");
        let mut arguments = vec!["install", "--source", &source, "--config", &config];
        if self.small {
            arguments.extend(["--self-test", "false"]);
        }
        arguments.into_iter().map(str::to_owned).collect()
    }
}

/// The arguments of its opposite.
pub(super) fn uninstall() -> Vec<String> {
    vec!["uninstall".to_owned()]
}

/// An installer that runs.
pub(super) struct Run {
    pub(super) child: Child,
    pub(super) lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Run {
    pub(super) fn start(node: &Node, arguments: &[String], more: &[&str]) -> Result<Self> {
        let mut child = command(node, arguments, more)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the installer")?;
        let stdout = child.stdout.take().context("its output")?;
        let lines = BufReader::new(stdout).lines();
        Ok(Self { child, lines })
    }

    /// Hears it to its end; containerd is restarted when it says so.
    pub(super) fn finish(mut self, node: &Node) -> Result<(Vec<String>, Output)> {
        let mut said = Vec::new();
        for line in &mut self.lines {
            let line = line.context("hear what the installer says")?;
            if line == RESTART {
                node.restart()?;
            }
            said.push(line);
        }
        let output = self.child.wait_with_output().context("wait for it")?;
        Ok((said, output))
    }
}

fn command(node: &Node, arguments: &[String], more: &[&str]) -> Result<Command> {
    let mut command = Command::new(node.tools().installer()?);
    command
        .args(arguments)
        .arg("--host-root")
        .arg(node.root())
        .arg("--containerd-socket")
        .arg(node.socket())
        .args([
            "--node-name",
            "test",
            "--restart",
            "never",
            "--runtime-class",
            "none",
        ])
        .args(more);
    Ok(command)
}

/// Runs it to its end. Returns what it said.
pub(super) fn run(node: &Node, arguments: &[String]) -> Result<Vec<String>> {
    let (said, output) = Run::start(node, arguments, &[])?.finish(node)?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{arguments:?}: {}:\n{}\n{errors}",
            output.status,
            said.join("\n")
        );
    }
    Ok(said)
}

/// What is on the node: a line for each file.
pub(crate) fn files(node: &Node) -> Result<BTreeMap<PathBuf, String>> {
    let mut all = BTreeMap::new();
    let root = node.root();
    for folder in FOLDERS {
        walk(
            &root.join(folder.trim_start_matches('/')),
            Path::new(folder),
            &mut all,
        )?;
    }
    let main = node.folder().join("config.toml");
    all.insert(main.clone(), describe(&main)?);
    Ok(all)
}

fn walk(seen: &Path, name: &Path, all: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    if !seen.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(seen).with_context(|| format!("list {}", name.display()))? {
        let entry = entry?;
        let name = name.join(entry.file_name());
        all.insert(name.clone(), describe(&entry.path())?);
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &name, all)?;
        }
    }
    Ok(())
}

/// Mode, owner and content. A sleeping shim's files are told apart by their names alone.
fn describe(path: &Path) -> Result<String> {
    let found = path
        .symlink_metadata()
        .with_context(|| format!("look at {}", path.display()))?;
    let kind = found.file_type();
    let content = if kind.is_symlink() {
        fs::read_link(path)?.display().to_string()
    } else if kind.is_file() && !path.to_string_lossy().contains("/sys/fs/bpf/") {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(bytes) => format!("{} bytes", bytes.as_bytes().len()),
        }
    } else {
        String::new()
    };
    Ok(format!(
        "{:o} {}:{} {content}",
        found.mode(),
        found.uid(),
        found.gid()
    ))
}

/// Fails with what is different.
pub(crate) fn same(
    what: &str,
    before: &BTreeMap<PathBuf, String>,
    after: &BTreeMap<PathBuf, String>,
) -> Result<()> {
    let names = before.keys().chain(after.keys());
    let mut different = names.filter(|name| before.get(*name) != after.get(*name));
    match different.next() {
        None => Ok(()),
        Some(name) => bail!(
            "{what}: {}: was {:?}, is {:?}",
            name.display(),
            before.get(name),
            after.get(name)
        ),
    }
}

/// containerd's effective configuration, read anew from the files, with and without our runtime.
pub(crate) fn dump(node: &Node) -> Result<(String, String)> {
    let mut command = Command::new(node.tools().containerd()?);
    command
        .arg("--config")
        .arg(node.folder().join("config.toml"))
        .args(["config", "dump"]);
    let output = node.within(move || command.output())??;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "containerd config dump: {errors}");
    let whole = String::from_utf8(output.stdout).context("a configuration")?;
    let mut ours = false;
    let rest: Vec<&str> = whole
        .lines()
        .filter(|line| {
            let line = line.trim();
            if line.starts_with('[') {
                ours = line.contains("runtimes.podmotion");
            }
            !ours && !line.starts_with("imports = ") && !line.is_empty()
        })
        .collect();
    let rest = rest.join("\n");
    Ok((whole, rest))
}
