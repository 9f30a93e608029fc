//! The Helm chart in a real API server: installed, used, switched to taking itself off the nodes, uninstalled.
//!
//! No node carries its label, so that no pod of it is made: their images are in no registry here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, PATIENCE};
use serde_json::{Value, json};

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
        comes_and_goes_as_its_readme_says,
    ),
    (
        "kube::chart::plain_manifests_come_and_go",
        plain_manifests_come_and_go,
    ),
    (
        "kube::chart::an_api_server_knows_every_field",
        an_api_server_knows_every_field,
    ),
    (
        "kube::chart::accounts_may_do_what_they_need_and_no_more",
        accounts_may_do_what_they_need_and_no_more,
    ),
    (
        "kube::chart::migrations_are_checked",
        migrations_are_checked,
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
        let guard = Self(cluster);
        let said = helm(
            cluster,
            &[
                "upgrade",
                "--install",
                RELEASE,
                "chart",
                "--namespace",
                NAMESPACE,
                "--create-namespace",
                "--wait",
            ],
        )?;
        ensure!(
            said.contains("kubectl label nodes NODE komodor.com/podmotion-node=true"),
            "the next command is missing: {said}"
        );
        Ok(guard)
    }

    fn uninstall(self) -> Result<()> {
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

fn comes_and_goes_as_its_readme_says(cluster: &Cluster) -> Result<()> {
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
    helm(
        cluster,
        &[
            "upgrade",
            "--install",
            RELEASE,
            "chart",
            "--namespace",
            NAMESPACE,
        ],
    )?;
    ensure!(daemonset(cluster)?["metadata"]["generation"] == before);

    let said = helm(
        cluster,
        &[
            "upgrade",
            RELEASE,
            "chart",
            "--namespace",
            NAMESPACE,
            "--set",
            "uninstall.enabled=true",
        ],
    )?;
    ensure!(
        said.contains("helm uninstall komodor-podmotion --namespace"),
        "{said}"
    );
    rolled_out(cluster)?;
    let pod = &daemonset(cluster)?["spec"]["template"]["spec"];
    ensure!(pod["initContainers"][0]["args"][0] == "uninstall");
    // The account may still do what the uninstallation needs.
    ensure!(may(cluster, ACCOUNT, &["patch", "nodes"])?);

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

fn plain_manifests_come_and_go(cluster: &Cluster) -> Result<()> {
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
        ensure!(may(
            cluster,
            ACCOUNT,
            &["patch", "pods", "--subresource=status"]
        )?);
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

fn an_api_server_knows_every_field(cluster: &Cluster) -> Result<()> {
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

/// Whether `who` may do that; the arguments are those of `kubectl auth can-i`.
fn may(cluster: &Cluster, who: &str, what: &[&str]) -> Result<bool> {
    let mut command = cluster.kubectl().command();
    command.args(["auth", "can-i", "--as", who]).args(what);
    let output = output(&mut command)?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => Ok(true),
        answer if answer.starts_with("no") => Ok(false),
        answer => anyhow::bail!(
            "{command:?}: {answer:?} {}",
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

fn accounts_may_do_what_they_need_and_no_more(cluster: &Cluster) -> Result<()> {
    let installed = Installed::new(cluster)?;
    let here = ["--namespace", NAMESPACE];
    let elsewhere = ["--namespace", "default"];
    for (wanted, what, place) in [
        (true, &["watch", "pods", "--all-namespaces"][..], &[][..]),
        (true, &["patch", "pods"], &elsewhere),
        (true, &["patch", "pods", "--subresource=status"], &elsewhere),
        (true, &["patch", "pods", "--subresource=resize"], &elsewhere),
        (true, &["create", "events"], &elsewhere),
        (true, &["create", "events.events.k8s.io"], &elsewhere),
        (true, &["patch", "nodes"], &[]),
        (true, &["create", "tokenreviews.authentication.k8s.io"], &[]),
        (
            true,
            &["create", "subjectaccessreviews.authorization.k8s.io"],
            &[],
        ),
        (true, &["patch", "runtimeclasses/podmotion"], &[]),
        (true, &["create", "secrets"], &here),
        (true, &["get", "secrets/podmotion-ca"], &here),
        (
            true,
            &["patch", "migrations", "--subresource=status"],
            &elsewhere,
        ),
        (false, &["get", "secrets/other"], &here),
        (false, &["list", "secrets"], &here),
        (false, &["get", "secrets/podmotion-ca"], &elsewhere),
        (false, &["create", "secrets"], &elsewhere),
        (false, &["create", "pods"], &elsewhere),
        (false, &["delete", "pods"], &elsewhere),
        (false, &["create", "pods", "--subresource=exec"], &elsewhere),
        (false, &["delete", "nodes"], &[]),
        (false, &["patch", "runtimeclasses/other"], &[]),
        (false, &["get", "configmaps"], &elsewhere),
        (false, &["create", "clusterrolebindings"], &[]),
        (false, &["impersonate", "users"], &[]),
        (
            false,
            &["create", "serviceaccounts", "--subresource=token"],
            &here,
        ),
    ] {
        let found = may(cluster, ACCOUNT, &[what, place].concat())?;
        ensure!(found == wanted, "{what:?} {place:?}: {found}");
    }
    runtime_class_by_the_account(cluster)?;
    people(cluster)?;
    installed.uninstall()
}

/// The installer makes the RuntimeClass by server-side apply, which may be bound to its name.
fn runtime_class_by_the_account(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    let class = kubectl.get(&["runtimeclass/podmotion"])?;
    let class = json!({
        "apiVersion": class["apiVersion"],
        "kind": class["kind"],
        "metadata": {"name": "podmotion"},
        "handler": class["handler"],
    });
    kubectl.run(&["delete", "runtimeclass/podmotion"])?;
    let path = cluster.node().folder().join("runtimeclass.json");
    std::fs::write(&path, class.to_string()).context("write the RuntimeClass")?;
    let path = path.display().to_string();
    let made = kubectl.run(&[
        "apply",
        "--server-side",
        "--field-manager=podmotion-installer",
        "--as",
        ACCOUNT,
        "--filename",
        &path,
    ]);
    // Other tests need it.
    kubectl.run(&[
        "apply",
        "--server-side",
        "--field-manager=podmotion-installer",
        "--filename",
        &path,
    ])?;
    made.map(drop)
}

/// Who may view a namespace sees what sleeps in it, who may edit it puts to sleep and wakes.
fn people(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    let containers = "containers.podmotion.komodor.com";
    for (role, verb) in [("view", "get"), ("edit", "get")] {
        let rule = r#"{.rules[?(@.apiGroups[0]=="podmotion.komodor.com")].verbs[0]}"#;
        kubectl.wait(
            &format!("clusterrole/{role}"),
            &format!("jsonpath={rule}={verb}"),
        )?;
        kubectl.run(&[
            "create",
            "rolebinding",
            role,
            &format!("--clusterrole={role}"),
            &format!("--user={role}er"),
        ])?;
    }
    let result = (|| {
        for (who, verb, wanted) in [
            ("viewer", "list", true),
            ("viewer", "sleep", false),
            ("viewer", "wake", false),
            ("editer", "list", true),
            ("editer", "sleep", true),
            ("editer", "wake", true),
            ("stranger", "list", false),
        ] {
            let found = may(cluster, who, &[verb, containers, "--namespace", "default"])?;
            ensure!(found == wanted, "{who} may {verb}: {found}");
        }
        ensure!(may(
            cluster,
            "viewer",
            &["list", "migrations", "--namespace", "default"]
        )?);
        ensure!(!may(
            cluster,
            "viewer",
            &["create", "migrations", "--namespace", "default"]
        )?);
        ensure!(may(
            cluster,
            "editer",
            &["create", "migrations", "--namespace", "default"]
        )?);
        Ok(())
    })();
    kubectl.run(&["delete", "rolebinding", "view", "edit"])?;
    result
}

fn migrations_are_checked(cluster: &Cluster) -> Result<()> {
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
