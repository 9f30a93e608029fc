//! What a kubelet knows of systemd's logind: who may delay the end of the machine, and that it comes.
//! On a bus of its own, so that it can be had where systemd does not run, and nothing really ends.
//!
//! The interface is that of org.freedesktop.login1(5), the part that kubelets use.

use std::fs;
use std::os::fd::OwnedFd as StdFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::runtime::Runtime;
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::OwnedFd;
use zbus::{Connection, fdo, interface};

use super::daemon::Daemon;
use super::write;
use crate::PATIENCE;

const NAME: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";

/// The longest delay that it allows, microseconds. A kubelet that wants more changes logind's files.
const DELAY_MAX: u64 = 60_000_000;

/// Everybody on it may do everything: only root can reach it.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
"#;

/// Its ends of the pipes of those who delay.
type Delays = Arc<Mutex<Vec<StdFd>>>;

struct Manager {
    delays: Delays,
}

#[interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> u64 {
        DELAY_MAX
    }

    /// The caller delays until it closes what it gets.
    fn inhibit(&self, what: &str, _who: &str, _why: &str, mode: &str) -> fdo::Result<OwnedFd> {
        if (what, mode) != ("shutdown", "delay") {
            return Err(fdo::Error::NotSupported(format!("{what}, {mode}")));
        }
        let pipe = pipe_with(PipeFlags::CLOEXEC);
        let (ours, theirs) = pipe.map_err(|error| fdo::Error::Failed(error.to_string()))?;
        let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        delays.push(ours);
        Ok(theirs.into())
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

/// A bus with a logind on it.
pub struct Logind {
    delays: Delays,
    connection: Connection,
    runtime: Runtime,
    socket: PathBuf,
    _bus: Daemon,
}

impl Logind {
    /// Starts it with its files in `folder`.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let socket = folder.join("bus");
        let config = BUS.replace("SOCKET", &socket.display().to_string());
        let config = write(folder.join("bus.conf"), &config)?;
        let mut command = Command::new("dbus-daemon");
        command
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--nosyslog"]);
        let mut bus = Daemon::start("dbus", folder, None, command)?;
        let deadline = Instant::now() + PATIENCE;
        // A socket that it listens on is all that it says.
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            bus.check()?;
            ensure!(Instant::now() < deadline, "{}", bus.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
        let delays = Delays::default();
        let manager = Manager {
            delays: Arc::clone(&delays),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start a runtime")?;
        let address = format!("unix:path={}", socket.display());
        let connection = runtime.block_on(async {
            Builder::address(address.as_str())?
                .serve_at(PATH, manager)?
                .name(NAME)?
                .build()
                .await
        });
        Ok(Self {
            delays,
            connection: connection.context("be logind")?,
            runtime,
            socket,
            _bus: bus,
        })
    }

    /// The bus's address.
    pub(super) fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// Says that the machine ends, and waits until nobody delays that any more. At least one has to.
    pub fn shut_down(&self) -> Result<()> {
        let delays: Vec<StdFd> = {
            let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *delays)
        };
        ensure!(!delays.is_empty(), "nobody delays the end of the machine");
        self.tell(true)?;
        for delay in &delays {
            wait_closed(delay)?;
        }
        Ok(())
    }

    /// Says that it does not, after all.
    pub fn go_on(&self) -> Result<()> {
        self.tell(false)
    }

    fn tell(&self, start: bool) -> Result<()> {
        let told = self.runtime.block_on(async {
            let emitter = SignalEmitter::new(&self.connection, PATH)?;
            Manager::prepare_for_shutdown(&emitter, start).await
        });
        told.context("tell of the machine's end")
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

/// Waits until nobody has the other end any more.
fn wait_closed(pipe: &StdFd) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("convert the time left")?;
        let mut fds = [PollFd::new(pipe, PollFlags::empty())];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => bail!("the end of the machine is delayed for too long"),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for those who delay"),
        }
    }
}
