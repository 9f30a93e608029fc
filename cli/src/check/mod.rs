//! `podmotion check`: whether this node has all that it takes.

mod containerd;
mod criu;
mod gate;
mod kernel;
pub mod names;
mod node;
pub mod process;
mod self_test;
mod sys;

use std::io::Write;

use anyhow::Result;
use clap::ValueEnum;
use podmotion_model::config::NodeConfig;
use serde::Serialize;

use crate::args::{CheckArgs, Global, Output};
use crate::exit::Exit;
use names::Name;

/// What a check has found.
#[derive(Debug)]
enum Verdict {
    /// All is well, with what was seen.
    Ok(String),
    /// It works, at a cost.
    Warning(Finding),
    /// It does not work.
    Failed(Finding),
}

/// What is not well, and what to do about it.
#[derive(Debug)]
struct Finding {
    what: String,
    advice: String,
}

impl Verdict {
    fn ok(what: impl Into<String>) -> Self {
        Self::Ok(what.into())
    }

    fn warning(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Warning(Finding {
            what: what.into(),
            advice: advice.into(),
        })
    }

    fn failed(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Failed(Finding {
            what: what.into(),
            advice: advice.into(),
        })
    }
}

/// What the checks go by.
struct Context<'a> {
    global: &'a Global,
    args: &'a CheckArgs,
}

impl Context<'_> {
    /// The node's configuration, for a check that goes by it.
    fn config(&self) -> Result<NodeConfig, Verdict> {
        crate::node::read(&self.global.config).map_err(|error| {
            Verdict::failed(
                format!("not looked at: {error:#}"),
                "correct the configuration first",
            )
        })
    }
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    result: &'static str,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Line>,
}

/// Runs the checks.
///
/// # Errors
/// When nothing can be printed, or without root.
pub fn run(global: &Global, args: &CheckArgs) -> Result<Exit> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "check needs root: run it with sudo"
    );
    let context = Context { global, args };
    let mut out = anstream::stdout();
    let mut lines = Vec::new();
    for name in selected(&args.checks) {
        let line = Line::new(name, perform(name, &context));
        if global.output == Output::Table {
            writeln!(out, "{}", line.text())?;
            out.flush()?;
        }
        lines.push(line);
    }
    let ok = lines.iter().all(|line| line.result != FAILED);
    if global.output == Output::Json {
        let report = Report { ok, checks: lines };
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    }
    Ok(if ok { Exit::Done } else { Exit::Failed })
}

/// In the report's order, each once.
fn selected(names: &[Name]) -> Vec<Name> {
    let all = Name::value_variants().iter().copied();
    all.filter(|name| names.is_empty() || names.contains(name))
        .collect()
}

fn perform(name: Name, context: &Context<'_>) -> Verdict {
    let result = match name {
        Name::Configuration => node::configuration(context),
        Name::KernelVersion => Ok(kernel::version()),
        Name::Userfaultfd => Ok(kernel::userfaultfd()),
        Name::PidfdGetfd => Ok(kernel::pidfd_getfd()),
        Name::SuspendSeccomp => Ok(kernel::suspend_seccomp()),
        Name::PagemapScan => Ok(kernel::pagemap_scan()),
        Name::Freezer => Ok(kernel::freezer()),
        Name::Btf => Ok(kernel::btf()),
        Name::Tun => Ok(kernel::tun()),
        Name::BpfLoad => gate::load(context),
        Name::BpfPins => gate::pins(context),
        Name::Gate => gate::attach(context),
        Name::Checkpoints => node::checkpoints(context),
        Name::Runc => node::runc(context),
        Name::Criu => criu::version(context),
        Name::CriuKernel => criu::kernel(context),
        Name::SelfTest => self_test::run(context),
        Name::Containerd => Ok(containerd::runtime(
            &context.args.containerd.containerd_config,
        )),
    };
    result.unwrap_or_else(|verdict| verdict)
}

const FAILED: &str = "failed";

impl Line {
    fn new(name: Name, verdict: Verdict) -> Self {
        let (result, what, advice) = match verdict {
            Verdict::Ok(what) => ("ok", what, None),
            Verdict::Warning(found) => ("warning", found.what, Some(found.advice)),
            Verdict::Failed(found) => (FAILED, found.what, Some(found.advice)),
        };
        Self {
            name: name.text(),
            result,
            what,
            advice,
        }
    }

    /// For people; `anstream` takes the colours out where they are not wanted.
    fn text(&self) -> String {
        let color = match self.result {
            "ok" => "\u{1b}[32m",
            "warning" => "\u{1b}[33m",
            _ => "\u{1b}[31m",
        };
        let head = format!(
            "{color}{:<7}\u{1b}[0m  {:<15}  {}",
            self.result, self.name, self.what
        );
        match &self.advice {
            None => head,
            Some(advice) => {
                let margin = format!("\n{:29}", "");
                format!("{head}\n{:26}-> {}", "", advice.replace('\n', &margin))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_run_in_the_reports_order_and_once() {
        let names = [Name::Tun, Name::Configuration, Name::Tun];
        assert_eq!(selected(&names), [Name::Configuration, Name::Tun]);
        assert_eq!(selected(&[]).len(), Name::value_variants().len());
    }

    #[test]
    fn a_line_says_what_to_do() {
        let verdict = Verdict::failed("there is no /dev/net/tun", "modprobe tun");
        let line = Line::new(Name::Tun, verdict);
        let text = anstream::adapter::strip_str(&line.text()).to_string();
        assert_eq!(
            text,
            "failed   tun              there is no /dev/net/tun\n                          -> modprobe tun"
        );
    }
}
