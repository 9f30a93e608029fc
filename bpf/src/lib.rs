//! The gate's BPF programs, from user space.
//!
//! [`load_and_pin`](loader::load_and_pin) (feature `loader`, the installer's) puts the programs and
//! their maps into the BPF file system once per node. A shim opens the pinned [`Maps`] and
//! [`attach`]es the pinned programs to the interfaces of its pod; it loads nothing itself.
//!
//! ```text
//!   installer --load--> /sys/fs/bpf/podmotion/v1/{gate_ingress,tap_ingress,netns,ports,...}
//!                            ^ open, attach                   ^ insert, remove, read
//!                          shim                             shim
//! ```
//!
//! Programs never create or remove an entry of a map: each entry has the shim that made it as its
//! owner. The exception is `probes`, which a program on the root of the control groups fills with the
//! connections that the node's kubelets open ([`Kubelets`]). Where the kernel does not take what
//! probes need, the gate does without. The layout of the maps is fixed for a pin directory's version (`v1`).

mod attach;
mod ignored;
#[cfg(feature = "loader")]
mod kernel_function;
mod layout;
#[cfg(feature = "loader")]
pub mod loader;
mod maps;
pub mod netlink;
pub mod netns;
mod probes;
mod sys;

pub use attach::{
    AttachError, GATE_PROGRAM, Link, Method, TAP_PROGRAM, attach, detach_left_over, is_attached,
};
pub use ignored::IgnoredTraffic;
pub use layout::{
    Counters, FlowKey, FlowValue, KubeletKey, MAX_AGENT, MAX_AGENTS, Mode, NetnsValue, PortFlags,
    PortKey, PortValue, ProbeKey, ProbeValue, Protocol,
};
pub use maps::{MapError, Maps, Table};
pub use probes::{
    Kubelets, Responders, SOCKOPS_PROGRAM, STEER_PROGRAM, SteerLink, attach_steer, note_own_probe,
};

/// Where the programs and maps are pinned unless something else is asked for.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/podmotion/v1";
