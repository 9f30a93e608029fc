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
mod execs;
mod lifecycle;
mod resources;

pub use asleep::identity;

use std::collections::HashMap;

use std::path::PathBuf;
use std::sync::Arc;

use log::warn;
use podmotion_criu_driver::spec::Spec;
use podmotion_model::settings::Settings;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::command::{Command, ExecId, Reply};
use super::create::{NewContainer, unmount};
use super::guest::Lease;
use super::process::{Exec, Process};
use super::{ContainerError, Exited, Phase, ProcessState, Shared};
use crate::cgroup::Cgroup;
use crate::reaper::Exit;
use crate::runtime::Runtime;
use crate::runtime::options::Options;
use crate::sleep::Sleeper;
use crate::stdio::ProcessIo;
use crate::{footprint, oom, sys, task_events};

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
    pub host: Option<Lease>,
    pub init: Process,
    pub exit: oneshot::Receiver<Exit>,
}

/// Owner of one container's state.
pub struct Driver {
    id: String,
    spec: Arc<Spec>,
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
    /// What was changed since the bundle was made, in the runtime's form.
    resources: Option<serde_json::Value>,
    commands: mpsc::Receiver<Command>,
    notices: mpsc::UnboundedReceiver<Notice>,
    notify: mpsc::UnboundedSender<Notice>,
    /// Looks after the container's sleep.
    sleeper: Sleeper,
    /// Commands that wait for the container to be awake.
    waiting: Vec<Command>,
    /// Those that it gets when it wakes.
    update_later: Option<Vec<u8>>,
    input: Arc<Notify>,
    bundle: PathBuf,
    cgroup: Option<Cgroup>,
    /// Of the container whose PID namespace it has joined.
    _host: Option<Lease>,
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
            host,
            init,
            exit,
        } = parts;
        let (notify, notices) = mpsc::unbounded_channel();
        task_events::created(&shared.events, &new, init.pid);
        let input = init.io.as_ref().map(ProcessIo::input).unwrap_or_default();
        let sleeper = asleep::sleeper(&new, &spec, settings, &shared);
        let mut driver = Self {
            id: new.id,
            spec: Arc::new(spec),
            options,
            rootfs,
            runtime,
            shared,
            init,
            execs: HashMap::new(),
            held_exit: None,
            delete_at_exit: None,
            oom_watch: None,
            resources: None,
            commands,
            notices,
            notify,
            sleeper,
            waiting: Vec::new(),
            update_later: None,
            input,
            bundle: new.bundle,
            cgroup,
            _host: host,
            deleted: false,
        };
        driver.watch_init(exit);
        driver.watch_memory();
        driver
    }

    /// Has a lack of memory in its cgroup reported. Of a cgroup that is made anew too.
    fn watch_memory(&mut self) {
        if let Some(before) = self.oom_watch.take() {
            before.abort();
        }
        let Some(cgroup) = &self.cgroup else {
            return;
        };
        let (events, id) = (self.shared.events.clone(), self.id.clone());
        self.oom_watch = oom::watch(cgroup, move || task_events::out_of_memory(&events, &id))
            .inspect_err(|error| warn!("watch container {} for OOM: {error}", self.id))
            .ok();
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
                () = self.input.notified() => {
                    let outcome = self.sleeper.input_arrived();
                    self.follow(outcome).await;
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.handle_command(command).await,
                    None => break,
                },
            }
        }
        drop(self);
        footprint::tidy_soon();
    }

    /// Removes a container that was created for nobody.
    pub async fn abandon(mut self) {
        warn!(
            "container {} removed: its creation was given up by containerd",
            self.id
        );
        if let Err(error) = self.runtime.delete(true).await {
            warn!("remove container {}: {error}", self.id);
        }
        if let Some(watch) = self.oom_watch.take() {
            watch.abort();
        }
        if let Some(Err(error)) = self.rootfs.as_deref().map(unmount) {
            warn!("{error}");
        }
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
            Command::Lend { reply } => answer(reply, Ok((self.init.pid, self.sleeper.lend()))),
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

    fn state(&mut self, exec_id: &ExecId) -> Result<ProcessState, ContainerError> {
        let paused = self.init.phase == Phase::Paused;
        let mut state = self.process(exec_id)?.state();
        if paused {
            state.phase = Phase::Paused;
        }
        Ok(state)
    }

    async fn init_exited(&mut self, exit: Exit) {
        // Of a container whose start anew failed the end has been told already.
        if exit.pid != self.init.pid || self.init.phase == Phase::Stopped {
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
        // What waited for a wake is told that there will be none.
        for command in std::mem::take(&mut self.waiting) {
            self.handle_command(command).await;
        }
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
}

/// Answers a command; one who no longer waits is not an error.
fn answer<T>(reply: Reply<T>, result: Result<T, ContainerError>) {
    drop(reply.send(result));
}

fn refuse<T>(action: &'static str, state: &'static str) -> Result<T, ContainerError> {
    Err(ContainerError::Refused { action, state })
}
