//! `cargo xtask check`: what a change must pass before its tests are looked at.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process;
use crate::setup::{self, Cache};

/// How long fetching the database of advisories may take.
const ADVISORIES_TIMEOUT: &str = "120s";

/// Runs every check, also after one has failed.
///
/// # Errors
/// When one of them failed.
pub fn run() -> Result<()> {
    let cache = Cache::from_env()?;
    setup::ensure(&["cargo-deny"])?;
    let mut failed = Vec::new();
    let mut check = |what: &'static str, command: &mut Command| {
        println!("check: {what}: {}", process::describe(command));
        if let Err(error) = process::passthrough(command) {
            eprintln!("{error:#}");
            failed.push(what);
        }
    };
    check("format", cargo().args(["fmt", "--all", "--check"]));
    // Tests that need root are none of those that cargo runs by itself, so they are named.
    for targets in [&["--all-targets"][..], &["--test", "*"]] {
        check(
            "lints",
            cargo()
                .args(["clippy", "--workspace"])
                .args(targets)
                // What draws is left out otherwise.
                .args(["--features", "podmotion-integration-tests/plot"])
                .args(["--", "-D", "warnings"]),
        );
    }
    check(
        "generated files",
        cargo().args([
            "test",
            "--quiet",
            "--package",
            "podmotion-model",
            "--package",
            "podmotion-cli",
        ]),
    );
    check(
        "licences, bans, sources",
        deny(&cache).args(["check", "licenses", "bans", "sources"]),
    );
    if fetch_advisories(&cache) {
        check(
            "advisories",
            deny(&cache).args(["--offline", "check", "advisories"]),
        );
    }
    if failed.is_empty() {
        println!("check: all passed");
        return Ok(());
    }
    bail!("check failed: {}", failed.join(", "))
}

fn cargo() -> Command {
    let mut command = process::command(process::cargo());
    command.current_dir(crate::project_root());
    command
}

fn deny(cache: &Cache) -> Command {
    let mut command = process::command(cache.path(setup::CARGO_DENY));
    command.current_dir(crate::project_root());
    command
}

/// Whether the database of advisories is there; it lives on a server that not every machine reaches.
fn fetch_advisories(cache: &Cache) -> bool {
    let mut fetch = process::command("timeout");
    fetch
        .current_dir(crate::project_root())
        .arg(ADVISORIES_TIMEOUT)
        .arg(cache.path(setup::CARGO_DENY))
        .args(["fetch", "db"]);
    match process::output(&mut fetch) {
        Ok(_) => true,
        Err(error) => {
            println!("check: advisories: NOT CHECKED, their database cannot be fetched: {error}");
            false
        }
    }
}
