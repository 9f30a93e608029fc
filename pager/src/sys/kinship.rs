//! Whether processes have one address space between them, or threads one descriptor table.

use std::cmp::Ordering;
use std::io;

const KCMP_VM: libc::c_int = 1;
const KCMP_FILES: libc::c_int = 2;

/// Orders two processes by their address spaces, in an order that is the same until the next boot:
/// `Equal` when they share one (`vfork`, `CLONE_VM`).
pub(crate) fn compare(first: i32, second: i32) -> io::Result<Ordering> {
    kcmp(first, second, KCMP_VM)
}

/// The same for two threads and their descriptor tables.
pub(crate) fn compare_files(first: i32, second: i32) -> io::Result<Ordering> {
    kcmp(first, second, KCMP_FILES)
}

fn kcmp(first: i32, second: i32, what: libc::c_int) -> io::Result<Ordering> {
    // SAFETY: takes and returns numbers.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, first, second, what, 0, 0) };
    match result {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_shares_with_itself() {
        let own = std::process::id() as i32;
        assert_eq!(compare(own, own).unwrap(), Ordering::Equal);
        assert_eq!(compare_files(own, own).unwrap(), Ordering::Equal);
    }
}
