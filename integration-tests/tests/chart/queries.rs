//! Every query of the dashboard and of the alerts, against the metrics that the code has.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow, bail, ensure};
use podmotion_model::metrics::{self, Metric};
use promql_parser::parser::{self, Expr, LabelModifier, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

use crate::helm::{chart, read};

/// Labels that the collection of metrics adds.
const ADDED: [&str; 3] = ["node", "instance", "job"];

/// What Grafana puts in place of its variables, or something of the same form.
const VARIABLES: [(&str, &str); 4] = [
    ("$__rate_interval", "5m"),
    ("$__range", "1h"),
    ("$namespace", ".*"),
    ("$node", ".*"),
];

/// Queries with the places that they are at.
pub fn dashboard() -> Result<Vec<(String, String)>> {
    let text = read(&chart().join("dashboards/podmotion.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut query = target["expr"]
                .as_str()
                .with_context(|| format!("{title}: no query"))?
                .to_owned();
            for (variable, value) in VARIABLES {
                query = query.replace(variable, value);
            }
            ensure!(
                !query.contains('$'),
                "{title}: an unknown variable: {query}"
            );
            queries.push((title.to_owned(), query));
        }
    }
    for variable in dashboard["templating"]["list"]
        .as_array()
        .context("no variables")?
    {
        if variable["type"] == "query" {
            let query = variable["query"]["query"].as_str().context("no query")?;
            let inner = query
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')'))
                .with_context(|| format!("not label_values: {query}"))?;
            let (metric, label) = inner.split_once(", ").context("a metric and a label")?;
            queries.push((
                format!("variable {}", variable["name"]),
                format!("count by ({label}) ({metric})"),
            ));
        }
    }
    Ok(queries)
}

/// The same of the alerts.
fn alerts() -> Result<Vec<(String, String)>> {
    let rules: Value = serde_saphyr::from_str(&read(&chart().join("rules/alerts.yaml"))?)?;
    let groups = rules["groups"].as_array().context("no groups")?;
    groups
        .iter()
        .flat_map(|group| group["rules"].as_array().into_iter().flatten())
        .map(|rule| {
            let name = rule["alert"].as_str().context("no name")?;
            let query = rule["expr"].as_str().context("no query")?;
            Ok((name.to_owned(), query.to_owned()))
        })
        .collect()
}

#[test]
fn the_dashboard_asks_for_what_there_is() -> Result<()> {
    let queries = dashboard()?;
    ensure!(queries.len() > 20, "only {} queries", queries.len());
    for (place, query) in &queries {
        check(query).with_context(|| format!("{place}: {query}"))?;
    }
    Ok(())
}

#[test]
fn alerts_ask_for_what_there_is() -> Result<()> {
    let queries = alerts()?;
    ensure!(queries.len() > 5, "only {} alerts", queries.len());
    for (place, query) in &queries {
        check(query).with_context(|| format!("{place}: {query}"))?;
    }
    Ok(())
}

#[test]
fn the_dashboard_shows_every_metric() -> Result<()> {
    let mut shown = BTreeSet::new();
    for (_, query) in dashboard()? {
        shown.extend(check(&query)?);
    }
    for metric in metrics::ALL {
        ensure!(shown.contains(metric.name), "{} is not shown", metric.name);
    }
    Ok(())
}

#[test]
fn a_query_of_something_else_is_found() {
    for (query, said) in [
        ("podmotion_wakes_total", "no such metric"),
        ("podmotion_restore_duration_seconds", "no such metric"),
        ("podmotion_restores_total{depth=\"deep\"}", "no label depth"),
        ("podmotion_restores_total{result=\"fail\"}", "never has"),
        (
            "podmotion_restores_total{result=~\"failed|lost\"}",
            "never has",
        ),
        ("sum by (podd) (podmotion_image_bytes)", "no label podd"),
        ("rate(podmotion_image_bytes[5m])", "no counter"),
        ("rate(podmotion_restores_total)", "expected type matrix"),
        ("sum(", "unclosed"),
    ] {
        match check(query) {
            Ok(_) => panic!("{query} is accepted"),
            Err(error) => assert!(format!("{error:#}").contains(said), "{query}: {error:#}"),
        }
    }
}

/// Names of the metrics that a query is about; an error for what there is not.
fn check(query: &str) -> Result<BTreeSet<&'static str>> {
    let expression = parser::parse(query).map_err(|error| anyhow!("{error}"))?;
    let mut checker = Checker::default();
    walk_expr(&mut checker, &expression)?;
    ensure!(!checker.found.is_empty(), "it is about no metric");
    Ok(checker.found)
}

#[derive(Default)]
struct Checker {
    found: BTreeSet<&'static str>,
}

impl ExprVisitor for Checker {
    type Error = anyhow::Error;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool> {
        match expression {
            Expr::VectorSelector(selector) => {
                self.found.insert(select(selector)?.name);
            }
            Expr::MatrixSelector(range) => {
                self.found.insert(select(&range.vs)?.name);
            }
            Expr::Call(call) if ["rate", "increase", "irate"].contains(&call.func.name) => {
                for argument in &call.args.args {
                    if let Expr::MatrixSelector(range) = argument.as_ref() {
                        let metric = select(&range.vs)?;
                        ensure!(
                            metric.kind != metrics::Kind::Gauge,
                            "{} of {}, which is no counter",
                            call.func.name,
                            metric.name
                        );
                    }
                }
            }
            Expr::Aggregate(aggregate) => {
                if let Some(LabelModifier::Include(labels)) = &aggregate.modifier {
                    let mut inner = Self::default();
                    walk_expr(&mut inner, &aggregate.expr)?;
                    for label in &labels.labels {
                        for name in &inner.found {
                            let metric = metrics::ALL.iter().find(|metric| metric.name == *name);
                            has(metric.context("a metric just found")?, label)?;
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

/// The metric of a selector, whose matchers must make sense for it.
fn select(selector: &VectorSelector) -> Result<&'static Metric> {
    let name = selector.name.as_deref().context("a selector of no name")?;
    let metric = metrics::find(name).with_context(|| format!("{name}: no such metric"))?;
    for matcher in &selector.matchers.matchers {
        has(metric, &matcher.name)?;
        let values = metric.label(&matcher.name).map_or(&[][..], |l| l.values);
        if values.is_empty() || matcher.value == ".*" {
            continue;
        }
        for value in matcher.value.split('|') {
            ensure!(
                values.contains(&value),
                "{name}: {} never has {value:?}, only {values:?}",
                matcher.name
            );
        }
    }
    Ok(metric)
}

fn has(metric: &Metric, label: &str) -> Result<()> {
    let bucket = label == "le" && metric.kind == metrics::Kind::Histogram;
    if bucket || ADDED.contains(&label) || metric.label(label).is_some() {
        return Ok(());
    }
    bail!("{} has no label {label}", metric.name)
}

#[test]
fn reasons_that_alerts_name_are_reasons() -> Result<()> {
    let page = podmotion_model::docs::why_awake();
    for (name, query) in alerts()? {
        for rest in query.split("reason=\"").skip(1) {
            let reason = rest.split('"').next().context("a quote")?;
            ensure!(
                page.contains(&format!("| `{reason}` |")),
                "{name}: {reason}"
            );
        }
    }
    Ok(())
}
