//! What the chart renders, as files that a reviewer can read.

use anyhow::{Result, ensure};

use crate::helm::{cases, chart, helm, is_current, template, template_case};

#[test]
fn every_case_renders_as_its_golden_file() -> Result<()> {
    for case in cases()? {
        let path = chart().join(format!("tests/golden/{case}.yaml"));
        is_current(&path, &template_case(&case)?)?;
    }
    Ok(())
}

#[test]
fn lint_has_nothing_to_say() -> Result<()> {
    for case in cases()? {
        let values = format!("chart/tests/values/{case}.yaml");
        let output = helm(&["lint", "--strict", "--quiet", "--values", &values, "chart"])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{case}: {said}");
        ensure!(!said.contains("WARNING"), "{case}: {said}");
    }
    Ok(())
}

#[test]
fn the_oldest_supported_kubernetes_is_the_oldest_that_is_accepted() -> Result<()> {
    for minor in 23..=34 {
        template("default", &["--kube-version", &format!("1.{minor}.0")])?;
    }
    // What cloud providers call their builds.
    template("default", &["--kube-version", "v1.23.17-gke.100"])?;
    let refused = template("default", &["--kube-version", "1.22.17"]);
    ensure!(refused.is_err_and(|error| error.to_string().contains(">=1.23.0")));
    Ok(())
}

#[test]
fn the_dashboard_is_in_its_config_map_as_it_is() -> Result<()> {
    let text = template(
        "default",
        &[
            "--set",
            "grafanaDashboard.enabled=true",
            "--show-only",
            "templates/dashboard.yaml",
        ],
    )?;
    let object: serde_json::Value = serde_saphyr::from_str(&text)?;
    let file = crate::helm::read(&chart().join("dashboards/podmotion.json"))?;
    ensure!(object["data"]["podmotion.json"] == file.as_str());
    ensure!(object["metadata"]["labels"]["grafana_dashboard"] == "1");
    Ok(())
}

#[test]
fn a_pod_monitor_without_metrics_is_refused() -> Result<()> {
    let refused = template(
        "default",
        &[
            "--set",
            "podMonitor.enabled=true",
            "--set",
            "manager.metrics.enabled=false",
        ],
    );
    ensure!(refused.is_err_and(|error| error.to_string().contains("nothing to collect")));
    Ok(())
}
