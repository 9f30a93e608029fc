//! The events of containerd's Task service.

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use containerd_shim_protos::types::mount::Mount;

use crate::container::{Exited, NewContainer};
use crate::events::Events;
use crate::reaper::Exit;
use crate::timestamp;

/// The container has been created.
pub fn created(events: &Events, new: &NewContainer, pid: i32) {
    let event = TaskCreate {
        container_id: new.id.clone(),
        bundle: new.bundle.to_string_lossy().into_owned(),
        rootfs: new
            .rootfs
            .iter()
            .map(|mount| Mount {
                type_: mount.kind.clone(),
                source: mount.source.clone(),
                target: mount.target.clone(),
                options: mount.options.clone(),
                ..Mount::default()
            })
            .collect(),
        io: MessageField::some(TaskIO {
            stdin: new.stdio.stdin.clone(),
            stdout: new.stdio.stdout.clone(),
            stderr: new.stdio.stderr.clone(),
            terminal: new.stdio.terminal,
            ..TaskIO::default()
        }),
        pid: pid.cast_unsigned(),
        ..TaskCreate::default()
    };
    events.send(
        topics::TASK_CREATE_EVENT_TOPIC,
        "containerd.events.TaskCreate",
        &event,
    );
}

/// The container's first process runs.
pub fn started(events: &Events, id: &str, pid: i32) {
    let event = TaskStart {
        container_id: id.to_owned(),
        pid: pid.cast_unsigned(),
        ..TaskStart::default()
    };
    events.send(
        topics::TASK_START_EVENT_TOPIC,
        "containerd.events.TaskStart",
        &event,
    );
}

/// A further process has been added.
pub fn exec_added(events: &Events, id: &str, exec_id: &str) {
    let event = TaskExecAdded {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        ..TaskExecAdded::default()
    };
    events.send(
        topics::TASK_EXEC_ADDED_EVENT_TOPIC,
        "containerd.events.TaskExecAdded",
        &event,
    );
}

/// A further process runs.
pub fn exec_started(events: &Events, id: &str, exec_id: &str, pid: i32) {
    let event = TaskExecStarted {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        pid: pid.cast_unsigned(),
        ..TaskExecStarted::default()
    };
    let topic = topics::TASK_EXEC_STARTED_EVENT_TOPIC;
    events.send(topic, "containerd.events.TaskExecStarted", &event);
}

/// A process has ended; `process_id` is the container's id for its first process.
pub fn exited(events: &Events, id: &str, process_id: &str, exit: Exit) {
    let event = TaskExit {
        container_id: id.to_owned(),
        id: process_id.to_owned(),
        pid: exit.pid.cast_unsigned(),
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp::from(exit.at)),
        ..TaskExit::default()
    };
    events.send(
        topics::TASK_EXIT_EVENT_TOPIC,
        "containerd.events.TaskExit",
        &event,
    );
}

/// The container is gone.
pub fn deleted(events: &Events, id: &str, exited: Exited) {
    let event = TaskDelete {
        container_id: id.to_owned(),
        pid: exited.pid.cast_unsigned(),
        exit_status: exited.status,
        exited_at: MessageField::some(timestamp::or_never(exited.at)),
        ..TaskDelete::default()
    };
    events.send(
        topics::TASK_DELETE_EVENT_TOPIC,
        "containerd.events.TaskDelete",
        &event,
    );
}

/// All processes are frozen.
pub fn paused(events: &Events, id: &str) {
    let event = TaskPaused {
        container_id: id.to_owned(),
        ..TaskPaused::default()
    };
    events.send(
        topics::TASK_PAUSED_EVENT_TOPIC,
        "containerd.events.TaskPaused",
        &event,
    );
}

/// All processes go on.
pub fn resumed(events: &Events, id: &str) {
    let event = TaskResumed {
        container_id: id.to_owned(),
        ..TaskResumed::default()
    };
    events.send(
        topics::TASK_RESUMED_EVENT_TOPIC,
        "containerd.events.TaskResumed",
        &event,
    );
}

/// The kernel killed a process because the container's memory limit was reached.
pub fn out_of_memory(events: &Events, id: &str) {
    let event = TaskOOM {
        container_id: id.to_owned(),
        ..TaskOOM::default()
    };
    events.send(
        topics::TASK_OOM_EVENT_TOPIC,
        "containerd.events.TaskOOM",
        &event,
    );
}
