//! Clients of the shim's sockets that mean harm. They have to be root to connect; a shim stands it all the same.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    Census, Container, Node, PATIENCE, Random, Runtime, fds, rss_anon_kib,
};
use podmotion_proto::shim::v1::{InspectRequest, ShimClient, SleepRequest, WakeRequest};
use podmotion_proto::ttrpc;

use super::{counter, socket_for_containerd};
use crate::sleep::visit;

/// Connections that are open at once.
const CROWD: usize = 300;

/// How much a shim may grow for each of them while it is open, and for all of them when they are gone, in KiB. They
/// promise four megabytes each.
const EACH: u64 = 200;
const AFTER: u64 = 12 << 10;

const REQUEST: u8 = 1;

/// The head of a ttrpc message.
fn head(length: u32, stream: u32, kind: u8) -> Vec<u8> {
    let mut head = length.to_be_bytes().to_vec();
    head.extend(stream.to_be_bytes());
    head.extend([kind, 0]);
    head
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Says it and goes. The shim may have gone first.
fn say(socket: &Path, words: &[u8]) -> Result<()> {
    let mut stream = connect(socket)?;
    drop(stream.write_all(words));
    drop(stream.shutdown(Shutdown::Both));
    Ok(())
}

fn sockets(node: &Node, container: &Container) -> Result<[PathBuf; 2]> {
    let own = Path::new("/run/podmotion/shims").join(format!("{}.sock", container.id()));
    Ok([own, socket_for_containerd(node, container.id())?])
}

pub(super) fn nonsense(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    let address = container.address(8080)?;
    ensure!(visit(address)? == 1);
    container.sleep()?;
    let shim = node.shim_of(container.id())?;
    let (descriptors, memory) = (fds(shim.pid)?, rss_anon_kib(shim.pid)?);
    let mut random = Random::of_this_run();
    for socket in sockets(node, &container)? {
        for _ in 0..50 {
            let length = random.below(5000);
            let noise: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
            say(&socket, &noise)?;
        }
        for length in [0, 1, 4 << 20, (4 << 20) + 1, u32::MAX] {
            for (stream, kind) in [(1, REQUEST), (0, REQUEST), (u32::MAX, 3), (2, 2), (1, 255)] {
                say(&socket, &head(length, stream, kind))?;
                let words = [&head(length, stream, kind)[..], &[0xff; 64]].concat();
                say(&socket, &words)?;
            }
        }
        // Each says that four megabytes will come, and does not go.
        let crowd: Vec<_> = (0..CROWD)
            .map(|count| {
                let mut stream = connect(&socket)?;
                let words = [&head(4 << 20, 1, REQUEST)[..], b"half"].concat();
                stream.write_all(&words[..count % words.len()])?;
                Ok(stream)
            })
            .collect::<Result<_>>()?;
        // It answers beside them.
        ensure!(container.status()?.state == "asleep", "it was woken");
        ensure!(node.shim_of(container.id())?.pid == shim.pid);
        let grown = rss_anon_kib(shim.pid)?.saturating_sub(memory);
        ensure!(
            grown < EACH * CROWD as u64,
            "{CROWD} connections cost {grown} KiB"
        );
        drop(crowd);
    }
    ensure!(container.status()?.counters.wakes == 0, "it was woken");
    wait_descriptors(shim.pid, &descriptors)?;
    let grown = rss_anon_kib(shim.pid)?.saturating_sub(memory);
    println!("{grown} KiB are kept");
    ensure!(
        grown < AFTER,
        "{grown} KiB are kept for connections that are gone"
    );
    ensure!(visit(address)? == 2);
    ensure!(
        node.shim_of(container.id())?.pid == shim.pid,
        "another shim"
    );
    container.sleep()?;
    ensure!(visit(address)? == 3);
    Ok(())
}

/// The shim notices that a client has gone when it gets to it; nothing tells others.
fn wait_descriptors(pid: i32, before: &std::collections::BTreeMap<String, usize>) -> Result<()> {
    let count = |all: &std::collections::BTreeMap<String, usize>| {
        all.get("socket").copied().unwrap_or_default()
    };
    let deadline = Instant::now() + PATIENCE / 6;
    loop {
        let now = count(&fds(pid)?);
        if now <= count(before) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{now} sockets, {} before",
            count(before)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) fn paths_as_ids(node: &Node, _: Runtime) -> Result<()> {
    let (container, other) = (counter(node)?, counter(node)?);
    container.sleep()?;
    other.sleep()?;
    let before = Census::take()?;
    let huge = "x".repeat(1 << 20);
    let id = container.id();
    let ids = [
        String::new(),
        "..".to_owned(),
        format!("../{id}"),
        format!("{id}/../{id}"),
        format!("{id}\0"),
        "../../../../etc/passwd".to_owned(),
        other.id().to_owned(),
        huge,
    ];
    let [socket, _] = sockets(node, &container)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for id in ids {
        let answers = runtime.block_on(ask(&socket, &id))?;
        for answer in answers {
            let Err(ttrpc::Error::RpcStatus(status)) = answer else {
                anyhow::bail!("{:.100?} is answered: {answer:?}", id);
            };
            ensure!(
                status.message.len() < 1000,
                "an answer of {} bytes",
                status.message.len()
            );
        }
    }
    for one in [&container, &other] {
        let status = one.status()?;
        ensure!(
            status.state == "asleep" && status.counters.wakes == 0,
            "{status:?}"
        );
    }
    Census::wait_as_before(&before)
}

/// All that can be asked about one container.
async fn ask(socket: &Path, id: &str) -> Result<[ttrpc::Result<()>; 3]> {
    let address = format!("unix://{}", socket.display());
    let client = ShimClient::new(ttrpc::r#async::Client::connect(&address).await?);
    let context = || ttrpc::context::with_duration(PATIENCE);
    let id = || id.to_owned();
    let inspect = InspectRequest {
        id: id(),
        ..Default::default()
    };
    let sleep = SleepRequest {
        id: id(),
        ..Default::default()
    };
    let wake = WakeRequest {
        id: id(),
        ..Default::default()
    };
    Ok([
        client.inspect(context(), &inspect).await.map(drop),
        client.sleep(context(), &sleep).await.map(drop),
        client.wake(context(), &wake).await.map(drop),
    ])
}
