//! arm64: `struct user_pt_regs` of the kernel's `asm/ptrace.h`, as words.
//!
//! Two things differ from x86_64. At the stop the kernel has already set a system call that is to
//! begin again back to its instruction (`do_signal` in `arch/arm64/kernel/signal.c`). That holds
//! across calls made here, except that a wait with a relative time (`nanosleep`) of the thread that
//! made the call begins with its whole time, not with what was left of it. And at the end of a
//! call the kernel overwrites x7 with what was in it before (`report_syscall` in `ptrace.c`), so it
//! must not change in between.

use super::Registers;

/// Length of `NT_PRSTATUS` of a 64-bit task in words: x0 to x30, sp, pc, pstate.
pub(super) const WORDS: usize = 34;

const NUMBER: usize = 8;
const SP: usize = 31;
const PC: usize = 32;
const PSTATE: usize = 33;

/// Software single step, and the kind of branch that led here.
const STEP_AND_BRANCH: u64 = 1 << 21 | 3 << 10;

/// `svc #0`.
pub(crate) const INSTRUCTION: &[u8] = &[0x01, 0x00, 0x00, 0xd4];
/// Where an instruction can begin.
pub(crate) const INSTRUCTION_ALIGNMENT: usize = 4;

/// Register sets with floating point and vector registers, best first; the first that a task has
/// holds them all.
pub(crate) const VECTOR_SETS: &[i32] = &[
    0x405, // NT_ARM_SVE
    2,     // NT_PRFPREG
];

impl Registers {
    /// These registers, about to execute the system call instruction at `at`.
    pub(crate) fn calling(&self, at: u64, number: u64, arguments: [u64; 6]) -> Self {
        let mut registers = *self;
        let words = &mut registers.0;
        words[..6].copy_from_slice(&arguments);
        words[NUMBER] = number;
        words[PC] = at;
        words[PSTATE] &= !STEP_AND_BRANCH;
        registers
    }

    /// Never: the first argument of a system call that was interrupted is lost by the stop.
    pub(crate) fn beginning_again(&self) -> Option<Self> {
        None
    }

    /// What the system call answered, after it.
    pub(crate) fn answer(&self) -> i64 {
        self.0[0].cast_signed()
    }

    /// Address of the next instruction.
    pub fn instruction(&self) -> u64 {
        self.0[PC]
    }

    /// The same with another next instruction.
    pub(crate) fn at(mut self, instruction: u64) -> Self {
        self.0[PC] = instruction;
        self
    }

    /// The stack pointer.
    pub fn stack(&self) -> u64 {
        self.0[SP]
    }
}
