//! The node, as it is found, and the things that are done to it by both commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use podmotion_model::config::NodeConfig;
use tokio::time::{Instant, sleep};

use crate::args::{self, Restart};
use crate::containerd::place;
use crate::containerd::template;
use crate::containerd::tree::Files;
use crate::cri::{self, About};
use crate::daemon::Daemon;
use crate::files::{self, FileError, failed};
use crate::host::Host;
use crate::plan::CONFIG;
use crate::record::{self, Record};
use crate::restart::Service;

/// Between two questions to a containerd that is coming up: it does not say when it has.
const PAUSE: Duration = Duration::from_millis(100);

/// It listens before its plugin for Kubernetes answers, and somebody may be restarting it.
const STARTING: Duration = Duration::from_secs(10);

/// A node and how to go about it.
#[derive(Clone, Debug)]
pub struct Node {
    pub host: Host,
    pub args: args::Node,
}

impl Files for Host {
    type Error = FileError;

    fn read(&self, path: &Path) -> Result<Option<String>, FileError> {
        files::read(&self.at(path).map_err(failed("find", path))?)
    }

    fn fitting(&self, pattern: &str) -> Result<Vec<PathBuf>, FileError> {
        // Links in the folder's name are the node's. One that has a wildcard is taken as it is.
        let whole = Path::new(pattern);
        let (folder, name) = (whole.parent(), whole.file_name());
        let (Some(folder), Some(name)) = (folder, name) else {
            return Ok(Vec::new());
        };
        let seen = self.at(folder).map_err(failed("find", folder))?;
        let seen_pattern = glob::Pattern::escape(&seen.to_string_lossy());
        let folder_pattern = if folder.to_string_lossy().contains(['*', '?', '[']) {
            seen.to_string_lossy().into_owned()
        } else {
            seen_pattern
        };
        let pattern = format!("{folder_pattern}/{}", name.to_string_lossy());
        let Ok(found) = glob::glob(&pattern) else {
            // It is imported by containerd as it is, or not at all.
            return Ok(Vec::new());
        };
        let on_node = |path: PathBuf| match path.strip_prefix(&seen) {
            Ok(below) => folder.join(below),
            Err(_) => Path::new("/").join(path.strip_prefix(self.root()).unwrap_or(&path)),
        };
        Ok(found.flatten().map(on_node).collect())
    }
}

impl Node {
    /// The node that the arguments name.
    pub fn new(args: &args::Node) -> Self {
        Self {
            host: Host::new(&args.host_root),
            args: args.clone(),
        }
    }

    /// Where a path of the node is.
    pub fn at(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        let found = self.host.at(path);
        found.with_context(|| format!("find {} on the node", path.display()))
    }

    /// Where a link of the node is: itself, not what it leads to.
    pub fn link_at(&self, link: &Path) -> Result<PathBuf> {
        let folder = self.at(link.parent().unwrap_or(Path::new("/")))?;
        Ok(folder.join(link.file_name().unwrap_or_default()))
    }

    /// What earlier runs have noted.
    pub fn record(&self) -> Result<Option<Record>> {
        Ok(Record::read(&self.at(record::PATH)?)?)
    }

    /// Writes the record.
    pub fn note(&self, record: &Record) -> Result<()> {
        Ok(record.write(&self.at(record::PATH)?)?)
    }

    /// The text of a file of the node.
    pub fn read(&self, path: &Path) -> Result<Option<String>> {
        Ok(files::read(&self.at(path)?)?)
    }

    /// The containerd that runs.
    pub fn daemon(&self) -> Result<Daemon> {
        let named = self.args.containerd_socket.as_deref();
        Ok(Daemon::find(&self.host, named)?)
    }

    /// The containerd that runs and what it says. One that an interrupted run has left with a
    /// configuration that it does not take is given back the one before.
    pub async fn containerd(&self) -> Result<(Daemon, About)> {
        let ask = async || {
            let deadline = Instant::now() + STARTING;
            loop {
                let error = match self.ask().await {
                    Ok(found) => return anyhow::Ok(found),
                    Err(error) => error,
                };
                if Instant::now() >= deadline {
                    return Err(error);
                }
                sleep(PAUSE).await;
            }
        };
        let first = match ask().await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        match self.record()? {
            Some(record) if !record.unproven.is_empty() => {
                println!("{first:#}: an earlier run has not ended");
                self.roll_back(record).await?;
                ask().await
            }
            _ => Err(first),
        }
    }

    async fn ask(&self) -> Result<(Daemon, About)> {
        let daemon = self.daemon()?;
        let about = cri::ask(&daemon.socket).await?;
        Ok((daemon, about))
    }

    /// The unit that runs containerd, where this program restarts it.
    pub async fn unit(&self, daemon: &Daemon) -> Result<Option<String>> {
        match self.args.restart {
            Restart::Auto => Ok(Some(Service::of(&self.host, daemon.pid).await?.name)),
            Restart::Never => Ok(None),
        }
    }

    /// Restarts containerd and waits until `runs` is content with it. Without a `unit` others restart it.
    pub async fn restart(&self, unit: Option<&str>, runs: impl Fn(&About) -> bool) -> Result<()> {
        match unit {
            Some(unit) => {
                println!("restart {unit}");
                Service::named(&self.host, unit).await?.restart().await?;
            }
            None => println!("containerd has to be restarted now"),
        }
        self.await_containerd(runs).await
    }

    async fn await_containerd(&self, runs: impl Fn(&About) -> bool) -> Result<()> {
        let deadline = Instant::now() + self.args.restart_wait;
        loop {
            let last = match self.daemon() {
                Ok(daemon) => match cri::ask(&daemon.socket).await {
                    Ok(about) if runs(&about) => return Ok(()),
                    Ok(_) => anyhow!(
                        "containerd runs with its old configuration: it was not restarted, or reads another file"
                    ),
                    Err(error) => error.into(),
                },
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                let waited = self.args.restart_wait;
                return Err(last.context(format!("containerd has not come up within {waited:?}")));
            }
            sleep(PAUSE).await;
        }
    }

    /// Gives containerd's files the texts that it last ran with, and has it restarted.
    pub async fn roll_back(&self, mut record: Record) -> Result<()> {
        for change in record.take_back() {
            let path = self.at(&change.path)?;
            match &change.text {
                Some(text) => files::write(&path, text, 0o644)?,
                None => drop(files::remove(&path)?),
            }
            println!("{}: as before", change.path.display());
        }
        self.note(&record)?;
        if let Some(unit) = &record.unit {
            println!("restart {unit}");
            Service::named(&self.host, unit).await?.restart().await?;
        }
        self.await_containerd(|_| true).await
    }

    /// The pins' directory, on the node.
    pub fn pins(&self) -> Result<PathBuf> {
        self.at(podmotion_bpf::DEFAULT_PIN_DIR)
    }

    /// Where the shims' sockets are, by the node's configuration.
    pub fn sockets(&self) -> Result<PathBuf> {
        let text = self.read(Path::new(CONFIG))?.unwrap_or_default();
        let config = NodeConfig::from_toml(&text);
        let config = config.with_context(|| format!("{CONFIG} is not valid"))?;
        self.at(config.shim.sockets)
    }

    /// The text of a file of containerd's without our lines.
    pub fn without_ours(text: &str) -> String {
        place::without_ours(text)
            .filter(|rest| !template::is_ours(rest))
            .unwrap_or_default()
    }

    /// Whether a BPF file system is where pins go.
    pub fn has_bpffs(&self) -> Result<bool> {
        use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
        let path = self.at("/sys/fs/bpf")?;
        match statfs(&path) {
            Ok(found) => Ok(found.filesystem_type() == BPF_FS_MAGIC),
            Err(nix::Error::ENOENT) => bail!(
                "{} does not exist: the kernel has no BPF file system, or the node's /sys is not mounted below --host-root",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
        }
    }
}

/// Whether the directory is there.
pub fn is_directory(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => bail!("{} is not a directory", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
    }
}
