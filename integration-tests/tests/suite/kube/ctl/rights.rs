//! Rights: those that the chart gives, and those of who uses the plugin.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, PATIENCE};
use serde_json::{Value, json};

use super::stage::NAMESPACE;
use crate::kube::manifest::With;

/// The group of what rules are about.
const GROUP: &str = "podmotion.komodor.com";

pub(super) fn account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    })
}

pub(super) fn binding(
    name: &str,
    namespace: &str,
    (kind, role): (&str, &str),
    (of, account): (&str, &str),
) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "ServiceAccount", "namespace": of, "name": account}],
    })
}

fn role(namespace: Option<&str>, name: &str, rules: Value) -> Value {
    let kind = if namespace.is_some() {
        "Role"
    } else {
        "ClusterRole"
    };
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "rules": rules,
    })
}

fn cluster_binding(name: &str) -> Value {
    let mut binding = binding(name, "", ("ClusterRole", name), (NAMESPACE, name));
    binding["kind"] = json!("ClusterRoleBinding");
    let metadata = json!({"name": name});
    binding.with("metadata", metadata)
}

pub(super) fn token_rule(account: &str) -> Value {
    json!({
        "apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"],
        "resourceNames": [account],
    })
}

/// The accounts of the chart with their rights, and the two roles for who uses the plugin.
pub(super) fn give(cluster: &Cluster) -> Result<()> {
    let see = json!({"apiGroups": [GROUP], "resources": ["containers"], "verbs": ["get", "list"]});
    let check = json!({"apiGroups": [""], "resources": ["nodes/podmotion"], "verbs": ["get"]});
    let ask =
        json!({"apiGroups": [GROUP], "resources": ["containers"], "verbs": ["sleep", "wake"]});
    let review = json!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]);
    let authority = json!([
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["podmotion-ca"],
         "verbs": ["get", "list", "watch", "update"]},
    ]);
    let reach = |verbs: Value, account: &str| {
        json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": verbs},
            token_rule(account),
        ])
    };
    let own = Some(NAMESPACE);
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        account(NAMESPACE, "podmotion-manager"),
        account(NAMESPACE, "podmotion-viewer"),
        account(NAMESPACE, "podmotion-operator"),
        role(None, "podmotion-manager", review),
        role(None, "podmotion-viewer", json!([see, check])),
        role(None, "podmotion-operator", json!([see, check, ask])),
        cluster_binding("podmotion-manager"),
        cluster_binding("podmotion-viewer"),
        cluster_binding("podmotion-operator"),
        role(own, "podmotion-manager", authority),
        binding(
            "podmotion-manager",
            NAMESPACE,
            ("Role", "podmotion-manager"),
            (NAMESPACE, "podmotion-manager"),
        ),
        role(
            own,
            "plugin-view",
            reach(json!(["get"]), "podmotion-viewer"),
        ),
        role(
            own,
            "plugin-operate",
            reach(json!(["get", "create"]), "podmotion-operator"),
        ),
    ];
    let all = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    cluster.kubectl().apply(&all)?;
    for (name, verb) in [("podmotion-viewer", "list"), ("podmotion-operator", "wake")] {
        wait_allowed(
            cluster,
            &account_name(NAMESPACE, name),
            &containers("default", verb),
        )?;
    }
    let manager = account_name(NAMESPACE, "podmotion-manager");
    let review = json!({
        "verb": "create", "group": "authentication.k8s.io", "resource": "tokenreviews",
    });
    wait_allowed(cluster, &manager, &review)?;
    let secret = json!({"namespace": NAMESPACE, "verb": "create", "resource": "secrets"});
    wait_allowed(cluster, &manager, &secret)
}

pub(super) fn account_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Waits until the API server has heard of a right that was given: it has no other way of saying so.
pub(super) fn wait_allowed(cluster: &Cluster, user: &str, what: &Value) -> Result<()> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": what},
    });
    let file = cluster.node().folder().join("review.json");
    fs::write(&file, review.to_string()).context("write a review")?;
    let file = format!("--filename={}", file.display());
    let allowed = ["create", &file, "--output=jsonpath={.status.allowed}"];
    let deadline = Instant::now() + PATIENCE;
    while cluster.kubectl().run(&allowed)? != "true" {
        ensure!(Instant::now() < deadline, "{user} may not: {what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// To make a token of an account.
pub(super) fn token_of(namespace: &str, account: &str) -> Value {
    json!({
        "namespace": namespace, "verb": "create", "name": account,
        "resource": "serviceaccounts", "subresource": "token",
    })
}

/// To do something to containers of a namespace.
pub(super) fn containers(namespace: &str, verb: &str) -> Value {
    json!({"namespace": namespace, "verb": verb, "group": GROUP, "resource": "containers"})
}
