//! A counter over HTTP in Rust on tokio, with timers, tasks and memory that must survive.
//!
//! `GET /` answers {"count", "client", "boot", "pid", "mem_ok", "ticks"}. `MEM_MB`: megabytes to hold (16).
//! `PORT`: where it listens (8080).

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::env;
use std::hash::BuildHasher;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

const THREADS: usize = 2;

struct State {
    boot: String,
    hasher: RandomState,
    memory: Vec<u64>,
    hash: u64,
    count: AtomicU64,
    ticks: AtomicU64,
}

impl State {
    fn new(megabytes: usize) -> Self {
        let hasher = RandomState::new();
        let memory: Vec<u64> = (0..megabytes << 17).map(|n| hasher.hash_one(n)).collect();
        Self {
            boot: format!("{:016x}", hasher.hash_one("boot")),
            hash: hasher.hash_one(&memory),
            hasher,
            memory,
            count: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
        }
    }

    fn answer(&self, peer: SocketAddr) -> Response<Full<Bytes>> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        println!("request {count} {client}");
        let body = json!({
            "count": count,
            "client": client.to_string(),
            "boot": self.boot,
            "pid": std::process::id(),
            "mem_ok": self.hasher.hash_one(&self.memory) == self.hash,
            "ticks": self.ticks.load(Ordering::Relaxed),
        });
        let mut response = Response::new(Full::new(format!("{body}\n").into()));
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}

fn main() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("make a runtime")?
        .block_on(run())
}

async fn run() -> Result<()> {
    // The first process of a container ignores SIGTERM unless it asks for it.
    let mut term = signal(SignalKind::terminate()).context("ask for SIGTERM")?;
    let state = Arc::new(State::new(env_number("MEM_MB", 16)?));
    let ticking = Arc::clone(&state);
    tokio::spawn(async move {
        let mut timer = interval(Duration::from_millis(50));
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            ticking.ticks.fetch_add(1, Ordering::Relaxed);
        }
    });
    let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), env_number("PORT", 8080)?);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))?;
    println!("listening on {}", address.port());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, peer) = accepted.context("accept a connection")?;
                stream.set_nodelay(true).context("set TCP_NODELAY")?;
                let state = Arc::clone(&state);
                let service = service_fn(move |_: Request<Incoming>| {
                    let response = state.answer(peer);
                    async { Ok::<_, Infallible>(response) }
                });
                tokio::spawn(async move {
                    // A client that goes in the middle of its request is no concern of the server.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            _ = term.recv() => break,
        }
    }
    println!("terminated");
    Ok(())
}

fn env_number<T: std::str::FromStr>(name: &str, default: T) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match env::var(name) {
        Ok(value) => value
            .parse()
            .with_context(|| format!("{name} is {value:?}, not a number")),
        Err(_) => Ok(default),
    }
}
