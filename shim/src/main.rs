//! `containerd-shim-podmotion-v1`: runs a pod's containers for containerd.

mod api;
mod bootstrap;
mod cgroup;
mod container;
mod containers;
mod events;
mod footprint;
mod gate;
mod oom;
mod reaper;
mod responder;
mod runtime;
mod service;
mod sleep;
mod stdio;
mod sys;
mod task_events;
mod timestamp;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use containerd_shim::Flags;
use containerd_shim_protos::protobuf::Message as _;
use sleep::placeholder;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", bootstrap::RUNTIME);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments
        .first()
        .is_some_and(|first| first == placeholder::ARGUMENT)
    {
        placeholder::wait();
    }
    let flags: Flags = containerd_shim::parse(&arguments).context("read the command line")?;
    if flags.version {
        return bootstrap::answer(concat!(env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    }
    if flags.info {
        return bootstrap::answer(&bootstrap::info()?);
    }
    match flags.action.as_str() {
        "start" => bootstrap::answer(bootstrap::start(&flags)?.as_bytes()),
        "delete" => bootstrap::answer(&bootstrap::delete(&flags)?.write_to_bytes()?),
        _ => bootstrap::serve(&flags),
    }
}
