//! Migrations, as the API server takes and shows them.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::Cluster;
use serde_json::{Value, json};

use super::{Installed, MIGRATIONS, NAMESPACE, is_there};

pub(super) fn migrations_are_checked(cluster: &Cluster) -> Result<()> {
    let installed = Installed::new(cluster)?;
    let kubectl = cluster.kubectl();
    kubectl.wait(MIGRATIONS, "condition=Established")?;
    let migration = |spec: Value| {
        json!({
            "apiVersion": "runtime.podmotion.komodorio.dev/v1",
            "kind": "Migration",
            "metadata": {"name": "example-migration", "namespace": "default"},
            "spec": spec,
        })
    };
    let spec = json!({
        "sourceNode": "node-1",
        "targetNode": "node-2",
        "sourcePod": "my-pod",
        "podTemplateHash": "abc123",
        "liveMigration": true,
        "containers": [{"name": "my-container", "id": "container-id-123", "ports": [8080]}],
    });
    for (field, value, said) in [
        ("containers", json!([]), "at least 1 items"),
        (
            "containers",
            json!([{"name": "a"}, {"name": "a"}]),
            "Duplicate",
        ),
        (
            "containers",
            json!([{"name": "a", "ports": [70_000]}]),
            "65535",
        ),
        ("containers", json!([{"id": "a"}]), "name"),
        ("liveMigration", json!("yes"), "boolean"),
        ("sourceNode", json!(""), "sourceNode"),
        ("sourcePodd", json!("x"), "unknown field"),
    ] {
        let mut wrong = spec.clone();
        wrong[field] = value;
        match kubectl.apply(&migration(wrong)) {
            Ok(()) => anyhow::bail!("{field} is accepted"),
            Err(error) => ensure!(format!("{error:#}").contains(said), "{field}: {error:#}"),
        }
    }
    kubectl.apply(&migration(spec))?;
    let status = json!({"status": {"containers": [{
        "name": "my-container",
        "condition": {"phase": "Completed", "reason": "Restored", "message": "It runs"},
        "pausedAt": "2026-01-01T00:00:00Z",
        "migrationDuration": "1.5s",
        "bytes": 1_048_576,
    }]}});
    let patch = |status: &Value| {
        kubectl.run(&[
            "patch",
            "migration/example-migration",
            "--subresource=status",
            "--type=merge",
            "--patch",
            &status.to_string(),
        ])
    };
    patch(&status)?;
    let listed = kubectl.run(&["get", "migrations", "--all-namespaces"])?;
    let mut lines = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let head = lines.next().context("nothing is listed")?;
    ensure!(
        head == [
            "NAMESPACE",
            "NAME",
            "PHASE",
            "WORKLOAD",
            "SOURCE",
            "TARGET",
            "LIVE",
            "TOOK",
            "AGE",
            "REASON"
        ],
        "{head:?}"
    );
    let line = lines.next().context("no Migration is listed")?.join(" ");
    for part in ["Completed", "node-1 node-2 true 1.5s", "Restored"] {
        ensure!(line.contains(part), "{line}");
    }
    kubectl.run(&["describe", "migration", "example-migration"])?;
    let mut wrong = status;
    wrong["status"]["containers"][0]["condition"]["phase"] = json!("Done");
    let refused = patch(&wrong);
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains("Unsupported value")));
    installed.uninstall()?;
    ensure!(
        is_there(cluster, MIGRATIONS, NAMESPACE)?,
        "the record went with the release"
    );
    Ok(())
}
