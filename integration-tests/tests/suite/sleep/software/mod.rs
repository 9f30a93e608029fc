//! Real servers, asleep and awake again under load from clients.
//!
//! Each test is the same story told of another server: clients come while it is asked to sleep, it
//! sleeps, a client of before or a crowd of new ones wakes it, and every single request has been
//! answered, once, by the process that was started at first.

mod http1;
mod http2;
mod redis;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{
    App, Client, Container, Depth, Exec, Network, Node, PATIENCE, Runtime, refusal, wait_gone,
};
use serde_json::Value;

use self::http1::Kept;
use self::http2::Streams;
use self::redis::Redis;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::software::nginx", nginx),
    ("sleep::software::redis", redis),
    ("sleep::software::node_js", node_js),
    ("sleep::software::go", go),
    ("sleep::software::jvm", jvm),
    (
        "sleep::software::python_processes_and_descriptors",
        python_processes_and_descriptors,
    ),
];

const CYCLES: usize = 5;
/// Clients at once, and connections that each of them makes, one after the other.
const CROWD: usize = 4;
const VISITS: usize = 5;
const PORT: u16 = 8080;

/// Sleeps and wakes `container`. `crowd` is one of several clients that come at once, `regular` one
/// that keeps its connection. Which of them wakes it changes from cycle to cycle.
fn cycles(
    container: &Container,
    crowd: impl Fn() -> Result<()> + Sync,
    mut regular: impl FnMut() -> Result<()>,
) -> Result<()> {
    regular().context("before any sleep")?;
    for cycle in 0..CYCLES {
        let context = || format!("cycle {cycle}");
        let asked = all_at_once(&crowd, || {
            let asked = container.sleeper().try_sleep();
            if asked.is_ok() {
                // Requests that it was working on go on when it does; no packet says so.
                container.wake()?;
            }
            anyhow::Ok(asked)
        })
        .with_context(context)
        .context("while it is asked to sleep")??;
        if let Err(error) = asked {
            refusal(&error).with_context(|| format!("no refusal: {error:#}"))?;
        }
        container.sleep().with_context(context)?;
        let status = container.wait_state("asleep").with_context(context)?;
        let left: Vec<_> = container.pids()?;
        let there = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        let light = container.node().depth() == Depth::Light;
        ensure!(
            status.memory_freed_bytes > 0 && left.iter().all(|pid| there(pid) == light),
            "asleep with processes {left:?}: {status:?}"
        );
        if cycle % 2 == 0 {
            regular().with_context(context).context("as the first")?;
            all_at_once(&crowd, || ()).with_context(context)?;
        } else {
            all_at_once(&crowd, || ())
                .with_context(context)
                .context("as the first")?;
            regular().with_context(context)?;
        }
    }
    let status = container.status()?;
    let counters = status.counters.clone().unwrap_or_default();
    ensure!(
        counters.sleeps >= CYCLES as u64
            && counters.wakes >= CYCLES as u64
            && counters.sleeps_failed == 0
            && counters.wakes_failed == 0
            && counters.cold_starts == 0
            && status.last_error.is_empty(),
        "{status:?}"
    );
    Ok(())
}

/// Runs `crowd` in [`CROWD`] threads, and `meanwhile` in this one.
fn all_at_once<T>(
    crowd: &(impl Fn() -> Result<()> + Sync),
    meanwhile: impl FnOnce() -> T,
) -> Result<T> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CROWD).map(|_| scope.spawn(crowd)).collect();
        let result = meanwhile();
        for client in clients {
            client
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a client thread panicked")))?;
        }
        Ok(result)
    })
}

/// The test applications over HTTP: the answers of one that was started once.
struct Web<'a> {
    container: &'a Container,
    boot: String,
    requests: AtomicU64,
}

impl<'a> Web<'a> {
    /// Waits until the application listens, and asks it for the first time.
    fn new(container: &'a Container, sign: &str) -> Result<Self> {
        container.stdout()?.wait_for(sign)?;
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

/// A server of ours that answers HTTP/1.1 on [`PORT`] with one line of JSON.
fn web(node: &Node, app: App, sign: &str) -> Result<()> {
    let container = node.run(app)?;
    let web = Web::new(&container, sign)?;
    let mut kept = Kept::connect(container.address(PORT)?)?;
    let mut kept6 = Kept::connect(container.address6(PORT)?)?;
    cycles(
        &container,
        || web.crowd(),
        || {
            for connection in [&mut kept, &mut kept6] {
                let body = connection.get("/")?;
                web.check(&body, connection.local()?)?;
            }
            Ok(())
        },
    )?;
    web.check_count()
}

fn server<const N: usize>(runtime: Runtime, args: [&str; N]) -> App {
    App::new(args).network(Network::Own).runtime(runtime)
}

fn node_js(node: &Node, runtime: Runtime) -> Result<()> {
    web(
        node,
        server(runtime, ["node", "/apps/server.js"]),
        "listening",
    )
}

fn jvm(node: &Node, runtime: Runtime) -> Result<()> {
    let app = server(runtime, ["java", "-cp", "/apps", "Server"]);
    web(node, app, "listening")
}

/// It listens as Go does by default, on MPTCP sockets where it can; CRIU cannot dump those.
fn go(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(server(runtime, ["/apps/goserver"]).env("MEM_MB", "8"))?;
    let address = container.address(PORT)?;
    let web = Web::new(&container, "listening")?;
    let mut kept = Kept::connect(address)?;
    let mut streams = Streams::connect(address)?;
    cycles(
        &container,
        || web.crowd(),
        || {
            let body = kept.get("/")?;
            web.check(&body, kept.local()?)?;
            for body in streams.get("/", 3)? {
                let answer = web.check(&body, streams.local())?;
                ensure!(answer["proto"] == "HTTP/2.0", "{answer}");
            }
            Ok(())
        },
    )?;
    web.check_count()
}

fn python_processes_and_descriptors(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(server(runtime, ["python3", "/apps/multi.py"]))?;
    let web = Web::new(&container, "listening")?;
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

fn nginx(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(server(runtime, ["nginx", "-c", "/apps/nginx.conf"]))?;
    container.stderr()?.wait_for("start worker process")?;
    let (address, page) = (
        container.address(PORT)?,
        include_str!("../../../../apps/www/page.html"),
    );
    let mut kept = Kept::connect(address)?;
    // nginx's own number of this connection.
    let number = |body: &str| -> Result<Value> {
        Ok(serde_json::from_str::<Value>(body)?["connection"].clone())
    };
    let connection = number(&kept.get("/")?)?;
    cycles(
        &container,
        || {
            (0..VISITS).try_for_each(|_| {
                let response = Client::default().get(address, "/page.html")?;
                ensure!(
                    response.status == 200 && response.body == page,
                    "{response:?}"
                );
                let response = Client::default().get(address, "/")?;
                let body: Value = serde_json::from_str(&response.body)?;
                ensure!(body["client"] == response.local.to_string(), "{body}");
                Ok(())
            })
        },
        || {
            let body = kept.get("/")?;
            ensure!(number(&body)? == connection, "another connection: {body}");
            ensure!(kept.get("/page.html")? == page);
            Ok(())
        },
    )?;

    // The master still hears signals and its workers: new ones take over, the old ones end.
    let workers = |node: &Container| -> Result<String> {
        let (exit, pids) = node.exec_output(&Exec::sh("pgrep -P 1 nginx"))?;
        ensure!(exit.status == 0, "pgrep: {exit:?}");
        Ok(pids)
    };
    let before = workers(&container)?;
    container.sleep()?;
    container.kill(libc::SIGHUP)?;
    container.stderr()?.wait_for("reconfiguring")?;
    for worker in before.split_whitespace() {
        let line = format!("worker process {worker} exited with code 0");
        container.stderr()?.wait_for(&line)?;
    }
    ensure!(Client::default().get(address, "/page.html")?.body == page);

    let pid = container.pid()?;
    container.sleep()?;
    container.kill(libc::SIGTERM)?;
    ensure!(container.wait()?.status == 0, "nginx did not end by itself");
    wait_gone(pid.try_into()?, PATIENCE)
}

fn redis(node: &Node, runtime: Runtime) -> Result<()> {
    const KEYS: usize = 10_000;
    let container = node.run(server(runtime, ["redis-server", "/apps/redis.conf"]))?;
    container
        .stdout()?
        .wait_for("Ready to accept connections")?;
    let address = container.address(6379)?;
    let mut kept = Redis::connect(address)?;
    let mut listener = Redis::connect(address)?;
    listener.command(&["SUBSCRIBE", "news"])?;

    let key = |number: usize| format!("key:{number}");
    let value = |number: usize| format!("value {number} {}", "x".repeat(number % 100));
    let (keys, values): (Vec<_>, Vec<_>) = (0..KEYS).map(|n| (key(n), value(n))).unzip();
    let pairs = keys.iter().zip(&values);
    let set = ["MSET"]
        .into_iter()
        .chain(pairs.flat_map(|(key, value)| [key.as_str(), value]));
    kept.command(&set.collect::<Vec<_>>())?;
    let get = ["MGET"].into_iter().chain(keys.iter().map(String::as_str));
    let get: Vec<_> = get.collect();
    let run = kept.run_id()?;

    let visits = AtomicU64::new(0);
    let mut rounds = 0;
    cycles(
        &container,
        || {
            (0..VISITS).try_for_each(|_| {
                let mut client = Redis::connect(address)?;
                client.command(&["INCR", "visits"])?;
                visits.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        },
        || {
            rounds += 1;
            ensure!(kept.command(&["INCR", "rounds"])? == [rounds.to_string()]);
            ensure!(kept.command(&get)? == values, "values changed");
            let news = format!("round {rounds}");
            kept.command(&["PUBLISH", "news", &news])?;
            ensure!(listener.answer()? == ["message", "news", &news]);
            Ok(())
        },
    )?;
    let counted = kept.command(&["GET", "visits"])?;
    ensure!(
        counted == [visits.into_inner().to_string()],
        "{counted:?} visits"
    );
    ensure!(kept.run_id()? == run, "it was started anew");
    Ok(())
}
