//! Why a container did not fall asleep.

use std::time::Duration;

use podmotion_criu_driver::{
    DumpFailure, Tasks, Written, freezer::FreezerError, images::ImagesError,
};
use podmotion_model::idle::{Disk, Quota};
use podmotion_pager::{AbsentError, FillFailed, ImageError, OutError};

use super::{
    facts::FactsError, look::LookError, placeholder::PlaceholderError, room::RoomError,
    shared::SharedError,
};
use crate::gate::GateError;

/// Why a container did not fall asleep.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Somebody was about to use it.
    #[error("{0}")]
    Traffic(&'static str),
    /// The dump was given up because something wants the container.
    #[error("given up, the container is wanted")]
    Aborted,
    /// It has no place at the gate.
    #[error("the container has no place at its pod's gate")]
    NotSettled,
    /// CRIU does not work here.
    #[error(transparent)]
    NoCriu(podmotion_criu_driver::Error),
    /// Its cgroup could not be kept from systemd.
    #[error(transparent)]
    Placeholder(#[from] PlaceholderError),
    /// The system has no descriptor left to control the dump with.
    #[error("prepare the dump")]
    Control(#[source] std::io::Error),
    /// Its processes could not be told to end, or waited for.
    #[error("have its processes end")]
    Terminate(#[source] std::io::Error),
    /// A rehearsal came to its end: a checkpoint is possible.
    #[error("a checkpoint is possible")]
    Rehearsed {
        /// What was written.
        written: Written,
        /// From the decision until then.
        took: Duration,
    },
    /// The container cannot be described.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The gate cannot hold its packets.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Its cgroup cannot be frozen or thawed.
    #[error(transparent)]
    Freezer(#[from] FreezerError),
    /// Its sockets cannot be told.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The directory for the images could not be made or sealed.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// CRIU refused or failed, or its images could not be completed.
    #[error(transparent)]
    Dump(DumpFailure),
    /// Its processes cannot be stopped.
    #[error("stop its processes")]
    Stop(#[from] podmotion_inject::Error),
    /// What it writes to cannot be noted.
    #[error("watch its memory")]
    Watch(#[source] std::io::Error),
    /// There can be no image of its memory.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its memory could not be moved out; it is as it was.
    #[error("move its memory out")]
    MoveOut(#[from] OutError),
    /// Memory is missing that cannot be brought back.
    #[error(transparent)]
    Lost(#[from] FillFailed),
    /// What the disk has left cannot be told.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The disk is to keep what it has left.
    #[error("{0}")]
    DiskPressure(Disk),
    /// What all images may take together is taken.
    #[error("{0}")]
    OverQuota(Quota),
    /// Its image would not be safe from other shims, or what all images take cannot be told or noted.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// What its processes miss cannot be told.
    #[error(transparent)]
    Absent(#[from] AbsentError),
}

impl Trouble {
    /// What is left of the container.
    pub fn tasks(&self) -> Tasks {
        match self {
            Self::Dump(failure) => failure.tasks,
            Self::Lost(_) => Tasks::Damaged,
            _ => Tasks::Running,
        }
    }

    /// Not a failure: the container was wanted.
    pub fn is_traffic(&self) -> bool {
        match self {
            Self::Traffic(_) | Self::Aborted => true,
            Self::Dump(failure) => {
                matches!(failure.cause, podmotion_criu_driver::Error::Aborted)
            }
            _ => false,
        }
    }
}

impl From<DumpFailure> for Trouble {
    fn from(failure: DumpFailure) -> Self {
        match failure {
            // Whoever asked for sleep reads this.
            DumpFailure {
                tasks: Tasks::Running,
                cause: podmotion_criu_driver::Error::Aborted,
                ..
            } => Self::Aborted,
            other => Self::Dump(other),
        }
    }
}

impl Trouble {
    /// Trying again would not help: this container's memory does not move. What passes, such as a
    /// thread in the middle of `vfork`, does not count.
    pub fn rules_light_out(&self) -> bool {
        use podmotion_inject::Error as Stop;
        let lasting = |error: &Stop| {
            matches!(
                error,
                Stop::Refused { .. }
                    | Stop::Foreign { .. }
                    | Stop::Dispatched { .. }
                    | Stop::NoInstruction { .. }
            )
        };
        match self {
            Self::Stop(error) => lasting(error),
            Self::MoveOut(OutError::Inject { source, .. }) => lasting(source),
            Self::MoveOut(error) => matches!(
                error,
                OutError::Refused { .. } | OutError::Pinned { .. } | OutError::Seccomp { .. }
            ),
            _ => false,
        }
    }
}
