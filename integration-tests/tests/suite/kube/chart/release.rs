//! The chart and its plain manifests come, change and go.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::Cluster;
use serde_json::json;

use super::rights::{deed, ensure_may};
use super::{
    ACCOUNT, DAEMONSET, Installed, MIGRATIONS, NAMESPACE, RELEASE, daemonset, gone, helm, is_there,
    rolled_out, runtimeclass, upgrade,
};

pub(super) fn comes_and_goes_as_its_readme_says(cluster: &Cluster) -> Result<()> {
    let installed = Installed::new(cluster)?;
    rolled_out(cluster)?;
    let set = daemonset(cluster)?;
    ensure!(set["spec"]["template"]["spec"]["containers"][0]["name"] == "manager");
    // The commands of its README.
    cluster
        .kubectl()
        .run(&["get", "daemonset", "--namespace", NAMESPACE])?;
    cluster
        .kubectl()
        .run(&["get", "migrations", "--all-namespaces"])?;
    // Once more is no change.
    let before = set["metadata"]["generation"].clone();
    upgrade(cluster, &["--install"])?;
    ensure!(daemonset(cluster)?["metadata"]["generation"] == before);

    let said = upgrade(cluster, &["--set", "uninstall.enabled=true"])?;
    ensure!(
        said.contains("helm uninstall komodor-podmotion --namespace"),
        "{said}"
    );
    rolled_out(cluster)?;
    let pod = &daemonset(cluster)?["spec"]["template"]["spec"];
    ensure!(pod["initContainers"][0]["args"][0] == "uninstall");
    // The account may still do what the uninstallation needs.
    ensure_may(cluster, &[(ACCOUNT, deed("patch nodes", ""), true)])?;

    installed.uninstall()?;
    ensure!(!is_there(cluster, DAEMONSET, NAMESPACE)?);
    for role in [
        "komodor-podmotion-node",
        "komodor-podmotion-migration",
        "podmotion-viewer",
        "podmotion-operator",
    ] {
        ensure!(
            !is_there(cluster, &format!("clusterrole/{role}"), NAMESPACE)?,
            "{role}"
        );
        ensure!(
            !is_there(cluster, &format!("clusterrolebinding/{role}"), NAMESPACE)?,
            "{role}"
        );
    }
    Ok(())
}

pub(super) fn plain_manifests_come_and_go(cluster: &Cluster) -> Result<()> {
    let folder = runtimeclass().join("manifests");
    let (install, uninstall) = (
        folder.display().to_string(),
        folder.join("uninstall").display().to_string(),
    );
    let result = (|| {
        cluster.kubectl().run(&["apply", "--kustomize", &install])?;
        cluster
            .kubectl()
            .wait(MIGRATIONS, "condition=Established")?;
        rolled_out(cluster)?;
        let status = deed("patch pods/status", "default");
        ensure_may(cluster, &[(ACCOUNT, status, true)])?;
        cluster
            .kubectl()
            .run(&["apply", "--kustomize", &uninstall])?;
        rolled_out(cluster)?;
        let pod = &daemonset(cluster)?["spec"]["template"]["spec"];
        ensure!(pod["initContainers"][0]["args"][0] == "uninstall");
        Ok(())
    })();
    cluster
        .kubectl()
        .run(&["delete", "--kustomize", &uninstall])?;
    result
}

pub(super) fn an_api_server_knows_every_field(cluster: &Cluster) -> Result<()> {
    let tools = cluster.node().tools();
    let kubectl = cluster.kubectl();
    let definitions = ["podmonitors", "prometheusrules"];
    let everything =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nodes"}});
    kubectl.apply(&everything)?;
    let result = (|| {
        for name in definitions {
            let file = tools.cached(format!(
                "tools/monitoring/monitoring.coreos.com_{name}.yaml"
            ))?;
            // Too large for the annotation of a plain apply.
            kubectl.run(&[
                "apply",
                "--server-side",
                "--filename",
                &file.display().to_string(),
            ])?;
            let definition = format!("customresourcedefinition/{name}.monitoring.coreos.com");
            kubectl.wait(&definition, "condition=Established")?;
        }
        let rendered = cluster.node().folder().join("chart.yaml");
        for case in [
            "default",
            "all",
            "little",
            "uninstall",
            "registry",
            "k3s",
            "podnetwork",
        ] {
            let values = format!("chart/tests/values/{case}.yaml");
            let text = helm(
                cluster,
                &[
                    "template",
                    RELEASE,
                    "chart",
                    "--values",
                    &values,
                    "--namespace",
                    "nodes",
                    "--set",
                    "grafanaDashboard.enabled=true,namespace.create=false",
                ],
            )?;
            std::fs::write(&rendered, text).context("write what helm has rendered")?;
            kubectl
                .run(&[
                    "create",
                    "--dry-run=server",
                    "--validate=strict",
                    "--filename",
                    &rendered.display().to_string(),
                ])
                .with_context(|| format!("case {case}"))?;
        }
        Ok(())
    })();
    for name in definitions {
        gone(
            cluster,
            &format!("customresourcedefinition/{name}.monitoring.coreos.com"),
        )?;
    }
    gone(cluster, "namespace/nodes")?;
    result
}
