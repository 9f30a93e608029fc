//! The system calls that no crate wraps. All `unsafe` of this crate is here, in the modules below
//! and in nothing else.

pub(crate) mod huge;
pub(crate) mod keep;
pub(crate) mod kinship;
pub(crate) mod memory;
pub(crate) mod pagemap;
pub(crate) mod robust;
pub(crate) mod uffd;

/// Size of a page in bytes, from `sysconf`. A power of two.
pub(crate) fn page_size() -> u64 {
    rustix::param::page_size() as u64
}
