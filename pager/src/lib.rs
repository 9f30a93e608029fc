//! Moves the private memory of stopped processes to a file and back. Knows nothing of containers.
//!
//! ```text
//!   Seized --Pager::move_out--> Moved --serve--> Filling --wait--> Pager
//!                |        |                         |  pause: back to Pager, for the next sleep
//!                |    compress                      |
//!                image                   thread "pager": faults, events, background
//!                                                   |  one descriptor table
//!                                        keeper: a process that keeps the userfaultfds
//! ```
//!
//! # Invariants
//!
//! 1. **A process never runs with a missing page that nobody will fill.** When the last copy of a
//!    userfaultfd closes, what is missing reads as zeros. So a keeper process shares the
//!    filler's descriptor table from before the first page is taken until the last is back; who
//!    touches a missing page after a SIGKILL of the filler waits, and can be killed. The keeper is outside of the container, so that nothing in there can close what
//!    it holds, and shares the table instead of being sent copies, because the descriptor of a
//!    forked child appears in the table with the fork event: there is no moment between the two.
//! 2. **The image is complete, with checksums, before the first page is taken.** Slots that hold the
//!    content of a page are not written to.
//! 3. **Content is used only after its checksum was found right**, from the buffer that was checked.
//!    A fill that fails fills nothing more, gives nothing up, and its type has no way on but to kill.
//! 4. **Whatever is not known to be safe to move stays** (`maps.rs` has the table).
//!
//! # Decisions
//!
//! - *Awake costs nothing:* when all memory is back the descriptors are closed, which unregisters
//!   everything wherever it has moved. What changed since is found at the next sleep by comparing
//!   checksums page by page: 0.2 ms for each MiB, and nothing is written for unchanged pages. Soft-dirty bits, which
//!   would say it, are not in every kernel; asynchronous write protection (Linux 6.7) costs 0.7 µs at the first write
//!   to each page, leaves a registered range and a descriptor, and the processes have to be stopped to begin with it.
//! - *Compared before:* so it is asked only in the last moments before a sleep that is foreseen ([`Watch`]). Then most is
//!   compared while the processes run, and only what was written to since is read while they stand still. Without it,
//!   for a sleep that nobody foresaw or on another kernel, everything is read then.
//! - *`process_vm_readv`*: half of what a page costs is its way through the caches. With the process itself
//!   writing to memory that both have, it takes 5 ms of a processor for 50 MiB and not 8, but that needs a
//!   descriptor in the process, its file size limit out of the way, and a call of its own for each piece.
//! - *Two threads* fill before the wake, from 512 KiB on and unless others want the processors: 32 MiB in 9.5 ms and not 15.5.
//! - *A 64th of a large container stays*, of what its last wakes have needed, in long runs (`out/stay.rs`): with 500 MiB
//!   of which a request reads 5, bringing those back was half of the wake.
//! - *Memory that is still missing* when the next sleep comes ([`Filling::pause`]) is neither read nor
//!   written again.
//! - *`pread` and a buffer*, not a mapping of the image: the page that was checked is the page that is
//!   used, and a short file is an error and not a SIGBUS. It costs one copy in the cache.
//! - *Compressed later, by the thread that answers faults:* falling asleep and the first answer after a wake
//!   stay as fast as without. What a wake is known to need is never compressed; of the rest a fault
//!   decompresses one page, 2 µs more. With one thread there is nothing to lock out, and a wake waits for
//!   a step of a fraction of a millisecond at most.
//! - *512 KiB at a time*, through a buffer that stays in the cache; from 8 MiB on with two threads.
//!   Writing to a mapping of the file is as fast, but a full disk is a SIGBUS there.
//!
//! # What a program can notice
//!
//! - While memory is missing, `mremap` over several mappings at once fails as it does before Linux
//!   6.17; forks, `mremap`, `munmap` and `madvise` wait a moment for the filler.
//! - A child that is forked while memory is missing gets copies of its own of that memory, which it
//!   would share otherwise.
//! - Pages of huge pages come back as ordinary ones and are put together again when all memory is back.
//! - A thread that waits for a page can hold a lock of the kernel, for instance of a pipe it reads
//!   from into that page. Whoever uses the other end waits too, and cannot even be killed until the
//!   first is. So who fills or kills must not touch pipes of the processes.
//! - While memory is missing, or watched, it gets `EBUSY` where it registers that with a userfaultfd that it has
//!   made since.
//! - Who writes to memory of a stopped process from outside (`process_vm_writev`, a debugger) while it
//!   is copied may have written to what is given up a moment later.
//! - `MADV_GUARD_INSTALL` on a missing page and its removal before the fill is complete bring the
//!   old content back (the kernel reports no event).

mod absent;
mod changes;
mod compress;
mod copy;
mod descriptor;
mod huge;
mod image;
mod maps;
mod out;
mod pager;
mod pins;
mod runs;
mod server;
mod space;
mod stats;
mod sys;
mod watch;
mod working_set;

pub use absent::{Absent, AbsentError};
pub use compress::Compressing;
pub use image::{COMPRESSED, CompressError, ImageError, PAGES, discard};
pub use out::{GivenUp, OutError};
pub use pager::{FillFailed, Filling, Moved, NotMoved, Pager, Resumed, Waking, Woken};
pub use server::ServerError;
pub use stats::{CompressPolicy, CompressStats, FillPolicy, FillStats, OutStats, StayPolicy};
pub use watch::{Watch, Watching};
pub use working_set::WORKING_SET;
