//! Further processes beside the container's first one.

use super::{Driver, Notice, StartedExec, answer, refuse};
use crate::container::command::{NewExec, Reply};
use crate::container::process::{Exec, Process};
use crate::container::{ContainerError, Exited, Phase};
use crate::reaper::Exit;
use crate::stdio::{Owner, Prepared};
use crate::task_events;

impl Driver {
    pub(super) fn add_exec(&mut self, new: NewExec) -> Result<(), ContainerError> {
        match self.init.phase {
            _ if self.execs.contains_key(&new.id) => {
                return Err(ContainerError::ExecExists { exec_id: new.id });
            }
            Phase::Paused => return refuse("exec in", "a paused state"),
            Phase::Stopped => return refuse("exec in", "a stopped state"),
            Phase::Created | Phase::Running => {}
        }
        let mut description: serde_json::Value = serde_json::from_slice(&new.process)
            .map_err(|source| ContainerError::Process { source })?;
        if let Some(description) = description.as_object_mut() {
            description.insert("terminal".into(), new.stdio.terminal.into());
        }
        task_events::exec_added(&self.shared.events, &self.id, &new.id);
        let process = Process::new(new.stdio);
        self.execs.insert(
            new.id,
            Exec {
                process,
                description,
                starting: None,
            },
        );
        Ok(())
    }

    /// Has the runtime start an exec, beside the driver.
    pub(super) fn start_exec(&mut self, exec_id: String, reply: Reply<i32>) {
        let ended = self.init.phase == Phase::Stopped || self.held_exit.is_some();
        let id = self.id.clone();
        let exec = match self.exec(&exec_id) {
            _ if ended => return answer(reply, Err(ContainerError::InitNotRunning { id })),
            Err(error) => return answer(reply, Err(error)),
            Ok(exec) => exec,
        };
        match exec.process.phase {
            Phase::Created => {}
            Phase::Stopped => return answer(reply, refuse("start", "a stopped process")),
            _ => return answer(reply, refuse("start", "a running process")),
        }
        exec.starting = Some(Vec::new());
        let stdio = exec.process.stdio().clone();
        let description = exec.description.clone();
        self.count_execs();
        let (runtime, shared) = (self.runtime.clone(), self.shared.clone());
        let (uid, gid) = (self.options.io_uid, self.options.io_gid);
        let notify = self.notify.clone();
        tokio::spawn(async move {
            let owner = Owner {
                id: &exec_id,
                namespace: &shared.namespace,
                uid,
                gid,
                reaper: &shared.reaper,
            };
            let result = async {
                let operation = "failed to create init process I/O";
                let stdio_error = |source| ContainerError::Stdio { operation, source };
                let prepared = Prepared::new(stdio, owner).await.map_err(stdio_error)?;
                let expectation = shared.reaper.expect();
                let streams = prepared.streams().map_err(stdio_error)?;
                let pid = match runtime.exec(&exec_id, &description, streams).await {
                    Ok(pid) => pid,
                    Err(source) => {
                        prepared.discard().await;
                        let operation = "OCI runtime exec failed";
                        return Err(ContainerError::Runtime { operation, source });
                    }
                };
                let exit = shared.reaper.watch(pid);
                drop(expectation);
                let operation = "failed to start io copy";
                let io = prepared
                    .attach()
                    .await
                    .map_err(|source| ContainerError::Stdio { operation, source })?;
                Ok(StartedExec { pid, io, exit })
            }
            .await;
            // A driver that has ended needs no notice.
            drop(notify.send(Notice::ExecStarted {
                exec_id,
                result,
                reply,
            }));
        });
    }

    pub(super) async fn exec_started(
        &mut self,
        exec_id: &str,
        result: Result<StartedExec, ContainerError>,
        reply: Reply<i32>,
    ) {
        let Some(exec) = self.execs.get_mut(exec_id) else {
            return;
        };
        let deferred = exec.starting.take().unwrap_or_default();
        match result {
            Ok(StartedExec { pid, io, exit }) => {
                exec.process.pid = pid;
                exec.process.io = Some(io);
                exec.process.phase = Phase::Running;
                task_events::exec_started(&self.shared.events, &self.id, exec_id, pid);
                let (notify, exec_id) = (self.notify.clone(), exec_id.to_owned());
                tokio::spawn(async move {
                    if let Ok(exit) = exit.await {
                        drop(notify.send(Notice::ExecExited { exec_id, exit }));
                    }
                });
                answer(reply, Ok(pid));
            }
            Err(error) => {
                exec.process.release_waiters();
                answer(reply, Err(error));
                self.count_execs();
                self.report_held_exit().await;
            }
        }
        for command in deferred {
            Box::pin(self.handle_command(command)).await;
        }
    }

    pub(super) async fn exec_exited(&mut self, exec_id: &str, exit: Exit) {
        let Some(exec) = self.execs.get_mut(exec_id) else {
            return;
        };
        exec.process.set_exited(exit);
        task_events::exited(&self.shared.events, &self.id, exec_id, exit);
        self.count_execs();
        self.report_held_exit().await;
    }

    fn count_execs(&mut self) {
        let live = self.execs.values().filter(|exec| exec.is_live()).count();
        self.sleeper.set_execs(live);
    }

    pub(super) fn delete_drained_exec(&mut self, exec_id: &str, reply: Reply<Exited>) {
        let Some(exec) = self.execs.remove(exec_id) else {
            let exec_id = exec_id.to_owned();
            return answer(reply, Err(ContainerError::NoProcess { exec_id }));
        };
        // It is missing where the exec did not start.
        drop(std::fs::remove_file(self.runtime.exec_pid_file(exec_id)));
        let exited = exec.process.exited().unwrap_or_default();
        answer(
            reply,
            Ok(Exited {
                pid: exec.process.pid,
                ..exited
            }),
        );
    }
}
