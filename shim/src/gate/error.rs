//! What can go wrong at the gate.

use std::io;

use podmotion_bpf::{AttachError, MapError, netns::NetnsError};
use thiserror::Error;

use super::ContainerKey;

/// The gate could not do what it was asked to.
#[derive(Debug, Error)]
pub enum GateError {
    /// The pod's network namespace could not be entered.
    #[error("cannot work in the pod's network namespace")]
    Netns(#[from] NetnsError),
    /// The programs' maps could not be opened or changed.
    #[error("cannot use the gate's maps")]
    Map(#[from] MapError),
    /// The installer could not pin what tells probes from other traffic; it says why.
    #[error("probes are not told from other traffic on this node")]
    NoProbes(#[source] MapError),
    /// This process's own namespace could not be looked at.
    #[error("cannot look at the shim's {kind} namespace")]
    Namespace {
        /// Its name in `/proc/self/ns`.
        kind: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached or detached.
    #[error("cannot use the gate's programs")]
    Attach(#[from] AttachError),
    /// Another process serves this network namespace.
    #[error("another process has the gate of this network namespace")]
    InUse,
    /// A port is managed for another container of the pod.
    #[error("port {port} is managed for container {} of the pod already", owner.0)]
    PortTaken {
        /// The port.
        port: u16,
        /// Who has it.
        owner: ContainerKey,
    },
    /// A container has more ports than one may have of the node's.
    #[error(
        "{ports} ports are more than the {} that a container may have",
        super::MOST_PORTS
    )]
    TooManyPorts {
        /// How many.
        ports: usize,
    },
    /// The pod's sleeping containers would have more connections than one pod may have of the node's.
    #[error(
        "{connections} connections are more than the {} that a pod's sleeping containers may have",
        super::MOST_CONNECTIONS
    )]
    TooManyConnections {
        /// How many.
        connections: usize,
    },
    /// The tap could not be made or removed.
    #[error("cannot {operation} the tap {name}")]
    Tap {
        /// What was tried.
        operation: &'static str,
        /// Its name, or the pattern of it.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing to answer probes with.
    #[error("cannot listen for probes in the pod's network namespace")]
    Responder {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Held frames could not be read, or one not be written back.
    #[error("cannot {operation} a frame")]
    Frame {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}
