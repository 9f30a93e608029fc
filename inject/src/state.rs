//! A thread's own state.

use crate::sys::Registers;

/// What a stopped thread goes on with. Taken with [`Process::state`](crate::Process::state), and put
/// back with [`Process::apply`](crate::Process::apply), also by a later [`Seized`](crate::Seized) as
/// long as it is the same thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadState {
    /// The thread.
    pub(crate) tid: i32,
    /// At the abort handler where the thread is in a restartable sequence. With the number of the
    /// system call that is to begin again, where there is one.
    pub(crate) registers: Registers,
    /// Number of the register set that holds floating point and vector registers, and its content.
    pub(crate) vector: Option<(i32, Vec<u8>)>,
    /// Signals that it blocks.
    pub(crate) blocked: u64,
}

impl ThreadState {
    /// The thread that this is the state of.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Its general registers.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Signals that it blocks, bit 0 for signal 1.
    pub fn blocked_signals(&self) -> u64 {
        self.blocked
    }
}
