//! `podmotion-responder`: speaks with the kubelet for a container that sleeps, where that takes more than
//! a shim has room for: TLS, and HTTP/2 for health checks over gRPC.
//!
//! A shim starts it for one connection, which is descriptor 3; descriptor 4 leads to the shim, which
//! knows what the application would answer and wakes it where it does not
//! (`podmotion_model::probe::wire`). The container's answer is never made up here.

mod grpc;
mod shim;
mod sys;
mod tls;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use podmotion_model::probe::wire::Task;
use tokio::net::TcpStream;

use shim::Shim;

/// For what a client says before it has asked something. Kubelets give up earlier.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // To the shim's standard error, which nobody reads, unless somebody looks for a mistake.
            eprintln!("podmotion-responder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let argument = std::env::args().nth(1);
    let task = argument
        .as_deref()
        .and_then(Task::parse)
        .context("this program is started by Podmotion's shim")?;
    let (client, shim) = sys::adopt().context("take over the descriptors")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    runtime.block_on(async {
        client.set_nonblocking(true)?;
        let client = TcpStream::from_std(client)?;
        let shim = Shim::new(shim);
        match task {
            Task::Tls => tls::serve(client, shim).await,
            Task::Grpc => grpc::serve(client, shim).await,
        }
    })
}
