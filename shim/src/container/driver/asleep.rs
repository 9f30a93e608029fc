//! The driver of a container that may sleep: what its commands mean while there is no process, and
//! what follows from a sleep or a wake.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use libc::SIGKILL;
use nix::errno::Errno;
use podmotion_model::lifecycle::{Depth, WakeCause};
use podmotion_model::settings::Settings;

use super::*;
use crate::container::command::ListedProcess;
use crate::runtime::Streams;
use crate::sleep::facts::Known;
use crate::sleep::placeholder::systemd_is_running;
use crate::sleep::status::Identity;
use crate::sleep::{Fixed, New, Outcome, Sleeper};

/// Exit status of a process that SIGKILL ended.
const KILLED: u32 = 128 + 9;
/// Exit status of a process that SIGTERM ended.
const TERMINATED: u32 = 128 + 15;

/// Who a container is: its pod's annotations as containerd's CRI plugin sets them, or its id alone.
pub fn identity(id: &str, namespace: &str, spec: &Spec) -> Identity {
    let annotation = |name: &str| {
        let key = format!("io.kubernetes.cri.{name}");
        spec.annotations.get(&key).cloned().unwrap_or_default()
    };
    let name = annotation("container-name");
    Identity {
        id: id.to_owned(),
        namespace: namespace.to_owned(),
        name: if name.is_empty() { id.to_owned() } else { name },
        pod_name: annotation("sandbox-name"),
        pod_namespace: annotation("sandbox-namespace"),
        pod_uid: annotation("sandbox-uid"),
        image: annotation("image-name"),
    }
}

/// What looks after the sleep of a container that has just been created.
pub fn sleeper(new: &NewContainer, spec: &Spec, settings: Settings, shared: &Shared) -> Sleeper {
    Sleeper::new(New {
        identity: identity(&new.id, &shared.namespace, spec),
        settings,
        node: Arc::clone(&shared.node),
        reaper: shared.reaper.clone(),
        fixed: Fixed {
            sandbox: spec.is_sandbox(),
            terminal: new.stdio.terminal,
            shared_pid_namespace: !spec.has_own_pid_namespace(),
        },
    })
}

impl Driver {
    /// The container's process runs: from now on it may sleep.
    pub(super) async fn may_sleep(&mut self) {
        let Some(cgroup) = self.cgroup.clone() else {
            return;
        };
        let known = self.ends().map(|stdio| Known {
            id: self.id.clone(),
            pid: self.init.pid,
            bundle: self.bundle.clone(),
            spec: Arc::clone(&self.spec),
            runc_state: self.runtime.state_dir(),
            cgroup,
            stdio: Arc::new(stdio),
            systemd: self.runtime.uses_systemd() && systemd_is_running(),
        });
        match known {
            Ok(known) => {
                let outcome = self.sleeper.started(known);
                self.follow(outcome).await;
            }
            Err(error) => warn!(
                "container {} never sleeps: copy its streams: {error}",
                self.id
            ),
        }
    }

    /// Copies of the process's ends of its pipes.
    fn ends(&self) -> std::io::Result<Vec<std::os::fd::OwnedFd>> {
        let Some(io) = &self.init.io else {
            return Ok(Vec::new());
        };
        let ends = io.ends();
        [&ends.stdin, &ends.stdout, &ends.stderr]
            .into_iter()
            .flatten()
            .map(|end| end.as_fd().try_clone_to_owned())
            .collect()
    }

    /// Deals with a command for a container that is not awake. Returns it if it can be carried out
    /// at once.
    pub(super) async fn answer_asleep(&mut self, command: Command) -> Option<Command> {
        if !self.sleeper.needs_wake() {
            return Some(command);
        }
        let command = match command {
            Command::Update { resources, reply } if self.changes_only_weight(&resources) => {
                self.update_at_wake(&resources);
                answer(reply, Ok(()));
                return None;
            }
            other => other,
        };
        let cause = match &command {
            Command::Start {
                exec_id: Some(_), ..
            }
            | Command::Lend { .. } => WakeCause::Exec,
            Command::Kill {
                exec_id: None,
                signal,
                ..
            } if let Some(depth) = self.sleeper.depth() => {
                // One that was stopped has had its TERM.
                let ends_on_term = depth == Depth::Cold || self.sleeper.discards_on_term();
                match (*signal, ends_on_term) {
                    (9, _) => return self.end_asleep(command, depth, KILLED).await,
                    (15, true) => return self.end_asleep(command, depth, TERMINATED).await,
                    _ => WakeCause::Signal,
                }
            }
            Command::Kill { exec_id: None, .. } if self.sleeper.is_starting() => {
                return Some(command);
            }
            Command::Kill { exec_id: None, .. } => WakeCause::Signal,
            Command::Pause { .. } => WakeCause::Pause,
            Command::Resize { exec_id: None, .. } => WakeCause::Resize,
            Command::CloseIo { exec_id: None, .. } => WakeCause::Attach,
            Command::Update { .. } => WakeCause::Update,
            Command::Pids { .. } if self.sleeper.has_processes() => return Some(command),
            Command::Pids { .. } => {
                if let Command::Pids { reply } = command {
                    // Never none: a containerd that starts again takes the shim of a task without
                    // processes for a leftover, and removes both.
                    let init = ListedProcess {
                        pid: self.init.pid,
                        exec_id: None,
                    };
                    answer(reply, Ok(vec![init]));
                }
                return None;
            }
            _ => return Some(command),
        };
        self.waiting.push(command);
        let outcome = self.sleeper.wake(cause);
        self.follow(outcome).await;
        None
    }

    async fn end_asleep(&mut self, command: Command, depth: Depth, status: u32) -> Option<Command> {
        match depth {
            Depth::Light => self.sleeper.kill_light(status),
            Depth::Deep | Depth::Cold => {
                let outcome = self.sleeper.end_asleep(status);
                self.follow(outcome).await;
            }
        }
        if let Command::Kill { reply, .. } = command {
            answer(reply, Ok(()));
        }
        None
    }

    /// Does what follows from a sleep, a wake, or the failure of one.
    pub(super) async fn follow(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Nothing => return,
            Outcome::Awake => {}
            Outcome::Moved { pid, exit } => {
                self.init.pid = pid;
                self.watch_init(exit);
            }
            Outcome::Ended(exit) => {
                self.held_exit = Some(exit);
                self.report_held_exit().await;
            }
            Outcome::Kill => self.kill_rest(),
            Outcome::ColdStart => {
                if let Err(error) = self.start_anew().await {
                    warn!("start container {} anew: {error}", self.id);
                    let outcome = self.sleeper.end_asleep(KILLED);
                    Box::pin(self.follow(outcome)).await;
                }
            }
        }
        self.update_now().await;
        for command in std::mem::take(&mut self.waiting) {
            Box::pin(self.handle_command(command)).await;
        }
    }

    /// Ends the container's processes; the exit of the first one comes as any other's.
    fn kill_rest(&self) {
        match sys::kill(self.init.pid, SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => warn!("kill container {}: {error}", self.id),
        }
    }

    /// The container's program, started once more in the same bundle, with the same streams.
    async fn start_anew(&mut self) -> Result<(), ContainerError> {
        let mut streams = Streams::default();
        if let Some(io) = &self.init.io {
            let copy = |end: &Option<std::os::fd::OwnedFd>| {
                end.as_ref()
                    .map(|end| end.as_fd().try_clone_to_owned())
                    .transpose()
            };
            let keep = |source| ContainerError::KeepStreams { source };
            streams.stdin = copy(&io.ends().stdin).map_err(keep)?;
            streams.stdout = copy(&io.ends().stdout).map_err(keep)?;
            streams.stderr = copy(&io.ends().stderr).map_err(keep)?;
        }
        let failed = |operation| move |source| ContainerError::Runtime { operation, source };
        self.runtime
            .delete(true)
            .await
            .map_err(failed("remove what was not restored"))?;
        let expectation = self.shared.reaper.expect();
        let created = self.runtime.create(streams).await;
        let pid = created.map_err(failed("OCI runtime create failed"))?;
        let exit = self.shared.reaper.watch(pid);
        drop(expectation);
        self.init.pid = pid;
        self.watch_init(exit);
        self.watch_memory();
        // The bundle has them as they were when it was made. Those that came while it slept are among them.
        self.update_later = None;
        if let Some(resources) = &self.resources {
            let updated = self.runtime.update(resources.to_string().as_bytes()).await;
            updated.map_err(failed("OCI runtime update failed"))?;
        }
        self.runtime
            .start()
            .await
            .map_err(failed("OCI runtime start failed"))?;
        Box::pin(self.may_sleep()).await;
        Ok(())
    }
}
