//! Tests against the real containerd, as root. `--list` names them all.
//!
//! A test that cannot run fails.

#![forbid(unsafe_code)]

mod cli;
mod cluster;
mod images;
mod install;
mod kube;
mod manager;
mod plain;
mod pool;
mod security;
mod self_test;
mod sleep;
mod vm;

use std::process::ExitCode;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use podmotion_integration_tests::{CgroupDriver, Depth, Machine, Node, Runtime, Versions};

/// A test's body. The runtime is the one to give to [`podmotion_integration_tests::App::runtime`].
type Body = fn(&Node, Runtime) -> Result<()>;

fn main() -> ExitCode {
    let result = self_test::as_child().map(|result| result.map(|()| ExitCode::SUCCESS));
    match result.unwrap_or_else(run) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    let trials = match CgroupDriver::from_env()? {
        CgroupDriver::Cgroupfs => {
            let mut trials = plain::trials();
            trials.extend(sleep::trials());
            trials.extend(cli::trials());
            trials.extend(cluster::trials());
            trials.extend(images::trials());
            trials.extend(manager::trials());
            trials.extend(self_test::trials());
            trials.extend(install::trials());
            trials.extend(security::trials());
            trials.extend(kube::trials());
            trials.extend(vm::outside());
            trials
        }
        CgroupDriver::Systemd => vm::inside()?,
    };
    if arguments.list {
        return Ok(libtest_mimic::run(&arguments, trials).exit_code());
    }
    // For who runs all of the workspace's tests without root, and says so.
    if std::env::var_os("PODMOTION_SKIP_ROOT").is_some_and(|value| value == "1") {
        eprintln!("PODMOTION_SKIP_ROOT=1: the tests that need root are left out");
        return Ok(ExitCode::SUCCESS);
    }
    // Two cores: tests beside each other would only time each other out.
    arguments.test_threads.get_or_insert(1);
    let machine = Machine::enter().context("prepare the machine")?;
    let conclusion = libtest_mimic::run(&arguments, trials);
    pool::stop_all();
    machine.leave().context("clean the machine up")?;
    Ok(conclusion.exit_code())
}

/// A test of one body on one runtime with one pair of versions. The pair's node is shared.
fn trial(name: &str, body: Body, runtime: Runtime, versions: Versions) -> Trial {
    trial_in(
        &runtime.to_string(),
        name,
        body,
        runtime,
        versions,
        Depth::Deep,
    )
}

/// The same with our runtime and containers that sleep light.
fn light_trial(name: &str, body: Body, versions: Versions) -> Trial {
    trial_in(
        "light",
        name,
        body,
        Runtime::Podmotion,
        versions,
        Depth::Light,
    )
}

fn trial_in(
    what: &str,
    name: &str,
    body: Body,
    runtime: Runtime,
    versions: Versions,
    depth: Depth,
) -> Trial {
    let full = format!("{name}[{what},{versions}]");
    Trial::test(full, move || {
        let node = pool::node(versions).map_err(to_failure)?;
        node.sleep(depth).map_err(to_failure)?;
        body(&node, runtime).map_err(|error| {
            let log = node.log_tail();
            Failed::from(format!("{error:#}\n\nThe end of the log:\n{log}"))
        })
    })
}

fn to_failure(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}
