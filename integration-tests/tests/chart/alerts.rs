//! The alerts, in Prometheus' own hands: whether they are well formed, and when they fire.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::helm::{cached, chart, read};

fn promtool(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(cached("tools/promtool/bin/promtool")?);
    let output = command
        .args(arguments)
        .current_dir(chart())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(said)
}

#[test]
fn rules_are_well_formed() -> Result<()> {
    promtool(&[
        "check",
        "rules",
        "--lint=all",
        "--lint-fatal",
        "rules/alerts.yaml",
    ])
    .map(drop)
}

#[test]
fn alerts_fire_when_they_should_and_not_before() -> Result<()> {
    promtool(&["test", "rules", "tests/alerts.yaml"]).map(drop)
}

#[test]
fn each_alert_is_tried_firing_and_quiet() -> Result<()> {
    let rules: Value = serde_saphyr::from_str(&read(&chart().join("rules/alerts.yaml"))?)?;
    let tests: Value = serde_saphyr::from_str(&read(&chart().join("tests/alerts.yaml"))?)?;
    let trials: Vec<&Value> = tests["tests"]
        .as_array()
        .context("no tests")?
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().into_iter().flatten())
        .collect();
    for rule in rules["groups"][0]["rules"].as_array().context("no rules")? {
        let of_rule = || {
            trials
                .iter()
                .filter(|trial| trial["alertname"] == rule["alert"])
        };
        let fires = |trial: &Value| {
            trial["exp_alerts"]
                .as_array()
                .is_some_and(|alerts| !alerts.is_empty())
        };
        ensure!(
            of_rule().any(|trial| fires(trial)),
            "{}: never fires",
            rule["alert"]
        );
        ensure!(
            of_rule().any(|trial| !fires(trial)),
            "{}: never quiet",
            rule["alert"]
        );
        ensure!(rule["labels"]["severity"].is_string());
        for text in ["summary", "description"] {
            ensure!(
                rule["annotations"][text].is_string(),
                "{}: {text}",
                rule["alert"]
            );
        }
    }
    Ok(())
}
