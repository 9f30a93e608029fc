//! userfaultfd: `linux/userfaultfd.h`, the parts that fill missing pages.

use std::io;
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::memory::Nowhere;

/// `UFFD_API`.
const API: u64 = 0xAA;
const FEATURE_EVENT_FORK: u64 = 1 << 1;
const FEATURE_EVENT_REMAP: u64 = 1 << 2;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_EVENT_UNMAP: u64 = 1 << 6;
/// What is asked of the kernel; all of it is there since 4.11.
const FEATURES: u64 =
    FEATURE_EVENT_FORK | FEATURE_EVENT_REMAP | FEATURE_EVENT_REMOVE | FEATURE_EVENT_UNMAP;

const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// Linux 6.7.
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// To note writes: nobody reads from the descriptor, so there must not be events.
const WATCH_FEATURES: u64 = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;

const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 2;
const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

/// `_IOWR(0xAA, number, size)`, `_IOR` for ranges.
const fn ioc(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | (0xAA << 8) | number
}
const IOWR: u64 = 3;
const IOR: u64 = 2;
const UFFDIO_API: u64 = ioc(IOWR, 0x3F, size_of::<ApiArg>());
const UFFDIO_REGISTER: u64 = ioc(IOWR, 0x00, size_of::<RegisterArg>());
const UFFDIO_UNREGISTER: u64 = ioc(IOR, 0x01, size_of::<RangeArg>());
const UFFDIO_WAKE: u64 = ioc(IOR, 0x02, size_of::<RangeArg>());
const UFFDIO_COPY: u64 = ioc(IOWR, 0x03, size_of::<CopyArg>());
const UFFDIO_ZEROPAGE: u64 = ioc(IOWR, 0x04, size_of::<ZeroArg>());
const UFFDIO_WRITEPROTECT: u64 = ioc(IOWR, 0x06, size_of::<WriteProtectArg>());
/// `UFFD_USER_MODE_ONLY`, Linux 5.11: for a descriptor for whose use nobody needs a right.
pub(crate) const USER_MODE_ONLY: u64 = 1;
/// `USERFAULTFD_IOC_NEW` on `/dev/userfaultfd`.
pub(crate) const IOC_NEW: u64 = ioc(0, 0x00, 0);

#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RangeArg {
    start: u64,
    len: u64,
}

#[repr(C)]
struct RegisterArg {
    range: RangeArg,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArg {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct ZeroArg {
    range: RangeArg,
    mode: u64,
    zeropage: i64,
}

#[repr(C)]
struct WriteProtectArg {
    range: RangeArg,
    mode: u64,
}

/// Bytes of `struct uffd_msg`.
const MESSAGE_LEN: usize = 32;

/// What a userfaultfd reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A thread waits for the page at this address.
    Fault { address: u64, write: bool },
    /// The process forked; the child's userfaultfd has this number in the reader's table.
    Fork { child: RawFd },
    /// Pages moved.
    Remap { from: u64, to: u64, len: u64 },
    /// `madvise` gives up the content: it reads as zeros from now on.
    Remove(Range<u64>),
    /// The addresses are gone.
    Unmap(Range<u64>),
}

/// Decodes a message. None for an empty one, or an event this program did not ask for.
fn decode(message: &[u8; MESSAGE_LEN]) -> Option<Event> {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    // The union begins at byte 8.
    Some(match message[0] {
        // pagefault: flags, address
        0x12 => Event::Fault {
            address: word(16),
            write: word(8) & 1 != 0,
        },
        0x13 => Event::Fork {
            child: word(8) as u32 as RawFd,
        },
        0x14 => Event::Remap {
            from: word(8),
            to: word(16),
            len: word(24),
        },
        0x15 => Event::Remove(word(8)..word(16)),
        0x16 => Event::Unmap(word(8)..word(16)),
        _ => return None,
    })
}

/// How far a copy came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// So many bytes from the start are there; zero bytes for an event that must be read first.
    Bytes(u64),
    /// A page is there already at the start of the rest, after so many copied bytes.
    Present(u64),
    /// The address is not registered with this userfaultfd, or not mapped.
    NoRange,
    /// The address space is gone.
    Gone,
}

/// The userfaultfd of one address space, created by a process in it.
///
/// When the last copy closes, missing pages read as zeros: see [`keep`](super::keep).
#[derive(Debug)]
pub(crate) struct Uffd(OwnedFd);

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl Uffd {
    /// One of this process's own, to see what the kernel can do.
    pub(crate) fn own() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY as libc::c_int;
        // SAFETY: takes flags and returns a new descriptor, which nobody else owns.
        unsafe {
            match libc::syscall(libc::SYS_userfaultfd, flags) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(OwnedFd::from_raw_fd(fd as RawFd))),
            }
        }
    }

    /// Asks for fork, remap, remove and unmap events. Needs `CAP_SYS_PTRACE`.
    pub(crate) fn handshake(&self) -> io::Result<()> {
        self.ask_for(FEATURES)
    }

    /// Asks for a note of writes that nobody has to answer for. `EINVAL` where the kernel has none.
    pub(crate) fn handshake_for_watching(&self) -> io::Result<()> {
        self.ask_for(WATCH_FEATURES)
    }

    fn ask_for(&self, features: u64) -> io::Result<()> {
        let mut arg = ApiArg {
            api: API,
            features,
            ioctls: 0,
        };
        self.ioctl(UFFDIO_API, &mut arg)
    }

    /// The next message; none when there is none.
    pub(crate) fn read(&self) -> io::Result<Option<Event>> {
        let mut message = [0; MESSAGE_LEN];
        match rustix::io::read(&self.0, &mut message) {
            Ok(MESSAGE_LEN) => Ok(decode(&message)),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reports faults on missing pages of a range that consists of mapped private anonymous pages.
    pub(crate) fn register(&self, range: &Range<u64>) -> io::Result<()> {
        self.register_for(range, REGISTER_MODE_MISSING)
    }

    /// Lets pages of such a range be protected against writes.
    pub(crate) fn register_for_watching(&self, range: &Range<u64>) -> io::Result<()> {
        self.register_for(range, REGISTER_MODE_WP)
    }

    fn register_for(&self, range: &Range<u64>, mode: u64) -> io::Result<()> {
        let mut arg = RegisterArg {
            range: range_arg(range),
            mode,
            ioctls: 0,
        };
        self.ioctl(UFFDIO_REGISTER, &mut arg)
    }

    /// Takes the registration of a range back, and what is protected there.
    pub(crate) fn unregister(&self, range: &Range<u64>) -> io::Result<()> {
        self.ioctl(UFFDIO_UNREGISTER, &mut range_arg(range))
    }

    /// Lets threads that wait in a range try again.
    pub(crate) fn wake(&self, range: &Range<u64>) -> io::Result<()> {
        self.ioctl(UFFDIO_WAKE, &mut range_arg(range))
    }

    /// Fills pages from `address` on with `source`, whole pages that begin on a page boundary, and
    /// wakes who waits for them.
    pub(crate) fn copy(&self, address: u64, source: &[u8]) -> io::Result<Copied> {
        let mut arg = CopyArg {
            dst: address,
            src: source.as_ptr() as u64,
            len: source.len() as u64,
            mode: 0,
            copy: 0,
        };
        let result = self.ioctl(UFFDIO_COPY, &mut arg);
        outcome(result, arg.copy, arg.len)
    }

    /// Like [`copy`](Self::copy), with zeros.
    pub(crate) fn zero(&self, address: u64, len: u64) -> io::Result<Copied> {
        let mut arg = ZeroArg {
            range: RangeArg {
                start: address,
                len,
            },
            mode: 0,
            zeropage: 0,
        };
        let result = self.ioctl(UFFDIO_ZEROPAGE, &mut arg);
        outcome(result, arg.zeropage, len)
    }

    /// Whether an event is on its way, or has been read and its cause not gone on yet. Until then
    /// nothing can be filled.
    pub(crate) fn is_changing(&self) -> bool {
        probe(self.0.as_raw_fd()) == Some(libc::EAGAIN)
    }

    /// Whether the page at `address` is mapped and registered. None while an event is on its way, as in
    /// [`is_changing`](Self::is_changing). Fills nothing: the kernel looks at where a copy goes before it looks at where
    /// it comes from, and `nowhere` cannot be read.
    pub(crate) fn is_registered(&self, address: u64, nowhere: &Nowhere) -> Option<bool> {
        let mut arg = CopyArg {
            dst: address,
            src: nowhere.address(),
            len: super::page_size(),
            mode: 0,
            copy: 0,
        };
        let error = self.ioctl(UFFDIO_COPY, &mut arg).err();
        match error.and_then(|error| error.raw_os_error()) {
            Some(libc::EAGAIN | libc::ENOMEM) => None,
            Some(libc::EFAULT) => Some(true),
            _ => Some(false),
        }
    }

    /// Whether the address space is still there. There is no event for its end: a process leaves
    /// it by `exec` too.
    pub(crate) fn is_alive(&self) -> bool {
        is_alive(self.0.as_raw_fd())
    }

    fn ioctl<T>(&self, request: u64, arg: &mut T) -> io::Result<()> {
        // SAFETY: each request is used with the structure whose size is part of its number; the
        // kernel writes only to that structure, and to the other address space.
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                request as _,
                std::ptr::from_mut(arg).cast::<libc::c_void>(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// See [`Uffd::is_alive`]. Allocates nothing and takes no lock: the keeper calls it. False for
/// what is no userfaultfd.
pub(super) fn is_alive(fd: RawFd) -> bool {
    matches!(
        probe(fd),
        None | Some(libc::ENOENT | libc::EAGAIN | libc::EINVAL)
    )
}

/// Lifts a write protection that no range has, so it changes nothing. The error number says what
/// there is: `ESRCH` that the address space is gone, `EAGAIN` that it is changing.
fn probe(fd: RawFd) -> Option<i32> {
    let mut arg = WriteProtectArg {
        range: RangeArg {
            start: 1 << 32,
            len: super::page_size(),
        },
        mode: WRITEPROTECT_MODE_DONTWAKE,
    };
    // SAFETY: UFFDIO_WRITEPROTECT carries the size of this structure. On a descriptor of another
    // kind the number has no meaning and is refused.
    let result = unsafe {
        libc::ioctl(
            fd,
            UFFDIO_WRITEPROTECT as _,
            std::ptr::from_mut(&mut arg).cast::<libc::c_void>(),
        )
    };
    if result == 0 {
        return None;
    }
    io::Error::last_os_error().raw_os_error()
}

fn outcome(result: io::Result<()>, done: i64, len: u64) -> io::Result<Copied> {
    let Err(error) = result else {
        return Ok(Copied::Bytes(len));
    };
    // A positive count is progress before the error; a negative one repeats the error.
    let progress = u64::try_from(done).unwrap_or(0);
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Ok(Copied::Bytes(progress)),
        Some(libc::EEXIST) => Ok(Copied::Present(progress)),
        Some(libc::ENOENT | libc::EINVAL) => Ok(Copied::NoRange),
        Some(libc::ESRCH) => Ok(Copied::Gone),
        _ => Err(error),
    }
}

fn range_arg(range: &Range<u64>) -> RangeArg {
    RangeArg {
        start: range.start,
        len: range.end - range.start,
    }
}

const _: () = assert!(offset_of!(CopyArg, copy) == 32 && size_of::<RegisterArg>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    /// The message of an event, as the kernel would write it.
    fn encode(event: &Event) -> [u8; MESSAGE_LEN] {
        let (kind, words) = match event {
            Event::Fault { address, write } => (0x12, [u64::from(*write), *address, 0]),
            Event::Fork { child } => (0x13, [u64::from(*child as u32), 0, 0]),
            Event::Remap { from, to, len } => (0x14, [*from, *to, *len]),
            Event::Remove(range) => (0x15, [range.start, range.end, 0]),
            Event::Unmap(range) => (0x16, [range.start, range.end, 0]),
        };
        let mut message = [0; MESSAGE_LEN];
        message[0] = kind;
        for (at, word) in message[8..].chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_ne_bytes());
        }
        message
    }

    #[test]
    fn messages_are_read_as_they_are_written() {
        let events = [
            Event::Fault {
                address: 0x7f00_1000,
                write: true,
            },
            Event::Fork { child: 9 },
            Event::Remap {
                from: 1,
                to: 2,
                len: 3,
            },
            Event::Remove(4..5),
            Event::Unmap(6..7),
        ];
        for event in events {
            assert_eq!(decode(&encode(&event)), Some(event));
        }
        assert_eq!(decode(&[0; MESSAGE_LEN]), None);
    }
}
