//! `podmotion-manager`: shows a cluster what sleeps on a node.
//!
//! It follows the node's shims (`shims`), keeps what they told last (`store`) and shows it: as metrics
//! (`metrics`, over `http`), to Kubernetes (`cluster`, `node`) and to whoever may ask (`server`). It decides nothing about any container: one
//! that is dead stops no sleep and no wake, and one that starts anew picks everything up.
#![deny(unsafe_code)]

mod args;
mod cluster;
mod folder;
mod health;
mod http;
mod metrics;
mod node;
mod server;
mod shims;
mod store;
mod sys;

use std::io;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use args::Args;
use folder::Folder;
use metrics::{ApiErrors, Metrics};
use store::Store;

fn main() -> Result<()> {
    let args = Args::parse();
    log_to_stderr()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?
        .block_on(run(args))
}

fn log_to_stderr() -> Result<()> {
    let filter =
        EnvFilter::try_from_env("PODMOTION_LOG").or_else(|error| {
            match std::env::var_os("PODMOTION_LOG") {
                None => Ok(EnvFilter::new("info")),
                Some(value) => {
                    Err(error).with_context(|| format!("PODMOTION_LOG={}", value.display()))
                }
            }
        })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

async fn run(args: Args) -> Result<()> {
    if args.give_back {
        return give_back(args).await;
    }
    let told_to_end = told_to_end()?;
    let folder = Folder::make(&args.shims)?;
    let listener = http::listen(args.metrics_address).await?;

    let (store, seen) = watch::channel(Store::default());
    let (tested, self_test) = watch::channel(None);
    let errors = ApiErrors::default();
    let (health, healthy) = watch::channel(health::Cluster::default());
    let client = cluster::client(&args).await?;
    let server = server::Settings {
        node: args.node_name.clone().unwrap_or_default(),
        shims: args.shims.clone(),
        self_test: args.self_test.clone(),
        client: client.clone(),
    };
    let show = client.map(|client| {
        health.send_replace(health::Cluster::Waiting);
        cluster::Show {
            client,
            node: args.node_name.clone().unwrap_or_default(),
            runtime_class: args.runtime_class.clone(),
            wishes: cluster::Wishes {
                labels: args.status_labels,
                lower: args.reduce_requests,
            },
            events: args.status_events,
            store: seen.clone(),
            self_test: self_test.clone(),
            errors: errors.clone(),
            health,
        }
    });
    let metrics = Metrics::new(seen, self_test, errors);

    let places = node::Places {
        result: args.self_test,
        containerd: args.containerd,
        shims: args.shims,
        repeat: args.self_test_repeat,
    };
    let (end, ended) = watch::channel(());
    let served = tokio::spawn(http::serve(
        listener,
        (!args.no_metrics).then_some(metrics),
        healthy,
        async move {
            let mut ended = ended;
            // It has been told when nobody is left to tell it.
            drop(ended.changed().await);
        },
    ));
    tokio::select! {
        result = shims::follow(folder, store) => result?,
        result = node::follow(places, tested) => result?,
        result = serve(args.server, server) => result?,
        () = shown(show) => {}
        () = told_to_end => {}
    }
    drop(end);
    served.await.context("serve")?.context("serve")
}

/// Where there is nothing to have a certificate from there is no node server, for ever.
async fn serve(args: server::Args, settings: server::Settings) -> Result<()> {
    if !args.is_possible(settings.client.is_some()) {
        return std::future::pending().await;
    }
    server::run(args, settings).await.context("node server")
}

/// Comes to its end with SIGTERM or SIGINT, from now on.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Gives pods back what is theirs, and waits to be ended.
async fn give_back(args: Args) -> Result<()> {
    let told_to_end = told_to_end()?;
    let listener = http::listen(args.metrics_address).await?;
    let (health, healthy) = watch::channel(health::Cluster::Waiting);
    let client = cluster::client(&args).await?.context("no API server")?;
    let node = args.node_name.unwrap_or_default();
    let left = async {
        cluster::leave(&client, &node, &args.runtime_class, &health).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = http::serve(listener, None, healthy, std::future::pending()) => result.context("serve"),
        () = left => Ok(()),
        () = told_to_end => Ok(()),
    }
}

/// Without a cluster there is nothing to be done, for ever.
async fn shown(show: Option<cluster::Show>) {
    match show {
        Some(show) => show.run().await,
        None => std::future::pending().await,
    }
}
