//! Where threads have their lists of robust locks.

use std::io;

/// The address of the list's head (`struct robust_list_head`) in the thread's memory; 0 when it has
/// none.
pub(crate) fn list(thread: i32) -> io::Result<u64> {
    let (mut head, mut len) = (0u64, 0usize);
    // SAFETY: the kernel writes a pointer and a length to where the arguments say, both of that size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            thread,
            &raw mut head,
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(head)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_has_a_list() {
        assert_ne!(list(0).unwrap(), 0);
        assert!(list(i32::MAX).is_err());
    }
}
