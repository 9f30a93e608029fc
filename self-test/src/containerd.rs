//! Containers, their processes and their root file systems, in the self-test's namespace of containerd.

use std::collections::HashMap;
use std::time::Duration;

use prost_types::Any;
use serde_json::Value;

use crate::client::{
    CallError, Client, Mount, NAMESPACE, call, containers, leases, namespaces, snapshots, tasks,
};
use crate::handler::Handler;
use crate::spec;

/// After this containerd removes what a killed run has left, if no other run does.
const EXPIRY: Duration = Duration::from_secs(3600);

/// Keeps snapshots that no container has yet.
const LEASE: &str = "podmotion-self-test";

/// The lower layer of all root file systems: empty.
const BASE: &str = "base";

const SIGKILL: u32 = 9;

/// The namespace of one run.
pub(crate) struct Containerd {
    client: Client,
    handler: Handler,
    snapshotter: String,
}

/// A process that was started and has ended.
pub(crate) struct Exit {
    /// Its exit code, or 128 and the signal.
    pub(crate) code: u32,
}

impl Containerd {
    /// `snapshotter` is the one of pods of the handler.
    pub(crate) fn new(client: Client, handler: Handler, snapshotter: String) -> Self {
        Self {
            client,
            handler,
            snapshotter,
        }
    }

    /// systemd makes control groups on this node.
    pub(crate) fn systemd(&self) -> bool {
        self.handler.systemd
    }

    /// Makes what root file systems need, once. Nothing of an earlier run may be there.
    pub(crate) async fn prepare(&self) -> Result<(), CallError> {
        let expires = jiff::Timestamp::now()
            .checked_add(jiff::SignedDuration::try_from(EXPIRY).unwrap_or_default())
            .unwrap_or_else(|_| jiff::Timestamp::now());
        let message = leases::CreateRequest {
            id: LEASE.to_owned(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]),
        };
        call!(
            self.client,
            leases::leases_client::LeasesClient,
            create,
            message
        )
        .await?;
        let key = format!("{BASE}-unpacked");
        self.snapshot(&key, "").await?;
        let message = snapshots::CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: BASE.to_owned(),
            key,
        };
        let leased = self.client.under_lease(LEASE);
        call!(
            leased,
            snapshots::snapshots_client::SnapshotsClient,
            commit,
            message
        )
        .await?;
        Ok(())
    }

    async fn snapshot(&self, key: &str, parent: &str) -> Result<Vec<Mount>, CallError> {
        let message = snapshots::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
        };
        let leased = self.client.under_lease(LEASE);
        let prepared = call!(
            leased,
            snapshots::snapshots_client::SnapshotsClient,
            prepare,
            message
        );
        Ok(prepared.await?.mounts)
    }

    /// Makes and starts a container; returns the pid of its process on the node.
    pub(crate) async fn start(&self, id: &str, spec: &Value) -> Result<u32, CallError> {
        let rootfs = self.snapshot(id, BASE).await?;
        let record = containers::Container {
            id: id.to_owned(),
            runtime: Some(containers::container::Runtime {
                name: self.handler.runtime.clone(),
                options: self.handler.options.clone(),
            }),
            spec: Some(any(spec::SPEC, spec)),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: id.to_owned(),
            ..Default::default()
        };
        let message = containers::CreateContainerRequest {
            container: Some(record),
        };
        call!(
            self.client,
            containers::containers_client::ContainersClient,
            create,
            message
        )
        .await?;
        let message = tasks::CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            // Those of the record; containerd 2 takes no others for a runtime that it does not know.
            options: None,
            runtime_path: self.handler.path.clone(),
        };
        let created = call!(
            self.client,
            tasks::tasks_client::TasksClient,
            create,
            message
        );
        let pid = created.await?.pid;
        self.start_process(id, "").await?;
        Ok(pid)
    }

    async fn start_process(&self, id: &str, exec: &str) -> Result<(), CallError> {
        let message = tasks::StartRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        };
        let started = call!(
            self.client,
            tasks::tasks_client::TasksClient,
            start,
            message
        );
        started.await.map(drop)
    }

    /// Runs a process in a container to its end.
    pub(crate) async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
    ) -> Result<Exit, CallError> {
        let message = tasks::ExecProcessRequest {
            container_id: id.to_owned(),
            spec: Some(any(spec::PROCESS, process)),
            exec_id: exec.to_owned(),
        };
        call!(self.client, tasks::tasks_client::TasksClient, exec, message).await?;
        self.start_process(id, exec).await?;
        let code = self.wait(id, exec).await?;
        let message = tasks::DeleteProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        };
        call!(
            self.client,
            tasks::tasks_client::TasksClient,
            delete_process,
            message
        )
        .await?;
        Ok(Exit { code })
    }

    async fn wait(&self, id: &str, exec: &str) -> Result<u32, CallError> {
        let message = tasks::WaitRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        };
        let ended = call!(self.client, tasks::tasks_client::TasksClient, wait, message);
        Ok(ended.await?.exit_status)
    }

    /// A container's metrics; none if the shim has none.
    pub(crate) async fn metrics(&self, id: &str) -> Result<Option<Any>, CallError> {
        let message = tasks::MetricsRequest {
            filters: vec![format!("id=={id}")],
        };
        let answer = call!(
            self.client,
            tasks::tasks_client::TasksClient,
            metrics,
            message
        );
        let mut metrics = answer.await?.metrics.into_iter();
        Ok(metrics.next().and_then(|metric| metric.data))
    }

    /// Removes everything in the namespace, and the namespace. Returns how many containers and what went wrong; what
    /// can be removed is.
    pub(crate) async fn remove_all(&self) -> (usize, Vec<CallError>) {
        let mut errors = Vec::new();
        let message = containers::ListContainersRequest::default();
        let listed = call!(
            self.client,
            containers::containers_client::ContainersClient,
            list,
            message
        );
        let mut containers = match listed.await {
            Ok(answer) => answer.containers,
            Err(error) => return (0, vec![error]),
        };
        // An application's id is its sandbox's and more: it goes first.
        containers.sort_by_key(|container| std::cmp::Reverse(container.id.len()));
        for container in &containers {
            errors.extend(unless_gone(self.remove_task(&container.id).await));
            let message = containers::DeleteContainerRequest {
                id: container.id.clone(),
            };
            let deleted = call!(
                self.client,
                containers::containers_client::ContainersClient,
                delete,
                message
            );
            errors.extend(unless_gone(deleted.await));
        }
        errors.extend(self.remove_snapshots().await.err());
        errors.extend(self.remove_leases().await.err());
        let message = namespaces::DeleteNamespaceRequest {
            name: NAMESPACE.to_owned(),
        };
        let deleted = call!(
            self.client,
            namespaces::namespaces_client::NamespacesClient,
            delete,
            message
        );
        // Whatever keeps it is among the errors already.
        let deleted = unless_gone(deleted.await);
        if errors.is_empty() {
            errors.extend(deleted);
        }
        (containers.len(), errors)
    }

    async fn remove_task(&self, id: &str) -> Result<(), CallError> {
        let message = tasks::KillRequest {
            container_id: id.to_owned(),
            signal: SIGKILL,
            all: true,
            ..Default::default()
        };
        // A process that has ended cannot be killed, and only one that has can be deleted.
        let killed = call!(self.client, tasks::tasks_client::TasksClient, kill, message).await;
        self.wait(id, "").await?;
        let message = tasks::DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        let deleted = call!(
            self.client,
            tasks::tasks_client::TasksClient,
            delete,
            message
        );
        match deleted.await {
            Err(error) if !error.is_not_found() => Err(killed.err().unwrap_or(error)),
            _ => Ok(()),
        }
    }

    async fn remove_snapshots(&self) -> Result<(), CallError> {
        let message = snapshots::ListSnapshotsRequest {
            snapshotter: self.snapshotter.clone(),
        };
        let listed = call!(
            self.client,
            snapshots::snapshots_client::SnapshotsClient,
            list,
            message
        );
        let mut stream = listed.await?;
        let mut found = Vec::new();
        loop {
            let part = async { stream.message().await.map(tonic::Response::new) };
            match Client::wait("call snapshots list", part).await? {
                Some(part) => found.extend(part.info),
                None => break,
            }
        }
        // What others are on top of goes last.
        found.sort_by_key(|snapshot| snapshot.parent.is_empty());
        for snapshot in found {
            let message = snapshots::RemoveSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                key: snapshot.name,
            };
            let removed = call!(
                self.client,
                snapshots::snapshots_client::SnapshotsClient,
                remove,
                message
            );
            if let Some(error) = unless_gone(removed.await) {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn remove_leases(&self) -> Result<(), CallError> {
        let message = leases::ListRequest::default();
        let listed = call!(
            self.client,
            leases::leases_client::LeasesClient,
            list,
            message
        );
        for lease in listed.await?.leases {
            let message = leases::DeleteRequest {
                id: lease.id,
                sync: true,
            };
            let deleted = call!(
                self.client,
                leases::leases_client::LeasesClient,
                delete,
                message
            );
            if let Some(error) = unless_gone(deleted.await) {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The error, if it is one of something that was there.
fn unless_gone<T>(result: Result<T, CallError>) -> Option<CallError> {
    result.err().filter(|error| !error.is_not_found())
}

fn any(type_url: &str, json: &Value) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: json.to_string().into_bytes(),
    }
}
