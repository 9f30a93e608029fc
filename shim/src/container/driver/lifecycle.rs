//! Commands about the container and its first process.

use log::warn;
use nix::errno::Errno;

use super::{Driver, Notice, answer, refuse};
use crate::container::command::{ExecId, ListedProcess, Reply};
use crate::container::create::unmount_when_unused;
use crate::container::{ContainerError, Exited, Phase};
use crate::runtime::RuntimeError;
use crate::{sys, task_events};

impl Driver {
    pub(super) async fn start(&mut self) -> Result<i32, ContainerError> {
        match self.init.phase {
            Phase::Created => {}
            Phase::Running => return refuse("start", "a running process"),
            Phase::Paused => return refuse("start", "a paused process"),
            Phase::Stopped => return refuse("start", "a stopped process"),
        }
        self.runtime
            .start()
            .await
            .map_err(|source| ContainerError::Runtime {
                operation: "OCI runtime start failed",
                source,
            })?;
        self.init.phase = Phase::Running;
        task_events::started(&self.shared.events, &self.id, self.init.pid);
        self.may_sleep().await;
        Ok(self.init.pid)
    }

    pub(super) async fn kill(
        &mut self,
        exec_id: &ExecId,
        signal: u32,
        all: bool,
    ) -> Result<(), ContainerError> {
        if exec_id.is_none() {
            self.runtime.kill(signal, all).await.map_err(kill_error)?;
            self.sleeper.signalled(signal);
            return Ok(());
        }
        let process = self.process(exec_id)?;
        if process.exited().is_some() {
            return Err(ContainerError::AlreadyFinished);
        }
        if process.pid == 0 {
            return Err(ContainerError::ProcessNotCreated);
        }
        let number = i32::try_from(signal).unwrap_or_default();
        // Through the system call by number, since real-time signals have no name in the library.
        match sys::kill(process.pid, number) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(ContainerError::AlreadyFinished),
            Err(source) => Err(ContainerError::KillExec { source }),
        }
    }

    pub(super) async fn pause(&mut self) -> Result<(), ContainerError> {
        match self.init.phase {
            Phase::Running => {}
            Phase::Created => return refuse("pause", "task in created state"),
            Phase::Paused => return refuse("pause", "a paused container"),
            Phase::Stopped => return refuse("pause", "a stopped container"),
        }
        self.runtime
            .pause()
            .await
            .map_err(|source| ContainerError::Runtime {
                operation: "OCI runtime pause failed",
                source,
            })?;
        self.init.phase = Phase::Paused;
        self.sleeper.set_paused(true);
        task_events::paused(&self.shared.events, &self.id);
        Ok(())
    }

    pub(super) async fn resume(&mut self) -> Result<(), ContainerError> {
        match self.init.phase {
            Phase::Paused => {}
            Phase::Created => return refuse("resume", "task in created state"),
            Phase::Running => return refuse("resume", "a running process"),
            Phase::Stopped => return refuse("resume", "a stopped container"),
        }
        self.runtime
            .resume()
            .await
            .map_err(|source| ContainerError::Runtime {
                operation: "OCI runtime resume failed",
                source,
            })?;
        self.init.phase = Phase::Running;
        self.sleeper.set_paused(false);
        task_events::resumed(&self.shared.events, &self.id);
        Ok(())
    }

    pub(super) fn resize(
        &mut self,
        exec_id: &ExecId,
        columns: u16,
        rows: u16,
    ) -> Result<(), ContainerError> {
        let process = self.process(exec_id)?;
        if exec_id.is_some() && process.phase == Phase::Stopped {
            return refuse("resize", "a stopped container");
        }
        match &process.io {
            Some(io) => io
                .resize(columns, rows)
                .map_err(|source| ContainerError::Resize { source }),
            None => Ok(()),
        }
    }

    pub(super) async fn update(&mut self, resources: &[u8]) -> Result<(), ContainerError> {
        if self.init.phase == Phase::Stopped {
            return refuse("update", "a stopped container");
        }
        self.runtime
            .update(resources)
            .await
            .map_err(|source| ContainerError::Runtime {
                operation: "OCI runtime update failed",
                source,
            })?;
        self.note_resources(resources);
        Ok(())
    }

    pub(super) async fn pids(&mut self) -> Result<Vec<ListedProcess>, ContainerError> {
        let pids = self
            .runtime
            .pids()
            .await
            .map_err(|source| ContainerError::Runtime {
                operation: "OCI runtime ps failed",
                source,
            })?;
        let exec_of = |pid| {
            let mut execs = self.execs.iter();
            execs
                .find(|(_, exec)| exec.process.pid == pid)
                .map(|(exec_id, _)| exec_id.clone())
        };
        Ok(pids
            .into_iter()
            .map(|pid| ListedProcess {
                pid,
                exec_id: exec_of(pid),
            })
            .collect())
    }

    pub(super) async fn delete(&mut self, exec_id: ExecId, reply: Reply<Exited>) {
        let init = exec_id.is_none();
        let phase = match self.process(&exec_id) {
            Ok(process) => process.phase,
            Err(error) => return answer(reply, Err(error)),
        };
        match phase {
            Phase::Running => answer(reply, refuse("delete", "a running process")),
            Phase::Paused => answer(reply, refuse("delete", "a paused process")),
            // The runtime ends the waiting process, whose exit then comes as any other's.
            Phase::Created if init && self.held_exit.is_none() => {
                match self.runtime.delete(true).await {
                    Ok(()) => self.delete_at_exit = Some(reply),
                    Err(source) => {
                        let operation = "failed to delete task";
                        answer(reply, Err(ContainerError::Runtime { operation, source }));
                    }
                }
            }
            Phase::Created | Phase::Stopped => self.drain(exec_id, reply),
        }
    }

    /// Has the output of a process that has ended passed on, beside the driver.
    pub(super) fn drain(&mut self, exec_id: ExecId, reply: Reply<Exited>) {
        let io = match self.process(&exec_id) {
            Ok(process) => process.io.take(),
            Err(error) => return answer(reply, Err(error)),
        };
        let notify = self.notify.clone();
        tokio::spawn(async move {
            if let Some(io) = io {
                io.drain().await;
            }
            // A driver that has ended needs no notice.
            drop(notify.send(Notice::Drained { exec_id, reply }));
        });
    }

    pub(super) async fn delete_drained(&mut self, reply: Reply<Exited>) {
        let deleted = match self.runtime.delete(false).await {
            Err(source) if !source.to_string().contains("does not exist") => {
                Err(ContainerError::Runtime {
                    operation: "failed to delete task",
                    source,
                })
            }
            _ => Ok(()),
        };
        let unmounted = match self.rootfs.as_deref() {
            Some(rootfs) => unmount_when_unused(rootfs).await,
            None => Ok(()),
        };
        if let Err(error) = &unmounted {
            warn!("failed to cleanup rootfs mount: {error}");
        }
        if let Err(error) = deleted.and(unmounted) {
            return answer(reply, Err(error));
        }
        self.deleted = true;
        let exited = self.init.exited().unwrap_or_default();
        let exited = Exited {
            pid: self.init.pid,
            ..exited
        };
        task_events::deleted(&self.shared.events, &self.id, exited);
        answer(reply, Ok(exited));
    }
}

/// What a failed kill means: the runtime says so only in words.
fn kill_error(source: RuntimeError) -> ContainerError {
    let text = source.to_string();
    if text.contains("os: process already finished")
        || text.contains("container not running")
        || text.to_lowercase().contains("no such process")
    {
        ContainerError::AlreadyFinished
    } else if text.contains("does not exist") {
        ContainerError::NoSuchContainer
    } else {
        ContainerError::Kill { source }
    }
}
