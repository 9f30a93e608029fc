//! CRIU's RPC on a socket pair: one request, notifications in between, one answer.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use protobuf::Message;
use rust_criu::rust_criu_protobuf::rpc::{Criu_req, Criu_req_type, Criu_resp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};

use crate::error::Error;
use crate::launch::Process;

/// Our end of the conversation.
pub(crate) struct Connection {
    socket: OwnedFd,
}

/// What happened first.
pub(crate) enum Event {
    /// CRIU reports a stage and waits for [`Connection::acknowledge`].
    Notify {
        script: String,
        pid: Option<i32>,
        descriptor: Option<OwnedFd>,
    },
    Answer(Box<Criu_resp>),
    /// The other end is gone.
    Closed,
    /// The descriptor to watch became readable.
    Watched,
    Deadline,
}

impl Connection {
    /// A connection and the end to give to CRIU.
    pub(crate) fn pair() -> Result<(Self, OwnedFd), Error> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| Error::Transport(e.into()))?;
        Ok((Self { socket: ours }, theirs))
    }

    pub(crate) fn send(&self, request: &Criu_req) -> Result<(), Error> {
        let bytes = request.write_to_bytes().map_err(Error::Protocol)?;
        let sent = rustix::net::sendmsg(
            &self.socket,
            &[IoSlice::new(&bytes)],
            &mut Default::default(),
            SendFlags::NOSIGNAL,
        );
        sent.map(drop).map_err(|e| Error::Transport(e.into()))
    }

    /// Answers a notification: `false` makes CRIU give up what it is doing.
    pub(crate) fn acknowledge(&self, go_on: bool) -> Result<(), Error> {
        let mut request = Criu_req::new();
        request.set_type(Criu_req_type::NOTIFY);
        request.set_notify_success(go_on);
        self.send(&request)
    }

    /// Waits for CRIU, for `watch` to become readable, or for the deadline. A message from CRIU
    /// goes before all else. CRIU's helper processes share its end of the socket, so its own end
    /// shows at `process` only.
    pub(crate) fn wait(
        &self,
        process: &Process,
        deadline: Instant,
        watch: Option<BorrowedFd<'_>>,
    ) -> Result<Event, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut fds = vec![
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(process.pidfd(), PollFlags::IN),
            ];
            fds.extend(watch.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(Event::Deadline),
                Ok(_) if !fds[0].revents().is_empty() => return self.receive(),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(Event::Closed),
                Ok(_) => return Ok(Event::Watched),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::Transport(e.into())),
            }
        }
    }

    fn receive(&self) -> Result<Event, Error> {
        let mut bytes = vec![0; 64 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            self.socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let length = match received {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(e) => return Err(Error::Transport(e.into())),
        };
        if length == 0 {
            return Ok(Event::Closed);
        }
        let descriptor = control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => Some(fds.next()),
                _ => None,
            })
            .flatten();
        let answer = Criu_resp::parse_from_bytes(&bytes[..length]).map_err(Error::Protocol)?;
        if answer.type_() != Criu_req_type::NOTIFY {
            return Ok(Event::Answer(Box::new(answer)));
        }
        Ok(Event::Notify {
            script: answer.notify.script().to_owned(),
            pid: answer.notify.has_pid().then(|| answer.notify.pid()),
            descriptor,
        })
    }
}

/// An empty request of a kind.
pub(crate) fn request(kind: Criu_req_type) -> Criu_req {
    let mut request = Criu_req::new();
    request.set_type(kind);
    request
}

/// Turns a broken pipe into "the other end is gone": a send can notice that before a receive does.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Transport(e)
        if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset))
}
