//! `ptrace`, and waiting for what it stops. All `unsafe` of this crate is here.
//!
//! Every request must come from the thread that seized; any other gets `ESRCH`.

mod alarm;
#[cfg(target_arch = "aarch64")]
#[path = "sys/aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "sys/x86_64.rs"]
mod arch;

use std::io;
use std::mem::MaybeUninit;

pub(crate) use alarm::Alarm;
pub(crate) use arch::{INSTRUCTION, INSTRUCTION_ALIGNMENT, VECTOR_SETS};

/// General registers of a stopped thread, in the kernel's order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Registers([u64; arch::WORDS]);

impl std::fmt::Debug for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x?}", self.0)
    }
}

const NT_PRSTATUS: libc::c_int = 1;
// From the kernel's include/uapi/linux/ptrace.h.
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
/// Report stops at system calls apart from `SIGTRAP`.
const PTRACE_O_TRACESYSGOOD: usize = 1;
/// Kill the thread's process when the tracer ends.
const PTRACE_O_EXITKILL: usize = 1 << 20;
/// Have system calls pass the task's seccomp filters.
const PTRACE_O_SUSPEND_SECCOMP: usize = 1 << 21;

/// Stop where a thread begins to end.
const PTRACE_O_TRACEEXIT: usize = 1 << 6;

/// A stop of a traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// `PTRACE_EVENT_STOP`: asked for, or with its whole process by a signal.
    Trap,
    /// Before or after a system call.
    Syscall,
    /// A signal is about to be delivered.
    Signal(i32),
    /// The thread begins to end.
    Exit,
}

/// How a stopped thread goes on.
#[derive(Clone, Copy)]
pub(crate) enum Resume {
    /// Until something stops it.
    Free,
    /// Until the next system call begins or ends.
    ToSyscall,
}

fn result(code: libc::c_long) -> io::Result<()> {
    if code == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Becomes the tracer of `tid`, which goes on running. With `past_seccomp` the thread's system calls
/// pass its filters while it is traced: that needs `CAP_SYS_ADMIN`, no filter on the caller, and a
/// kernel with `CONFIG_CHECKPOINT_RESTORE`.
pub(crate) fn seize(tid: i32, past_seccomp: bool) -> io::Result<()> {
    let seccomp = if past_seccomp {
        PTRACE_O_SUSPEND_SECCOMP
    } else {
        0
    };
    // SAFETY: the address is ignored and the data are flags.
    result(unsafe {
        libc::ptrace(
            libc::PTRACE_SEIZE,
            tid,
            0usize,
            PTRACE_O_TRACESYSGOOD | seccomp,
        )
    })
}

/// Whether the process of a stopped thread, seized with [`seize`], is killed should this one end.
pub(crate) fn die_with_tracer(tid: i32, die: bool) -> io::Result<()> {
    let kill = if die { PTRACE_O_EXITKILL } else { 0 };
    let set = |options: usize| {
        // SAFETY: the address is ignored and the data are flags.
        result(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, tid, 0usize, options) })
    };
    // As when it was seized: with leave to pass filters, where there is one.
    match set(PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP | kill) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EINVAL)) => {
            set(PTRACE_O_TRACESYSGOOD | kill)
        }
        result => result,
    }
}

/// Becomes the tracer of `pid`, which goes on running and stops when it begins to end.
pub(crate) fn seize_for_exit(pid: i32) -> io::Result<()> {
    // SAFETY: the address is ignored and the data are flags.
    result(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, PTRACE_O_TRACEEXIT) })
}

/// Leaves a thread stopped that is so with its whole process, until that goes on.
pub(crate) fn stay_stopped(tid: i32) -> io::Result<()> {
    // SAFETY: address and data are ignored.
    result(unsafe { libc::ptrace(libc::PTRACE_LISTEN, tid, 0usize, 0usize) })
}

/// What belongs to the event that a thread is stopped for: at its end, its status for `wait`.
pub(crate) fn event_message(tid: i32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the address is ignored and the data are a pointer to a live value of the right type.
    result(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0usize, &raw mut message) })?;
    Ok(message)
}

/// Has a seized thread stop before its next instruction in user mode.
pub(crate) fn interrupt(tid: i32) -> io::Result<()> {
    // SAFETY: address and data are ignored.
    result(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0usize, 0usize) })
}

/// Lets a stopped thread go on; a `signal` other than 0 is delivered where it stopped for one.
pub(crate) fn resume(tid: i32, how: Resume, signal: i32) -> io::Result<()> {
    let request = match how {
        Resume::Free => libc::PTRACE_CONT,
        Resume::ToSyscall => libc::PTRACE_SYSCALL,
    };
    // SAFETY: the address is ignored and the data are a signal's number.
    result(unsafe { libc::ptrace(request, tid, 0usize, signal as usize) })
}

/// Stops tracing a stopped thread, which goes on, or stays stopped with its process.
pub(crate) fn detach(tid: i32) -> io::Result<()> {
    // SAFETY: the address is ignored and the data are a signal's number: none.
    result(unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0usize, 0usize) })
}

/// Kills a process that has a traced thread, so that its pid is nobody else's.
pub(crate) fn kill(pid: i32) -> io::Result<()> {
    // SAFETY: takes and returns numbers.
    result(unsafe { libc::kill(pid, libc::SIGKILL) }.into())
}

/// The general registers of a stopped thread; `None` of one that runs code of another architecture.
pub(crate) fn registers(tid: i32) -> io::Result<Option<Registers>> {
    let mut registers = Registers([0; arch::WORDS]);
    let mut vector = libc::iovec {
        iov_base: registers.0.as_mut_ptr().cast(),
        iov_len: size_of_val(&registers.0),
    };
    // SAFETY: the vector describes memory of `registers`, of which any bytes are a valid value; the
    // kernel writes no more than its length and sets that.
    result(unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            tid,
            NT_PRSTATUS as usize,
            &raw mut vector,
        )
    })?;
    Ok((vector.iov_len == size_of_val(&registers.0)).then_some(registers))
}

/// Sets the general registers of a stopped thread.
pub(crate) fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    set_register_set(
        tid,
        NT_PRSTATUS,
        registers.0.as_ptr().cast(),
        size_of_val(&registers.0),
    )
}

/// One register set of a stopped thread; `None` where it has no such set.
pub(crate) fn register_set(tid: i32, set: i32) -> io::Result<Option<Vec<u8>>> {
    // The largest there is: SVE with vectors of 2048 bits and x86 with AMX stay below it.
    let mut bytes = vec![0u8; 16 << 10];
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the vector describes memory of `bytes`; the kernel writes no more than its length and
    // sets that.
    let got =
        result(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, set as usize, &raw mut vector) });
    match got {
        Ok(()) => {
            bytes.truncate(vector.iov_len);
            Ok(Some(bytes))
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets one register set of a stopped thread to what [`register_set`] gave.
pub(crate) fn set_vector_registers(tid: i32, set: i32, bytes: &[u8]) -> io::Result<()> {
    set_register_set(tid, set, bytes.as_ptr(), bytes.len())
}

fn set_register_set(tid: i32, set: i32, bytes: *const u8, length: usize) -> io::Result<()> {
    let mut vector = libc::iovec {
        iov_base: bytes.cast_mut().cast(),
        iov_len: length,
    };
    // SAFETY: both callers pass pointer and length of one live value, which the kernel only reads; it
    // writes to the vector.
    result(unsafe { libc::ptrace(libc::PTRACE_SETREGSET, tid, set as usize, &raw mut vector) })
}

/// Signals that a stopped thread blocks, bit 0 for signal 1. In a call that blocks others for its
/// own time (`ppoll`) these are the ones from before the call.
pub(crate) fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the data are a pointer to a live value of the size that the address says.
    result(unsafe {
        libc::ptrace(
            PTRACE_GETSIGMASK as _,
            tid,
            size_of_val(&mask),
            &raw mut mask,
        )
    })?;
    Ok(mask)
}

/// Sets what a stopped thread blocks. A call that blocks others for its own time begins again with
/// these, and sets its own anew.
pub(crate) fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    // SAFETY: the data are a pointer to a live value of the size that the address says.
    result(unsafe {
        libc::ptrace(
            PTRACE_SETSIGMASK as _,
            tid,
            size_of_val(&mask),
            &raw const mask,
        )
    })
}

/// Address of the `struct rseq` that a stopped thread has registered. `None` where it has none, or
/// before Linux 5.13.
pub(crate) fn rseq_area(tid: i32) -> io::Result<Option<u64>> {
    // struct ptrace_rseq_configuration: pointer, size, signature, flags, padding.
    let mut configuration = [0u64; 3];
    // SAFETY: the data are a pointer to live memory of the size that the address says.
    let got = result(unsafe {
        libc::ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION as _,
            tid,
            size_of_val(&configuration),
            configuration.as_mut_ptr(),
        )
    });
    match got {
        Ok(()) => Ok((configuration[0] != 0).then_some(configuration[0])),
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a stopped thread has its own system calls answered by a handler of its own
/// (`PR_SET_SYSCALL_USER_DISPATCH`). Never before Linux 6.4, which cannot be asked, nor where the kernel does not have
/// this for the architecture, as for arm64 (include/linux/syscall_user_dispatch.h).
pub(crate) fn dispatches_syscalls(tid: i32) -> io::Result<bool> {
    // struct ptrace_sud_config: mode, selector, offset, len.
    let mut configuration = [0u64; 4];
    // SAFETY: the data are a pointer to live memory of the size that the address says.
    let got = result(unsafe {
        libc::ptrace(
            PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG as _,
            tid,
            size_of_val(&configuration),
            configuration.as_mut_ptr(),
        )
    });
    match got {
        Ok(()) => Ok(configuration[0] != 0),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Waits for the next stop of a traced thread and takes it. `None`: the thread has ended; its exit
/// status is still there for whoever it belongs to. Fails with `EINTR` when an [`Alarm`] rings.
pub(crate) fn wait_stop(tid: i32) -> io::Result<Option<Stop>> {
    // Without WEXITED a thread that has ended gives ECHILD, also a leader with threads left
    // (wait_consider_task in the kernel's kernel/exit.c).
    match wait(tid, libc::WSTOPPED | libc::__WALL) {
        // si_status is the signal, and the event above it.
        Ok(status) => Ok(Some(match (status & 0xff, status >> 8) {
            (_, libc::PTRACE_EVENT_STOP) => Stop::Trap,
            (_, libc::PTRACE_EVENT_EXIT) => Stop::Exit,
            (signal, 0) if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
            (signal, _) => Stop::Signal(signal),
        })),
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Takes the exit status of a traced thread that is ending, for which the kernel otherwise waits with
/// telling its parent. Fails with `EINTR` when an [`Alarm`] rings, `ECHILD` when there is none.
pub(crate) fn take_exit(tid: i32) -> io::Result<()> {
    wait(tid, libc::WEXITED | libc::__WALL).map(drop)
}

fn wait(tid: i32, options: libc::c_int) -> io::Result<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the pointer is to memory for one siginfo_t.
    let code =
        unsafe { libc::waitid(libc::P_PID, tid.cast_unsigned(), info.as_mut_ptr(), options) };
    result(code.into())?;
    // SAFETY: zeroed, so initialised; after a successful wait the kernel has filled in the fields of
    // SIGCHLD, of which si_status is one.
    Ok(unsafe { info.assume_init().si_status() })
}

/// Size of a page in bytes.
pub(crate) fn page_size() -> u64 {
    // SAFETY: takes no pointer. It cannot fail for this name.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.cast_unsigned()
}
