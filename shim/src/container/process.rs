//! One process of a container, as its driver keeps it.

use tokio::sync::watch;

use super::command::{Command, ExitWatch};
use super::{Exited, Phase, ProcessState};
use crate::reaper::Exit;
use crate::stdio::{Addresses, ProcessIo};

/// A process and its streams.
pub struct Process {
    /// Pid in the shim's pid namespace; 0 before it has started.
    pub pid: i32,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its streams, once there are any.
    pub io: Option<ProcessIo>,
    stdio: Addresses,
    exited: watch::Sender<Option<Exited>>,
}

impl Process {
    /// A process that has not started.
    pub fn new(stdio: Addresses) -> Self {
        let exited = watch::Sender::new(None);
        Self {
            pid: 0,
            phase: Phase::Created,
            io: None,
            stdio,
            exited,
        }
    }

    /// How to wait for its end.
    pub fn watch(&self) -> ExitWatch {
        self.exited.subscribe()
    }

    /// How it ended.
    pub fn exited(&self) -> Option<Exited> {
        *self.exited.borrow()
    }

    /// It has ended.
    pub fn set_exited(&mut self, exit: Exit) {
        self.phase = Phase::Stopped;
        if let Some(io) = &mut self.io {
            io.process_exited();
        }
        let exited = Exited {
            pid: exit.pid,
            status: exit.status,
            at: Some(exit.at),
        };
        self.exited.send_replace(Some(exited));
    }

    /// It did not start and never will: whoever waits for it is let go.
    pub fn release_waiters(&self) {
        self.exited.send_replace(Some(Exited::default()));
    }

    /// It as `state` describes it.
    pub fn state(&self) -> ProcessState {
        ProcessState {
            pid: self.pid,
            phase: self.phase,
            stdio: self.stdio.clone(),
            exited: self.exited(),
        }
    }

    /// Addresses of its streams.
    pub fn stdio(&self) -> &Addresses {
        &self.stdio
    }
}

/// A further process, beside the first one.
pub struct Exec {
    /// The process.
    pub process: Process,
    /// OCI description of what to run.
    pub description: serde_json::Value,
    /// Commands that came while the runtime was starting it; none outside of that time.
    pub starting: Option<Vec<Command>>,
}

impl Exec {
    /// Whether it keeps the container's exit from being reported.
    pub fn is_live(&self) -> bool {
        self.starting.is_some() || self.process.phase == Phase::Running
    }
}
