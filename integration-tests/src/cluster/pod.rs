//! Pods of a cluster.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use crate::cgroup::cgroup_of;
use crate::sleeper::Sleeper;

/// A pod that the API server knows. Dropping it deletes it, without grace and without waiting.
#[derive(Debug)]
pub struct KubePod<'a> {
    cluster: &'a Cluster,
    name: String,
}

/// A running container of one, as the kubelet has started it last.
#[derive(Clone, Debug)]
pub struct KubeContainer {
    /// containerd's id of it.
    pub id: String,
    /// Its sleep.
    pub sleeper: Sleeper,
}

impl KubeContainer {
    /// Its control group, as a path below each hierarchy. It must be there.
    pub fn cgroup(&self) -> Result<String> {
        cgroup_of(&self.id)
    }
}

/// containerd's id of a container, from its status in a pod's.
///
/// # Errors
/// When it has not been started, or not by containerd.
pub fn container_id(status: &Value) -> Result<&str> {
    status["containerID"]
        .as_str()
        .and_then(|id| id.strip_prefix("containerd://"))
        .with_context(|| format!("no id of containerd's in {status}"))
}

impl<'a> KubePod<'a> {
    pub(super) fn create(cluster: &'a Cluster, manifest: &Value) -> Result<Self> {
        let name = manifest["metadata"]["name"].as_str();
        let name = name.context("a pod without a name")?.to_owned();
        cluster.kubectl.apply(manifest)?;
        Ok(Self { cluster, name })
    }

    /// Where it is.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    pub(super) fn known(cluster: &'a Cluster, name: &str) -> Self {
        let name = name.to_owned();
        Self { cluster, name }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until all of its containers are ready.
    pub fn wait_ready(&self) -> Result<()> {
        self.cluster
            .kubectl
            .wait(&format!("pod/{}", self.name), "condition=Ready")
            .with_context(|| format!("{:#}", self.get().unwrap_or_default()["status"]))
    }

    /// What the API server says of it.
    pub fn get(&self) -> Result<Value> {
        self.cluster.kubectl.get(&["pod", &self.name])
    }

    /// A port of it.
    pub fn address(&self, port: u16) -> Result<SocketAddr> {
        let pod = self.get()?;
        let ip = pod["status"]["podIP"].as_str().context("no address")?;
        let ip: IpAddr = ip.parse().with_context(|| format!("address {ip:?}"))?;
        Ok(SocketAddr::new(ip, port))
    }

    /// Its container called `name`, which has been started.
    pub fn container(&self, name: &str) -> Result<KubeContainer> {
        let pod = self.get()?;
        let id = container_id(self.status_of(&pod, name)?)?.to_owned();
        let sleeper = Sleeper::find(&id)?;
        Ok(KubeContainer { id, sleeper })
    }

    /// How often the kubelet has started a container again.
    pub fn restarts(&self, name: &str) -> Result<u64> {
        let pod = self.get()?;
        let count = &self.status_of(&pod, name)?["restartCount"];
        count.as_u64().context("no restart count")
    }

    /// Deletes it as a user does, and waits until it is gone.
    pub fn delete(&self) -> Result<()> {
        self.cluster.kubectl.run(&["delete", "pod", &self.name])?;
        Ok(())
    }

    fn status_of<'v>(&self, pod: &'v Value, name: &str) -> Result<&'v Value> {
        ["containerStatuses", "initContainerStatuses"]
            .into_iter()
            .filter_map(|kind| pod["status"][kind].as_array())
            .flatten()
            .find(|status| status["name"] == name)
            .with_context(|| format!("{} has no container {name}: {pod:#}", self.name))
    }
}

impl Drop for KubePod<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl.run(&[
            "delete",
            "pod",
            &self.name,
            "--ignore-not-found",
            "--now",
            "--wait=false",
        ]);
    }
}
