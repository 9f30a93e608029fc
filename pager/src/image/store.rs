//! The pages file: slots taken, written and given back.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use twox_hash::XxHash3_64;

use super::draft::Lent;
use super::places::Places;
use super::{COMPRESSED, ImageError, PAGES, Plan, discard};
use crate::runs::RunMap;

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"PODMPGS\n");
/// Version of the file.
pub(super) const VERSION: u64 = 1;
/// The header has the first slot to itself.
const FIRST_SLOT: u64 = 1;
/// Bytes of free slots that may stay at the end of the file.
pub(crate) const SLACK: u64 = 2 << 20;
/// Size of a block of `stat`, whatever the file system has.
pub(super) const BLOCK: u64 = 512;

/// XXH3, 64 bits: at memory speed, and wide enough to tell a changed page from an unchanged one.
/// It is against accidents, not against an enemy: whoever can write the image can write anything.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Whether there is nothing but zeros.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    // Most pages differ from zero early; the rest is compared in words.
    let (head, words, tail) = (&page[..8], page.chunks_exact(64), page.len() % 64);
    head.iter().all(|byte| *byte == 0)
        && words
            .map(|chunk| chunk.iter().fold(0, |all, byte| all | byte))
            .all(|all| all == 0)
        && page[page.len() - tail..].iter().all(|byte| *byte == 0)
}

/// The pages file, to write. One owner at a time.
#[derive(Debug)]
pub(crate) struct Pages {
    file: File,
    path: PathBuf,
    page: u64,
    id: u64,
    /// One for each slot, the header's included.
    sums: Arc<Vec<u64>>,
    /// Slots that may be written to, by their first.
    free: BTreeMap<u64, u64>,
    /// Slots that a draft may be written to.
    pub(super) lent: Lent,
    places: Arc<RwLock<Places>>,
}

impl Pages {
    /// Makes an empty one, in place of what was there.
    pub(crate) fn create(directory: &Path, page: u64) -> Result<Self, ImageError> {
        discard(directory)?;
        let path = directory.join(PAGES);
        // A random number, so that a reader does not take another pages file for this one.
        let id = RandomState::new().build_hasher().finish();
        let mut header = vec![0; page as usize];
        for (at, number) in [MAGIC, VERSION, page, id].into_iter().enumerate() {
            header[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| file.write_all_at(&header, 0).map(|()| file))
            .map_err(ImageError::io("make", &path))?;
        Ok(Self {
            file,
            path,
            page,
            id,
            sums: Arc::new(vec![checksum(&header)]),
            free: BTreeMap::new(),
            lent: Lent::default(),
            places: Arc::default(),
        })
    }

    /// Identity of the file.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Bytes of a page.
    pub(super) fn page(&self) -> u64 {
        self.page
    }

    /// The checksum of each slot.
    pub(crate) fn sums(&self) -> &Arc<Vec<u64>> {
        &self.sums
    }

    /// Where the content of slots is. Common to all readers.
    pub(crate) fn places(&self) -> &Arc<RwLock<Places>> {
        &self.places
    }

    /// Bytes that the image takes on its file system.
    pub(crate) fn disk_bytes(&self) -> Result<u64, ImageError> {
        let pages = self
            .file
            .metadata()
            .map_err(ImageError::io("look at", &self.path))?;
        let compressed = self.path.with_file_name(COMPRESSED);
        let compressed = match compressed.metadata() {
            Ok(about) => about.blocks(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(ImageError::io("look at", &compressed)(e)),
        };
        Ok((pages.blocks() + compressed) * BLOCK)
    }

    /// To write to the file from a thread that does not own it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The file's name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes slots for pages with these checksums, free ones first. The caller writes the content,
    /// or the slots are lost until the next [`keep`](Self::keep).
    pub(crate) fn take(&mut self, sums: &[u64]) -> Vec<Range<u64>> {
        for slots in self.lent.returned() {
            self.free.insert(slots.start, slots.end);
        }
        let mut taken: Vec<Range<u64>> = Vec::new();
        let mut rest = sums;
        // Readers keep those that they were given.
        let known = Arc::make_mut(&mut self.sums);
        while !rest.is_empty() {
            let slots = match self.free.pop_first() {
                Some((first, end)) => {
                    let used = end.min(first + rest.len() as u64);
                    if used < end {
                        self.free.insert(used, end);
                    }
                    first..used
                }
                None => {
                    let first = known.len();
                    known.resize(first + rest.len(), 0);
                    first as u64..known.len() as u64
                }
            };
            let (now, later) = rest.split_at((slots.end - slots.start) as usize);
            known[slots.start as usize..slots.end as usize].copy_from_slice(now);
            rest = later;
            match taken.last_mut() {
                Some(last) if last.end == slots.start => last.end = slots.end,
                _ => taken.push(slots),
            }
        }
        taken
    }

    /// Takes slots that were lent and have been written to, with their checksums. They are lost until the next
    /// [`keep`](Self::keep) if nobody needs them.
    pub(crate) fn accept(&mut self, written: impl Iterator<Item = (u64, u64)>) {
        let mut written = written.peekable();
        if written.peek().is_none() {
            return;
        }
        let sums = Arc::make_mut(&mut self.sums);
        for (slot, sum) in written {
            self.lent.accept(slot);
            sums[slot as usize] = sum;
        }
    }

    /// Makes every slot free that none of `maps` names and that is not lent, and the file nearly as short as that allows. To
    /// be called when `maps` is all that is needed.
    pub(crate) fn keep<'a>(
        &mut self,
        maps: impl Iterator<Item = &'a RunMap>,
    ) -> Result<(), ImageError> {
        self.free.clear();
        let mut places = write(&self.places);
        let mut next = FIRST_SLOT;
        let mut needed = self.named(maps);
        needed.extend_from_slice(self.lent.slots());
        // The others are free now, as is all else that nobody needs.
        drop(self.lent.returned());
        needed.sort_unstable_by_key(|slots| slots.start);
        for slots in needed {
            if next < slots.start {
                self.free.insert(next, slots.start);
                places.forget(next..slots.start);
            }
            next = next.max(slots.end);
        }
        places.forget(next..u64::MAX);
        drop(places);
        // Readers may have these too: a copy is made only where there is something to cut off.
        let all = self.sums.len() as u64;
        // What is written next takes the room of what was needed last, which is cheap where the file has it already.
        let cut = all.saturating_sub(next) > SLACK / self.page;
        if cut {
            Arc::make_mut(&mut self.sums).truncate(next as usize);
        } else if next < all {
            self.free.insert(next, all);
        }
        // They grew by doubling, and are kept for as long as there is a sleeper.
        if let Some(sums) = Arc::get_mut(&mut self.sums) {
            sums.shrink_to_fit();
        }
        if cut {
            self.file
                .set_len(next * self.page)
                .map_err(ImageError::io("shorten", &self.path))?;
        }
        Ok(())
    }
}

impl Pages {
    /// Slots that `maps` name, in order. They can overlap.
    fn named<'a>(&self, maps: impl Iterator<Item = &'a RunMap>) -> Vec<Range<u64>> {
        let mut named: Vec<Range<u64>> = maps
            .flat_map(RunMap::iter)
            .map(|run| run.slot..run.slot + (run.end - run.start) / self.page)
            .collect();
        named.sort_unstable_by_key(|slots| slots.start);
        named
    }

    /// What of the image can be compressed when `maps` is all that is needed: everything but the
    /// slots `plain`, which are in order.
    pub(crate) fn plan<'a>(&self, maps: impl Iterator<Item = &'a RunMap>, plain: &[u64]) -> Plan {
        let mut slots: Vec<Range<u64>> = Vec::new();
        let mut plain = plain.iter().copied().peekable();
        let mut next = FIRST_SLOT;
        for named in self.named(maps) {
            let mut start = named.start.max(next);
            next = next.max(named.end);
            while start < named.end {
                while plain.next_if(|slot| *slot < start).is_some() {}
                let end = plain.peek().map_or(named.end, |slot| named.end.min(*slot));
                if start < end {
                    slots.push(start..end);
                }
                start = end + 1;
            }
        }
        let free = self.free.iter().map(|(start, end)| *start..*end);
        Plan {
            slots,
            free: free.collect(),
        }
    }
}

pub(super) fn read(places: &RwLock<Places>) -> RwLockReadGuard<'_, Places> {
    places.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write(places: &RwLock<Places>) -> RwLockWriteGuard<'_, Places> {
    places.write().unwrap_or_else(PoisonError::into_inner)
}
