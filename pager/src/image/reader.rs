//! The pages file, to read. What is read is what was written, or an error.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use super::compressed::{Compressed, decompress};
use super::places::{Piece, Places};
use super::store::{MAGIC, VERSION, checksum, read, write};
use super::{ImageError, PAGES};

/// The image, to read, with the checksums of one moment.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    path: PathBuf,
    page: u64,
    id: u64,
    sums: Arc<Vec<u64>>,
    places: Arc<RwLock<Places>>,
    /// There from the moment on that anything is in it.
    compressed: Option<Compressed>,
    /// Bytes of pages that were decompressed.
    decompressed: AtomicU64,
}

impl Reader {
    /// Opens the file with this identity.
    pub(crate) fn open(
        directory: &Path,
        page: u64,
        id: u64,
        sums: Arc<Vec<u64>>,
        places: Arc<RwLock<Places>>,
    ) -> Result<Self, ImageError> {
        let path = directory.join(PAGES);
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let mut header = vec![0; page as usize];
        let compressed = match read(&places).has_records() {
            true => Some(Compressed::open(directory, page, id, false)?),
            false => None,
        };
        let reader = Self {
            file,
            path,
            page,
            id,
            sums,
            places,
            compressed,
            decompressed: AtomicU64::new(0),
        };
        reader.read_into(0, &mut header)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at * 8..at * 8 + 8]);
            u64::from_le_bytes(bytes)
        };
        let found = [0, 1, 2, 3].map(number);
        if found != [MAGIC, VERSION, page, id] {
            return Err(ImageError::Foreign {
                path: reader.path,
                reason: "it is not the one that was written".to_owned(),
            });
        }
        Ok(reader)
    }

    /// The error for content that the file does not have.
    pub(crate) fn without(&self, what: String) -> ImageError {
        ImageError::Short {
            path: self.path.clone(),
            what,
        }
    }

    /// The file has changed, and these are the checksums from now on.
    pub(crate) fn set_sums(&mut self, sums: Arc<Vec<u64>>) {
        self.sums = sums;
    }

    pub(crate) fn page(&self) -> u64 {
        self.page
    }

    /// Identity of the pages file.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Where content is. Nobody may change it while this is held.
    pub(crate) fn places(&self) -> RwLockReadGuard<'_, Places> {
        read(&self.places)
    }

    /// To say where content is from now on. Waits for whoever reads.
    pub(crate) fn places_mut(&self) -> RwLockWriteGuard<'_, Places> {
        write(&self.places)
    }

    /// Something is going to be compressed.
    pub(crate) fn can_read(&mut self, compressed: Compressed) {
        self.compressed = Some(compressed);
    }

    /// Bytes of pages that were decompressed until now.
    pub(crate) fn decompressed_bytes(&self) -> u64 {
        self.decompressed.load(Ordering::Relaxed)
    }

    /// Begins to read slots from `slot` on from the disk, `bytes` of them, where they are not in memory. An error shows
    /// when they are read.
    pub(crate) fn will_need(&self, slot: u64, bytes: u64) {
        let _ = fadvise(
            &self.file,
            slot * self.page,
            NonZero::new(bytes),
            Advice::WillNeed,
        );
    }

    /// Reads slots from `slot` on into `into`, a whole number of pages, and checks each.
    pub(crate) fn read_into(&self, slot: u64, into: &mut [u8]) -> Result<(), ImageError> {
        self.read_into_or(slot, into, || ())
    }

    /// The same. Where it takes waiting for the disk, `far` is called before.
    pub(crate) fn read_into_or(
        &self,
        slot: u64,
        into: &mut [u8],
        mut far: impl FnMut(),
    ) -> Result<(), ImageError> {
        let page = self.page as usize;
        let end = slot + into.len() as u64 / self.page;
        let places = self.places();
        let (mut next, mut rest) = (slot, &mut *into);
        while next < end {
            let piece = places.piece(next..end);
            let (Piece::Plain { slots } | Piece::Records { slots, .. }) = piece;
            let (now, later) = rest.split_at_mut(slots as usize * page);
            match piece {
                Piece::Plain { .. } => self.read_plain(next, now, &mut far)?,
                Piece::Records { offset, bytes, .. } => {
                    self.read_records(&places, next, offset, bytes, now)?;
                }
            }
            (next, rest) = (next + slots, later);
        }
        drop(places);
        for (slot, page) in (slot..).zip(into.chunks_exact(page)) {
            if self.sums.get(slot as usize) != Some(&checksum(page)) {
                return Err(self.corrupt(slot));
            }
        }
        Ok(())
    }

    fn read_plain(
        &self,
        slot: u64,
        into: &mut [u8],
        far: &mut impl FnMut(),
    ) -> Result<(), ImageError> {
        let offset = slot * self.page;
        let whole = &mut [IoSliceMut::new(into)];
        // Some file systems always say that it takes waiting, or that they do not know.
        match preadv2(&self.file, whole, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == into.len() => return Ok(()),
            _ => far(),
        }
        match self.file.read_exact_at(into, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.without(slots(slot, into.len() as u64 / self.page)))
            }
            read => read.map_err(ImageError::io("read", &self.path)),
        }
    }

    /// Slots from `slot` on, whose records are the `bytes` from `offset` on.
    fn read_records(
        &self,
        places: &Places,
        slot: u64,
        offset: u64,
        bytes: u64,
        into: &mut [u8],
    ) -> Result<(), ImageError> {
        let pages = into.len() as u64 / self.page;
        let Some(compressed) = &self.compressed else {
            return Err(self.without(slots(slot, pages)));
        };
        let mut records = vec![0; bytes as usize];
        compressed.read(offset, &mut records, || slots(slot, pages))?;
        let mut rest = &records[..];
        for (slot, page) in (slot..).zip(into.chunks_exact_mut(self.page as usize)) {
            let Piece::Records { bytes, .. } = places.piece(slot..slot + 1) else {
                return Err(self.corrupt(slot));
            };
            let (record, later) = rest.split_at(bytes as usize);
            if !decompress(record, page) {
                return Err(self.corrupt(slot));
            }
            rest = later;
        }
        let pages = into.len() as u64;
        self.decompressed.fetch_add(pages, Ordering::Relaxed);
        Ok(())
    }

    fn corrupt(&self, slot: u64) -> ImageError {
        ImageError::Corrupt {
            path: self.path.clone(),
            what: format!("slot {slot}"),
        }
    }
}

fn slots(first: u64, count: u64) -> String {
    format!("slots {first} to {}", first + count - 1)
}
