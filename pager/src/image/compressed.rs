//! The compressed file: pages, each compressed by itself with lz4.
//!
//! ```text
//!   header | segment 1 | segment 2 | ...       64 KiB each
//!            segment:    record | record | ... | (hole)
//! ```
//!
//! A page of its own for each record, so that whoever asks for one page has to read and decompress
//! nothing else. Which slot a record belongs to is in [`Places`](super::places::Places); its content
//! is checked by the slot's checksum.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{COMPRESSED, ImageError};

const MAGIC: u64 = u64::from_le_bytes(*b"PODMCMP\n");
/// Version of the file.
const VERSION: u64 = 1;
const HEADER: usize = 32;

fn header(page: u64, id: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    for (bytes, number) in header.chunks_exact_mut(8).zip([MAGIC, VERSION, page, id]) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    header
}

/// The compressed file beside the pages file with the identity `id`.
#[derive(Debug)]
pub(crate) struct Compressed {
    file: File,
    path: PathBuf,
}

impl Compressed {
    /// Makes an empty one, in place of what was there.
    pub(crate) fn create(directory: &Path, page: u64, id: u64) -> Result<Self, ImageError> {
        let path = directory.join(COMPRESSED);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| file.write_all_at(&header(page, id), 0).map(|()| file))
            .map_err(ImageError::io("make", &path))?;
        Ok(Self { file, path })
    }

    /// Opens the one that is there, to read, and to write as well if `write`.
    pub(crate) fn open(
        directory: &Path,
        page: u64,
        id: u64,
        write: bool,
    ) -> Result<Self, ImageError> {
        let path = directory.join(COMPRESSED);
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .open(&path)
            .map_err(ImageError::io("open", &path))?;
        let opened = Self { file, path };
        let mut found = [0; HEADER];
        opened.read(0, &mut found, || "its header".to_owned())?;
        if found != header(page, id) {
            return Err(ImageError::Foreign {
                path: opened.path,
                reason: "it does not belong to the pages beside it".to_owned(),
            });
        }
        Ok(opened)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads bytes from `offset` on. `what` names them.
    pub(crate) fn read(
        &self,
        offset: u64,
        into: &mut [u8],
        what: impl FnOnce() -> String,
    ) -> Result<(), ImageError> {
        match self.file.read_exact_at(into, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(ImageError::Short {
                path: self.path.clone(),
                what: what(),
            }),
            read => read.map_err(ImageError::io("read", &self.path)),
        }
    }
}

/// Puts the page of a record into `page`. False where the record is not one of such a page.
pub(crate) fn decompress(record: &[u8], page: &mut [u8]) -> bool {
    let length = page.len();
    lz4_flex::block::decompress_into(record, page).is_ok_and(|bytes| bytes == length)
}
