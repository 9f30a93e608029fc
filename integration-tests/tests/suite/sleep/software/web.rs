//! Servers of ours in the languages that people write servers in.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Client, Container, Node, PATIENCE, Runtime};
use serde_json::Value;

use super::http1::Kept;
use super::http2::Streams;
use super::{PORT, VISITS, cycles, server};

/// Held by each of them, and looked at in each answer.
const MEM_MB: &str = "4";

/// The test applications over HTTP: the answers of one that was started once.
struct Web<'a> {
    container: &'a Container,
    boot: String,
    requests: AtomicU64,
}

impl<'a> Web<'a> {
    /// Waits until the application listens, and asks it for the first time.
    fn new(container: &'a Container) -> Result<Self> {
        container.stdout()?.wait_for("listening")?;
        let mut web = Self {
            container,
            boot: String::new(),
            requests: AtomicU64::new(0),
        };
        let answer = web.visit()?;
        web.boot = answer["boot"].as_str().context("no boot")?.to_owned();
        Ok(web)
    }

    /// One request on a connection of its own.
    fn visit(&self) -> Result<Value> {
        let response = Client::default().get(self.container.address(PORT)?, "/")?;
        ensure!(response.status == 200, "{response:?}");
        self.check(&response.body, response.local)
    }

    /// Checks an answer to `client`.
    fn check(&self, body: &str, client: SocketAddr) -> Result<Value> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer: Value =
            serde_json::from_str(body).with_context(|| format!("parse {body:?}"))?;
        // There are several ways to write an IPv6 address.
        let seen = answer["client"].as_str().context("no client")?;
        ensure!(
            seen.parse::<SocketAddr>()? == client,
            "it saw another client than {client}: {answer}"
        );
        ensure!(answer["mem_ok"] != false, "its memory changed: {answer}");
        ensure!(
            self.boot.is_empty() || answer["boot"] == self.boot.as_str(),
            "it is not the process that was started: {answer}"
        );
        Ok(answer)
    }

    fn crowd(&self) -> Result<()> {
        (0..VISITS).try_for_each(|_| self.visit().map(drop))
    }

    /// Asks until the number `name` in the answers is more than `before`: the first where that is nothing.
    fn moved(&self, kept: &mut Kept, name: &str, before: Option<u64>) -> Result<Option<u64>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.check(&kept.get("/")?, kept.local()?)?;
            let now = answer[name].as_u64();
            ensure!(now.is_some() && now >= before, "it went back: {answer}");
            if now > before {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "no more {name} than {before:?}");
        }
    }

    /// The application has counted what it was asked: nothing was lost, nothing came twice.
    fn check_count(&self) -> Result<()> {
        let before = self.requests.load(Ordering::Relaxed);
        let answer = self.visit()?;
        ensure!(
            answer["count"] == before + 1,
            "after {before} requests it says {answer}"
        );
        Ok(())
    }
}

/// A server of ours that answers HTTP/1.1 on [`PORT`] with one line of JSON. Its number `moving` has moved on after
/// each sleep. `right` looks at what it says.
fn web(
    node: &Node,
    app: App,
    moving: &str,
    right: impl Fn(&Container, &Value) -> Result<()>,
) -> Result<()> {
    let container = node.run(app.env("MEM_MB", MEM_MB))?;
    let web = Web::new(&container)?;
    let mut kept = Kept::connect(container.address(PORT)?)?;
    let mut kept6 = Kept::connect(container.address6(PORT)?)?;
    let mut before = None;
    cycles(
        &container,
        || web.crowd(),
        || {
            for connection in [&mut kept, &mut kept6] {
                let body = connection.get("/")?;
                right(&container, &web.check(&body, connection.local()?)?)?;
            }
            before = web.moved(&mut kept, moving, before)?;
            Ok(())
        },
    )?;
    web.check_count()
}

fn anything(_: &Container, _: &Value) -> Result<()> {
    Ok(())
}

pub(super) fn node_js(node: &Node, runtime: Runtime) -> Result<()> {
    let app = server(runtime, ["node", "/apps/server.js"]);
    web(node, app, "ticks", anything)
}

pub(super) fn rust_tokio(node: &Node, runtime: Runtime) -> Result<()> {
    let app = server(runtime, ["/apps/tokioserver"]);
    web(node, app, "ticks", anything)
}

/// Its scheduler has a process of its own for each connection, and does not spin where the machine has other work.
pub(super) fn erlang(node: &Node, runtime: Runtime) -> Result<()> {
    let args = [
        "erl", "+sbwt", "none", "-noshell", "-pa", "/apps", "-run", "server",
    ];
    web(node, server(runtime, args), "ticks", anything)
}

pub(super) fn jvm_g1(node: &Node, runtime: Runtime) -> Result<()> {
    jvm(node, runtime, "-XX:+UseG1GC", "G1 Young Generation")
}

/// Its heap is a file in memory that is mapped in several places: in light sleep that stays where it is.
pub(super) fn jvm_zgc(node: &Node, runtime: Runtime) -> Result<()> {
    jvm(node, runtime, "-XX:+UseZGC", "ZGC")
}

/// Each request makes garbage, and the heap is small: the collector runs while it is asked to sleep.
fn jvm(node: &Node, runtime: Runtime, option: &str, collector: &str) -> Result<()> {
    let args = ["java", option, "-Xmx64m", "-cp", "/apps", "Server"];
    let app = server(runtime, args).env("GARBAGE_MB", "4");
    web(node, app, "collections", |_, answer| {
        let collectors = answer["collectors"].as_str().unwrap_or_default();
        ensure!(collectors.contains(collector), "{answer}");
        Ok(())
    })
}

/// It listens as Go does by default, on MPTCP sockets where it can; CRIU cannot dump those. Its collector never rests.
pub(super) fn go(node: &Node, runtime: Runtime) -> Result<()> {
    let app = server(runtime, ["/apps/goserver"])
        .env("MEM_MB", MEM_MB)
        .env("GARBAGE_MB", "2")
        .env("GOMAXPROCS", "2");
    let container = node.run(app)?;
    let address = container.address(PORT)?;
    let web = Web::new(&container)?;
    let mut kept = Kept::connect(address)?;
    let mut streams = Streams::connect(address)?;
    let mut collections = None;
    cycles(
        &container,
        || web.crowd(),
        || {
            let body = kept.get("/")?;
            let answer = web.check(&body, kept.local()?)?;
            ensure!(answer["procs"] == 2, "{answer}");
            collections = web.moved(&mut kept, "collections", collections)?;
            for body in streams.get("/", 3)? {
                let answer = web.check(&body, streams.local())?;
                ensure!(answer["proto"] == "HTTP/2.0", "{answer}");
            }
            Ok(())
        },
    )?;
    web.check_count()
}

pub(super) fn python_multiprocessing(node: &Node, runtime: Runtime) -> Result<()> {
    let app = server(runtime, ["python3", "/apps/pool.py"]);
    web(node, app, "turns", |container, _| {
        // The server, two workers, and who looks after the memory that has a name.
        let processes = container.pids()?;
        ensure!(processes.len() == 4, "processes {processes:?}");
        Ok(())
    })
}

pub(super) fn python_processes_and_descriptors(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(server(runtime, ["python3", "/apps/multi.py"]))?;
    let web = Web::new(&container)?;
    let processes = container.pids()?.len();
    ensure!(processes == 3, "{processes} processes in place of 3");
    let mut kept = Kept::connect(container.address(PORT)?)?;
    cycles(
        &container,
        || web.crowd(),
        || {
            let body = kept.get("/")?;
            web.check(&body, kept.local()?)?;
            let body = kept.get("/check")?;
            let answer: Value =
                serde_json::from_str(&body).with_context(|| format!("parse {body:?}"))?;
            ensure!(answer["ok"] == true, "{answer}");
            ensure!(container.pids()?.len() == processes, "processes are gone");
            Ok(())
        },
    )?;
    web.check_count()
}
