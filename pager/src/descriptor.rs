//! A userfaultfd for a process, made in the process.
//!
//! A userfaultfd is for the address space of whoever makes it. One that also handles what the
//! kernel itself touches needs `CAP_SYS_PTRACE`, which processes in containers do not have. Then
//! they are given an open `/dev/userfaultfd` (Linux 6.1), whose users need no right but to have it:
//!
//! ```text
//!   this process                       process
//!                                      socketpair -> a, b
//!   takes b  (pidfd_getfd)
//!   sends /dev/userfaultfd through b   receives it through a
//!                                      ioctl(USERFAULTFD_IOC_NEW), closes all but the result
//! ```

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use podmotion_inject::Process;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::out::{OutError, proc};
use crate::sys::{keep, page_size, uffd};

const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;

// Layout of the page that the process lends, in bytes: the pair of sockets, `struct msghdr`,
// `struct iovec`, a byte of content, and the control message of 8 + 4 + 4 bytes and a descriptor.
const AT_PAIR: u64 = 0;
const AT_HEADER: u64 = 64;
const AT_IOVEC: u64 = 128;
const AT_CONTENT: u64 = 192;
const AT_CONTROL: u64 = 256;
const CONTROL_LEN: u64 = 24;
const AT_RECEIVED: u64 = AT_CONTROL + 16;

/// Makes a userfaultfd in the process and returns its number there.
pub(crate) fn create(process: &mut Process) -> Result<RawFd, OutError> {
    match make(process, FLAGS) {
        Err(OutError::Refused { source, .. })
            if matches!(source.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {}
        made => return made,
    }
    let device = receive(process)?;
    let arguments = [device as u64, uffd::IOC_NEW, FLAGS, 0, 0, 0];
    let made = call(process, "make a userfaultfd in", libc::SYS_ioctl, arguments);
    close(process, device)?;
    made.map(|number| number as RawFd)
}

/// The same for one that does no more than note writes, for which nobody needs a right.
pub(crate) fn create_for_watching(process: &mut Process) -> Result<RawFd, OutError> {
    make(process, FLAGS | uffd::USER_MODE_ONLY)
}

fn make(process: &mut Process, flags: u64) -> Result<RawFd, OutError> {
    let arguments = [flags, 0, 0, 0, 0, 0];
    let made = call(
        process,
        "make a userfaultfd in",
        libc::SYS_userfaultfd,
        arguments,
    );
    made.map(|number| number as RawFd)
}

/// Takes a userfaultfd out of the process: it has none afterwards.
pub(crate) fn take(process: &mut Process, number: RawFd) -> Result<OwnedFd, OutError> {
    let pid = process.pid();
    let taken = keep::pidfd_open(pid).and_then(|handle| keep::pidfd_getfd(handle, number));
    close(process, number)?;
    taken.map_err(proc("take the userfaultfd of", pid))
}

/// Closes a descriptor of the process.
pub(crate) fn close(process: &mut Process, number: RawFd) -> Result<(), OutError> {
    let arguments = [number as u64, 0, 0, 0, 0, 0];
    call(process, "close a descriptor of", libc::SYS_close, arguments).map(drop)
}

/// Has the process make a system call.
pub(crate) fn call(
    process: &mut Process,
    operation: &'static str,
    number: libc::c_long,
    arguments: [u64; 6],
) -> Result<i64, OutError> {
    let pid = process.pid();
    let answer = process
        .syscall(number, arguments)
        .map_err(|source| OutError::Inject {
            operation,
            pid,
            source,
        })?;
    if (-4095..0).contains(&answer) {
        return Err(OutError::Refused {
            operation,
            pid,
            source: io::Error::from_raw_os_error(-answer as i32),
        });
    }
    Ok(answer)
}

/// Gives the process an open `/dev/userfaultfd`. Returns its number there.
fn receive(process: &mut Process) -> Result<RawFd, OutError> {
    let pid = process.pid();
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")
        .map_err(|source| OutError::Proc {
            operation: "open /dev/userfaultfd for",
            pid,
            source,
        })?;
    with_page(process, |process, lent| {
        receive_with(process, &device, lent)
    })
}

/// Has the process lend a page of memory, and gives it back.
pub(crate) fn with_page<T>(
    process: &mut Process,
    work: impl FnOnce(&mut Process, u64) -> Result<T, OutError>,
) -> Result<T, OutError> {
    let arguments = [
        0,
        page_size(),
        (libc::PROT_READ | libc::PROT_WRITE) as u64,
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
        u64::MAX,
        0,
    ];
    let lent = call(process, "borrow memory of", libc::SYS_mmap, arguments)? as u64;
    let done = work(process, lent);
    let arguments = [lent, page_size(), 0, 0, 0, 0];
    call(process, "give back memory of", libc::SYS_munmap, arguments)?;
    done
}

fn receive_with(process: &mut Process, device: &File, lent: u64) -> Result<RawFd, OutError> {
    let domain = libc::AF_UNIX as u64;
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
    let arguments = [domain, kind, 0, lent + AT_PAIR, 0, 0];
    call(process, "make sockets in", libc::SYS_socketpair, arguments)?;
    let near = number(process, lent + AT_PAIR)?;
    let far = number(process, lent + AT_PAIR + 4)?;
    let received = hand_over(process, device, lent, near, far);
    close(process, near)?;
    close(process, far)?;
    received
}

fn hand_over(
    process: &mut Process,
    device: &File,
    lent: u64,
    near: RawFd,
    far: RawFd,
) -> Result<RawFd, OutError> {
    let pid = process.pid();
    let failed = |operation| {
        move |source| OutError::Proc {
            operation,
            pid,
            source,
        }
    };
    let socket = keep::pidfd_open(pid)
        .and_then(|handle| keep::pidfd_getfd(handle, far))
        .map_err(failed("take a socket of"))?;
    send(&socket, device).map_err(failed("hand /dev/userfaultfd to"))?;
    let header = [0, 0, lent + AT_IOVEC, 1, lent + AT_CONTROL, CONTROL_LEN, 0];
    write(process, lent + AT_HEADER, &header)?;
    write(process, lent + AT_IOVEC, &[lent + AT_CONTENT, 1])?;
    let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
    let arguments = [near as u64, lent + AT_HEADER, flags, 0, 0, 0];
    call(
        process,
        "receive /dev/userfaultfd in",
        libc::SYS_recvmsg,
        arguments,
    )?;
    number(process, lent + AT_RECEIVED)
}

fn send(socket: &OwnedFd, device: &File) -> io::Result<()> {
    let descriptors = [device.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(
        socket,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(())
}

fn number(process: &Process, at: u64) -> Result<RawFd, OutError> {
    let mut bytes = [0; 4];
    let pid = process.pid();
    process
        .read(at, &mut bytes)
        .map_err(|source| OutError::Inject {
            operation: "read an answer of",
            pid,
            source,
        })?;
    Ok(RawFd::from_ne_bytes(bytes))
}

/// Writes to memory that the process lends.
pub(crate) fn write(process: &Process, at: u64, words: &[u64]) -> Result<(), OutError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let pid = process.pid();
    process
        .write(at, &bytes)
        .map_err(|source| OutError::Inject {
            operation: "write a request of",
            pid,
            source,
        })
}
