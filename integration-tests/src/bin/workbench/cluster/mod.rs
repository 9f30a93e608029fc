//! `cargo xtask cluster`: the Kubernetes of the tests, for a person.
//!
//! ```text
//!   up ──starts──> serve: enters a machine, starts everything, waits ──> leaves it
//!    ^ progress, "ready"  │                                    ^
//!    └────────────────────┘                     down ──TERM────┘
//! ```
//!
//! `serve` is a process in the background that holds the lock of the folder for as long as anything of the
//! cluster is there. A link leads from the caller's network to the machine's.

mod folder;
mod link;
mod serve;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use podmotion_integration_tests::{Machine, PATIENCE, wait_gone};
use rustix::process::{Pid, Signal, kill_process};

use folder::Folder;

/// What `serve` says once everything is up.
const READY: &str = "ready";

/// What to do with the cluster.
#[derive(Subcommand)]
pub enum Verb {
    /// Starts it and leaves it running.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        nodes: u8,
        #[command(flatten)]
        place: Place,
    },
    /// Takes it away.
    Down {
        #[command(flatten)]
        place: Place,
    },
    /// Says whether it is up, and how to use it.
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Runs it until SIGTERM.
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        nodes: u8,
        /// A process in the network namespace that the link leads to.
        #[arg(long)]
        link: u32,
        #[command(flatten)]
        place: Place,
    },
}

/// Which cluster.
#[derive(clap::Args)]
pub struct Place {
    /// Where its configuration and log are.
    #[arg(long, default_value = "/var/tmp/podmotion-cluster")]
    folder: PathBuf,
}

/// Does it. The answer is whether it was as asked for.
pub fn run(verb: &Verb) -> Result<bool> {
    match verb {
        Verb::Up { nodes, place } => up(*nodes, &Folder::at(&place.folder)),
        Verb::Down { place } => down(&Folder::at(&place.folder)),
        Verb::Status { place } => status(&Folder::at(&place.folder)),
        Verb::Serve { nodes, link, place } => {
            serve::run(*nodes, *link, &Folder::at(&place.folder))?;
            Ok(true)
        }
    }
}

fn up(nodes: u8, folder: &Folder) -> Result<bool> {
    if folder.holder()?.is_some() {
        println!("A cluster is up already.\n{}", folder.usage()?);
        return Ok(true);
    }
    // What one left whose process was killed.
    clear(folder)?;
    folder.create()?;
    let program = std::env::current_exe().context("find this program")?;
    let mut child = Command::new(program)
        .args(["cluster", "serve", "--nodes", &nodes.to_string()])
        .args(["--link", &std::process::id().to_string(), "--folder"])
        .arg(folder.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(folder.open_log()?)
        .spawn()
        .context("start the cluster's process")?;
    let told = child.stdout.take().context("the process has no output")?;
    for line in BufReader::new(told).lines() {
        let line = line.context("read what the cluster's process says")?;
        if line == READY {
            link::connect()?;
            println!("\n{}", folder.usage()?);
            return Ok(true);
        }
        println!("{line}");
    }
    let status = child.wait().context("wait for the cluster's process")?;
    let log = folder.log()?;
    clear(folder)?;
    bail!("the cluster did not come up: {status}\n{log}");
}

fn down(folder: &Folder) -> Result<bool> {
    let Some(pid) = folder.holder()? else {
        clear(folder)?;
        println!("no cluster is up");
        return Ok(true);
    };
    let process = Pid::from_raw(pid).context("pid 0 is no process")?;
    kill_process(process, Signal::TERM).with_context(|| format!("end process {pid}"))?;
    // It may have a lot to remove.
    wait_gone(pid, 3 * PATIENCE)?;
    let log = folder.log()?;
    clear(folder)?;
    if log.is_empty() {
        println!("the cluster is gone");
    } else {
        println!("the cluster is gone; it said:\n{log}");
    }
    Ok(log.is_empty())
}

fn status(folder: &Folder) -> Result<bool> {
    match folder.holder()? {
        Some(pid) => println!("A cluster is up, process {pid}.\n{}", folder.usage()?),
        None => println!("no cluster is up"),
    }
    Ok(true)
}

/// Removes what is left of a cluster whose process is gone.
fn clear(folder: &Folder) -> Result<()> {
    link::remove()?;
    folder.remove()?;
    Machine::sweep()
}
