//! The one kernel function that a program calls: `bpf_cast_to_kern_ctx()`, since Linux 6.2.
//!
//! A kernel function is called by the number of its type in the running kernel's BTF. aya resolves
//! no such calls, so the program is built with a call of a helper that does not exist, and that
//! instruction is replaced here, before aya sees the object. Kernels verify the whole program
//! afterwards as any other.

use aya::{Btf, BtfError};
use aya_obj::btf::BtfKind;

pub(crate) const NAME: &str = "bpf_cast_to_kern_ctx";
/// `GATE_CAST_TO_KERNEL_CONTEXT` of `gate.bpf.h`.
const PLACEHOLDER: u32 = 0x706f_646d;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, the number is that of a kernel function, in the source register's bits.
const KERNEL_FUNCTION: u8 = 2 << 4;

/// The object with its call resolved for the running kernel.
///
/// # Errors
///
/// If that has no such function, or does not describe its types.
pub(crate) fn resolve(object: &[u8]) -> Result<Vec<u8>, BtfError> {
    let number = Btf::from_sys_fs()?.id_by_type_name_kind(NAME, BtfKind::Func)?;
    Ok(replace_call(object, number))
}

fn replace_call(object: &[u8], number: u32) -> Vec<u8> {
    let from = instruction(0, PLACEHOLDER);
    let to = instruction(KERNEL_FUNCTION, number);
    let mut object = object.to_vec();
    // Sections of instructions are aligned to their size.
    for place in object.chunks_exact_mut(to.len()) {
        if place == from {
            place.copy_from_slice(&to);
        }
    }
    object
}

fn instruction(registers: u8, number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    [CALL, registers, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_call_and_nothing_else() {
        let other = instruction(0, 5);
        let object = [other, instruction(0, PLACEHOLDER), other].concat();
        let replaced = replace_call(&object, 0x1_0203);
        let expected = [0x85, 0x20, 0, 0, 3, 2, 1, 0];
        assert_eq!(replaced, [other, expected, other].concat());
    }
}
