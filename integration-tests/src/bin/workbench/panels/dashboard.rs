//! The dashboard's panels and their queries, as Grafana asks them.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::prometheus::{INTERVAL, Prometheus, Span};
use crate::plot::in_project;

const DASHBOARD: &str = "runtimeclass/chart/dashboards/podmotion.json";

/// Panels that can rightly have nothing to show in a recorded run, and why.
const EMPTY: &[(&str, &str)] = &[(
    "Requests to the API server that failed",
    "none has failed: a series begins with the first",
)];

/// All panels.
pub fn panels() -> Result<Vec<Value>> {
    let path = in_project(DASHBOARD)?;
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let dashboard: Value =
        serde_json::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let panels = dashboard["panels"].as_array();
    panels
        .cloned()
        .with_context(|| format!("{}: no panels", path.display()))
}

/// Why a panel has nothing to show, if it may have nothing.
pub fn may_be_empty(panel: &Value) -> Option<&'static str> {
    let (_, why) = EMPTY.iter().find(|(title, _)| panel["title"] == *title)?;
    Some(why)
}

/// Each panel with the answers to its queries.
///
/// # Errors
/// When Prometheus refuses a query, or has nothing to answer to all of a panel's.
pub fn answers(prometheus: &Prometheus, span: Span) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for panel in panels()? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        let mut answers = Vec::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"]
                .as_str()
                .with_context(|| format!("panel {title:?}: no query"))?;
            let query = fill_in(query, span);
            ensure!(
                !query.contains('$'),
                "panel {title:?}: an unknown variable in {query}"
            );
            let series = if target["instant"] == true {
                prometheus.query(&query, span.end)
            } else {
                prometheus.query_range(&query, span)
            };
            answers.push(series.with_context(|| format!("panel {title:?}"))?);
        }
        let empty = !answers.is_empty() && answers.iter().all(Vec::is_empty);
        ensure!(
            !empty || may_be_empty(&panel).is_some(),
            "panel {title:?} has nothing to show: {}",
            panel["targets"]
        );
        all.push(json!({"panel": panel, "answers": answers}));
    }
    Ok(all)
}

/// With Grafana's values for its variables when everything is selected.
fn fill_in(query: &str, span: Span) -> String {
    let range = (span.end - span.start).ceil();
    // The documentation of `$__rate_interval` has this rule.
    let rate = (span.step + INTERVAL).max(4 * INTERVAL);
    query
        .replace("$__rate_interval", &format!("{rate}s"))
        .replace("$__range", &format!("{range}s"))
        .replace("$namespace", ".*")
        .replace("$node", ".*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_is_whole() {
        let span = Span {
            start: 0.0,
            end: 119.5,
            step: 1,
        };
        let panels = panels().unwrap();
        let targets = panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        for target in targets {
            let query = fill_in(target["expr"].as_str().unwrap(), span);
            assert!(!query.contains('$'), "{query}");
        }
        assert_eq!(fill_in("a[$__rate_interval]", span), "a[4s]");
        assert_eq!(fill_in("a[$__range]", span), "a[120s]");
    }

    #[test]
    fn a_panel_that_may_be_empty_is_one() {
        let panels = panels().unwrap();
        for (title, _) in EMPTY {
            assert!(
                panels.iter().any(|panel| panel["title"] == *title),
                "{title}"
            );
        }
    }
}
