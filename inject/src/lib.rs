//! Stops the threads of processes, runs single system calls in them, and puts them back exactly as
//! they were. Knows nothing of containers, memory images or CRIU.
//!
//! ```text
//!           begin                 wait_stopped                  release
//! running --------> interrupted --------------> stopped <-+   ----------> as before
//!                   (may still                     |      |
//!                    run a little)                 +------+
//!                                          syscall, state, apply
//! ```
//!
//! A [`Seized`] belongs to the thread that made it: the kernel takes `ptrace` requests from no other,
//! and lets all traced threads go when that thread ends, whatever happened to it.
//! [`on_own_thread`] gives it a thread that ends with it.
//!
//! [`Watch`] holds a process in the moment in which it begins to end.
//!
//! # Frozen processes
//!
//! Threads that are to run no instruction of their own between being frozen by their cgroup and
//! being released must be frozen at both ends, since detaching lets a thread go on:
//!
//! ```text
//! freeze -> begin -> thaw -> wait_stopped -> ... -> freeze -> release -> (thaw, whenever)
//! ```
//!
//! The freezer of cgroup version 1 keeps threads from stopping for a tracer; the thaw after
//! [`Seized::begin`] lets them go exactly as far. Stopped threads count as frozen for both versions,
//! and a frozen one that is detached stays where it is. System calls can be injected only while the
//! cgroup is thawed.
//!
//! # What a thread notices
//!
//! - A system call in which it waited begins again, or goes on with the time it had left, exactly as
//!   the kernel does after a signal that the thread ignores. Of the few that never begin again after
//!   a stop (see signal(7)), `epoll_wait` and `sigwaitinfo` without a time limit do (on x86_64);
//!   with one they end with `EINTR`, and so do `semop` and reads from a socket with a time limit,
//!   as after any `SIGSTOP` and `SIGCONT`.
//! - A restartable sequence in which it was (`rseq`) is aborted as if the thread had been preempted.
//!   The kernel writes to the thread's `struct rseq` when it goes on.
//! - Its code is not changed: calls use an instruction that the process has mapped already.
//! - Whoever waits for it with `WUNTRACED` notices nothing; `SIGCHLD` goes to this process, whose own
//!   waiting for children must not take the stops (`waitpid(-1)` does, whatever its flags).

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("only x86_64 and arm64");

mod error;
mod instruction;
mod process;
mod procfs;
mod rseq;
mod seized;
mod state;
mod sys;
mod thread;
mod watch;

pub use error::Error;
pub use process::Process;
pub use seized::{Seized, on_own_thread};
pub use state::ThreadState;
pub use sys::Registers;
pub use watch::{End, Watch};
