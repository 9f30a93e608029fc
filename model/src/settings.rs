//! What holds for one container: the node's configuration with the pod's annotations on top.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::annotations::{self, AnnotationError, annotation};
use crate::config::NodeConfig;
use crate::value::{ContainerName, PortsMap, Setting};
pub use crate::value::{DeepSleepAfter, NodeChangeTcp, TerminateAsleep};

/// Why the settings of a container cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An annotation is wrong.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
}

/// The ports whose packets count as activity and wake the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// The container's listening sockets, read at each sleep.
    Listening,
    /// These and no others; never empty.
    Fixed(BTreeSet<u16>),
}

/// The settings of one container. An annotation wins over the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Idle time before sleep, more than zero; `None` is never.
    pub scaledown: Option<Duration>,
    /// Whether this container is among those that may sleep.
    pub selected: bool,
    /// Ports that count and wake.
    pub ports: Ports,
    /// Stop the idle process instead of checkpointing it.
    pub disable_checkpointing: bool,
    /// Probes count as traffic.
    pub disable_probe_detection: bool,
    /// Answer gRPC health probes while asleep.
    pub grpc_probes: bool,
    /// More CPU cores in use than this is not idle; `None` is no limit.
    pub busy_cpu: Option<f64>,
    /// How long a request without an answer keeps it awake; `None` is not at all.
    pub answer_wait: Option<Duration>,
    /// When light sleep becomes deep.
    pub deep_sleep_after: DeepSleepAfter,
    /// What TERM does to the sleeping container.
    pub terminate_asleep: TerminateAsleep,
    /// Never sleeps, reports when it would have.
    pub dry_run: bool,
    /// Containers of the pod whose checkpoint the successor pod takes over.
    pub migrate: BTreeSet<String>,
    /// The container of the pod that moves while running.
    pub live_migrate: Option<String>,
    /// Established TCP connections on a change of node.
    pub tcp: NodeChangeTcp,
}

impl Settings {
    /// Whether there can be a time when this container sleeps.
    pub fn may_sleep(&self) -> bool {
        self.selected && self.scaledown.is_some()
    }

    /// Resolves the settings of the container `container_name` (its name in the pod).
    ///
    /// `annotations` are all of the container's; those that are not ours are skipped, those
    /// that only look like ours are an error.
    pub fn resolve<K: AsRef<str>, V: AsRef<str>>(
        annotations: impl IntoIterator<Item = (K, V)>,
        container_name: &str,
        node: &NodeConfig,
    ) -> Result<Self, SettingsError> {
        let map: BTreeMap<String, String> = annotations
            .into_iter()
            .filter(|(key, _)| key.as_ref().starts_with(annotations::PREFIX))
            .map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().to_owned()))
            .collect();
        annotations::reject_unknown(map.keys().map(String::as_str))?;

        let names: Option<BTreeSet<ContainerName>> = read(&map, annotations::CONTAINER_NAMES)?;
        let ports: Option<PortsMap> = read(&map, annotations::PORTS_MAP)?;
        let migrate: Option<BTreeSet<ContainerName>> = read(&map, annotations::MIGRATE)?;
        let live_migrate: Option<ContainerName> = read(&map, annotations::LIVE_MIGRATE)?;
        let own_name = ContainerName(container_name.to_owned());

        Ok(Self {
            scaledown: read(&map, annotations::SCALEDOWN_DURATION)?
                .unwrap_or(node.sleep.scaledown_duration),
            selected: names.is_none_or(|names| names.contains(&own_name)),
            ports: ports
                .and_then(|mut map| map.0.remove(&own_name))
                .map_or(Ports::Listening, Ports::Fixed),
            disable_checkpointing: read(&map, annotations::DISABLE_CHECKPOINTING)?.unwrap_or(false),
            disable_probe_detection: read(&map, annotations::DISABLE_PROBE_DETECTION)?
                .unwrap_or(false),
            grpc_probes: read(&map, annotations::GRPC_PROBES)?.unwrap_or(false),
            busy_cpu: read(&map, annotations::BUSY_CPU)?.unwrap_or(node.sleep.busy_cpu),
            answer_wait: read(&map, annotations::ANSWER_WAIT)?.unwrap_or(node.sleep.answer_wait),
            deep_sleep_after: read(&map, annotations::DEEP_SLEEP_AFTER)?
                .unwrap_or(node.sleep.deep_sleep_after),
            terminate_asleep: read(&map, annotations::TERMINATE_ASLEEP)?
                .unwrap_or(node.sleep.terminate_asleep),
            dry_run: read(&map, annotations::DRY_RUN)?.unwrap_or(node.sleep.dry_run),
            migrate: migrate
                .into_iter()
                .flatten()
                .map(|ContainerName(name)| name)
                .collect(),
            live_migrate: live_migrate.map(|ContainerName(name)| name),
            tcp: read(&map, annotations::TCP)?.unwrap_or(NodeChangeTcp::Close),
        })
    }
}

fn read<T: Setting>(
    map: &BTreeMap<String, String>,
    key: &'static str,
) -> Result<Option<T>, AnnotationError> {
    annotation(map, key, T::ACCEPTED, T::parse)
}

#[cfg(test)]
mod tests;
