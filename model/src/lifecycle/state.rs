//! The words of a container's life.

use std::fmt;

/// How deep a container sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Depth {
    /// The processes are there, frozen, their memory in a file.
    Light,
    /// A checkpoint; no process is left.
    Deep,
    /// Neither: the processes were told to end, and its program starts anew.
    Cold,
}

impl Depth {
    /// The stable name, for status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Deep => "deep",
            Self::Cold => "cold",
        }
    }
}

/// Which try at a restore this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attempt {
    /// The first, lazy where the dump said so.
    First,
    /// The second and last, never lazy.
    Second,
}

/// Where the memory of a running container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fill {
    /// All of it is in its processes.
    Complete,
    /// It runs again, and part of it is still in the images of its sleep.
    UnderWay {
        /// What it woke from.
        from: Depth,
    },
    /// Part of it can no longer be had: the processes are being killed.
    Failed,
}

/// What woke a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WakeCause {
    /// A packet that needs the container.
    Traffic,
    /// A probe whose answer is not known.
    Probe,
    /// A process to be started in it.
    Exec,
    /// Somebody attached to it, or wrote to its standard input.
    Attach,
    /// A signal other than KILL.
    Signal,
    /// It is to be paused, which needs processes.
    Pause,
    /// Its terminal changes size.
    Resize,
    /// Its resources change.
    Update,
    /// A user's checkpoint of it.
    Checkpoint,
    /// Asked for through the shim's own service.
    Request,
    /// The shim or the node goes down.
    Shutdown,
    /// It could not be kept asleep.
    Failure,
}

impl WakeCause {
    /// Whether idle time begins anew. A question about the container's health is none of use: it sleeps
    /// again as soon as it is answered. (A person's exec looks the same; it keeps it awake while it
    /// runs.)
    pub fn is_use(self) -> bool {
        !matches!(self, Self::Probe | Self::Exec)
    }

    /// The stable name, for status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::Probe => "probe",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::Signal => "signal",
            Self::Pause => "pause",
            Self::Resize => "resize",
            Self::Update => "update",
            Self::Checkpoint => "checkpoint",
            Self::Request => "request",
            Self::Shutdown => "shutdown",
            Self::Failure => "failure",
        }
    }
}

impl fmt::Display for WakeCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Created, its process not started.
    Created,
    /// Its processes run.
    Running {
        /// Where its memory is.
        fill: Fill,
    },
    /// Its memory is being moved out, or a dump is under way.
    FallingAsleep {
        /// How deep it is to sleep.
        into: Depth,
        /// What asked for the container meanwhile, first come.
        wake: Option<WakeCause>,
    },
    /// It sleeps.
    Asleep {
        /// How deep.
        depth: Depth,
        /// Whether it will run again before all of its memory is back.
        lazy: bool,
    },
    /// It sleeps light, and a dump is under way.
    Deepening {
        /// What asked for the container meanwhile, first come.
        wake: Option<WakeCause>,
    },
    /// Its memory is being moved back in, or a restore is under way.
    Waking {
        /// What it wakes from.
        from: Depth,
        /// What woke it.
        cause: WakeCause,
        /// Which try this is.
        attempt: Attempt,
        /// Whether this try is lazy.
        lazy: bool,
    },
    /// Two restores failed; the node's policy decides.
    RestoreFailed,
    /// It has exited.
    Stopped,
}

impl State {
    /// The stable name, for status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::FallingAsleep { .. } => "falling-asleep",
            // To anybody else it goes on sleeping.
            Self::Asleep { .. } | Self::Deepening { .. } => "asleep",
            Self::Waking { .. } => "waking",
            Self::RestoreFailed => "restore-failed",
            Self::Stopped => "stopped",
        }
    }
}

impl State {
    /// How deep it sleeps at this moment, where it does.
    pub fn depth(self) -> Option<Depth> {
        match self {
            Self::Asleep { depth, .. } => Some(depth),
            Self::Deepening { .. } => Some(Depth::Light),
            _ => None,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Its process was started: the first time, or anew after a restore that failed.
    Started,
    /// The idle policy or a request says that it shall sleep.
    Sleep(Depth),
    /// It has slept light for long enough.
    Deepen,
    /// Something needs it awake.
    Wake(WakeCause),
    /// It sleeps as deep as was begun.
    FellAsleep {
        /// Whether it is to run again before all of its memory is back.
        lazy: bool,
    },
    /// What was begun was given up as asked; the container is as it was before.
    SleepAborted,
    /// What was begun failed; the container is as it was before.
    SleepFailed,
    /// The processes run again.
    Woke,
    /// The wake failed. Of a restore nothing is left but the images; processes that have slept
    /// light lack memory and must not run.
    WakeFailed,
    /// All memory is back.
    FillFinished,
    /// Memory cannot be brought back; processes that touch it block.
    FillFailed,
    /// The container's first process is gone for good.
    Exited,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Shut the gate, freeze the container and move its memory out.
    BeginMoveOut,
    /// Shut the gate and checkpoint the container. Images that are still there are replaced.
    BeginDump,
    /// Shut the gate and have the container's processes end.
    BeginStop,
    /// Checkpoint a container that sleeps light and goes on doing so if that fails.
    BeginDeepening,
    /// Ask what is under way to stop if it still can.
    AbortSleep,
    /// Move memory back in, what is needed first, and thaw the container.
    BeginMoveIn,
    /// Restore the container from its images.
    BeginRestore {
        /// Whether to let it run before all of its memory is back.
        lazy: bool,
    },
    /// Start the container's program anew. It runs ([`Event::Woke`]) once it listens again.
    BeginStart,
    /// Let packets through again, first those that were held.
    OpenGate,
    /// Remove the images of a checkpoint, once nothing under way uses them any more.
    DiscardImages,
    /// Kill what is left of the container's processes.
    KillProcesses,
    /// Do what the node's configuration says about a restore that failed: report an exit
    /// ([`Event::Exited`]) or start the process anew ([`Event::Started`]).
    FollowRestorePolicy,
}
