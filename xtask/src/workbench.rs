//! `cargo xtask demo`, `bench`, `panels` and `cluster`: setup, build, and then the program that does it, which uses
//! the tests' harness. It is a program of its own so that nothing else of xtask has to wait for its
//! compilation.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::setup::{self, Cache};
use crate::{dist, process};

/// What all need of setup.
const NEEDS: &[&str] = &[
    "packages",
    "criu",
    "containerd-2",
    "runc-1.3",
    "cni",
    "pause-image",
    "apps-image",
];

/// What only the figures need.
const LOAD: &[&str] = &["software-image", "wrk"];

/// What only the dashboard's panels need.
const PANELS: &[&str] = &["busybox-image", "prometheus"];

/// What only a Kubernetes needs.
const KUBERNETES: &[&str] = &["etcd", "kubernetes", "busybox-image"];

/// Has the program draw.
const PLOT: &[&str] = &["--features", "plot"];

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Write the steps to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave everything up at the end until Ctrl-C, and say how to look around.
    #[arg(long)]
    keep: bool,
}

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Write the figures to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer rounds, less memory.
    #[arg(long)]
    quick: bool,
    /// Draw the figures, and put them into the project's pages.
    #[arg(long)]
    plot: bool,
}

/// Arguments of `cargo xtask panels`.
#[derive(clap::Args)]
pub struct PanelsArgs {
    /// Write what Prometheus has answered to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Arguments of `cargo xtask cluster`.
#[derive(clap::Subcommand)]
pub enum ClusterVerb {
    /// Start it, leave it running and say how to use it.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        nodes: u8,
    },
    /// Take it away with everything that runs on it.
    Down,
    /// Say whether it is up, and how to use it.
    Status,
}

/// Runs the demo in place of this program.
///
/// # Errors
/// When it cannot be prepared or started.
pub fn demo(args: &DemoArgs) -> Result<Infallible> {
    let flags: Vec<_> = args.keep.then_some("--keep").into_iter().collect();
    let programs = prepare("demo", NEEDS)?;
    run(&["demo"], Some(&programs), args.json.as_ref(), &flags, &[])
}

/// Runs the benchmarks in place of this program.
///
/// # Errors
/// When they cannot be prepared or started.
pub fn bench(args: &BenchArgs) -> Result<Infallible> {
    let needs: Vec<&str> = NEEDS.iter().chain(LOAD).copied().collect();
    let quick = args.quick.then_some("--quick");
    let plot = args.plot.then_some("--plot");
    let flags: Vec<_> = quick.into_iter().chain(plot).collect();
    let features = if args.plot { PLOT } else { &[] };
    let programs = prepare("bench", &needs)?;
    run(
        &["bench"],
        Some(&programs),
        args.json.as_ref(),
        &flags,
        features,
    )
}

/// Records and draws the dashboard's panels in place of this program.
///
/// # Errors
/// When that cannot be prepared or started.
pub fn panels(args: &PanelsArgs) -> Result<Infallible> {
    let programs = prepare("panels", &[NEEDS, PANELS].concat())?;
    run(&["panels"], Some(&programs), args.json.as_ref(), &[], PLOT)
}

/// Does it in place of this program.
///
/// # Errors
/// When it cannot be prepared or started.
pub fn cluster(verb: &ClusterVerb) -> Result<Infallible> {
    match verb {
        ClusterVerb::Up { nodes } => {
            let programs = prepare("cluster", &[NEEDS, KUBERNETES].concat())?;
            let nodes = format!("--nodes={nodes}");
            run(&["cluster", "up"], Some(&programs), None, &[&nodes], &[])
        }
        ClusterVerb::Down => run(&["cluster", "down"], None, None, &[], &[]),
        ClusterVerb::Status => run(&["cluster", "status"], None, None, &[], &[]),
    }
}

/// Makes sure of what setup makes, and builds the programs of a node. Returns their folder.
fn prepare(verb: &str, needs: &[&str]) -> Result<PathBuf> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "cargo xtask {verb} starts containers: run it as root"
    );
    setup::ensure(needs)?;
    dist::build(Arch::host()?)
}

/// Runs the program in place of this one.
fn run(
    verbs: &[&str],
    programs: Option<&Path>,
    json: Option<&PathBuf>,
    flags: &[&str],
    features: &[&str],
) -> Result<Infallible> {
    let mut command = process::command(process::cargo());
    command
        .args(["run", "--quiet", "--manifest-path"])
        .arg(crate::project_root().join("Cargo.toml"))
        .args(["--package", "podmotion-integration-tests"])
        .args(["--bin", "workbench"])
        .args(features)
        .arg("--")
        .args(verbs)
        .env("PODMOTION_CACHE", Cache::from_env()?.root());
    if let Some(programs) = programs {
        command.env("PODMOTION_BIN", programs);
    }
    if let Some(file) = json {
        command.arg("--json").arg(file);
    }
    command.args(flags);
    let line = process::describe(&command);
    println!("{}: {line}", verbs.join(" "));
    // In its place: Ctrl-C is then its own, and it can clean up.
    Err(command.exec()).with_context(|| format!("cannot start {line}"))
}
