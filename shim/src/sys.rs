//! The shim's few calls that need `unsafe`, behind safe functions.

use std::io;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// First descriptor handed to a child beyond its standard streams.
pub const FIRST_PASSED_FD: RawFd = 3;

/// Has the kernel kill the command's process when the calling *thread* ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call;
    // it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
                .map_err(io::Error::from)
        });
    }
}

/// Gives `fds` to the command's process as descriptors 3, 4, 5 and so on.
///
/// # Errors
/// Fails when a descriptor cannot be duplicated.
pub fn pass_fds(command: &mut Command, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let first_free = FIRST_PASSED_FD + RawFd::try_from(fds.len()).map_err(io::Error::other)?;
    // Sources above every target, so that no dup2 below overwrites one still needed.
    let mut sources = Vec::with_capacity(fds.len());
    for fd in fds {
        let raw = fcntl(*fd, FcntlArg::F_DUPFD_CLOEXEC(first_free))?;
        // SAFETY: fcntl returned a new descriptor that nothing else owns.
        sources.push(unsafe { OwnedFd::from_raw_fd(raw) });
    }
    // The standard library reports a failed exec over a pipe that takes the lowest free numbers:
    // the targets must not be free, or dup2 would replace that pipe.
    let mut placeholders = Vec::new();
    loop {
        let placeholder: OwnedFd = std::fs::File::open("/dev/null")?.into();
        if placeholder.as_raw_fd() >= first_free {
            break;
        }
        placeholders.push(placeholder);
    }
    // SAFETY: the closure runs between fork and exec and only makes dup2 calls on descriptors that
    // it owns; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            let _keep = &placeholders;
            for (target, source) in (FIRST_PASSED_FD..).zip(&sources) {
                if libc::dup2(source.as_raw_fd(), target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(())
}

/// Takes over the listening socket that the starting shim passed as descriptor 3.
///
/// # Errors
/// Fails when descriptor 3 is not open. Must be called once, before anything else opens files.
pub fn adopt_listener() -> io::Result<UnixListener> {
    // SAFETY: only borrowed for the check whether it is open.
    let fd = unsafe { BorrowedFd::borrow_raw(FIRST_PASSED_FD) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: the descriptor is open and, by this function's contract, nobody else owns it.
    Ok(unsafe { UnixListener::from_raw_fd(FIRST_PASSED_FD) })
}

/// Receives the one descriptor that a peer sends over a unix socket.
///
/// # Errors
/// `WouldBlock` on a non-blocking socket without a message; `UnexpectedEof` when the message
/// carries no descriptor.
pub fn receive_fd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut name = [0_u8; 4096];
    let mut buffers = [IoSliceMut::new(&mut name)];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel installed this descriptor for this message only.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    received.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_read_bad!(bytes_readable, libc::FIONREAD, libc::c_int);
    nix::ioctl_write_int_bad!(open_peer, libc::TIOCGPTPEER);
}

/// Signals a process by the signal's number, which may be a real-time one.
///
/// # Errors
/// The error of the system call.
pub fn kill(pid: libc::pid_t, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: kill takes integers and touches no memory of this process.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// What has become of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// It has ended: its pid, and its exit code or 128 plus the number of the signal that ended it.
    Ended(libc::pid_t, u32),
    /// It has stopped, for a thread of this process that traces it.
    Stopped,
}

/// Looks whether a child, any without `pid`, has something to tell, and leaves it there.
///
/// # Errors
/// `ECHILD` without such a child.
pub fn look_at_child(pid: Option<libc::pid_t>) -> Result<Option<Child>, Errno> {
    let (kind, id) = match pid {
        Some(pid) => (libc::P_PID, pid.cast_unsigned()),
        None => (libc::P_ALL, 0),
    };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: a zeroed siginfo_t is a valid one, and the pointer is to it.
    let (code, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (libc::waitid(kind, id, &raw mut info, options), info)
    };
    Errno::result(code)?;
    // SAFETY: the fields of SIGCHLD; zero where there was none.
    let (child, status) = unsafe { (info.si_pid(), info.si_status().cast_unsigned()) };
    if child == 0 {
        return Ok(None);
    }
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Child::Ended(child, status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Child::Ended(child, 128 + status),
        _ => Child::Stopped,
    }))
}

/// Sets the size of the terminal behind a pseudo-terminal master.
///
/// # Errors
/// The error of the ioctl.
pub fn set_window_size(master: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open for the call and the kernel only reads the struct.
    unsafe { ioctl::set_window_size(master.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Opens the other side of a pseudo-terminal master, without making it the controlling terminal.
///
/// # Errors
/// The error of the ioctl.
pub fn open_terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // SAFETY: the descriptor is open for the call; the argument is an integer.
    let fd = unsafe { ioctl::open_peer(master.as_raw_fd(), flags.bits()) }?;
    // SAFETY: TIOCGPTPEER returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How many bytes can be read from a pipe now.
///
/// # Errors
/// The error of the ioctl.
pub fn bytes_readable(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open for the call and the kernel writes one int.
    unsafe { ioctl::bytes_readable(pipe.as_raw_fd(), &raw mut count) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Sets `O_NONBLOCK` on a file description; every holder of it is affected.
///
/// # Errors
/// The error of fcntl.
pub fn set_nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Registers a descriptor with the event loop. Its description must be non-blocking.
///
/// # Errors
/// Fails for what cannot be polled. Panics outside a tokio runtime.
pub fn event_source(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps one and the same descriptor open until it is dropped, and the
    // AsyncFd, which only lends it out, deregisters it before that.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// As [`event_source`], for a descriptor that others use too.
///
/// # Errors
/// Fails for what cannot be polled. Panics outside a tokio runtime.
pub fn shared_event_source(
    fd: Arc<OwnedFd>,
    interest: Interest,
) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: as above; nobody can take the descriptor out of an Arc that the AsyncFd shares.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Where the allocator is told what only a program's start can tell it.
pub const TUNABLES: &str = "GLIBC_TUNABLES";
/// No store of free memory in each thread: nothing gives it back, and the threads of a shim that had slept
/// a thousand times held 1 MB there. Nor one of stacks of threads that have ended.
pub const NO_STORES: &str = "glibc.malloc.tcache_count=0:glibc.pthread.stack_cache_size=0";

/// Bytes from which on an allocation is a mapping of its own (glibc's default).
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 128 << 10;

/// Keeps the allocator to one heap: a shim lives as long as its pod and does next to nothing. The programs
/// that it runs have their allocators as ever.
///
/// What is large stays out of that heap: glibc raises its threshold when such a mapping is freed, and a
/// client that announces megabytes and sends none would then cost them.
#[cfg(target_env = "gnu")]
pub fn use_one_heap() {
    // SAFETY: mallopt takes integers and is called before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED) };
    // SAFETY: there is no second thread that could read the environment meanwhile.
    unsafe { std::env::remove_var(TUNABLES) };
}

/// Keeps the allocator to one heap: a shim lives as long as its pod and does next to nothing.
#[cfg(not(target_env = "gnu"))]
pub fn use_one_heap() {}

/// Gives unused heap back to the system.
#[cfg(target_env = "gnu")]
pub fn trim_heap() {
    // SAFETY: malloc_trim only touches the allocator's own free memory and takes its locks.
    unsafe { libc::malloc_trim(0) };
}

/// Gives unused heap back to the system.
#[cfg(not(target_env = "gnu"))]
pub fn trim_heap() {}

/// Stack below the calling function that its own calls may need, in bytes.
const STACK_IN_USE: usize = 16 << 10;
/// Stack below that which may have been used before, in bytes: far less than the 128 MiB that the kernel keeps free of
/// mappings below the top of a main thread's stack (`mmap_base`).
const STACK_USED_BEFORE: usize = 512 << 10;

/// Gives back what the stack of the main thread held before and does not need now. Does nothing in other threads.
pub fn trim_stack() {
    if rustix::thread::gettid() != rustix::process::getpid() {
        return;
    }
    let here = 0_u8;
    let page = rustix::param::page_size();
    let end = ((&raw const here).addr() - STACK_IN_USE) & !(page - 1);
    let start = std::ptr::without_provenance_mut(end - STACK_USED_BEFORE);
    // SAFETY: what is given up lies below every frame of this thread, and nothing but its stack, or the gap below that, is
    // there. It reads as zeros when it is used again. Where the stack does not reach that far, ENOMEM says so, once the
    // rest is done (madvise(2)).
    unsafe { libc::madvise(start, STACK_USED_BEFORE, libc::MADV_DONTNEED) };
}
