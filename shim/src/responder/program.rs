//! `podmotion-responder`, a program of its own for what the shim has no room for: started for one
//! connection, it asks as the shim itself does (`podmotion_model::probe::wire`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use podmotion_model::probe::wire::{MAX_MESSAGE, Message, Reply, Task};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

use super::{Probe, Verdict};
use crate::sys;

/// Its name, beside the shim's own program.
const NAME: &str = "podmotion-responder";

/// Has the program see to `client`.
pub async fn hand_over(client: TcpStream, task: Task, probe: Probe) -> io::Result<()> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?;
    let copy = client.as_fd().try_clone_to_owned()?;
    let started = tokio::task::spawn_blocking(move || start(task, copy, theirs)).await;
    if let Err(error) = started.map_err(io::Error::other).flatten() {
        log::warn!("start {NAME} for a probe of port {}: {error}", probe.port);
        return super::reset(&client);
    }
    let program = sys::event_source(ours, Interest::READABLE)?;
    let Some(Message::Asked(request)) = receive(&program).await? else {
        // The client has gone, or does not speak what its first byte promised.
        return Ok(());
    };
    let verdict = probe.ask(request.clone()).await?;
    let (reply, connection) = match verdict {
        Verdict::Known => (Reply::Known, None),
        Verdict::Nobody => (Reply::Refused, None),
        Verdict::Application => match probe.connect(&client).await {
            Ok(connection) => (Reply::Proxy, Some(connection)),
            Err(error) => {
                probe.tell(request.clone(), false, error.to_string());
                (Reply::Refused, None)
            }
        },
    };
    send(&program, reply, connection.as_ref())?;
    let proxied = connection.is_some();
    // Both are the program's now.
    drop((client, connection));
    if proxied {
        match receive(&program).await? {
            Some(Message::Outcome { passed, said }) => probe.tell(request, passed, said),
            _ => probe.tell(request, false, "no answer in time"),
        }
    }
    Ok(())
}

/// Starts the program. Its end is the reaper's.
fn start(task: Task, client: OwnedFd, shim: OwnedFd) -> io::Result<()> {
    let program = path()?;
    // The standard library would wait for a child that could not become it, and so would the reaper.
    program.metadata()?;
    // It waits for the shim and does nothing else meanwhile.
    nix::fcntl::fcntl(
        &shim,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()),
    )?;
    let mut command = Command::new(program);
    command
        .arg(task.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::pass_fds(&mut command, &[client.as_fd(), shim.as_fd()])?;
    command.spawn().map(drop)
}

fn path() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().ok_or(io::ErrorKind::NotFound)?;
    Ok(folder.join(NAME))
}

/// The program's next message; `None` when it has ended.
async fn receive(program: &AsyncFd<OwnedFd>) -> io::Result<Option<Message>> {
    let mut packet = vec![0; MAX_MESSAGE];
    let length = program
        .async_io(Interest::READABLE, |socket| {
            Ok(recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty())?)
        })
        .await?;
    Ok(Message::decode(&packet[..length]))
}

/// One byte always fits.
fn send(
    program: &AsyncFd<OwnedFd>,
    reply: Reply,
    connection: Option<&TcpStream>,
) -> io::Result<()> {
    let byte = [reply.encode()];
    let fds: Vec<_> = connection.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let socket = program.get_ref().as_raw_fd();
    let sent = sendmsg::<()>(
        socket,
        &[IoSlice::new(&byte)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    match sent {
        // It has ended: so has its client's connection.
        Ok(_) | Err(Errno::EPIPE) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
