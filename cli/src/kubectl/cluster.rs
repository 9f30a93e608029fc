//! The cluster, as the user's kubeconfig has it, and the managers in it.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::args::Global;
use crate::token::{self, Account, Role, Token};

/// What the pods of the managers are labelled with.
const LABEL: &str = "app.kubernetes.io/name=komodor-podmotion-node";

/// What the port that managers listen on is called in their pods, and which it is where none is called so.
const PORT: (&str, u16) = ("node-server", 8090);

/// What the API server did not do.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Pods cannot be listed.
    #[error("list Podmotion's pods in namespace {namespace}: {cause}")]
    Managers {
        /// Podmotion's namespace.
        namespace: String,
        /// The API server's words.
        cause: String,
    },
    /// There are none.
    #[error(
        "no pods with label {LABEL} in namespace {namespace}: Podmotion is not installed, or elsewhere, \
         which --podmotion-namespace says"
    )]
    NoManagers {
        /// The namespace.
        namespace: String,
    },
    /// No token was made.
    #[error("make a token of service account {account}: {cause}")]
    Token {
        /// Whose.
        account: String,
        /// The API server's words.
        cause: String,
    },
}

/// The manager of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// Its node.
    pub node: String,
    /// Its pod.
    pub pod: String,
    /// Where it listens.
    pub port: u16,
}

/// The user's way to the API server.
#[derive(Clone)]
pub struct Cluster {
    /// Asks it, as the user.
    pub client: Client,
    /// The namespace of pods that are named without one.
    pub namespace: String,
    /// Podmotion's namespace.
    pub podmotion: String,
    /// How long a node has to answer.
    pub patience: Duration,
    account: Option<Account>,
}

impl Cluster {
    /// As kubectl would go there.
    ///
    /// # Errors
    /// When the kubeconfig does not say how.
    pub async fn connect(global: &Global) -> Result<Self> {
        let mut config = config(global).await?;
        if let Some(user) = &global.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = Some(global.as_group.clone());
        }
        let namespace = global
            .namespace
            .as_ref()
            .unwrap_or(&config.default_namespace);
        Ok(Self {
            namespace: namespace.clone(),
            podmotion: global.podmotion_namespace.clone(),
            patience: global.request_timeout,
            account: global.service_account.clone(),
            client: Client::try_from(config).context("how to reach the API server")?,
        })
    }

    /// The managers, one for each node that has one, by their nodes' names.
    ///
    /// # Errors
    /// When they cannot be listed, or there are none.
    pub async fn managers(&self) -> Result<Vec<Manager>, ClusterError> {
        let namespace = self.podmotion.clone();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let pods = match pods.list(&ListParams::default().labels(LABEL)).await {
            Ok(pods) => pods.items,
            Err(error) => {
                let cause = words(error);
                return Err(ClusterError::Managers { namespace, cause });
            }
        };
        let managers = one_each(&pods);
        if managers.is_empty() {
            return Err(ClusterError::NoManagers { namespace });
        }
        Ok(managers)
    }

    /// A token for the managers.
    ///
    /// # Errors
    /// When the user may not have one made.
    pub async fn token(&self, role: Role) -> Result<Token, ClusterError> {
        token::make(&self.client, &self.podmotion, self.account.as_ref(), role).await
    }
}

async fn config(global: &Global) -> Result<Config> {
    let options = KubeConfigOptions {
        context: global.context.clone(),
        cluster: global.cluster.clone(),
        user: global.user.clone(),
    };
    let kubeconfig = match &global.kubeconfig {
        Some(path) => {
            Kubeconfig::read_from(path).with_context(|| format!("kubeconfig {}", path.display()))?
        }
        None if global.context.is_some() || global.cluster.is_some() || global.user.is_some() => {
            Kubeconfig::read().context("kubeconfig")?
        }
        // In a pod there may be no such file, and a service account instead.
        None => return Config::infer().await.context("kubeconfig"),
    };
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .context("kubeconfig")
}

/// The API server's words where it has some.
pub fn words(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => {
            let error = anyhow::Error::from(other);
            format!("{error:#}")
        }
    }
}

/// Where an update is under way a node can have two: the one that stays.
fn one_each(pods: &[Pod]) -> Vec<Manager> {
    let mut all: Vec<(Manager, bool, bool)> = pods
        .iter()
        .filter_map(|pod| {
            let manager = Manager {
                node: pod.spec.as_ref()?.node_name.clone()?,
                pod: pod.metadata.name.clone()?,
                port: port(pod),
            };
            let conditions = pod
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref());
            let ready = conditions.is_some_and(|all| {
                let is = |type_: &str, status: &str| type_ == "Ready" && status == "True";
                all.iter().any(|one| is(&one.type_, &one.status))
            });
            Some((manager, pod.metadata.deletion_timestamp.is_some(), !ready))
        })
        .collect();
    // Those that stay before those that go, then those that are ready.
    all.sort_by(|(one, goes, idle), (other, other_goes, other_idle)| {
        (&one.node, goes, idle, &one.pod).cmp(&(&other.node, other_goes, other_idle, &other.pod))
    });
    all.dedup_by(|(later, ..), (earlier, ..)| later.node == earlier.node);
    all.into_iter().map(|(manager, ..)| manager).collect()
}

fn port(pod: &Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|one| one.ports.iter().flatten());
    let named = ports.find(|port| port.name.as_deref() == Some(PORT.0));
    let number = named.and_then(|port| u16::try_from(port.container_port).ok());
    number.unwrap_or(PORT.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: Option<&str>, goes: bool, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        let gone = goes.then_some("2026-01-02T03:04:05Z");
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "deletionTimestamp": gone},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_manager_is_asked_at_the_port_that_its_pod_names() {
        let mut pod = pod("a", Some("n1"), false, true);
        assert_eq!(one_each(std::slice::from_ref(&pod))[0].port, 8090);
        let containers = serde_json::json!([{"name": "manager", "ports": [
            {"name": "metrics", "containerPort": 8080},
            {"name": "node-server", "containerPort": 18090},
        ]}]);
        pod.spec.as_mut().unwrap().containers = serde_json::from_value(containers).unwrap();
        assert_eq!(one_each(&[pod])[0].port, 18090);
    }

    #[test]
    fn each_node_has_one_manager_that_stays_and_is_ready_if_there_is_one() {
        let pods = [
            pod("z", Some("n2"), false, true),
            pod("a", Some("n1"), true, true),
            pod("c", Some("n1"), false, false),
            pod("b", Some("n1"), false, true),
            pod("w", None, false, false),
        ];
        let managers: Vec<_> = one_each(&pods)
            .into_iter()
            .map(|manager| (manager.node, manager.pod))
            .collect();
        let expected = [("n1", "b"), ("n2", "z")];
        assert_eq!(
            managers,
            expected.map(|(node, pod)| (node.into(), pod.into()))
        );
    }
}
