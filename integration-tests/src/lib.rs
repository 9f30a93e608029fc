//! Harness for tests against a real containerd.
//!
//! A test binary calls [`Machine::enter`] once, first thing in `main`: from then on it lives in mount and
//! network namespaces of its own, and whatever the tests do to `/run`, `/etc`, `/opt`, `/var/lib` or the
//! network ends with it. Tests then work with
//!
//! - [`Node`]: one containerd, with CRI, CNI and both runtimes,
//! - [`App`]: what to run, and [`Container`]: that, running, as `ctr` would run it,
//! - [`Sleeper`]: what a container's shim says of its sleep, and requests for sleep and wake,
//! - [`Pod`]: a sandbox with containers, as the kubelet would run it,
//! - [`Cluster`]: a Kubernetes on such a node, and [`KubePod`]: a pod of it,
//! - [`Manager`]: Podmotion's own manager of a node, and [`Scrape`]: what it serves,
//! - [`Client`]: HTTP over plain sockets, with times and retransmissions,
//! - [`Relay`]: a way to a server that can be cut,
//! - [`Census`]: what exists before and after,
//! - [`Vm`]: a virtual machine, to run all of that in once more.
//!
//! ```no_run
//! use podmotion_integration_tests::{App, Client, Node, Versions};
//!
//! # fn main() -> anyhow::Result<()> {
//! let node = Node::start(Versions::default())?;
//! let app = node.run(App::counter().mem_mb(50).annotation("scaledown-duration", "2s"))?;
//! let answer = Client::default().get(app.address(8080)?, "/")?;
//! assert_eq!(answer.status, 200);
//! # Ok(())
//! # }
//! ```
//!
//! Everything is blocking; a call that gets no answer in [`PATIENCE`] fails. Handles clean up in `Drop`.
//! Errors are `anyhow::Error`: nobody but a reader handles them. Where a test needs the daemon's words,
//! [`rpc_message`] has them.

mod api;
mod app;
mod capture;
mod census;
mod cgroup;
mod client;
mod cluster;
mod container;
mod containerd;
mod cri;
mod events;
mod exec;
mod image;
mod machine;
mod manager;
mod netns;
mod node;
mod process;
mod relay;
mod room;
mod sleeper;
mod soak;
mod spec;
mod stdio;
mod sys;
mod tools;
mod vm;

use std::time::Duration;

pub use api::{NAMESPACE, Reached, rpc_message};
pub use app::{App, Network, Stdin, Stdout};
pub use capture::Capture;
pub use census::{Census, Difference, fds, rss_anon_kib, status_number};
pub use cgroup::{
    CgroupDriver, cgroup_folders, cgroup_of, cpu_quota, freeze, is_frozen, memory_limit,
    memory_usage, set_memory_limit, thaw,
};
pub use client::{Client, Response};
pub use cluster::{
    Cluster, KubeContainer, KubePod, Kubectl, KubeletSettings, Logind, RemoteNode, container_id,
};
pub use container::{Container, Exit, State};
pub use cri::{Member, Pod, PodContainer};
pub use events::{Event, EventLog};
pub use exec::{Exec, ExecProcess};
pub use image::Image;
pub use machine::Machine;
pub use manager::{Manager, Scrape};
pub use netns::Netns;
pub use node::{Node, Settings};
pub use process::{OwnProcess, own_processes, wait_gone};
pub use relay::Relay;
pub use sleeper::{Sleeper, Status, ensure_woken_by, refusal, was_starved};
pub use soak::{Random, soak};
pub use tools::{ContainerdVersion, Depth, RuncVersion, Runtime, Tools, Versions};
pub use vm::{Disk, Vm};

/// How long anything may take before a test gives up: far more than the slowest step takes on a loaded
/// machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);
