//! The pod's responder: a socket that the kubelet's probes are led to while a container sleeps, wakes, or
//! is about to sleep for the first time since somebody has used it.
//!
//! ```text
//!   accept ─┬─ not led here ──────────────────> reset
//!           ├─ closed without a word ─────────> a TCP probe
//!           ├─ HTTP/1 ──> the driver: known? ─┬> 200
//!           │                                 └> (wake) proxied to the application
//!           └─ TLS, gRPC ──> podmotion-responder, which asks in the same way
//! ```
//!
//! Nothing is decided here: the driver of the container that has the port owns what is known
//! (`podmotion_model::probe::Book`) and its state. Everything runs in the shim's one thread and does not
//! block; a probe of a sleeping container over TCP or HTTP costs a task, and no process.

mod program;
mod proxy;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use log::{debug, warn};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt::{Ipv6V6Only, Linger, ReuseAddr},
};
use podmotion_bpf::netns;
use podmotion_model::probe::{Head, MAX_HEAD, Request, wire::Task};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::sleep::Notice;
use crate::sleep::pod::{Place, PodGate};

/// Connections at a time. A pod has a few probes, each with one.
const CONNECTIONS: usize = 64;
/// For what a client says before it has asked something. Kubelets give up earlier.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a client that has its answer to go.
const FAREWELL: Duration = Duration::from_secs(1);
/// What a request that is known gets.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// How HTTP/2 in clear text begins.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0";

/// Who answers a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The application would let it pass.
    Known,
    /// The application, which runs.
    Application,
    /// Nobody: the container has ended, or cannot be woken.
    Nobody,
}

/// A probe that waits for a verdict.
#[derive(Debug)]
pub struct Asked {
    /// The port that it is for.
    pub port: u16,
    /// What it asks.
    pub request: Request,
    /// The way back.
    pub verdict: oneshot::Sender<Verdict>,
}

/// What the application has answered to a probe.
#[derive(Debug)]
pub struct Outcome {
    /// The port.
    pub port: u16,
    /// What was asked.
    pub request: Request,
    /// The kubelet takes it for healthy.
    pub passed: bool,
    /// What it said, for people.
    pub said: String,
}

/// A listening socket in `netns`, for the loopback alone. Its port is one that no application gets by
/// chance and few want: below 1024.
///
/// # Errors
/// When the network namespace cannot be entered, or has no port left.
pub fn socket_in(netns: BorrowedFd<'_>) -> io::Result<std::net::TcpListener> {
    netns::enter(netns, || {
        let failed = |errno: nix::Error| io::Error::from(errno);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Of the family that connections of both are led to.
        let found = socket(AddressFamily::Inet6, SockType::Stream, flags, None);
        let Ok(listener) = found else {
            return free_port(|port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        };
        setsockopt(&listener, Ipv6V6Only, &false).map_err(failed)?;
        // What it accepts has the application's port, which must not keep that from listening there.
        setsockopt(&listener, ReuseAddr, &true).map_err(failed)?;
        free_port(|port| {
            let loopback = Ipv4Addr::LOCALHOST.to_ipv6_mapped().into();
            let address = SockaddrStorage::from(SocketAddr::new(loopback, port));
            bind(listener.as_raw_fd(), &address).map_err(failed)
        })?;
        listen(&listener, Backlog::new(CONNECTIONS as i32).map_err(failed)?).map_err(failed)?;
        Ok(listener.into())
    })
    .map_err(io::Error::other)?
}

/// A TCP socket in `netns` with the same address as `server`, which is in there too, and its own address:
/// about to be connected.
///
/// # Errors
/// When the network namespace cannot be entered, or has no port left.
pub fn bind_beside(
    netns: BorrowedFd<'_>,
    server: SocketAddr,
) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let bound = netns::enter(netns, || -> io::Result<std::net::TcpStream> {
        let family = match server {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        let address = SockaddrStorage::from(SocketAddr::new(server.ip(), 0));
        bind(socket.as_raw_fd(), &address)?;
        Ok(socket.into())
    });
    let socket = bound.map_err(io::Error::other)??;
    let client = socket.local_addr()?;
    Ok((socket, client))
}

/// The first port that `take` gets.
fn free_port<T>(take: impl Fn(u16) -> io::Result<T>) -> io::Result<T> {
    let mut last = Err(io::ErrorKind::AddrInUse.into());
    for port in (512..1024).rev() {
        last = take(port);
        match &last {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            _ => return last,
        }
    }
    last
}

/// Serves connections until it is aborted or the pod's gate is closed.
///
/// # Errors
/// When the socket cannot be watched. Panics outside of a tokio runtime.
pub fn serve(listener: std::net::TcpListener, pod: Weak<PodGate>) -> io::Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let own = listener.local_addr()?;
    Ok(tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Who comes beyond that waits in the socket's queue.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    // Of a connection that is gone again, or the shim has no descriptor left.
                    warn!("accept a probe: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let pod = Weak::clone(&pod);
            tokio::spawn(async move {
                if let Err(error) = attend(client, own, pod).await {
                    debug!("a probe: {error}");
                }
                drop(place);
            });
        }
    }))
}

/// Sees to one connection.
async fn attend(mut client: TcpStream, own: SocketAddr, pod: Weak<PodGate>) -> io::Result<()> {
    let local = client.local_addr()?;
    // Somebody in the pod has found the socket.
    if local.port() == own.port() && local.ip().to_canonical().is_loopback() {
        return reset(&client);
    }
    let Some(place) = pod.upgrade().and_then(|pod| pod.place(local.port())) else {
        return reset(&client);
    };
    let probe = Probe {
        port: local.port(),
        place,
        pod,
    };
    let mut first = [0; HTTP_2.len()];
    let length = match timeout(PATIENCE, client.peek(&mut first)).await {
        Ok(Ok(length)) => length,
        // Opened, and closed in whichever way: that was all.
        Ok(Err(_)) => 0,
        // Opened and kept: no more than that either.
        Err(_) => 0,
    };
    match first.get(..length).unwrap_or_default() {
        [] => probe.ask(Request::Tcp).await.map(drop),
        [0x16, ..] => program::hand_over(client, Task::Tls, probe).await,
        HTTP_2 if probe.place.grpc => program::hand_over(client, Task::Grpc, probe).await,
        _ => attend_http(&mut client, probe).await,
    }
}

async fn attend_http(client: &mut TcpStream, probe: Probe) -> io::Result<()> {
    let mut begun = Vec::new();
    let reading = async {
        while Head::read(&begun) == Head::Partial && begun.len() < MAX_HEAD {
            if client.read_buf(&mut begun).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(())
    };
    timeout(PATIENCE, reading).await??;
    let request = Head::read(&begun).request(false);
    match probe.ask(request.clone()).await? {
        Verdict::Known => {
            client.write_all(OK).await?;
            // It is the client's to close: whoever does so first keeps the application's port for a minute.
            drop(timeout(FAREWELL, client.read(&mut [0])).await);
            Ok(())
        }
        Verdict::Nobody => reset(client),
        Verdict::Application => proxy::serve(client, request, begun, &probe).await,
    }
}

/// A probe, and whom to ask about it.
struct Probe {
    port: u16,
    place: Place,
    pod: Weak<PodGate>,
}

impl Probe {
    /// The driver's verdict. A container that has to wake for it has woken then.
    async fn ask(&self, request: Request) -> io::Result<Verdict> {
        let (verdict, answer) = oneshot::channel();
        let port = self.port;
        let asked = Notice::Probe(Asked {
            port,
            request,
            verdict,
        });
        // A driver that has ended.
        drop(self.place.driver.send(asked));
        Ok(answer.await.unwrap_or(Verdict::Nobody))
    }

    /// Says what came of it.
    fn tell(&self, request: Request, passed: bool, said: impl Into<String>) {
        let outcome = Outcome {
            port: self.port,
            request,
            passed,
            said: said.into(),
        };
        // A driver that has ended needs no notice.
        drop(self.place.driver.send(Notice::Probed(outcome)));
    }

    /// A connection to the application's end of `client`, which counts as a probe's.
    async fn connect(&self, client: &TcpStream) -> io::Result<TcpStream> {
        let server = client.local_addr()?;
        let server = SocketAddr::new(server.ip().to_canonical(), server.port());
        let pod = Weak::clone(&self.pod);
        let bound = tokio::task::spawn_blocking(move || {
            let pod = pod.upgrade().ok_or(io::ErrorKind::NotConnected)?;
            pod.bind_probe(server)
        });
        let bound = bound.await.map_err(io::Error::other)??;
        let connecting = tokio::net::TcpSocket::from_std_stream(bound).connect(server);
        timeout(PATIENCE, connecting).await?
    }
}

/// Ends a connection as one that nobody listens for.
fn reset(client: &TcpStream) -> io::Result<()> {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(client, Linger, &at_once)?)
}
