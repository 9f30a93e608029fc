//! x86_64: `struct user_regs_struct` of the kernel's `asm/user_64.h`, as words.

use super::Registers;

/// Length of `NT_PRSTATUS` of a 64-bit task in words. That of a 32-bit one is shorter.
pub(super) const WORDS: usize = 27;

const R10: usize = 7;
const R9: usize = 8;
const R8: usize = 9;
const RAX: usize = 10;
const RDX: usize = 12;
const RSI: usize = 13;
const RDI: usize = 14;
const ORIG_RAX: usize = 15;
const RIP: usize = 16;
const EFLAGS: usize = 18;
const RSP: usize = 19;

/// Trap after one instruction.
const TRAP_FLAG: u64 = 1 << 8;

/// `syscall`.
pub(crate) const INSTRUCTION: &[u8] = &[0x0f, 0x05];
/// Where an instruction can begin.
pub(crate) const INSTRUCTION_ALIGNMENT: usize = 1;

/// Register sets with floating point and vector registers, best first; the first that a task has
/// holds them all.
pub(crate) const VECTOR_SETS: &[i32] = &[
    0x202, // NT_X86_XSTATE
    2,     // NT_PRFPREG
];

impl Registers {
    /// These registers, about to execute the system call instruction at `at`.
    pub(crate) fn calling(&self, at: u64, number: u64, arguments: [u64; 6]) -> Self {
        let mut registers = *self;
        let words = &mut registers.0;
        words[RIP] = at;
        words[RAX] = number;
        // Not in a system call: otherwise the kernel would look at RAX for one to restart.
        words[ORIG_RAX] = u64::MAX;
        words[EFLAGS] &= !TRAP_FLAG;
        for (register, value) in [RDI, RSI, RDX, R10, R8, R9].into_iter().zip(arguments) {
            words[register] = value;
        }
        registers
    }

    /// The same about to make once more a system call that was interrupted without an effect, where it
    /// is one that the kernel does not begin again by itself, without a time limit.
    pub(crate) fn beginning_again(&self) -> Option<Self> {
        const INTERRUPTED: i64 = -(libc::EINTR as i64);
        /// ERESTARTNOHAND: begin again unless a handler runs.
        const UNLESS_HANDLED: i64 = -514;
        let words = &self.0;
        let for_ever = match words[ORIG_RAX].cast_signed() {
            // A negative int.
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => words[R10] & 1 << 31 != 0,
            // No pointer.
            libc::SYS_epoll_pwait2 => words[R10] == 0,
            libc::SYS_rt_sigtimedwait => words[RDX] == 0,
            _ => false,
        };
        let mut registers = *self;
        registers.0[RAX] = UNLESS_HANDLED.cast_unsigned();
        (for_ever && words[RAX].cast_signed() == INTERRUPTED).then_some(registers)
    }

    /// What the system call answered, after it.
    pub(crate) fn answer(&self) -> i64 {
        self.0[RAX].cast_signed()
    }

    /// Address of the next instruction.
    pub fn instruction(&self) -> u64 {
        self.0[RIP]
    }

    /// The same with another next instruction.
    pub(crate) fn at(mut self, instruction: u64) -> Self {
        self.0[RIP] = instruction;
        self
    }

    /// The stack pointer.
    pub fn stack(&self) -> u64 {
        self.0[RSP]
    }
}
