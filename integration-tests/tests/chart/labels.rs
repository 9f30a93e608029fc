//! What others rely on: names, labels, ports, privileges.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::helm::{objects, template, template_case};

fn daemonset(case: &str) -> Result<Value> {
    objects(&template_case(case)?)?
        .into_iter()
        .find(|object| object["kind"] == "DaemonSet")
        .context("no DaemonSet")
}

#[test]
fn pods_have_the_labels_that_documented_commands_ask_for() -> Result<()> {
    let set = daemonset("default")?;
    let pod = &set["spec"]["template"];
    ensure!(pod["metadata"]["labels"]["app.kubernetes.io/name"] == "komodor-podmotion-node");
    ensure!(
        pod["spec"]["nodeSelector"]
            == json!({"komodor.com/podmotion-node": "true", "kubernetes.io/os": "linux"})
    );
    ensure!(pod["spec"]["tolerations"] == json!([{"operator": "Exists"}]));
    ensure!(pod["spec"]["hostNetwork"] == true);
    ensure!(pod["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet");
    Ok(())
}

#[test]
fn only_the_installer_is_privileged() -> Result<()> {
    let set = daemonset("all")?;
    let spec = &set["spec"]["template"]["spec"];
    ensure!(spec["initContainers"][0]["securityContext"] == json!({"privileged": true}));
    let manager = &spec["containers"][0];
    ensure!(manager["name"] == "manager");
    ensure!(
        manager["securityContext"]
            == json!({
                "runAsUser": 0,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            })
    );
    let mounts: Vec<_> = manager["volumeMounts"]
        .as_array()
        .context("no mounts")?
        .iter()
        .filter_map(|mount| mount["mountPath"].as_str())
        .collect();
    ensure!(
        mounts
            == [
                "/run/podmotion",
                "/run/containerd",
                "/run/podmotion-shims",
                "/tls"
            ]
    );
    Ok(())
}

#[test]
fn what_gives_back_in_uninstall_mode_reaches_nothing_of_the_node() -> Result<()> {
    let set = daemonset("uninstall")?;
    let spec = &set["spec"]["template"]["spec"];
    ensure!(spec["initContainers"][0]["args"][0] == "uninstall");
    let waits = &spec["containers"][0];
    ensure!(waits["securityContext"]["capabilities"] == json!({"drop": ["ALL"]}));
    ensure!(waits["securityContext"]["runAsNonRoot"] == true);
    ensure!(waits["args"][0] == "--give-back");
    ensure!(waits["volumeMounts"].is_null());
    // The same DaemonSet: its pods are replaced one for one.
    ensure!(daemonset("default")?["spec"]["selector"] == set["spec"]["selector"]);
    Ok(())
}

#[test]
fn the_namespace_is_made_only_where_it_is_not_the_releases_own() -> Result<()> {
    for (release, arguments, wanted) in [
        ("default", vec![], false),
        (
            "default",
            vec!["--set", "namespace.name=komodor-podmotion-system"],
            true,
        ),
        (
            "komodor-podmotion-system",
            vec!["--set", "namespace.name=komodor-podmotion-system"],
            false,
        ),
        (
            "default",
            vec!["--set", "namespace.name=other,namespace.create=false"],
            false,
        ),
    ] {
        let made = objects(&template(release, &arguments)?)?
            .iter()
            .any(|object| object["kind"] == "Namespace");
        ensure!(made == wanted, "{release} {arguments:?}");
    }
    Ok(())
}

#[test]
fn everything_with_a_namespace_is_in_the_one_that_was_asked_for() -> Result<()> {
    for object in objects(&template_case("all")?)? {
        let kind = object["kind"].as_str().context("an object of no kind")?;
        if kind.starts_with("Cluster") || ["Namespace", "CustomResourceDefinition"].contains(&kind)
        {
            continue;
        }
        ensure!(object["metadata"]["namespace"] == "nodes", "{object:#}");
    }
    Ok(())
}
