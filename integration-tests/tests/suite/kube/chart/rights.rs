//! Who may do what, as the API server sees it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, PATIENCE};
use serde_json::json;

use super::{ACCOUNT, Installed, NAMESPACE};

/// Something that may be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deed<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    subresource: &'a str,
    name: &'a str,
    namespace: &'a str,
}

/// `verb group resource/subresource:name`, of which only verb and resource must be there, in a namespace.
pub(super) fn deed<'a>(text: &'a str, namespace: &'a str) -> Deed<'a> {
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (rest, name) = rest.split_once(':').unwrap_or((rest, ""));
    let (group, rest) = rest.split_once(' ').unwrap_or(("", rest));
    let (resource, subresource) = rest.split_once('/').unwrap_or((rest, ""));
    Deed {
        verb,
        group,
        resource,
        subresource,
        name,
        namespace,
    }
}

/// Whether each of them may do each of that, as the API server says.
fn may(cluster: &Cluster, deeds: &[(&str, Deed<'_>)]) -> Result<Vec<bool>> {
    let reviews: Vec<_> = deeds
        .iter()
        .map(|(who, deed)| {
            json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {"user": who, "resourceAttributes": {
                    "verb": deed.verb,
                    "group": deed.group,
                    "resource": deed.resource,
                    "subresource": deed.subresource,
                    "name": deed.name,
                    "namespace": deed.namespace,
                }},
            })
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": reviews});
    let path = cluster.node().folder().join("reviews.json");
    std::fs::write(&path, list.to_string()).context("write the reviews")?;
    let path = path.display().to_string();
    let answers = cluster.kubectl().run(&[
        "create",
        "--output=jsonpath={.status.allowed} ",
        "--filename",
        &path,
    ])?;
    let answers: Vec<_> = answers
        .split_whitespace()
        .map(|answer| answer == "true")
        .collect();
    ensure!(
        answers.len() == deeds.len(),
        "{} reviews and {} answers",
        deeds.len(),
        answers.len()
    );
    Ok(answers)
}

/// Waits until the API server says so of each: it hears of rights that were given in its own time.
pub(super) fn ensure_may(cluster: &Cluster, table: &[(&str, Deed<'_>, bool)]) -> Result<()> {
    let deeds: Vec<_> = table.iter().map(|(who, deed, _)| (*who, *deed)).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = may(cluster, &deeds)?;
        let mut all = table.iter().zip(found);
        let Some(((who, deed, _), found)) = all.find(|((.., wanted), found)| wanted != found)
        else {
            return Ok(());
        };
        // One that is there and should not be does not go by itself.
        ensure!(
            !found && Instant::now() < deadline,
            "{who}: {deed:?}: {found}"
        );
        thread::sleep(Duration::from_millis(100));
    }
}

pub(super) fn accounts_may_do_what_they_need_and_no_more(cluster: &Cluster) -> Result<()> {
    const HERE: &str = NAMESPACE;
    const ELSEWHERE: &str = "default";
    let installed = Installed::new(cluster)?;
    let table = [
        (true, deed("watch pods", "")),
        (true, deed("patch pods", ELSEWHERE)),
        (true, deed("patch pods/status", ELSEWHERE)),
        (true, deed("patch pods/resize", ELSEWHERE)),
        (true, deed("create events", ELSEWHERE)),
        (true, deed("create events.k8s.io events", ELSEWHERE)),
        (true, deed("patch nodes", "")),
        (true, deed("create authentication.k8s.io tokenreviews", "")),
        (
            true,
            deed("create authorization.k8s.io subjectaccessreviews", ""),
        ),
        (
            true,
            deed("delete node.k8s.io runtimeclasses:podmotion", ""),
        ),
        (true, deed("create secrets", HERE)),
        (true, deed("watch secrets:podmotion-ca", HERE)),
        (
            true,
            deed(
                "patch runtime.podmotion.komodorio.dev migrations/status",
                ELSEWHERE,
            ),
        ),
        (false, deed("get secrets:other", HERE)),
        (false, deed("list secrets", HERE)),
        (false, deed("get secrets:podmotion-ca", ELSEWHERE)),
        (false, deed("create secrets", ELSEWHERE)),
        (false, deed("create pods", ELSEWHERE)),
        (false, deed("delete pods", ELSEWHERE)),
        (false, deed("create pods/exec", ELSEWHERE)),
        (false, deed("get pods/proxy", HERE)),
        (false, deed("delete nodes", "")),
        (false, deed("patch node.k8s.io runtimeclasses:other", "")),
        (false, deed("get configmaps", ELSEWHERE)),
        (
            false,
            deed("create rbac.authorization.k8s.io clusterrolebindings", ""),
        ),
        (false, deed("impersonate users", "")),
        (false, deed("create serviceaccounts/token", HERE)),
    ];
    ensure_may(
        cluster,
        &table.map(|(wanted, deed)| (ACCOUNT, deed, wanted)),
    )?;
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
    // Added by a controller, in its own time.
    for (role, rule) in [
        ("view", r#"@.apiGroups[0]=="podmotion.komodor.com""#),
        ("edit", r#"@.verbs[0]=="sleep""#),
    ] {
        let group = format!("jsonpath={{.rules[?({rule})].apiGroups[0]}}=podmotion.komodor.com");
        kubectl.wait(&format!("clusterrole/{role}"), &group)?;
        kubectl.run(&[
            "create",
            "rolebinding",
            role,
            &format!("--clusterrole={role}"),
            &format!("--user={role}er"),
        ])?;
    }
    let containers = |verb| Deed {
        verb,
        group: "podmotion.komodor.com",
        resource: "containers",
        subresource: "",
        name: "my-pod",
        namespace: "default",
    };
    let migrations = |verb| Deed {
        group: "runtime.podmotion.komodorio.dev",
        resource: "migrations",
        ..containers(verb)
    };
    let account = |name| format!("system:serviceaccount:{NAMESPACE}:{name}");
    let (views, operates) = (account("podmotion-viewer"), account("podmotion-operator"));
    let table = [
        ("viewer", containers("list"), true),
        ("viewer", containers("sleep"), false),
        ("viewer", containers("wake"), false),
        ("viewer", migrations("list"), true),
        ("viewer", migrations("create"), false),
        ("editer", containers("list"), true),
        ("editer", containers("sleep"), true),
        ("editer", containers("wake"), true),
        ("editer", migrations("create"), true),
        ("stranger", containers("list"), false),
        (&views, containers("get"), true),
        (&views, containers("wake"), false),
        (&views, deed("get nodes/podmotion:node-1", ""), true),
        (&operates, containers("wake"), true),
        (&operates, deed("get nodes/podmotion:node-1", ""), true),
        // They are shown to managers and have no way to them of their own.
        (&views, deed("get pods/proxy", NAMESPACE), false),
        (&operates, deed("create pods/proxy", NAMESPACE), false),
    ];
    let all = ensure_may(cluster, &table);
    kubectl.run(&["delete", "rolebinding", "view", "edit"])?;
    all
}
