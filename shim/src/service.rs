//! containerd's Task service: protobuf to commands and back. The only place that knows ttrpc's
//! status codes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message as _, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::r#async::{Service, TtrpcContext};
use containerd_shim_protos::ttrpc::{self, Code};

use crate::cgroup::CgroupError;
use crate::container::command::{Command, ExecId, ListedProcess, NewExec, Reply};
use crate::container::{
    Container, ContainerError, Exited, Kind, NewContainer, Phase, RootfsMount, Shared,
};
use crate::containers::Containers;
use crate::stdio::Addresses;
use crate::timestamp;

/// The Task service of one shim.
pub struct TaskService {
    shared: Shared,
    containers: Containers,
}

impl TaskService {
    /// A service for `containers`.
    #[must_use]
    pub fn new(shared: Shared, containers: Containers) -> Self {
        Self { shared, containers }
    }

    /// The service's methods, for the server.
    ///
    /// The messages of version 2 and version 3 of the service are the same on the wire;
    /// containerd 1.x calls the one, 2.x either.
    #[must_use]
    pub fn into_methods(self) -> HashMap<String, Service> {
        let service = Arc::new(self);
        let mut methods = create_task(service.clone());
        for (_, service) in create_task(service) {
            methods.insert("containerd.task.v2.Task".to_owned(), service);
        }
        methods
    }

    async fn container(&self, id: &str) -> ttrpc::Result<Container> {
        self.containers.get(id).await.map_err(status)
    }

    async fn ask<T>(
        &self,
        id: &str,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> ttrpc::Result<T> {
        self.container(id).await?.ask(command).await.map_err(status)
    }
}

/// A failure as containerd's clients know it.
fn status(error: ContainerError) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::Unknown => Code::UNKNOWN,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.to_string()))
}

fn cgroup_status(error: CgroupError) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNKNOWN, error.to_string()))
}

fn exec(id: String) -> ExecId {
    (!id.is_empty()).then_some(id)
}

fn exited_at(exited: Option<Exited>) -> MessageField<timestamp::Timestamp> {
    MessageField::some(timestamp::or_never(exited.and_then(|exited| exited.at)))
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(unimplemented("create from a checkpoint"));
        }
        let rootfs = request.rootfs.into_iter().map(|mount| RootfsMount {
            kind: mount.type_,
            source: mount.source,
            target: mount.target,
            options: mount.options,
        });
        let new = NewContainer {
            id: request.id.clone(),
            bundle: PathBuf::from(request.bundle),
            rootfs: rootfs.collect(),
            stdio: Addresses {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            options: request.options.into_option(),
        };
        let others = self.containers.all();
        let seat = self.containers.seat(&request.id).map_err(status)?;
        let pid = Container::create(new, others, self.shared.clone(), seat)
            .await
            .map_err(status)?;
        Ok(CreateTaskResponse {
            pid: pid.cast_unsigned(),
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let exec_id = exec(request.exec_id);
        let pid = self
            .ask(&request.id, |reply| Command::Start { exec_id, reply })
            .await?;
        Ok(StartResponse {
            pid: pid.cast_unsigned(),
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.container(&request.id).await?;
        let exec_id = exec(request.exec_id.clone());
        let state = container
            .ask(|reply| Command::State { exec_id, reply })
            .await
            .map_err(status)?;
        let phase = match state.phase {
            Phase::Created => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Paused => Status::PAUSED,
            Phase::Stopped => Status::STOPPED,
        };
        // The id is the process's own, as containerd's shim has it; the field for it stays empty.
        let id = if request.exec_id.is_empty() {
            request.id
        } else {
            request.exec_id
        };
        Ok(StateResponse {
            id,
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: state.pid.cast_unsigned(),
            status: phase.into(),
            stdin: state.stdio.stdin,
            stdout: state.stdio.stdout,
            stderr: state.stdio.stderr,
            terminal: state.stdio.terminal,
            exit_status: state.exited.unwrap_or_default().status,
            exited_at: exited_at(state.exited),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let new = NewExec {
            id: request.exec_id,
            stdio: Addresses {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            process: request.spec.into_option().unwrap_or_default().value,
        };
        self.ask(&request.id, |reply| Command::Exec { new, reply })
            .await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let exec_id = exec(request.exec_id);
        let (signal, all) = (request.signal, request.all);
        self.ask(&request.id, |reply| Command::Kill {
            exec_id,
            signal,
            all,
            reply,
        })
        .await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let exec_id = exec(request.exec_id);
        let mut exit = self
            .ask(&request.id, |reply| Command::Wait { exec_id, reply })
            .await?;
        let exited = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_deleted| status(ContainerError::NotCreated))?
            .unwrap_or_default();
        Ok(WaitResponse {
            exit_status: exited.status,
            exited_at: exited_at(Some(exited)),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let exec_id = exec(request.exec_id);
        let containers = self.containers.clone();
        // The end of a caller's patience is not the end of this: nobody would come again for what is left.
        let deleted = tokio::spawn(async move {
            let whole = exec_id.is_none();
            let container = containers.get(&request.id).await?;
            let exited = container
                .ask(|reply| Command::Delete { exec_id, reply })
                .await?;
            if whole {
                containers.remove(&request.id);
            }
            Ok(exited)
        });
        let exited = deleted
            .await
            .unwrap_or(Err(ContainerError::NotCreated))
            .map_err(status)?;
        Ok(DeleteResponse {
            pid: exited.pid.cast_unsigned(),
            exit_status: exited.status,
            exited_at: exited_at(Some(exited)),
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        self.ask(&request.id, |reply| Command::Pause { reply })
            .await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        self.ask(&request.id, |reply| Command::Resume { reply })
            .await?;
        Ok(Empty::default())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let exec_id = exec(request.exec_id);
        let columns = u16::try_from(request.width).unwrap_or(u16::MAX);
        let rows = u16::try_from(request.height).unwrap_or(u16::MAX);
        self.ask(&request.id, |reply| Command::Resize {
            exec_id,
            columns,
            rows,
            reply,
        })
        .await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let exec_id = exec(request.exec_id);
        self.ask(&request.id, |reply| Command::CloseIo { exec_id, reply })
            .await?;
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let resources = request.resources.into_option().unwrap_or_default().value;
        self.ask(&request.id, |reply| Command::Update { resources, reply })
            .await?;
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let listed = self
            .ask(&request.id, |reply| Command::Pids { reply })
            .await?;
        let processes: Result<_, _> = listed.into_iter().map(describe).collect();
        let processes = processes.map_err(|error: protobuf::Error| {
            ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNKNOWN, error.to_string()))
        })?;
        Ok(PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let Some(cgroup) = self.container(&request.id).await?.cgroup else {
            let message = "cgroup does not exist: not found".to_owned();
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                Code::NOT_FOUND,
                message,
            )));
        };
        let metrics = cgroup.metrics().map_err(cgroup_status)?;
        Ok(StatsResponse {
            stats: MessageField::some(metrics),
            ..Default::default()
        })
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        self.container(&request.id).await?;
        Err(unimplemented("checkpoint"))
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        let task_pid = match self.container(&request.id).await {
            Ok(container) => {
                let state = container
                    .ask(|reply| Command::State {
                        exec_id: None,
                        reply,
                    })
                    .await;
                state.map_or(0, |state| state.pid)
            }
            Err(_) => 0,
        };
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task_pid.cast_unsigned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.containers.end();
        Ok(Empty::default())
    }
}

fn describe(process: ListedProcess) -> protobuf::Result<ProcessInfo> {
    let mut info = ProcessInfo {
        pid: process.pid.cast_unsigned(),
        ..Default::default()
    };
    if let Some(exec_id) = process.exec_id {
        let details = ProcessDetails {
            exec_id,
            ..Default::default()
        };
        info.info = MessageField::some(Any {
            type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
            value: details.write_to_bytes()?,
            ..Any::default()
        });
    }
    Ok(info)
}

fn unimplemented(what: &str) -> ttrpc::Error {
    let message = format!("{what} through containerd is not supported: not implemented");
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNIMPLEMENTED, message))
}
