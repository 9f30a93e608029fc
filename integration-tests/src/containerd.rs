//! One containerd daemon with folders of its own.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::PATIENCE;
use crate::cgroup::CgroupDriver;
use crate::machine::Machine;
use crate::process::MARK;
use crate::room::{Room, spawn_in};
use crate::tools::{ContainerdVersion, Depth, Runtime, Tools, Versions};

/// Folders of all daemons' sockets and bundles are below it.
pub(crate) const RUN: &str = "/run/podmotion-test";

/// The node's configuration of our runtime, in the daemon's folder.
const SETTINGS: &str = "settings.toml";

/// A daemon, running or not, and where its things are.
#[derive(Debug)]
pub(crate) struct Containerd {
    child: Option<Child>,
    depth: Depth,
    tools: Tools,
    folder: PathBuf,
    run: PathBuf,
    /// Where it runs, if not in the machine's own namespaces.
    room: Option<Arc<Room>>,
    /// It knows nothing of our runtime.
    plain: bool,
}

impl Containerd {
    /// Starts a daemon below the machine's work folder; `number` must be new.
    /// `settings` are lines for our runtime's configuration, each with its section: `sleep.busy_cpu = 1`.
    /// Without any it does not know our runtime.
    pub(crate) fn start(
        tools: Tools,
        versions: Versions,
        number: u32,
        settings: Option<&str>,
        room: Option<Arc<Room>>,
    ) -> Result<Self> {
        let machine = Machine::get()?;
        let name = format!("node-{number}");
        let mut daemon = Self {
            child: None,
            depth: Depth::Deep,
            tools,
            folder: machine.work().join(&name),
            run: Path::new(RUN).join(name),
            room,
            plain: settings.is_none(),
        };
        for folder in [&daemon.folder.join("cni"), &daemon.run] {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        daemon.write("cni/10-test.conflist", &network(&daemon.folder, number))?;
        let configuration = daemon.configuration(versions)?;
        daemon.write("config.toml", &configuration)?;
        if let Some(settings) = settings {
            daemon.set(settings)?;
        }
        daemon.spawn()?;
        Ok(daemon)
    }

    /// Writes our runtime's configuration: shims that start later go by it.
    pub(crate) fn set(&self, settings: &str) -> Result<()> {
        let mut text = format!("{settings}\n");
        if !settings.contains("criu.binary") {
            text += &format!("criu.binary = \"{}\"\n", self.tools.criu()?.display());
        }
        // Whatever else the machine does.
        for bound in [
            "pressure.min_memory",
            "pressure.min_disk",
            "pressure.wake_min_memory",
            "checkpoint.quota",
        ] {
            if !settings.contains(bound) {
                text += &format!("{bound} = 0\n");
            }
        }
        if !settings.contains("deep_sleep_after") {
            text += match self.depth {
                Depth::Light => "sleep.deep_sleep_after = \"never\"\n",
                Depth::Deep => "sleep.deep_sleep_after = 0\n",
            };
        }
        self.write(SETTINGS, &text)
    }

    /// How deep containers sleep.
    pub(crate) fn depth(&self) -> Depth {
        self.depth
    }

    /// Has containers that are made later sleep that deep. Forgets what [`set`](Self::set) has set.
    pub(crate) fn sleep(&mut self, depth: Depth) -> Result<()> {
        self.depth = depth;
        self.set("")
    }

    /// The gRPC socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// Holds its images, snapshots and configuration.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Holds its sockets and the bundles of its containers.
    pub(crate) fn run_folder(&self) -> &Path {
        &self.run
    }

    /// What the daemon and its shims said.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("containerd.log")
    }

    /// The daemon's pid, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts the daemon (again) and returns once it accepts connections.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let socket = self.socket();
        // A socket file that a killed daemon left would be taken for a sign of life.
        let _ = fs::remove_file(&socket);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .with_context(|| format!("open {}", self.log().display()))?;
        let errors = log.try_clone().context("share the log file")?;
        let appeared = Inotify::init(InitFlags::IN_CLOEXEC).context("watch for the socket")?;
        appeared
            .add_watch(
                &self.run,
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB,
            )
            .with_context(|| format!("watch {}", self.run.display()))?;
        let mut command = Command::new(self.tools.containerd()?);
        command
            .arg("--config")
            .arg(self.folder.join("config.toml"))
            .env(MARK, Machine::get()?.name())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        if self.plain {
            command.env("PATH", self.tools.plain_path());
        } else {
            // Shims inherit it, and read the file when they start.
            command
                .env("PATH", self.tools.path())
                .env("PODMOTION_CONFIG", self.folder.join(SETTINGS));
        }
        let child = spawn_in(self.room.as_deref(), command)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        self.child = Some(child);
        let ended = pidfd_open(pid.context("containerd's pid")?, PidfdFlags::empty())
            .context("watch containerd")?;
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).is_err() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).context("convert the time left")?;
            let mut fds = [
                PollFd::new(&appeared, PollFlags::IN),
                PollFd::new(&ended, PollFlags::IN),
            ];
            if poll(&mut fds, Some(&timeout)).context("wait for containerd")? == 0 {
                bail!(
                    "containerd does not listen after {PATIENCE:?}:\n{}",
                    self.log_tail()
                );
            }
            if fds[1].revents().contains(PollFlags::IN) {
                bail!("containerd ended:\n{}", self.log_tail());
            }
            appeared.read_events().context("read what appeared")?;
        }
        Ok(())
    }

    /// Ends the daemon, gently or not; containers and shims stay.
    pub(crate) fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("containerd's pid")?, signal).context("signal containerd")?;
        child.wait().context("wait for containerd")?;
        Ok(())
    }

    /// The end of the log, for an error message.
    pub(crate) fn log_tail(&self) -> String {
        self.last_lines(60, |_| true)
    }

    /// The last lines of the log that are about something, where given up to a time as RFC 3339 has it.
    pub(crate) fn log_about(&self, what: &str, until: Option<&str>) -> String {
        self.last_lines(20, |line| {
            let time = line.strip_prefix("time=\"");
            line.contains(what) && until.is_none_or(|until| time.is_some_and(|time| time <= until))
        })
    }

    fn last_lines(&self, count: usize, wanted: impl Fn(&str) -> bool) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().filter(|line| wanted(line)).collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        let new = self.folder.join(format!("{name}.new"));
        // Whole at once: a shim that clears up after another may be reading it.
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    fn configuration(&self, versions: Versions) -> Result<String> {
        let (folder, run) = (self.folder.display(), self.run.display());
        let cni = self.tools.cni()?;
        let cni_section = format!(
            "bin_dir = \"{}\"\nconf_dir = \"{folder}/cni\"\n",
            cni.display()
        );
        let (version, cri, cri_options) = match versions.containerd {
            ContainerdVersion::V1_6 | ContainerdVersion::V1_7 => (
                2,
                "io.containerd.grpc.v1.cri",
                "sandbox_image = \"podmotion.test/pause:1\"\nrestrict_oom_score_adj = true\n",
            ),
            ContainerdVersion::V2 => (
                3,
                "io.containerd.cri.v1.runtime",
                "restrict_oom_score_adj = true\n",
            ),
        };
        // Of its own accord containerd kills a runtime that has not cleaned up after a dead shim within five
        // seconds, and then reports another exit status. Several at once need longer on a loaded machine.
        let mut text = format!(
            "version = {version}\nroot = \"{folder}/root\"\nstate = \"{run}/state\"\n\
             disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.tracing.processor.v1.otlp\", \
             \"io.containerd.nri.v1.nri\"]\n\
             [grpc]\naddress = \"{run}/containerd.sock\"\n\
             [ttrpc]\naddress = \"{run}/containerd.sock.ttrpc\"\n\
             [debug]\nlevel = \"debug\"\n\
             [timeouts]\n\"io.containerd.timeout.shim.cleanup\" = \"60s\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{folder}/opt\"\n\
             [plugins.\"{cri}\"]\n{cri_options}\
             [plugins.\"{cri}\".cni]\n{cni_section}\
             [plugins.\"{cri}\".containerd]\ndefault_runtime_name = \"runc\"\n"
        );
        if versions.containerd == ContainerdVersion::V2 {
            text += "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n\
                     sandbox = \"podmotion.test/pause:1\"\n";
        }
        for runtime in Runtime::ALL {
            if self.plain && runtime == Runtime::Podmotion {
                continue;
            }
            let section = format!(
                "[plugins.\"{cri}\".containerd.runtimes.{}",
                runtime.handler()
            );
            text += &format!(
                "{section}]\nruntime_type = \"{}\"\n\
                 pod_annotations = [\"komodor.com/*\"]\n\
                 container_annotations = [\"komodor.com/*\"]\n\
                 {section}.options]\n{}\n",
                runtime.runtime_type(),
                self.runtime_options(runtime)?
            );
        }
        Ok(text)
    }

    /// CRI knows the options of containerd's own runtime; any other gets a file's name and reads that.
    fn runtime_options(&self, runtime: Runtime) -> Result<String> {
        let options = format!(
            "BinaryName = \"{}\"\nSystemdCgroup = {}\n",
            self.tools.runc()?.display(),
            Machine::get()?.cgroup_driver() == CgroupDriver::Systemd
        );
        if runtime == Runtime::Runc {
            return Ok(options);
        }
        self.write("podmotion.toml", &options)?;
        Ok(format!(
            "ConfigPath = \"{}\"\nTypeUrl = \"containerd.runc.v1.Options\"",
            self.folder.join("podmotion.toml").display()
        ))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A daemon that will not go is killed with the rest when the machine is left.
        let _ = self.end(Signal::KILL);
        let _ = fs::remove_dir_all(&self.run);
    }
}

/// The addresses of a daemon's pods.
pub(crate) fn pod_network(number: u32) -> String {
    format!("10.79.{number}.0/24")
}

/// A bridge per daemon: two daemons then never share an address.
fn network(folder: &Path, number: u32) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "podmotion-test",
        "plugins": [{
            "type": "bridge",
            "bridge": format!("cni{number}"),
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": folder.join("ipam"),
                "ranges": [
                    [{"subnet": pod_network(number)}],
                    [{"subnet": format!("fd79:0:0:{number}::/64")}],
                ],
                // Pods of other nodes.
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
    .to_string()
}
