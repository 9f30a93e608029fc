//! One container, run as `ctr run` does it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use prost::Message;
use prost_types::Any;
use serde_json::json;
use tonic::transport::Channel;

use crate::api::{
    Api, Mount, NAMESPACE, Process, TaskStatus, containers, rpc, runc_options, runtime, snapshots,
    tasks,
};
use crate::app::{App, Network};
use crate::capture::Capture;
use crate::cgroup::CgroupDriver;
use crate::exec::{Exec, ExecProcess};
use crate::machine::Machine;
use crate::netns::Netns;
use crate::node::Node;
use crate::sleeper::{Sleeper, Status};
use crate::spec;
use crate::stdio::Stdio;

type Tasks = tasks::tasks_client::TasksClient<Channel>;
type Containers = containers::containers_client::ContainersClient<Channel>;
type Snapshots = snapshots::snapshots_client::SnapshotsClient<Channel>;

const SNAPSHOTTER: &str = "overlayfs";

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 and the signal.
    pub status: u32,
}

/// containerd's view of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    Unknown,
    Created,
    Running,
    Stopped,
    Paused,
    Pausing,
}

impl State {
    fn of(process: &Process) -> Self {
        match process.status() {
            TaskStatus::Unknown => Self::Unknown,
            TaskStatus::Created => Self::Created,
            TaskStatus::Running => Self::Running,
            TaskStatus::Stopped => Self::Stopped,
            TaskStatus::Paused => Self::Paused,
            TaskStatus::Pausing => Self::Pausing,
        }
    }
}

/// A container with a task. Dropping it kills and removes both.
#[derive(Debug)]
pub struct Container {
    node: Node,
    id: String,
    app: App,
    netns: Option<Arc<Netns>>,
    stdio: Stdio,
    rootfs: Vec<Mount>,
    execs: AtomicU32,
}

impl Container {
    /// Makes the record and the root file system. The task is not made yet.
    pub(crate) fn record(node: &Node, mut app: App) -> Result<Self> {
        let id = node.next_id();
        if !app.ports.is_empty() {
            // By name, which is the id where there is no pod.
            let ports: Vec<_> = app.ports.iter().map(u16::to_string).collect();
            app = app.annotation("ports-map", &format!("{id}={}", ports.join(",")));
        }
        let api = node.api();
        node.need_image(app.image)?;
        let netns = match &app.network {
            Network::Own => Some(Arc::new(Netns::new()?)),
            Network::Namespace(netns) => Some(Arc::clone(netns)),
            Network::None | Network::Host => None,
        };
        let stdio = Stdio::new(
            &node.io_folder().join(&id),
            app.stdin,
            &app.stdout,
            app.terminal,
        )?;
        let mut container = Self {
            node: node.clone(),
            id,
            app,
            netns,
            stdio,
            rootfs: Vec::new(),
            execs: AtomicU32::new(0),
        };
        // The record comes first: a snapshot that no record names may be collected at once.
        rpc!(
            api,
            Containers,
            create,
            containers::CreateContainerRequest {
                container: Some(container.to_record()?)
            }
        )?;
        let prepared = rpc!(
            api,
            Snapshots,
            prepare,
            snapshots::PrepareSnapshotRequest {
                snapshotter: SNAPSHOTTER.into(),
                key: container.id.clone(),
                parent: container.app.image.chain_id(&api)?,
                labels: Default::default(),
            }
        )?;
        container.rootfs = prepared.mounts;
        Ok(container)
    }

    /// Makes the task: the container exists, its program does not run yet.
    pub fn create_task(&self) -> Result<u32> {
        let answer = rpc!(self.node.api(), Tasks, create, self.task_request())?;
        Ok(answer.pid)
    }

    /// Has the task made, and is gone as soon as `begun` returns: containerd has nobody to answer.
    pub fn give_up_task(&self, begun: impl FnOnce() -> Result<()>) -> Result<()> {
        let (channel, message) = (self.node.api().channel(), self.task_request());
        let call = runtime().spawn(async move {
            let request = Api::request(NAMESPACE, message);
            Tasks::new(channel).create(request).await
        });
        let begun = begun();
        call.abort();
        begun
    }

    fn task_request(&self) -> tasks::CreateTaskRequest {
        tasks::CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.rootfs.clone(),
            stdin: self.stdio.stdin_name(),
            stdout: self.stdio.stdout_name(),
            stderr: self.stdio.stderr_name(),
            terminal: self.app.terminal,
            options: None,
        }
    }

    /// Its id in containerd.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What was asked for.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Where it runs.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its network namespace, if the harness made one.
    pub fn netns(&self) -> Option<&Arc<Netns>> {
        self.netns.as_ref()
    }

    /// A port of it, IPv4.
    pub fn address(&self, port: u16) -> Result<SocketAddr> {
        let netns = self.netns().context("the container has no address")?;
        Ok(SocketAddr::new(netns.ipv4(), port))
    }

    /// A port of it, IPv6.
    pub fn address6(&self, port: u16) -> Result<SocketAddr> {
        let netns = self.netns().context("the container has no address")?;
        Ok(SocketAddr::new(netns.ipv6(), port))
    }

    /// Its control group, as a path below each hierarchy.
    pub fn cgroup(&self) -> Result<String> {
        Ok(Machine::get()?.groups().of(&self.id))
    }

    /// Its sleep.
    pub fn sleeper(&self) -> Sleeper {
        Sleeper::new(&self.id, &self.id)
    }

    /// [`Sleeper::sleep`].
    pub fn sleep(&self) -> Result<()> {
        self.sleeper().sleep()
    }

    /// [`Sleeper::wake`].
    pub fn wake(&self) -> Result<()> {
        self.sleeper().wake()
    }

    /// [`Sleeper::status`].
    pub fn status(&self) -> Result<Status> {
        self.sleeper().status()
    }

    /// [`Sleeper::wait_state`].
    pub fn wait_state(&self, state: &str) -> Result<Status> {
        self.sleeper().wait_state(state)
    }

    /// Starts the program; returns its host pid.
    pub fn start(&self) -> Result<u32> {
        self.start_process("")
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<Exit> {
        self.wait_process("")
    }

    /// Its state.
    pub fn state(&self) -> Result<State> {
        self.process_state("")
    }

    /// The host pid of its first process, as containerd knows it.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process("")?.pid)
    }

    /// Sends its first process a signal.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.kill_process("", signal, false)
    }

    /// Sends all its processes a signal.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        self.kill_process("", signal, true)
    }

    /// Freezes it.
    pub fn pause(&self) -> Result<()> {
        let container_id = self.id.clone();
        let message = tasks::PauseTaskRequest { container_id };
        rpc!(self.node.api(), Tasks, pause, message)
    }

    /// Thaws it.
    pub fn resume(&self) -> Result<()> {
        let container_id = self.id.clone();
        let message = tasks::ResumeTaskRequest { container_id };
        rpc!(self.node.api(), Tasks, resume, message)
    }

    /// Its metrics: type URL and bytes.
    pub fn metrics(&self) -> Result<(String, Vec<u8>)> {
        let message = tasks::MetricsRequest {
            filters: vec![format!("id=={}", self.id)],
        };
        let answer = rpc!(self.node.api(), Tasks, metrics, message)?;
        let data = answer
            .metrics
            .into_iter()
            .find_map(|metric| metric.data)
            .context("no metrics")?;
        Ok((data.type_url, data.value))
    }

    /// Changes its memory limit, in bytes.
    pub fn update_memory(&self, bytes: u64) -> Result<()> {
        let resources = json!({"memory": {"limit": bytes}}).to_string();
        let message = tasks::UpdateTaskRequest {
            container_id: self.id.clone(),
            resources: Some(Any {
                type_url: spec::RESOURCES.into(),
                value: resources.into_bytes(),
            }),
            annotations: Default::default(),
        };
        rpc!(self.node.api(), Tasks, update, message)
    }

    /// Host pids of all its processes.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let container_id = self.id.clone();
        let message = tasks::ListPidsRequest { container_id };
        let answer = rpc!(self.node.api(), Tasks, list_pids, message)?;
        Ok(answer.processes.iter().map(|process| process.pid).collect())
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.resize_process("", width, height)
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
        self.close_io("")
    }

    /// Adds a process that is not started yet.
    pub fn exec(&self, exec: &Exec) -> Result<ExecProcess<'_>> {
        let number = self.execs.fetch_add(1, Ordering::Relaxed);
        ExecProcess::add(self, format!("exec-{number}"), exec)
    }

    /// Runs a process to its end; returns how it ended and what it printed.
    pub fn exec_output(&self, exec: &Exec) -> Result<(Exit, String)> {
        let mut process = self.exec(exec)?;
        process.start()?;
        let exit = process.wait()?;
        process.delete()?;
        let output = process.stdout()?.wait_end()?;
        Ok((exit, String::from_utf8_lossy(&output).into_owned()))
    }

    /// Removes the task; it must have ended.
    pub fn delete_task(&self) -> Result<Exit> {
        let container_id = self.id.clone();
        let message = tasks::DeleteTaskRequest { container_id };
        let answer = rpc!(self.node.api(), Tasks, delete, message)?;
        Ok(Exit {
            status: answer.exit_status,
        })
    }

    pub(crate) fn io_folder(&self) -> &Path {
        self.node.io_folder()
    }

    pub(crate) fn start_process(&self, exec_id: &str) -> Result<u32> {
        let (container_id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let message = tasks::StartRequest {
            container_id,
            exec_id,
        };
        Ok(rpc!(self.node.api(), Tasks, start, message)?.pid)
    }

    pub(crate) fn wait_process(&self, exec_id: &str) -> Result<Exit> {
        let (container_id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let message = tasks::WaitRequest {
            container_id,
            exec_id,
        };
        let status = rpc!(self.node.api(), Tasks, wait, message)?.exit_status;
        Ok(Exit { status })
    }

    pub(crate) fn process_state(&self, exec_id: &str) -> Result<State> {
        Ok(State::of(&self.process(exec_id)?))
    }

    fn process(&self, exec_id: &str) -> Result<Process> {
        let (container_id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let message = tasks::GetRequest {
            container_id,
            exec_id,
        };
        rpc!(self.node.api(), Tasks, get, message)?
            .process
            .context("an answer without a process")
    }

    pub(crate) fn kill_process(&self, exec_id: &str, signal: i32, all: bool) -> Result<()> {
        let message = tasks::KillRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal: u32::try_from(signal).context("a signal's number")?,
            all,
        };
        rpc!(self.node.api(), Tasks, kill, message)
    }

    pub(crate) fn resize_process(&self, exec_id: &str, width: u32, height: u32) -> Result<()> {
        let message = tasks::ResizePtyRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width,
            height,
        };
        rpc!(self.node.api(), Tasks, resize_pty, message)
    }

    pub(crate) fn close_io(&self, exec_id: &str) -> Result<()> {
        let message = tasks::CloseIoRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            stdin: true,
        };
        rpc!(self.node.api(), Tasks, close_io, message)
    }

    fn to_record(&self) -> Result<containers::Container> {
        let machine = Machine::get()?;
        let options = runc_options::Options {
            binary_name: match &self.app.runc {
                Some(program) => program.display().to_string(),
                None => self.node.tools().runc()?.display().to_string(),
            },
            systemd_cgroup: machine.cgroup_driver() == CgroupDriver::Systemd,
            ..Default::default()
        };
        let netns = match (&self.app.network, &self.netns) {
            (Network::Host, _) => None,
            (_, Some(netns)) => Some(netns.path()),
            (_, None) => Some(Default::default()),
        };
        let cgroup = machine.groups().to_spec(&self.id);
        let spec = spec::container(&self.app, &cgroup, netns.as_deref()).to_string();
        Ok(containers::Container {
            id: self.id.clone(),
            image: self.app.image.reference().into(),
            runtime: Some(containers::container::Runtime {
                name: self.app.runtime.runtime_type().into(),
                options: Some(Any {
                    type_url: "containerd.runc.v1.Options".into(),
                    value: options.encode_to_vec(),
                }),
            }),
            spec: Some(Any {
                type_url: spec::SPEC.into(),
                value: spec.into_bytes(),
            }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: self.id.clone(),
            ..Default::default()
        })
    }
}

impl Drop for Container {
    /// Best effort and quick: what cannot be removed here is when the machine is left.
    fn drop(&mut self) {
        if self.kill_all(libc::SIGKILL).is_ok() || self.state().is_ok() {
            let _ = self.wait();
            let _ = self.delete_task();
        }
        let id = self.id.clone();
        let message = containers::DeleteContainerRequest { id };
        let _ = rpc!(self.node.api(), Containers, delete, message);
        let message = snapshots::RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: self.id.clone(),
        };
        let _ = rpc!(self.node.api(), Snapshots, remove, message);
    }
}
