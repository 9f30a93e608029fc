//! `kubectl podmotion check`.

use std::io::Write;

use anyhow::Result;
use http::Method;
use jiff::Timestamp;
use podmotion_cli::human;
use podmotion_proto::report::NodeReport;

use crate::args::{CheckArgs, Form};
use crate::ask::{Answer, ask};
use crate::cluster::Cluster;
use crate::exit::Exit;
use crate::list::since;
use crate::output;
use crate::pods::PodError;
use crate::token::Role;

/// Shows how a node is.
///
/// # Errors
/// When it cannot be asked, or nothing be printed.
pub async fn run(cluster: &Cluster, args: &CheckArgs) -> Result<Exit> {
    let managers = cluster.managers().await?;
    let manager = managers.into_iter().find(|one| one.node == args.node);
    let manager = manager.ok_or_else(|| {
        let node = &args.node;
        PodError::Unknown(format!(
            "Podmotion is not on node {node}, or there is no such node"
        ))
    })?;
    let token = cluster.token(Role::Viewer).await?;
    let request = (Method::GET, "/v1/check");
    let answer = ask(cluster, &manager, &token, request, cluster.patience).await?;
    let Answer::<NodeReport> { content, .. } = answer;
    match args.output {
        Form::Json => output::json(&content)?,
        Form::Yaml => output::yaml(&content)?,
        Form::Text => {
            let mut out = anstream::stdout();
            for line in words(&content, Timestamp::now()) {
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(verdict(&content))
}

fn verdict(report: &NodeReport) -> Exit {
    match &report.self_test {
        Some(test) if test.passed && report.shims.silent.is_empty() => Exit::Done,
        _ => Exit::Failed,
    }
}

fn words(report: &NodeReport, now: Timestamp) -> Vec<String> {
    let mut lines = vec![format!("node {}, manager {}", report.node, report.version)];
    match &report.self_test {
        None => lines.push("self-test: none since the node has started".to_owned()),
        Some(test) => {
            let ended = since(&test.finished, now);
            lines.push(match (test.passed, &test.error) {
                (true, _) => format!("self-test: passed {ended} ago"),
                (false, Some(error)) => format!("self-test: failed {ended} ago: {error}"),
                (false, None) => format!("self-test: failed {ended} ago"),
            });
            lines.push(format!(
                "  of podmotion {}, kernel {}, containerd {}",
                test.podmotion, test.kernel, test.containerd
            ));
            lines.extend(test.steps.iter().map(|step| {
                let verdict = if step.ok { "ok" } else { "failed" };
                let took = human::took(step.millis.saturating_mul(1000));
                let line = format!("  {:<24}{verdict:<8}{took:<10}{}", step.name, step.detail);
                line.trim_end().to_owned()
            }));
        }
    }
    let (answered, silent) = (report.shims.answered, &report.shims.silent);
    lines.push(match silent.len() {
        0 => format!("shims: all {answered} answer"),
        count => format!("shims: {answered} answer, {count} do not"),
    });
    lines.extend(silent.iter().map(|error| format!("  {error}")));
    lines
}

#[cfg(test)]
mod tests {
    use podmotion_proto::report::{SelfTest, Shims, Step};

    use super::*;

    fn report() -> NodeReport {
        NodeReport {
            node: "n1".into(),
            version: "0.1.0".into(),
            self_test: Some(SelfTest {
                passed: true,
                kernel: "6.12.1".into(),
                containerd: "2.1.4".into(),
                podmotion: "0.1.0".into(),
                finished: "1970-01-01T00:00:01Z".into(),
                steps: vec![Step {
                    name: "deep: wake".into(),
                    ok: true,
                    millis: 81,
                    detail: "the counter goes on".into(),
                }],
                error: None,
            }),
            shims: Shims {
                answered: 3,
                silent: Vec::new(),
            },
        }
    }

    fn said(report: &NodeReport) -> String {
        words(report, Timestamp::from_second(61).unwrap()).join("\n")
    }

    #[test]
    fn a_node_that_is_well_says_what_was_tested() {
        let report = report();
        assert_eq!(verdict(&report), Exit::Done);
        assert_eq!(
            said(&report),
            "node n1, manager 0.1.0\n\
             self-test: passed 60s ago\n  \
             of podmotion 0.1.0, kernel 6.12.1, containerd 2.1.4\n  \
             deep: wake              ok      81 ms     the counter goes on\n\
             shims: all 3 answer"
        );
    }

    #[test]
    fn what_is_wrong_is_named_and_fails() {
        let mut failed = report();
        let test = failed.self_test.as_mut().unwrap();
        (test.passed, test.error) = (false, Some("deep: sleep: no room".into()));
        assert_eq!(verdict(&failed), Exit::Failed);
        assert!(said(&failed).contains("failed 60s ago: deep: sleep: no room"));
        let mut silent = report();
        silent.shims.silent = vec!["connect to /run/x.sock: refused".into()];
        assert_eq!(verdict(&silent), Exit::Failed);
        assert!(said(&silent).contains("3 answer, 1 do not\n  connect to /run/x.sock: refused"));
        let mut none = report();
        none.self_test = None;
        assert_eq!(verdict(&none), Exit::Failed);
        assert!(said(&none).contains("none since the node has started"));
    }
}
