//! Later processes of a container.

use anyhow::Result;
use prost_types::Any;
use tonic::transport::Channel;

use crate::api::{rpc, tasks};
use crate::app::{Stdin, Stdout};
use crate::capture::Capture;
use crate::container::{Container, Exit, State};
use crate::spec;
use crate::stdio::Stdio;

type Tasks = tasks::tasks_client::TasksClient<Channel>;

/// A process to be.
#[derive(Clone, Debug)]
pub struct Exec {
    args: Vec<String>,
    terminal: bool,
    stdin: Stdin,
}

impl Exec {
    /// Runs a program of the container.
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            terminal: false,
            stdin: Stdin::Null,
        }
    }

    /// Runs a shell script.
    pub fn sh(script: &str) -> Self {
        Self::new(["/bin/sh", "-c", script])
    }

    /// Gives it a terminal.
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// Opens its input.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }
}

/// A later process of a container, until it is dropped.
#[derive(Debug)]
pub struct ExecProcess<'a> {
    container: &'a Container,
    id: String,
    stdio: Stdio,
    deleted: bool,
}

impl<'a> ExecProcess<'a> {
    pub(crate) fn add(container: &'a Container, id: String, exec: &Exec) -> Result<Self> {
        let base = container
            .io_folder()
            .join(format!("{}-{id}", container.id()));
        let stdio = Stdio::new(&base, exec.stdin, &Stdout::Captured, exec.terminal)?;
        let value = spec::process(&exec.args, &container.app().env, exec.terminal).to_string();
        rpc!(
            container.node().api(),
            Tasks,
            exec,
            tasks::ExecProcessRequest {
                container_id: container.id().to_owned(),
                stdin: stdio.stdin_name(),
                stdout: stdio.stdout_name(),
                stderr: stdio.stderr_name(),
                terminal: exec.terminal,
                spec: Some(Any {
                    type_url: spec::PROCESS.into(),
                    value: value.into_bytes(),
                }),
                exec_id: id.clone(),
            }
        )?;
        Ok(Self {
            container,
            id,
            stdio,
            deleted: false,
        })
    }

    /// Its id in the container.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it; returns its host pid.
    pub fn start(&self) -> Result<u32> {
        self.container.start_process(&self.id)
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<Exit> {
        self.container.wait_process(&self.id)
    }

    /// Its state.
    pub fn state(&self) -> Result<State> {
        self.container.process_state(&self.id)
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.container.kill_process(&self.id, signal, false)
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.container.resize_process(&self.id, width, height)
    }

    /// What it prints.
    pub fn stdout(&self) -> Result<&Capture> {
        self.stdio.stdout()
    }

    /// What it complains about.
    pub fn stderr(&self) -> Result<&Capture> {
        self.stdio.stderr()
    }

    /// Writes to its input.
    pub fn write_stdin(&self, bytes: &[u8]) -> Result<()> {
        self.stdio.write(bytes)
    }

    /// Ends its input.
    pub fn close_stdin(&mut self) -> Result<()> {
        self.stdio.close_stdin();
        self.container.close_io(&self.id)
    }

    /// Removes it; it must have ended.
    pub fn delete(&mut self) -> Result<Exit> {
        let answer = rpc!(
            self.container.node().api(),
            Tasks,
            delete_process,
            tasks::DeleteProcessRequest {
                container_id: self.container.id().to_owned(),
                exec_id: self.id.clone(),
            }
        )?;
        self.deleted = true;
        Ok(Exit {
            status: answer.exit_status,
        })
    }
}

impl Drop for ExecProcess<'_> {
    fn drop(&mut self) {
        // Best effort: the container's end ends it too.
        if !self.deleted && self.kill(libc::SIGKILL).is_ok() {
            let _ = self.wait();
        }
        if !self.deleted {
            let _ = self.delete();
        }
    }
}
