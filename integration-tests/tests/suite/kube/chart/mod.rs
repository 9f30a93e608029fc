//! The Helm chart in a real API server: installed, used, switched to taking itself off the nodes, uninstalled.
//!
//! But for `whole` no node carries its label, so that no pod of it is made: their images are in no registry here.

mod migrations;
mod release;
mod rights;
mod whole;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, PATIENCE};
use serde_json::Value;

use super::Body;

const NAMESPACE: &str = "komodor-podmotion-system";
const RELEASE: &str = "komodor-podmotion";
const DAEMONSET: &str = "daemonset/komodor-podmotion-node";
const MIGRATIONS: &str = "customresourcedefinition/migrations.runtime.podmotion.komodorio.dev";
/// The managers' and installers' account.
const ACCOUNT: &str = "system:serviceaccount:komodor-podmotion-system:komodor-podmotion-node";

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "kube::chart::comes_and_goes_as_its_readme_says",
        release::comes_and_goes_as_its_readme_says,
    ),
    (
        "kube::chart::plain_manifests_come_and_go",
        release::plain_manifests_come_and_go,
    ),
    (
        "kube::chart::an_api_server_knows_every_field",
        release::an_api_server_knows_every_field,
    ),
    (
        "kube::chart::accounts_may_do_what_they_need_and_no_more",
        rights::accounts_may_do_what_they_need_and_no_more,
    ),
    (
        "kube::chart::migrations_are_checked",
        migrations::migrations_are_checked,
    ),
    (
        "kube::chart::a_node_gets_it_and_is_given_back",
        whole::a_node_gets_it_and_is_given_back,
    ),
];

fn runtimeclass() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtimeclass")
}

/// Helm, on the cluster.
fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let program = cluster.node().tools().cached("tools/helm/bin/helm")?;
    let mut command = Command::new(program);
    command
        .arg("--kubeconfig")
        .arg(cluster.kubectl().config())
        .args(arguments)
        .current_dir(runtimeclass());
    finished(&mut command)
}

/// The chart as it is now, with these arguments of helm beside its place.
fn upgrade(cluster: &Cluster, more: &[&str]) -> Result<String> {
    let upgrade = ["upgrade", RELEASE, "chart", "--namespace", NAMESPACE];
    helm(cluster, &[&upgrade, more].concat())
}

/// Runs it to its end; its output. What it says when it fails is the error.
fn finished(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).with_context(|| format!("read what {command:?} says"))
}

fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("run {command:?}"))
}

/// The chart, installed. What it leaves on purpose goes with this.
struct Installed<'a>(&'a Cluster);

impl<'a> Installed<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        Self::with(cluster, &[])
    }

    /// With these arguments of helm, its values.
    fn with(cluster: &'a Cluster, values: &[&str]) -> Result<Self> {
        let guard = Self(cluster);
        let install = ["--install", "--create-namespace", "--wait"];
        let said = upgrade(cluster, &[&install, values].concat())?;
        ensure!(
            said.contains("kubectl label nodes NODE komodor.com/podmotion-node=true"),
            "the next command is missing: {said}"
        );
        Ok(guard)
    }

    fn uninstall(&self) -> Result<()> {
        helm(
            self.0,
            &["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"],
        )
        .map(drop)
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        // After a test that failed; others find what is left and say so.
        let _ = helm(
            self.0,
            &[
                "uninstall",
                RELEASE,
                "--namespace",
                NAMESPACE,
                "--ignore-not-found",
                "--wait",
            ],
        );
        let _ = gone(self.0, MIGRATIONS);
        let _ = gone(self.0, &format!("namespace/{NAMESPACE}"));
    }
}

/// Deletes an object, if it is there, and waits until it is gone.
fn gone(cluster: &Cluster, what: &str) -> Result<()> {
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    cluster
        .kubectl()
        .run(&["delete", "--ignore-not-found", &timeout, what])
        .map(drop)
}

fn is_there(cluster: &Cluster, what: &str, namespace: &str) -> Result<bool> {
    let found = cluster.kubectl().run(&[
        "get",
        "--ignore-not-found",
        "--output=name",
        "--namespace",
        namespace,
        what,
    ])?;
    Ok(!found.trim().is_empty())
}

fn daemonset(cluster: &Cluster) -> Result<Value> {
    cluster
        .kubectl()
        .get(&["--namespace", NAMESPACE, DAEMONSET])
}

fn rolled_out(cluster: &Cluster) -> Result<()> {
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    cluster
        .kubectl()
        .run(&[
            "rollout",
            "status",
            DAEMONSET,
            "--namespace",
            NAMESPACE,
            &timeout,
        ])
        .map(drop)
}
