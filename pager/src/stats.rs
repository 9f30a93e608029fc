//! What can be set, and what was counted.

use std::time::Duration;

/// How memory is filled in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillPolicy {
    /// Time without a fault before the background goes on.
    pub quiet: Duration,
    /// Time after which the background goes on although there are faults.
    pub patience: Duration,
    /// Bytes per second that the background does not exceed.
    pub rate: u64,
    /// How long the background waits at first: the processors are the processes', to answer whoever woke them.
    pub head_start: Duration,
    /// How long the background waits at most while the node's processors are wanted by others and the
    /// processes ask for little: many containers that wake at once have their first answers before any of
    /// them has all its memory.
    pub give_way: Duration,
}

impl Default for FillPolicy {
    /// Nothing for 20 ms. Then a chunk (512 KiB) when there was no fault for 2 ms, at least every 20 ms, at most
    /// 2 GB/s. Not in the first second while the node is busy.
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(2),
            patience: Duration::from_millis(20),
            rate: 2_000_000_000,
            head_start: Duration::from_millis(20),
            give_way: Duration::from_secs(1),
        }
    }
}

impl FillPolicy {
    /// As fast as possible.
    pub fn at_once() -> Self {
        Self {
            quiet: Duration::ZERO,
            patience: Duration::ZERO,
            rate: u64::MAX,
            head_start: Duration::ZERO,
            give_way: Duration::ZERO,
        }
    }
}

/// How much of what the last wakes have needed is left in memory. It need not come back before a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StayPolicy {
    /// Nothing of processes that have fewer bytes of memory that can leave, all together.
    pub from: u64,
    /// At most one byte of so many.
    pub one_in: u64,
}

impl Default for StayPolicy {
    /// A 64th, from 128 MiB on: below, all that a wake needs is back in a millisecond or two.
    fn default() -> Self {
        Self {
            from: 128 << 20,
            one_in: 64,
        }
    }
}

impl StayPolicy {
    /// Bytes of `total` that may be left in memory.
    pub(crate) fn allowance(self, total: u64) -> u64 {
        match total < self.from {
            true => 0,
            false => total / self.one_in.max(1),
        }
    }
}

/// How much of a processor compressing takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressPolicy {
    /// After each step, so many times as long as that has taken nothing is done. Where others want the
    /// processors a step takes longer, and so does the pause.
    pub rest: u32,
}

impl Default for CompressPolicy {
    /// A tenth of a processor.
    fn default() -> Self {
        Self { rest: 9 }
    }
}

impl CompressPolicy {
    /// As fast as possible.
    pub fn at_once() -> Self {
        Self { rest: 0 }
    }
}

/// What compressing an image did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompressStats {
    /// Bytes of pages that were compressed.
    pub page_bytes: u64,
    /// What they take now.
    pub compressed_bytes: u64,
    /// Bytes of pages that were found not to be worth it.
    pub stubborn_bytes: u64,
    /// Bytes that had been compressed before and were put together.
    pub moved_bytes: u64,
    /// Processor time of all that.
    pub cpu_time: Duration,
    /// From the beginning to the end.
    pub time: Duration,
    /// Bytes that the image takes on its file system afterwards.
    pub image_bytes: u64,
}

/// What a fill did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FillStats {
    /// Bytes that were filled before the processes ran.
    pub prefetch_bytes: u64,
    /// Of them, those that had to be decompressed.
    pub prefetch_decompressed_bytes: u64,
    /// Of them, those that the disk was asked for before anybody waited for it.
    pub prefetch_asked_bytes: u64,
    /// Time for that.
    pub prefetch_time: Duration,
    /// Faults that were answered with content.
    pub faults: u64,
    /// Faults that were answered with zeros.
    pub zero_faults: u64,
    /// Time from the moment that each fault was read until it was answered, added up.
    pub fault_time: Duration,
    /// Time from the moment that each of the first faults was read until it was answered.
    pub first_faults: Vec<Duration>,
    /// Bytes that were filled without anybody asking for them.
    pub background_bytes: u64,
    /// Time from the beginning of the fill to the last of them.
    pub background_time: Duration,
    /// Bytes that were put together to huge pages afterwards.
    pub huge_bytes: u64,
    /// Forks, moves, removals and ends of mappings that were followed.
    pub events: u64,
}

/// What moving out did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutStats {
    /// Pages in memory that were looked at, in bytes.
    pub scanned_bytes: u64,
    /// Bytes written to the image.
    pub written_bytes: u64,
    /// Bytes that were in the image already, unchanged.
    pub unchanged_bytes: u64,
    /// Of them, those that nobody had written to since they were last compared, which were not read.
    pub unread_bytes: u64,
    /// Bytes of pages with nothing but zeros.
    pub zero_bytes: u64,
    /// Bytes that were missing from memory already, and whose content is in the image.
    pub missing_bytes: u64,
    /// Bytes of what the last wakes have needed that were left in memory.
    pub left_bytes: u64,
    /// Bytes of pages in movable mappings that stay: shared with another process, or unreadable.
    pub staying_bytes: u64,
    /// Bytes that the image takes on its file system.
    pub image_bytes: u64,
    /// Time to get the userfaultfds.
    pub setup_time: Duration,
    /// Time to find what can leave.
    pub scan_time: Duration,
    /// Time to copy, compare and write.
    pub copy_time: Duration,
    /// Time to note where content is, and to register ranges.
    pub register_time: Duration,
    /// Time to take the pages away.
    pub drop_time: Duration,
}
