//! Which pages of a process are there: `/proc/PID/pagemap`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// `PAGEMAP_SCAN`, Linux 6.7.
const PAGEMAP_SCAN: u64 = (3 << 30) | ((size_of::<ScanArg>() as u64) << 16) | (0x66 << 8) | 16;
/// Protects the pages that were found.
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// Fails with `EPERM` where writes are not noted.
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;

const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_EXCLUSIVE: u64 = 1 << 56;

/// A kernel that has to be asked page by page is not asked about more than this in one range.
const SLOW_LIMIT: u64 = 64 << 30;

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// The page table of one process, to read.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
    page: u64,
}

impl Pagemap {
    /// Of process `pid`.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        Ok(Self {
            file: File::open(format!("/proc/{pid}/pagemap"))?,
            page: super::page_size(),
        })
    }

    /// Runs of pages in `range` that have content: present and not the zero page, or swapped out.
    /// With `exclusive`, only pages that no other process has mapped, where the kernel tells.
    pub(crate) fn populated(
        &self,
        range: &Range<u64>,
        exclusive: bool,
    ) -> io::Result<Vec<Range<u64>>> {
        let content = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        let runs = match self.scan(range, 0, content, PAGE_IS_PFNZERO) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                if range.end - range.start > SLOW_LIMIT {
                    return Ok(Vec::new());
                }
                return self.entries(range, exclusive);
            }
            scanned => scanned?,
        };
        if !exclusive {
            return Ok(runs);
        }
        let mut found = Vec::new();
        for run in runs {
            found.extend(self.entries(&run, true)?);
        }
        Ok(found)
    }

    /// Runs of pages in `range` that are parts of huge pages; none where the kernel does not tell.
    pub(crate) fn huge(&self, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        match self.scan(range, 0, PAGE_IS_HUGE, PAGE_IS_PFNZERO) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => Ok(Vec::new()),
            scanned => scanned,
        }
    }

    /// Notes the next write to each page of `range` that has content, but for parts of huge pages. Returns which these
    /// are. `EPERM` where something in the range is not registered for that.
    pub(crate) fn protect(&self, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
        self.scan(
            range,
            flags,
            PAGE_IS_PRESENT,
            PAGE_IS_PFNZERO | PAGE_IS_HUGE,
        )
    }

    /// Runs of pages in `range` that nobody has written to since they were protected. `EPERM` where something in the
    /// range is not, or no longer, registered for that.
    pub(crate) fn unwritten(&self, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let content = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        self.scan(range, PM_SCAN_CHECK_WPASYNC, content, PAGE_IS_WRITTEN)
    }

    /// Runs of pages that are `any` of these and `none` of those.
    fn scan(
        &self,
        range: &Range<u64>,
        flags: u64,
        any: u64,
        none: u64,
    ) -> io::Result<Vec<Range<u64>>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut regions = [PageRegion::default(); 256];
        let mut start = range.start;
        while start < range.end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags,
                start,
                end: range.end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                max_pages: 0,
                category_inverted: none,
                category_mask: none,
                category_anyof_mask: any,
                return_mask: any,
            };
            // SAFETY: the structure says where `regions` is and how many it has; both outlive the
            // call.
            let count = unsafe {
                libc::ioctl(
                    self.file.as_raw_fd(),
                    PAGEMAP_SCAN as _,
                    std::ptr::from_mut(&mut arg).cast::<libc::c_void>(),
                )
            };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            for region in &regions[..count] {
                push(&mut found, region.start..region.end);
            }
            if arg.walk_end <= start {
                break;
            }
            start = arg.walk_end;
        }
        Ok(found)
    }

    fn entries(&self, range: &Range<u64>, exclusive: bool) -> io::Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let mut address = range.start;
        while address < range.end {
            let pages = (range.end - address) / self.page;
            let want = buffer.len().min(pages as usize * 8);
            let read = self
                .file
                .read_at(&mut buffer[..want], address / self.page * 8)?;
            if read < 8 {
                break;
            }
            for entry in buffer[..read].chunks_exact(8) {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(entry);
                let entry = u64::from_ne_bytes(bytes);
                let there = entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0;
                // A page that is swapped out has no owner to count.
                let alone = entry & (ENTRY_EXCLUSIVE | ENTRY_SWAPPED) != 0;
                if there && (alone || !exclusive) {
                    push(&mut found, address..address + self.page);
                }
                address += self.page;
            }
        }
        Ok(found)
    }
}

/// Appends a run behind the others, or makes the last one longer.
fn push(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}
