//! Compressing an image that is complete, in small steps that can end after any of them.
//!
//! ```text
//!   slots --read, checked--> compressed one by one --> segment --write--> free place
//!                                                                 |  the table says: there
//!                                                                 +--> holes where the slots were
//! ```
//!
//! Nothing is written where something is, so that an error, whatever it is, loses nothing: content
//! is where the table says, before and after the step. Records of segments that have become almost
//! empty are moved along, as they are, and the holes of those are the room for the next ones.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::compressed::Compressed;
use super::places::{Place, SEGMENT, sparse};
use super::store::BLOCK;
use super::{COMPRESSED, ImageError, PAGES, Reader};

/// Slots that are looked at in one step: no more than a fault or a wake can wait for.
const STEP: u64 = 16;

/// An image cannot be compressed. What it has, it has.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// It cannot be read or written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What is compressed would take its room as before.
    #[error("the file system of {} cannot give up parts of a file", path.display())]
    NoHoles {
        /// The file that was tried.
        path: PathBuf,
    },
}

/// What is to be done, in slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be compressed, unless they are, or are known not to be worth it.
    pub(crate) slots: Vec<Range<u64>>,
    /// Without content.
    pub(crate) free: Vec<Range<u64>>,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Bytes of pages that were compressed.
    pub(crate) pages: u64,
    /// What they take now.
    pub(crate) records: u64,
    /// Bytes of pages that stay as they are, because it is not worth it.
    pub(crate) stubborn: u64,
    /// Bytes of records that were moved.
    pub(crate) moved: u64,
}

/// A page to give up: of the pages file, or of the compressed one.
#[derive(Debug)]
enum Hole {
    Pages(Range<u64>),
    Compressed(Range<u64>),
}

/// An image that is being compressed.
pub(crate) struct Compressor {
    page: u64,
    pages: File,
    pages_path: PathBuf,
    compressed: Compressed,
    slots: VecDeque<Range<u64>>,
    holes: VecDeque<Hole>,
    /// Whose records are moved.
    sparse: BTreeSet<u64>,
    /// To be written to.
    free: BTreeSet<u64>,
    /// The first behind all others.
    end: u64,
    /// The next segment's content, and the slots and lengths of its records.
    segment: Vec<u8>,
    records: Vec<(u64, u64)>,
    /// Slots of them that are in their own places still.
    fresh: Vec<Range<u64>>,
    table: CompressTable,
    output: Vec<u8>,
    plain: Vec<u8>,
    /// All records are written; what has become free is left to be given up.
    ending: bool,
    done: Done,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let left = self.slots.iter().map(|slots| slots.end - slots.start);
        f.debug_struct("Compressor")
            .field("slots left", &left.sum::<u64>())
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

impl Compressor {
    /// Begins. `reader` is of the image in `directory`, and gets to read what is compressed.
    pub(crate) fn begin(
        directory: &Path,
        reader: &mut Reader,
        plan: Plan,
    ) -> Result<Self, CompressError> {
        let page = reader.page();
        let pages_path = directory.join(PAGES);
        let pages = File::options()
            .write(true)
            .open(&pages_path)
            .map_err(ImageError::io("open", &pages_path))?;
        let live = reader.places().live();
        let compressed = match live.is_empty() {
            true => Compressed::create(directory, page, reader.id())?,
            false => Compressed::open(directory, page, reader.id(), true)?,
        };
        let end = live
            .last_key_value()
            .map_or(1, |(segment, _)| segment + 1)
            .max(1);
        if let Err(refused) = punch(compressed.file(), end * SEGMENT..(end + 1) * SEGMENT) {
            if live.is_empty() {
                // It has nothing but its header.
                let _ = std::fs::remove_file(compressed.path());
            }
            return Err(match refused {
                Errno::OPNOTSUPP | Errno::NOSYS => CompressError::NoHoles {
                    path: compressed.path().to_owned(),
                },
                other => ImageError::io("make holes in", compressed.path())(other.into()).into(),
            });
        }
        reader.can_read(Compressed::open(directory, page, reader.id(), false)?);
        let writes = {
            let places = reader.places();
            let mut slots = plan.slots.iter().cloned().flatten();
            slots.any(|slot| places.get(slot) == Place::Plain)
        };
        let free: BTreeSet<u64> = (1..end).filter(|one| !live.contains_key(one)).collect();
        let mut holes: VecDeque<Hole> = plan.free.into_iter().map(Hole::Pages).collect();
        holes.extend(runs(&free).map(Hole::Compressed));
        Ok(Self {
            page,
            pages,
            pages_path,
            compressed,
            slots: plan.slots.into(),
            holes,
            sparse: sparse(&live, writes).into_iter().collect(),
            free,
            end,
            segment: Vec::with_capacity(SEGMENT as usize),
            records: Vec::new(),
            fresh: Vec::new(),
            table: CompressTable::default(),
            output: vec![0; get_maximum_output_size(page as usize)],
            plain: vec![0; page as usize],
            ending: false,
            done: Done::default(),
        })
    }

    /// What was done so far.
    pub(crate) fn done(&self) -> Done {
        self.done
    }

    /// Bytes that the image takes on its file system.
    pub(crate) fn disk_bytes(&self) -> Result<u64, ImageError> {
        let pages = blocks(&self.pages).map_err(ImageError::io("look at", &self.pages_path))?;
        let path = self.compressed.path();
        let compressed = blocks(self.compressed.file()).map_err(ImageError::io("look at", path))?;
        Ok((pages + compressed) * BLOCK)
    }

    /// A little more. False when all is done.
    pub(crate) fn step(&mut self, reader: &Reader) -> Result<bool, CompressError> {
        if let Some(hole) = self.holes.pop_front() {
            self.punch(&hole)?;
            return Ok(true);
        }
        let mut left = STEP;
        while left > 0 {
            let Some(slots) = self.slots.front_mut() else {
                break;
            };
            let slot = slots.start;
            slots.start += 1;
            if slots.start >= slots.end {
                self.slots.pop_front();
            }
            left -= 1;
            self.slot(slot, reader)?;
        }
        if !self.slots.is_empty() {
            return Ok(true);
        }
        if !self.ending {
            self.write(reader)?;
            self.end(reader)?;
            self.ending = true;
        }
        Ok(!self.holes.is_empty())
    }

    fn slot(&mut self, slot: u64, reader: &Reader) -> Result<(), CompressError> {
        let place = reader.places().get(slot);
        match place {
            Place::Record { offset, length } if self.sparse.contains(&(offset / SEGMENT)) => {
                self.room_for(length, reader)?;
                let at = self.segment.len();
                self.segment.resize(at + length as usize, 0);
                let read = self
                    .compressed
                    .read(offset, &mut self.segment[at..], || format!("slot {slot}"));
                if read.is_err() {
                    self.segment.truncate(at);
                }
                read?;
                self.records.push((slot, length));
                self.done.moved += length;
            }
            Place::Plain => {
                reader.read_into(slot, &mut self.plain)?;
                let length =
                    compress_into_with_table(&self.plain, &mut self.output, &mut self.table)
                        .unwrap_or(self.output.len());
                // What saves less than an eighth costs more than it gives.
                if length as u64 > self.page / 8 * 7 {
                    reader.places_mut().set(slot, Place::Stubborn);
                    self.done.stubborn += self.page;
                    return Ok(());
                }
                self.room_for(length as u64, reader)?;
                self.segment.extend_from_slice(&self.output[..length]);
                self.records.push((slot, length as u64));
                match self.fresh.last_mut() {
                    Some(last) if last.end == slot => last.end += 1,
                    _ => self.fresh.push(slot..slot + 1),
                }
                self.done.pages += self.page;
                self.done.records += length as u64;
            }
            Place::Record { .. } | Place::Stubborn => {}
        }
        Ok(())
    }

    fn room_for(&mut self, length: u64, reader: &Reader) -> Result<(), CompressError> {
        match self.segment.len() as u64 + length > SEGMENT {
            true => self.write(reader),
            false => Ok(()),
        }
    }

    /// Writes the segment, and says where its records are from then on.
    fn write(&mut self, reader: &Reader) -> Result<(), CompressError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let number = self.free.pop_first().unwrap_or(self.end);
        let mut offset = number * SEGMENT;
        self.compressed
            .file()
            .write_all_at(&self.segment, offset)
            .map_err(ImageError::io("write", self.compressed.path()))?;
        self.end = self.end.max(number + 1);
        let mut places = reader.places_mut();
        for (slot, length) in self.records.drain(..) {
            places.set(slot, Place::Record { offset, length });
            offset += length;
        }
        drop(places);
        self.segment.clear();
        for slots in std::mem::take(&mut self.fresh) {
            self.punch(&Hole::Pages(slots))?;
        }
        Ok(())
    }

    /// What no record is in any more, in the middle and behind the last one.
    fn end(&mut self, reader: &Reader) -> Result<(), CompressError> {
        let live = reader.places().live();
        let end = live.last_key_value().map_or(1, |(segment, _)| segment + 1);
        self.compressed
            .file()
            .set_len(end * SEGMENT)
            .map_err(ImageError::io("shorten", self.compressed.path()))?;
        let empty = self
            .sparse
            .iter()
            .copied()
            .filter(|segment| *segment < end && !live.contains_key(segment))
            .collect();
        self.holes.extend(runs(&empty).map(Hole::Compressed));
        Ok(())
    }

    fn punch(&self, hole: &Hole) -> Result<(), ImageError> {
        let bytes = |numbers: &Range<u64>, size| numbers.start * size..numbers.end * size;
        let (file, path, range) = match hole {
            Hole::Pages(slots) => (&self.pages, &*self.pages_path, bytes(slots, self.page)),
            Hole::Compressed(segments) => (
                self.compressed.file(),
                self.compressed.path(),
                bytes(segments, SEGMENT),
            ),
        };
        punch(file, range)
            .map_err(io::Error::from)
            .map_err(ImageError::io("make holes in", path))
    }
}

fn blocks(file: &File) -> io::Result<u64> {
    file.metadata().map(|about| about.blocks())
}

/// Gives up the content of a part of a file, which keeps its length.
fn punch(file: &File, range: Range<u64>) -> Result<(), Errno> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, range.start, range.end - range.start)
}

/// The same numbers, as ranges.
fn runs(numbers: &BTreeSet<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs.into_iter()
}

/// Removes the image in `directory`, but for the working set. Nobody has it open who needs it.
///
/// # Errors
/// When a file that is there cannot be removed.
pub fn discard(directory: &Path) -> Result<(), ImageError> {
    for name in [PAGES, COMPRESSED] {
        let path = directory.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::io("remove", &path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}
