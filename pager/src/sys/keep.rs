//! A descriptor table that outlives its process.
//!
//! ```text
//!   process            thread "pager"               keeper (a child process)
//!   its own table      a table of its own  <------> the same table (CLONE_FILES)
//!                      killed with the process      stays
//! ```
//!
//! A userfaultfd that the kernel makes for a forked child appears in the reader's table at the
//! moment the fork is reported. Nothing that is done after that moment could save it from a
//! SIGKILL; a table that two processes share does.
//!
//! The keeper never runs more than this module: it has a copy of the memory of a process with
//! threads, so it may neither allocate nor take a lock. It gives up what it does not need of that
//! memory, or every page that its parent changes would be there twice.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::uffd;

/// Highest number, exclusive, that a descriptor in a kept table may have.
const TABLE_LIMIT: RawFd = 4096;
/// How often a keeper that is alone looks whether its address spaces are still there, in
/// milliseconds. There is no event for the end of one.
const ORPHAN_INTERVAL: i32 = 1000;
/// Mappings that a keeper gives up, at most.
const MOST_GIVEN_UP: usize = 64;

/// Mappings by address and length.
type GivenUp = [(usize, usize); MOST_GIVEN_UP];

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Gives the calling thread a descriptor table of its own, with nothing in it but copies of `keep`
/// under the same numbers, and `/dev/null` as standard input, output and error.
///
/// To be called in a thread that uses no descriptor but those from then on: a number means
/// something else in the table of the rest of the process.
pub(crate) fn leave_table(keep: &[RawFd]) -> io::Result<()> {
    // SAFETY: affects the calling thread alone, which by this function's precondition holds no
    // other descriptors.
    check(unsafe { libc::unshare(libc::CLONE_FILES) })?;
    let null = std::fs::File::open("/dev/null")?;
    for standard in 0..3 {
        // SAFETY: both are numbers in this thread's own table.
        check(unsafe { libc::dup2(null.as_raw_fd(), standard) })?;
    }
    drop(null);
    let mut keep: Vec<_> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        close_range(first, fd - 1)?;
        first = fd + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: the numbers belong to the calling thread's own table, see `leave_table`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    check(result as i32)
}

/// The process that shares the calling thread's descriptor table.
///
/// Dropping it leaves the process alone; [`end`](Self::end) ends it.
#[derive(Debug)]
pub(crate) struct Keeper {
    pid: i32,
    pidfd: OwnedFd,
}

impl Keeper {
    /// Starts it. The caller has called [`leave_table`]. The keeper lives until
    /// [`end`](Self::end), or, when its parent ends first, until every address space with a
    /// userfaultfd in the table is gone.
    pub(crate) fn start() -> io::Result<Self> {
        let parent = pidfd_open(std::process::id() as i32)?;
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let began = stack_began(&std::fs::read_to_string("/proc/self/stat")?);
        let given_up = dispensable(&maps, (&raw const maps).addr(), began);
        let mut pidfd: RawFd = -1;
        let mut args = CloneArgs {
            flags: (libc::CLONE_FILES | libc::CLONE_PIDFD) as u64,
            pidfd: (&raw mut pidfd) as u64,
            // No signal at its end: it is reaped by whoever ends it, and by no other.
            exit_signal: 0,
            ..CloneArgs::default()
        };
        // SAFETY: every signal is blocked while the child is made, so none runs a handler in it.
        // The sets are plain data, which the calls fill in.
        let old = unsafe {
            let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = (zeroed(), zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            old
        };
        // SAFETY: without a stack the child continues here on a copy of this thread's memory, as
        // after fork. It only runs `hold`, which allocates nothing, takes no lock and does not
        // return.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut args,
                size_of::<CloneArgs>() as libc::size_t,
            )
        };
        if pid == 0 {
            hold(parent.as_raw_fd(), &given_up);
        }
        let error = io::Error::last_os_error();
        // SAFETY: `old` was filled in above.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
        }
        // The keeper polls it by its number in the common table: it stays open.
        let _ = std::os::fd::IntoRawFd::into_raw_fd(parent);
        if pid < 0 {
            return Err(error);
        }
        Ok(Self {
            pid: pid as i32,
            // SAFETY: CLONE_PIDFD put a new descriptor there, which nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends it and returns when it is gone.
    pub(crate) fn end(self) -> io::Result<()> {
        kill(&self.pidfd)?;
        // SAFETY: `siginfo_t` is plain data that the call fills in.
        let mut info: libc::siginfo_t = unsafe { zeroed() };
        let fd = self.pidfd.as_raw_fd();
        loop {
            // SAFETY: the descriptor is ours, and `info` outlives the call. __WALL: the child has
            // no exit signal.
            let result = unsafe {
                libc::waitid(
                    libc::P_PIDFD,
                    fd as libc::id_t,
                    &raw mut info,
                    libc::WEXITED | libc::__WALL,
                )
            };
            match check(result) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Somebody else took its status.
                Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
                result => return result,
            }
        }
    }
}

/// Where the first thread's stack began: everything above are arguments, which `ps` reads. None where the kernel
/// does not say (`startstack` in proc_pid_stat(5)).
fn stack_began(stat: &str) -> Option<usize> {
    // The name of the program, in parentheses, can have anything in it.
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_ascii_whitespace().nth(25)?.parse().ok()
}

/// The heap, the anonymous mappings that neither hold the calling thread's stack, which `stack` is an address in, nor
/// belong to a program or library, and the first thread's stack, which began at `began`, but for what lies above.
fn dispensable(maps: &str, stack: usize, began: Option<usize>) -> GivenUp {
    let mut found: GivenUp = [(0, 0); MOST_GIVEN_UP];
    let mut free = found.iter_mut();
    // The end of the last mapping of a file: what follows without a gap are its variables.
    let mut file_end = 0;
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [range, permissions, _, _, inode, name @ ..] = &fields[..] else {
            continue;
        };
        let bounds = range.split_once('-').and_then(|(start, end)| {
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(start)?, number(end)?))
        });
        let Some((start, mut end)) = bounds else {
            continue;
        };
        if *inode != "0" {
            file_end = end;
            continue;
        }
        if *permissions != "rw-p" || (start..end).contains(&stack) {
            continue;
        }
        match name {
            [] if start == file_end => continue,
            [] | ["[heap]"] => {}
            ["[stack]"] => match began {
                Some(began) if (start..end).contains(&began) => {
                    end = began & !(rustix::param::page_size() - 1)
                }
                _ => continue,
            },
            _ => continue,
        }
        if start < end
            && let Some(place) = free.next()
        {
            *place = (start, end - start);
        }
    }
    found
}

/// The keeper's life.
fn hold(parent: RawFd, given_up: &GivenUp) -> ! {
    // SAFETY: plain system calls on numbers and on a name and structures that outlive them; nothing
    // here allocates or takes a lock. What is given up is this process's copy of memory that
    // nothing below touches: the list, the stack and the thread's own variables are in the mapping
    // that is left out, code and static variables in mappings of files and right behind them.
    unsafe {
        for &(start, length) in given_up {
            libc::munmap(start as *mut libc::c_void, length);
        }
        libc::prctl(libc::PR_SET_NAME, c"podmotion-keep".as_ptr());
        libc::setsid();
        let mut fds = libc::pollfd {
            fd: parent,
            events: libc::POLLIN,
            revents: 0,
        };
        while libc::poll(&raw mut fds, 1, -1) < 1 {}
        while (0..TABLE_LIMIT).any(|fd| uffd::is_alive(fd) && !is_process(fd)) {
            libc::poll(std::ptr::null_mut(), 0, ORPHAN_INTERVAL);
        }
        libc::_exit(0)
    }
}

/// Whether a descriptor is one of a process: some kernels (6.11, 6.12) answer the probe for a userfaultfd with
/// `EINVAL` there, and this process's own is always in the table. Allocates nothing and takes no lock.
fn is_process(fd: RawFd) -> bool {
    // SAFETY: takes numbers; no signal is sent and no information is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EBADF)
}

/// A handle for process `pid`.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    check(fd as i32)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A copy of descriptor `number` of another process. Needs the right to trace it.
pub(crate) fn pidfd_getfd(process: impl AsFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_fd().as_raw_fd(),
            number,
            0,
        )
    };
    check(fd as i32)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Owns a descriptor that only a number says is in the calling thread's table: one that the kernel
/// put there with an event, or one that was left in [`leave_table`].
pub(crate) fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: called once for each such number, by its only user.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Ends a process.
pub(crate) fn kill(process: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes numbers; no information is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match check(result as i32) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result,
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_processes_are_told_from_others() {
        let own = pidfd_open(std::process::id() as i32).unwrap();
        assert!(is_process(own.as_raw_fd()));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_process(null.as_raw_fd()));
        assert!(!is_process(-1));
    }

    #[test]
    fn neither_stack_nor_variables_are_given_up() {
        let maps = "\
55d0000-55d8000 r-xp 00000000 fe:00 12 /bin/program
55d8000-55d9000 rw-p 00008000 fe:00 12 /bin/program
55d9000-55da000 rw-p 00000000 00:00 0
6000000-6100000 rw-p 00000000 00:00 0                          [heap]
7000000-7100000 rw-p 00000000 00:00 0
7100000-7101000 ---p 00000000 00:00 0
7101000-7200000 rw-p 00000000 00:00 0
7f00000-7f20000 r--p 00000000 00:00 0                          [vvar]
7fa0000-7fc0000 rw-p 00000000 00:00 0                          [stack]
";
        let whole = [(0x600_0000, 0x10_0000), (0x700_0000, 0x10_0000)];
        let found = dispensable(maps, 0x718_0000, None);
        assert_eq!((&found[..2], found[2]), (&whole[..], (0, 0)));
        // Arguments stay, which lie above.
        let found = dispensable(maps, 0x718_0000, Some(0x7fb_9670));
        let below = (0x7fa_0000, 0x7fb_9000 - 0x7fa_0000);
        assert_eq!((&found[..2], found[2]), (&whole[..], below));
        // In the first thread all of it is in use.
        let found = dispensable(maps, 0x7fb_1000, Some(0x7fb_9670));
        assert_eq!(found[2], (0x710_1000, 0xf_f000));
        assert_eq!(found[3], (0, 0));
    }

    #[test]
    fn the_stack_began_where_the_kernel_says() {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let began = stack_began(&stat).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let (start, end) = stack.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        assert!((number(start)..number(end)).contains(&began), "{began:x}");
        assert_eq!(stack_began("1 (a) 2) S 1"), None);
    }
}
