//! The task that owns one container.
//!
//! ```text
//!  Created --start--> Running <--pause/resume--> Paused
//!     |                  |                         |
//!     +------ exit ------+---------- exit ---------+--> Stopped --delete--> (driver ends)
//! ```
//!
//! Invariants:
//! - Nobody else changes the container's state, so no two commands to the runtime overlap, except
//!   that execs are started beside the driver: the runtime may take long for one.
//! - The exit of the first process is the last exit reported for the container: other processes
//!   are killed where the kernel does not do it, and waited for.
//! - Every event is sent before the command that caused it is answered.

mod asleep;

pub use asleep::identity;

use std::collections::HashMap;

use std::path::PathBuf;

use log::warn;
use nix::errno::Errno;
use podmotion_model::settings::Settings;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::command::{Command, ExecId, ListedProcess, NewExec, Reply};
use super::create::{NewContainer, unmount};
use super::process::{Exec, Process};
use super::{ContainerError, Exited, Phase, ProcessState, Shared};
use crate::cgroup::Cgroup;
use crate::reaper::Exit;
use crate::runtime::options::Options;
use crate::runtime::spec::Spec;
use crate::runtime::{Runtime, RuntimeError};
use crate::sleep::Sleeper;
use crate::stdio::{Owner, Prepared, ProcessIo};
use crate::{oom, sys, task_events};

/// What the driver is told by its own helpers.
enum Notice {
    /// The container's first process has ended.
    InitExited(Exit),
    /// An exec has ended.
    ExecExited { exec_id: String, exit: Exit },
    /// The runtime has started an exec, or failed to.
    ExecStarted {
        exec_id: String,
        result: Result<StartedExec, ContainerError>,
        reply: Reply<i32>,
    },
    /// The output of a process to be deleted is with its reader.
    Drained {
        exec_id: ExecId,
        reply: Reply<Exited>,
    },
}

/// An exec that the runtime has started.
struct StartedExec {
    pid: i32,
    io: ProcessIo,
    exit: oneshot::Receiver<Exit>,
}

/// A container that has just been created.
pub struct Parts {
    pub new: NewContainer,
    pub spec: Spec,
    pub options: Options,
    pub rootfs: Option<PathBuf>,
    pub runtime: Runtime,
    pub cgroup: Option<Cgroup>,
    pub settings: Settings,
    pub init: Process,
    pub exit: oneshot::Receiver<Exit>,
}

/// Owner of one container's state.
pub struct Driver {
    id: String,
    spec: Spec,
    options: Options,
    rootfs: Option<PathBuf>,
    runtime: Runtime,
    shared: Shared,
    init: Process,
    execs: HashMap<String, Exec>,
    /// The first process's exit, until no exec is left.
    held_exit: Option<Exit>,
    /// Who waits for the deletion of a container that had not been started.
    delete_at_exit: Option<Reply<Exited>>,
    oom_watch: Option<JoinHandle<()>>,
    commands: mpsc::Receiver<Command>,
    notices: mpsc::UnboundedReceiver<Notice>,
    notify: mpsc::UnboundedSender<Notice>,
    /// Looks after the container's sleep.
    sleeper: Sleeper,
    /// Commands that wait for the container to be awake.
    waiting: Vec<Command>,
    bundle: PathBuf,
    cgroup: Option<Cgroup>,
    deleted: bool,
}

impl Driver {
    /// Takes over a container that has just been created and reports it.
    pub fn new(parts: Parts, shared: Shared, commands: mpsc::Receiver<Command>) -> Self {
        let Parts {
            new,
            spec,
            options,
            rootfs,
            runtime,
            cgroup,
            settings,
            init,
            exit,
        } = parts;
        let (notify, notices) = mpsc::unbounded_channel();
        task_events::created(&shared.events, &new, init.pid);
        let oom_watch = cgroup.as_ref().and_then(|cgroup| {
            let (events, id) = (shared.events.clone(), new.id.clone());
            oom::watch(cgroup, move || task_events::out_of_memory(&events, &id))
                .inspect_err(|error| warn!("watch container {} for OOM: {error}", new.id))
                .ok()
        });
        let sleeper = asleep::sleeper(&new, &spec, settings, &shared);
        let driver = Self {
            id: new.id,
            spec,
            options,
            rootfs,
            runtime,
            shared,
            init,
            execs: HashMap::new(),
            held_exit: None,
            delete_at_exit: None,
            oom_watch,
            commands,
            notices,
            notify,
            sleeper,
            waiting: Vec::new(),
            bundle: new.bundle,
            cgroup,
            deleted: false,
        };
        driver.watch_init(exit);
        driver
    }

    /// Pid of the container's first process.
    pub fn pid(&self) -> i32 {
        self.init.pid
    }

    /// Works until the container has been deleted.
    pub async fn run(mut self) {
        while !self.deleted {
            tokio::select! {
                biased;
                // The driver itself holds a sender: this channel does not end.
                Some(notice) = self.notices.recv() => self.handle_notice(notice).await,
                notice = self.sleeper.next() => {
                    let outcome = self.sleeper.handle(notice);
                    self.follow(outcome).await;
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.handle_command(command).await,
                    None => break,
                },
            }
        }
        drop(self);
        sys::trim_heap();
    }

    /// Has the exit of the container's first process come as a notice.
    fn watch_init(&self, exit: oneshot::Receiver<Exit>) {
        let notify = self.notify.clone();
        tokio::spawn(async move {
            if let Ok(exit) = exit.await {
                // A driver that has ended needs no notice.
                drop(notify.send(Notice::InitExited(exit)));
            }
        });
    }

    async fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::InitExited(exit) => self.init_exited(exit).await,
            Notice::ExecExited { exec_id, exit } => self.exec_exited(&exec_id, exit).await,
            Notice::ExecStarted {
                exec_id,
                result,
                reply,
            } => {
                self.exec_started(&exec_id, result, reply).await;
            }
            Notice::Drained {
                exec_id: None,
                reply,
            } => self.delete_drained(reply).await,
            Notice::Drained {
                exec_id: Some(exec_id),
                reply,
            } => {
                self.delete_drained_exec(&exec_id, reply);
            }
        }
    }

    async fn handle_command(&mut self, command: Command) {
        let Some(command) = self.defer_while_starting(command) else {
            return;
        };
        let Some(command) = self.answer_asleep(command).await else {
            return;
        };
        match command {
            Command::Start {
                exec_id: None,
                reply,
            } => answer(reply, self.start().await),
            Command::Start {
                exec_id: Some(exec_id),
                reply,
            } => self.start_exec(exec_id, reply),
            Command::State { exec_id, reply } => answer(reply, self.state(&exec_id)),
            Command::Exec { new, reply } => answer(reply, self.add_exec(new)),
            Command::Kill {
                exec_id,
                signal,
                all,
                reply,
            } => {
                answer(reply, self.kill(&exec_id, signal, all).await);
            }
            Command::Pause { reply } => answer(reply, self.pause().await),
            Command::Resume { reply } => answer(reply, self.resume().await),
            Command::Resize {
                exec_id,
                columns,
                rows,
                reply,
            } => {
                answer(reply, self.resize(&exec_id, columns, rows));
            }
            Command::CloseIo { exec_id, reply } => {
                let result = self.process(&exec_id).map(|process| {
                    if let Some(io) = &mut process.io {
                        io.close_stdin();
                    }
                });
                answer(reply, result);
            }
            Command::Update { resources, reply } => answer(reply, self.update(&resources).await),
            Command::Pids { reply } => answer(reply, self.pids().await),
            Command::Wait { exec_id, reply } => {
                answer(reply, self.process(&exec_id).map(|process| process.watch()));
            }
            Command::Delete { exec_id, reply } => self.delete(exec_id, reply).await,
        }
    }

    /// Keeps back what is meant for an exec that the runtime is starting; its state and its end
    /// can be asked for at any time.
    fn defer_while_starting(&mut self, command: Command) -> Option<Command> {
        let exec_id = match &command {
            Command::Start { exec_id, .. }
            | Command::Kill { exec_id, .. }
            | Command::Resize { exec_id, .. }
            | Command::CloseIo { exec_id, .. }
            | Command::Delete { exec_id, .. } => exec_id.as_ref(),
            _ => None,
        };
        let starting = exec_id
            .and_then(|exec_id| self.execs.get_mut(exec_id))
            .and_then(|exec| exec.starting.as_mut());
        match starting {
            Some(deferred) => {
                deferred.push(command);
                None
            }
            None => Some(command),
        }
    }

    fn process(&mut self, exec_id: &ExecId) -> Result<&mut Process, ContainerError> {
        match exec_id {
            None => Ok(&mut self.init),
            Some(exec_id) => Ok(&mut self.exec(exec_id)?.process),
        }
    }

    fn exec(&mut self, exec_id: &str) -> Result<&mut Exec, ContainerError> {
        self.execs
            .get_mut(exec_id)
            .ok_or_else(|| ContainerError::NoProcess {
                exec_id: exec_id.to_owned(),
            })
    }

    async fn start(&mut self) -> Result<i32, ContainerError> {
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

    fn state(&mut self, exec_id: &ExecId) -> Result<ProcessState, ContainerError> {
        let paused = self.init.phase == Phase::Paused;
        let mut state = self.process(exec_id)?.state();
        if paused {
            state.phase = Phase::Paused;
        }
        Ok(state)
    }

    fn add_exec(&mut self, new: NewExec) -> Result<(), ContainerError> {
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
    fn start_exec(&mut self, exec_id: String, reply: Reply<i32>) {
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

    async fn exec_started(
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

    async fn exec_exited(&mut self, exec_id: &str, exit: Exit) {
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

    async fn init_exited(&mut self, exit: Exit) {
        if exit.pid != self.init.pid {
            return;
        }
        let Some(exit) = self.sleeper.init_exited(exit) else {
            return;
        };
        if !self.spec.has_own_pid_namespace()
            && let Err(error) = self.runtime.kill(libc::SIGKILL.cast_unsigned(), true).await
        {
            warn!(
                "kill what container {} left behind: {}",
                self.id,
                error.message()
            );
        }
        self.held_exit = Some(exit);
        self.report_held_exit().await;
    }

    /// Reports the exit of the first process once no exec is left.
    async fn report_held_exit(&mut self) {
        if self.execs.values().any(Exec::is_live) {
            return;
        }
        let Some(exit) = self.held_exit.take() else {
            return;
        };
        if self.init.phase == Phase::Paused
            && let Err(error) = self.runtime.resume().await
        {
            warn!(
                "resume container {} that ended while paused: {}",
                self.id,
                error.message()
            );
        }
        self.init.set_exited(exit);
        if let Some(watch) = self.oom_watch.take() {
            watch.abort();
        }
        task_events::exited(&self.shared.events, &self.id, &self.id, exit);
        if let Some(reply) = self.delete_at_exit.take() {
            self.drain(None, reply);
        }
    }

    async fn kill(
        &mut self,
        exec_id: &ExecId,
        signal: u32,
        all: bool,
    ) -> Result<(), ContainerError> {
        if exec_id.is_none() {
            return self.runtime.kill(signal, all).await.map_err(kill_error);
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

    async fn pause(&mut self) -> Result<(), ContainerError> {
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

    async fn resume(&mut self) -> Result<(), ContainerError> {
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

    fn resize(&mut self, exec_id: &ExecId, columns: u16, rows: u16) -> Result<(), ContainerError> {
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

    async fn update(&mut self, resources: &[u8]) -> Result<(), ContainerError> {
        if self.init.phase == Phase::Stopped {
            return refuse("update", "a stopped container");
        }
        self.runtime
            .update(resources)
            .await
            .map_err(|source| ContainerError::Runtime {
                operation: "OCI runtime update failed",
                source,
            })
    }

    async fn pids(&mut self) -> Result<Vec<ListedProcess>, ContainerError> {
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

    async fn delete(&mut self, exec_id: ExecId, reply: Reply<Exited>) {
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
    fn drain(&mut self, exec_id: ExecId, reply: Reply<Exited>) {
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

    async fn delete_drained(&mut self, reply: Reply<Exited>) {
        let deleted = match self.runtime.delete(false).await {
            Err(source) if !source.to_string().contains("does not exist") => {
                Err(ContainerError::Runtime {
                    operation: "failed to delete task",
                    source,
                })
            }
            _ => Ok(()),
        };
        let unmounted = self.rootfs.as_deref().map_or(Ok(()), unmount);
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

    fn delete_drained_exec(&mut self, exec_id: &str, reply: Reply<Exited>) {
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

/// Answers a command; one who no longer waits is not an error.
fn answer<T>(reply: Reply<T>, result: Result<T, ContainerError>) {
    drop(reply.send(result));
}

fn refuse<T>(action: &'static str, state: &'static str) -> Result<T, ContainerError> {
    Err(ContainerError::Refused { action, state })
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
