//! The few system calls without a safe wrapper.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::UnshareFlags;

/// Gives the calling thread a mount namespace of its own, a copy of the one it is in.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: only NEWNS is unshared (the kernel adds FS, the thread's working directory and
    // root); the table of descriptors stays shared with the other threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(Into::into)
}

/// Makes the command ignore SIGXFSZ, so that a write beyond its file size limit fails with EFBIG
/// instead of killing it.
pub(crate) fn ignore_file_size_signal(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and calls only signal(2), which is
    // async-signal-safe, with a disposition that is no function.
    unsafe {
        command.pre_exec(|| {
            if libc::signal(libc::SIGXFSZ, libc::SIG_IGN) == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Has `SIGCHLD` wait for ever, in the command and in whatever it starts: no handler for it is called.
pub(crate) fn block_child_signal(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and calls only sigemptyset(3), sigaddset(3) and
    // sigprocmask(2), which are async-signal-safe, with a set of its own.
    unsafe {
        command.pre_exec(|| {
            let mut set = MaybeUninit::uninit();
            let done = libc::sigemptyset(set.as_mut_ptr()) == 0
                && libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD) == 0
                && libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) == 0;
            done.then_some(()).ok_or_else(io::Error::last_os_error)
        });
    }
}

/// Makes the files that the command makes its owner's alone, whatever mode it asks for.
pub(crate) fn close_files_to_others(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and calls only umask(2), which is
    // async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0o077);
            Ok(())
        });
    }
}

/// Kills the process group that the process leads or led. Needs Linux 6.9.
pub(crate) fn kill_group(leader: &OwnedFd) -> io::Result<()> {
    // From the kernel's include/uapi/linux/pidfd.h.
    const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;
    // SAFETY: the kernel reads nothing through the null pointer, which asks for a plain signal.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            leader.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            PIDFD_SIGNAL_PROCESS_GROUP,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a TCP socket is in repair mode. Fails with `ENOPROTOOPT` or `EOPNOTSUPP` on what is
/// no TCP socket.
pub(crate) fn in_repair_mode(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointers are to live, writable variables of the sizes given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value != 0)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes a TCP socket out of repair mode, as CRIU does when a dump fails.
pub(crate) fn leave_repair_mode(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0)
}

/// Puts a TCP socket into repair mode: closed in it, the socket vanishes without a packet. Fails on a
/// socket that is neither closed nor established.
pub(crate) fn enter_repair_mode(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)
}

/// Lets the socket's address be bound again: leaving repair mode takes that right away.
pub(crate) fn allow_address_reuse(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer is to a live variable of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads memory of another process up to the first page that cannot be read, and waits where a
/// userfaultfd has to fill a page in first. Returns how many bytes were read.
pub(crate) fn read_memory(pid: i32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: address as usize as *mut libc::c_void,
        iov_len: into.len(),
    };
    // SAFETY: `local` is a writable buffer of that length; `remote` is of the other process, where
    // the kernel checks it.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
