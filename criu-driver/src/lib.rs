//! Drives CRIU: dump a container, restore it, fill its memory lazily.
//!
//! Every call is blocking and starts one `criu swrk` process that speaks CRIU's RPC on a socket
//! pair. [`Criu`] is the entry point, [`Subject`] says which container, in both directions.
//!
//! Invariants kept here:
//!
//! - A dump that does not succeed leaves the container running: tasks cured, sockets out of
//!   repair mode, cgroup thawed; also when CRIU is killed. When that cannot be had, the failure says
//!   [`Tasks::Lost`](dump::Tasks::Lost).
//! - A restore that does not succeed leaves no process, and no peer of a connection hears of it.
//! - A lazily restored process never sees a zero page in place of one that was not yet filled
//!   (see [`lazy`]).
//! - Nothing depends on the exit status of a child, so that the caller may reap all its children. It
//!   must not take their stops, which `waitpid(-1)` does: threads of this crate trace processes.
//! - Mounts made for CRIU live in a mount namespace of its own and disappear with it.

pub mod connections;
pub mod criu;
pub mod dump;
pub mod error;
pub mod freezer;
pub mod images;
pub mod lazy;
pub mod log;
pub mod mounts;
pub mod restore;
pub mod spec;
pub mod stats;
pub mod subject;
pub mod tmpfs;

mod ghosts;
mod guard;
mod heal;
mod insurance;
mod launch;
mod mappings;
mod rpc;
mod sys;
mod timers;

pub use criu::{Criu, Features, LogLevel, Version};
pub use dump::{Absent, DumpControl, DumpFailure, DumpReport, DumpRequest, Tasks, Veto, Written};
pub use error::Error;
pub use freezer::Freezer;
pub use launch::hold_starts;
pub use lazy::{Fill, FillFailure};
pub use restore::{RestoreFailure, RestoreReport, RestoreRequest, Restored};
pub use subject::{ExternalMount, InheritedPipe, Namespace, Source, Subject};
