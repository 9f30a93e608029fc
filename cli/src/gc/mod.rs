//! `podmotion gc`: what a crash or a reboot has left, and its removal.
//!
//! The order is what makes it safe. First it is noted what is there, then who may own it, and only what was there
//! before the owners were asked is looked at again: an owner that appears later has made something newer. Where
//! one of the owners cannot be asked, nothing of what it may own is touched.

mod gate;
mod images;
mod owners;
mod sockets;

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use podmotion_cli::human;
use serde::Serialize;

use crate::args::{GcArgs, Global, Output};
use crate::exit::Exit;
use crate::{node, shims};
use owners::Owners;

/// Something without an owner.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Leftover {
    kind: &'static str,
    /// A path, or `network namespace COOKIE`.
    what: String,
    /// On disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Entries of BPF maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<usize>,
    removed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Leftover {
    fn new(kind: &'static str, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            bytes: None,
            entries: None,
            removed: false,
            error: None,
        }
    }

    /// Notes what became of it.
    fn with(mut self, removal: Option<Result<()>>) -> Self {
        match removal {
            None => {}
            Some(Ok(())) => self.removed = true,
            Some(Err(error)) => self.error = Some(format!("{error:#}")),
        }
        self
    }

    fn text(&self, dry_run: bool) -> String {
        let size = match (self.bytes, self.entries) {
            (Some(bytes), _) => format!(", {}", human::bytes(bytes)),
            (_, Some(entries)) => format!(", {entries} entries"),
            _ => String::new(),
        };
        let done = if dry_run { "would remove" } else { "removed" };
        format!("{done} {} {}{size}", self.kind, self.what)
    }
}

/// How to go about it.
#[derive(Clone, Copy)]
struct Plan {
    dry_run: bool,
    min_age: Duration,
}

impl Plan {
    /// Removes something unless it is only to be listed.
    fn remove(self, removal: impl FnOnce() -> Result<()>) -> Option<Result<()>> {
        (!self.dry_run).then(removal)
    }
}

/// What was found, and what could not be told.
#[derive(Default)]
struct Findings {
    leftovers: Vec<Leftover>,
    errors: Vec<anyhow::Error>,
}

impl Findings {
    fn take(&mut self, found: Result<Vec<Leftover>>) {
        match found {
            Ok(leftovers) => self.leftovers.extend(leftovers),
            Err(error) => self.errors.push(error),
        }
    }
}

/// Removes it, or lists it.
///
/// # Errors
/// When it cannot be told what belongs to whom, or nothing be printed.
pub fn run(global: &Global, args: &GcArgs) -> Result<Exit> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "gc needs root: run it with sudo"
    );
    let config = node::read(&global.config)?;
    let folder = node::sockets(global)?;
    let plan = Plan {
        dry_run: args.dry_run,
        min_age: args.min_age,
    };
    let mut findings = Findings::default();

    let images = images::Candidates::find(&config.checkpoint.directory, plan.min_age)?;
    let registered = gate::registered(&config.gate.pins)?;
    let survey = shims::runtime()?.block_on(shims::survey(&folder))?;
    sockets::ensure_same_view(&folder)?;
    let owners = Owners::find(&survey, args)
        .context("who may own checkpoints cannot be told, so all stay")?;

    findings.take(sockets::remove(&folder, &survey.answered, plan));
    findings.take(sockets::remove_work(&folder, plan));
    match owners {
        Ok(owners) => findings.leftovers.extend(images.remove(&owners, plan)),
        Err(silent) => findings.errors.push(silent),
    }
    findings.take(gate::remove(&config.gate.pins, registered, plan));
    report(global.output, args.dry_run, &findings)
}

fn report(output: Output, dry_run: bool, findings: &Findings) -> Result<Exit> {
    let mut out = anstream::stdout();
    let mut failed = !findings.errors.is_empty();
    for found in &findings.leftovers {
        match &found.error {
            Some(error) => {
                failed = true;
                crate::complain(&format!("{} {} stays: {error}", found.kind, found.what));
            }
            None if output == Output::Table => writeln!(out, "{}", found.text(dry_run))?,
            None => {}
        }
    }
    match output {
        Output::Json => writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(&findings.leftovers)?
        )?,
        Output::Table if findings.leftovers.is_empty() && !failed => {
            writeln!(out, "nothing is left over")?
        }
        Output::Table => {}
    }
    for error in &findings.errors {
        crate::complain(&format!("{error:#}"));
    }
    Ok(if failed { Exit::Failed } else { Exit::Done })
}
