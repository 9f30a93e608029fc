//! A running manager, with no more than it needs: no capability, and nothing to write to but folders that are
//! mounted for it.

mod scrape;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};

pub use self::scrape::Scrape;
use crate::PATIENCE;
use crate::client::{Client, Response};
use crate::machine::Machine;
use crate::node::Node;
use crate::process::MARK;

/// Numbers for managers: one that was killed leaves its port to the next one.
static MANAGERS: AtomicU32 = AtomicU32::new(0);

/// The root is read-only for it, and root's user all that it is.
const CONFINED: &[&str] = &[
    "unshare",
    "--mount",
    "--propagation=private",
    "sh",
    "-c",
    "mount -o remount,bind,ro / && exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs -- \"$@\"",
    "sh",
];

/// A running manager. Dropping it ends it.
#[derive(Debug)]
pub struct Manager {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Manager {
    /// Starts one and returns once it is ready.
    pub fn start(node: &Node, arguments: &[&str]) -> Result<Self> {
        Self::start_with(node, arguments, &[])
    }

    /// The same, with more in its environment.
    pub fn start_with(
        node: &Node,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let number = MANAGERS.fetch_add(1, Ordering::Relaxed);
        let port = 18_000 + u16::try_from(number).context("too many managers")?;
        // Of this process alone: another one may have managers too.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = SocketAddr::from(([127, 77, high, low | 1], port));
        let log = node.folder().join(format!("manager-{number}.log"));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let child = Command::new(CONFINED[0])
            .args(&CONFINED[1..])
            .arg(node.tools().manager()?)
            .arg(format!("--metrics-address={address}"))
            // There can be two for a moment.
            .arg("--node-server-address=127.0.0.1:0")
            .args(arguments)
            .envs(environment.iter().copied())
            .env(MARK, Machine::get()?.name())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("start the manager")?;
        let mut manager = Self {
            child,
            address,
            log,
        };
        manager.wait_ready(200)?;
        Ok(manager)
    }

    /// Its process.
    pub fn pid(&self) -> Result<i32> {
        i32::try_from(self.child.id()).context("pid")
    }

    /// Where it serves metrics and health.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it serves there.
    pub fn get(&self, path: &str) -> Result<Response> {
        Client::default().get(self.address, path)
    }

    /// Its metrics, which must be valid.
    pub fn scrape(&self) -> Result<Scrape> {
        let answer = self.get("/metrics")?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Scrape::parse(&answer.body)
    }

    /// Scrapes until nothing is missing any more: there is no other way to hear of it.
    pub fn wait(
        &self,
        what: &str,
        missing: impl Fn(&Scrape) -> Result<Option<Error>>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let scrape = self.scrape().with_context(|| self.said())?;
            let Some(error) = missing(&scrape)? else {
                return Ok(());
            };
            if Instant::now() > deadline {
                return Err(error.context(format!("{what} did not come: {}", self.said())));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill the manager")?;
        self.child.wait().context("wait for the manager")?;
        Ok(())
    }

    /// What it has said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks on `/readyz` until it answers with `status`, 200 where it is ready: there is no other way to hear of it.
    pub fn wait_ready(&mut self, status: u16) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = self.get("/readyz");
            if asked.as_ref().is_ok_and(|answer| answer.status == status) {
                return Ok(());
            }
            if let Some(ended) = self.child.try_wait()? {
                bail!("the manager ended, {ended}: {}", self.said());
            }
            if Instant::now() > deadline {
                bail!("{asked:?} in place of {status} on /readyz: {}", self.said());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
