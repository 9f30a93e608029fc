//! Sleep: what a container's driver has beside the plain runtime.
//!
//! ```text
//!            Driver (container/driver.rs)
//!              | started, init_exited, wake      ^ Outcome
//!              v                                 |
//!            Sleeper --Effect--> fall, rise (blocking threads), gate
//!              ^  Lifecycle (model) decides         |
//!              +------------- Notice ---------------+
//! ```
//!
//! - [`Sleeper`] belongs to one container's driver and holds its lifecycle; nobody else changes it.
//! - [`stop`] ends processes instead.
//! - [`light`] moves memory out and in, [`fall`] and [`rise`] dump and restore, [`deepen`] leads from
//!   one to the other, each in a blocking thread that reports back with a [`Notice`]. All sleep
//!   begins with [`still`].
//! - [`room`] sees what the node has left, [`quota`] what all images take, [`janitor`] removes images
//!   that nobody can need.
//! - [`pod`] shares the pod's gate between its containers; [`look`] sees what a container does,
//!   [`facts`] keeps what stays the same about it.
//! - [`leftover`] removes what a shim that was killed could not.
//! - [`status`] is what others may see of it, [`tally`] what came of its sleeps and wakes.

mod deepen;
pub mod facts;
pub mod fall;
mod janitor;
pub mod leftover;
mod light;
pub mod look;
mod manifest;
pub mod mptcp;
pub mod node;
pub mod placeholder;
pub mod pod;
mod quota;
pub mod rise;
mod room;
mod runc_state;
mod shared;
mod signals;
mod sleeper;
pub mod status;
mod still;
mod stop;
pub mod tally;
mod trouble;
mod turn;

use std::time::Duration;

use podmotion_criu_driver::FillFailure;
use podmotion_pager::{CompressError, CompressStats, FillFailed, FillStats, Pager, Watch};
use tokio::sync::oneshot;

use crate::reaper::{Exit, Expectation};
use crate::{gate, responder};

pub use node::Node;
pub use sleeper::{Fixed, New, Sleeper, memory_images};

/// Time on the clock that the gate's programs use.
fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(Duration::ZERO, Duration::from)
}

/// What a sleeper is told by its helpers and by whoever asks.
pub enum Notice {
    /// A held packet wants the container.
    Wanted,
    /// A probe has come to the responder, and waits for a verdict.
    Probe(responder::Asked),
    /// The application has answered one.
    Probed(responder::Outcome),
    /// The time has come to ask whether it may sleep.
    Check,
    /// What a look at it found.
    Looked(Box<Result<look::Looked, look::LookError>>),
    /// Its writes are being noted, for a sleep that comes soon; or not.
    Watched(Box<Result<Watch, trouble::Trouble>>),
    /// It has its place at the gate, and what is fixed about it is known; or why not.
    Settled(Result<Box<sleeper::Settled>, sleeper::SettleError>),
    /// The time has come to ask whether it is to sleep deeper.
    Deepen,
    /// The time has come to compress the image of its memory.
    Compress,
    /// The time has come to look whether somebody has sent it a signal.
    LookForSignals,
    /// That has come to an end of its own.
    Compressed(Result<CompressStats, CompressError>),
    /// The time has come to ask whether there is memory for its wake.
    LookForMemory,
    /// Its memory is out, or not.
    FellLight(Box<Result<light::Fallen, Box<light::Failed>>>),
    /// The dump has ended.
    Fell(Box<Result<fall::Fallen, trouble::Trouble>>),
    /// Its processes have ended as they were told, or not.
    FellCold(Box<Result<stop::Stopped, trouble::Trouble>>),
    /// The time has come to start its program anew.
    StartAnew,
    /// Its program was started anew and listens, or never will.
    RoseCold(Box<Result<stop::Started, stop::StartTrouble>>),
    /// The dump of a container in light sleep has ended.
    Deepened(Box<Result<fall::Fallen, Box<deepen::Stays>>>),
    /// It runs again after light sleep, or must not.
    RoseLight(Box<Result<sleeper::RoseLight, light::RiseTrouble>>),
    /// The restore has ended. Exits are kept until the new process is watched.
    Rose {
        /// How.
        result: Box<Result<rise::Risen, rise::Trouble>>,
        /// Keeps an early exit of the new process.
        expectation: Expectation,
    },
    /// The gate has been opened again.
    Released(Result<gate::Released, gate::GateError>),
    /// A lazy restore has, or will never have, all memory.
    Filled(Result<Duration, FillFailure>),
    /// The same after light sleep.
    FilledLight(Box<Result<(Pager, FillStats), FillFailed>>),
    /// Somebody asks for sleep, through the shim's own service.
    AskedToSleep(oneshot::Sender<Result<(), Refusal>>),
    /// Somebody asks for a wake, through the shim's own service.
    AskedToWake {
        /// Who.
        asker: oneshot::Sender<Result<(), Refusal>>,
        /// It is not to sleep again.
        stay: bool,
    },
}

/// Why what was asked for was not done.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Something keeps it awake.
    #[error("the container stays awake: {0}")]
    Awake(String),
    /// The checkpoint failed.
    #[error("the container could not be put to sleep: {0}")]
    Sleep(String),
    /// The restore failed.
    #[error("the container could not be woken: {0}")]
    Wake(String),
    /// It has ended.
    #[error("the container has ended")]
    Ended,
}

/// What follows for the driver.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing.
    Nothing,
    /// The container runs, as the process it was: what waited for it can go on.
    Awake,
    /// The container runs as another process: what waited for it can go on.
    Moved {
        /// Its pid.
        pid: i32,
        /// Its end.
        exit: oneshot::Receiver<Exit>,
    },
    /// The container has ended without a process's exit.
    Ended(Exit),
    /// What is left of its processes is to be killed; their exit is the container's.
    Kill,
    /// The container is to be started anew, without its state.
    ColdStart,
}
