//! cargo-deny, which checks licences and advisories of what Podmotion is built from.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Cache, Item, Work};
use crate::process;

/// The program, relative to the cache.
pub const PROGRAM: &str = "tools/cargo-deny/bin/cargo-deny";

const PLACE: &str = "tools/cargo-deny";
const VERSION: &str = "0.20.2";

/// The program `cargo-deny`, compiled from its package.
pub struct Deny;

impl Item for Deny {
    fn name(&self) -> &str {
        "cargo-deny"
    }

    fn why(&self) -> &str {
        "checks licences and advisories; only `cargo xtask check` needs it"
    }

    fn by_default(&self) -> bool {
        false
    }

    fn needs_root(&self) -> bool {
        false
    }

    fn place(&self) -> Option<&str> {
        Some(PLACE)
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok(VERSION.to_owned())
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        work.ui.step("compiling it (some minutes)");
        let package = format!("cargo-deny@{VERSION}");
        process::output(
            process::command(process::cargo())
                .args(["install", "--locked", "--no-track", &package, "--root"])
                .arg(partial)
                // Not among ours, where `cargo clean` or another profile would throw it away half-way.
                .env(
                    "CARGO_TARGET_DIR",
                    work.cache.path("tools/cargo-deny.target"),
                ),
        )?;
        super::files::remove(&work.cache.path("tools/cargo-deny.target"))?;
        Ok(VERSION.to_owned())
    }

    fn check(&self, place: &Path) -> Result<()> {
        let said =
            process::output(process::command(place.join("bin/cargo-deny")).arg("--version"))?;
        ensure!(said.contains(VERSION), "cargo-deny says it is {said}");
        Ok(())
    }
}
