//! What happened to the addresses since the index was written, for whoever has to take over.
//!
//! ```text
//!   header     magic, version, image, generation, keeper's pid and start time, flags
//!   record     state | descriptor | message as the kernel wrote it          64 bytes each
//! ```
//!
//! Messages are read straight into the next record of this file, which is mapped: the kernel has
//! put one there before a killed reader ends, and before the program that caused it goes on. So an
//! event is never taken and lost. Faults are not kept: whoever takes over wakes all who wait, and they
//! report again.
//!
//! The file has a fixed size. When it is full, nobody can take over any more, which is noted; the
//! filler itself goes on.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::image::ImageError;
use crate::sys::message;
use crate::sys::shared::SharedFile;
use crate::sys::uffd::{self, Event, MESSAGE_LEN, Uffd};

const MAGIC: u64 = u64::from_le_bytes(*b"PODMJNL\n");
const VERSION: u64 = 1;
const RECORD: usize = 64;
const RECORDS: usize = 4095;
const SIZE: usize = RECORD * (RECORDS + 1);

// Header, byte offsets.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_IMAGE: usize = 16;
const AT_GENERATION: usize = 24;
const AT_KEEPER: usize = 32;
const AT_KEEPER_START: usize = 40;
const AT_FLAGS: usize = 48;

// Record, byte offsets.
const AT_STATE: usize = 0;
const AT_DESCRIPTOR: usize = 4;
const AT_PID: usize = 8;
const AT_MESSAGE: usize = 32;

/// Pages are being taken away: the kernel reports that as if the program had done it.
const FLAG_MOVING: u64 = 1;
/// An event did not fit.
const FLAG_FULL: u64 = 2;
/// All memory is back; the descriptors mean nothing any more.
const FLAG_DONE: u64 = 4;

const STATE_FREE: u32 = 0;
const STATE_READING: u32 = 1;
const STATE_EVENT: u32 = 2;
const STATE_ADOPTED: u32 = 3;

/// What a journal belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) image: u64,
    pub(crate) generation: u64,
    /// Pid of the process that holds the descriptors, and its start time as `/proc` has it.
    pub(crate) keeper: i32,
    pub(crate) keeper_start: u64,
}

/// The journal of a filler, to write.
#[derive(Debug)]
pub(crate) struct Journal {
    file: SharedFile,
    next: usize,
}

/// An entry of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The keeper has the userfaultfd of this process under this number.
    Adopted { pid: i32, descriptor: RawFd },
    /// An event other than a fault, of the userfaultfd with this number.
    Event { descriptor: RawFd, event: Event },
}

/// A journal that was left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) identity: Identity,
    pub(crate) entries: Vec<Entry>,
    pub(crate) moving: bool,
    pub(crate) full: bool,
    pub(crate) done: bool,
}

/// Name of the journal that goes with an index.
pub(crate) fn path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("journal-{generation}.img"))
}

impl Journal {
    /// Makes one, in place of what was there.
    pub(crate) fn create(directory: &Path, identity: Identity) -> Result<Self, ImageError> {
        let path = path(directory, identity.generation);
        let temporary = path.with_extension("tmp");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|file| {
                // Blocks, not a hole: with no room on the disk, writing to the mapping would be a
                // SIGBUS.
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE as u64)?;
                SharedFile::map(&file, SIZE)
            })
            .map_err(ImageError::io("make", &path))?;
        for (at, value) in [
            (AT_VERSION, VERSION),
            (AT_IMAGE, identity.image),
            (AT_GENERATION, identity.generation),
            (AT_KEEPER, identity.keeper as u64),
            (AT_KEEPER_START, identity.keeper_start),
            (AT_MAGIC, MAGIC),
        ] {
            file.long(at).store(value, Ordering::Release);
        }
        fs::rename(&temporary, &path).map_err(ImageError::io("put in place", &path))?;
        Ok(Self { file, next: 1 })
    }

    /// Notes that the keeper has the userfaultfd of `pid`.
    pub(crate) fn adopted(&mut self, pid: i32, descriptor: RawFd) {
        let Some(at) = self.claim(descriptor) else {
            return;
        };
        self.file
            .long(at + AT_PID)
            .store(pid as u64, Ordering::Release);
        self.settle(at, STATE_ADOPTED);
    }

    /// Notes an event that was not read as such: it happened to a child before its fork.
    pub(crate) fn note(&mut self, descriptor: RawFd, event: &Event) {
        let Some(at) = self.claim(descriptor) else {
            self.flag(FLAG_FULL, true);
            return;
        };
        let message = uffd::encode(event);
        for (index, word) in message.as_chunks().0.iter().enumerate().rev() {
            // The first word, which makes it a message, comes last.
            self.file
                .long(at + AT_MESSAGE + index * 8)
                .store(u64::from_ne_bytes(*word), Ordering::Release);
        }
        self.settle(at, STATE_EVENT);
    }

    /// Reads the next message of `uffd`; none when there is none. While pages are being taken away
    /// ([`set_moving`](Self::set_moving)) removals are not the program's, and not noted.
    pub(crate) fn read(&mut self, uffd: &Uffd, descriptor: RawFd) -> io::Result<Option<Event>> {
        // The last record is read into again and again when the others are full.
        let at = self.claim(descriptor).unwrap_or(RECORD * RECORDS);
        let read = message::read(uffd, &self.file, at + AT_MESSAGE)?;
        let bytes: [u8; MESSAGE_LEN] = self.file.bytes(at + AT_MESSAGE);
        let event = uffd::decode(&bytes).filter(|_| read);
        match event {
            None | Some(Event::Fault { .. }) => self.clear(at),
            Some(Event::Remove(_)) if self.is_moving() => self.clear(at),
            Some(_) if self.next >= RECORDS => {
                self.flag(FLAG_FULL, true);
                self.clear(at);
            }
            Some(_) => self.settle(at, STATE_EVENT),
        }
        Ok(event)
    }

    /// Pages are about to be taken away, or have been.
    pub(crate) fn set_moving(&self, moving: bool) {
        self.flag(FLAG_MOVING, moving);
    }

    fn is_moving(&self) -> bool {
        self.file.long(AT_FLAGS).load(Ordering::Acquire) & FLAG_MOVING != 0
    }

    /// All memory is back.
    pub(crate) fn set_done(&self) {
        self.flag(FLAG_DONE, true);
    }

    fn flag(&self, flag: u64, on: bool) {
        let flags = self.file.long(AT_FLAGS);
        if on {
            flags.fetch_or(flag, Ordering::AcqRel);
        } else {
            flags.fetch_and(!flag, Ordering::AcqRel);
        }
    }

    /// Offset of the next record, prepared for a message of `descriptor`.
    fn claim(&mut self, descriptor: RawFd) -> Option<usize> {
        if self.next >= RECORDS {
            self.flag(FLAG_FULL, self.next > RECORDS);
            return None;
        }
        let at = RECORD * self.next;
        self.file
            .word(at + AT_DESCRIPTOR)
            .store(descriptor as u32, Ordering::Release);
        self.file
            .word(at + AT_STATE)
            .store(STATE_READING, Ordering::Release);
        Some(at)
    }

    fn settle(&mut self, at: usize, state: u32) {
        self.file
            .word(at + AT_STATE)
            .store(state, Ordering::Release);
        self.next += 1;
    }

    fn clear(&self, at: usize) {
        // The message first: a record that is being read counts when it has one.
        self.file.long(at + AT_MESSAGE).store(0, Ordering::Release);
        self.file
            .word(at + AT_STATE)
            .store(STATE_FREE, Ordering::Release);
    }
}

impl Left {
    /// Reads the journal that goes with an index.
    pub(crate) fn read(directory: &Path, generation: u64) -> Result<Self, ImageError> {
        let path = path(directory, generation);
        let bytes = fs::read(&path).map_err(ImageError::io("read", &path))?;
        if bytes.len() < SIZE {
            return Err(ImageError::Short {
                path,
                what: "the journal".to_owned(),
            });
        }
        let long = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(number)
        };
        if (long(AT_MAGIC), long(AT_VERSION)) != (MAGIC, VERSION) {
            return Err(ImageError::Foreign {
                path,
                reason: "another kind or version".to_owned(),
            });
        }
        let mut entries = Vec::new();
        for at in (1..RECORDS).map(|record| record * RECORD) {
            let head = long(at);
            let (state, descriptor) = (head as u32, (head >> 32) as RawFd);
            let mut message = [0; MESSAGE_LEN];
            message.copy_from_slice(&bytes[at + AT_MESSAGE..][..MESSAGE_LEN]);
            match (state, uffd::decode(&message)) {
                (STATE_ADOPTED, _) => entries.push(Entry::Adopted {
                    pid: long(at + AT_PID) as i32,
                    descriptor,
                }),
                (STATE_READING, None | Some(Event::Fault { .. })) => break,
                (STATE_EVENT | STATE_READING, Some(event)) => {
                    entries.push(Entry::Event { descriptor, event });
                }
                _ => break,
            }
        }
        let flags = long(AT_FLAGS);
        Ok(Self {
            identity: Identity {
                image: long(AT_IMAGE),
                generation: long(AT_GENERATION),
                keeper: long(AT_KEEPER) as i32,
                keeper_start: long(AT_KEEPER_START),
            },
            entries,
            moving: flags & FLAG_MOVING != 0,
            full: flags & FLAG_FULL != 0,
            done: flags & FLAG_DONE != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        image: 5,
        generation: 2,
        keeper: 77,
        keeper_start: 1234,
    };

    #[test]
    fn what_was_noted_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), IDENTITY).unwrap();
        journal.adopted(100, 5);
        journal.adopted(101, 6);
        let event = Event::Remap {
            from: 0x1000,
            to: 0x8000,
            len: 0x2000,
        };
        journal.note(6, &event);
        journal.set_moving(true);
        let left = Left::read(dir.path(), 2).unwrap();
        assert_eq!(left.identity, IDENTITY);
        assert!(left.moving && !left.full && !left.done);
        let adopted = |pid, descriptor| Entry::Adopted { pid, descriptor };
        let noted = Entry::Event {
            descriptor: 6,
            event,
        };
        assert_eq!(left.entries, [adopted(100, 5), adopted(101, 6), noted]);
    }

    #[test]
    fn a_full_journal_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), IDENTITY).unwrap();
        for pid in 1..RECORDS as i32 {
            journal.adopted(pid, 5);
        }
        assert_eq!(journal.claim(9), None);
        let left = Left::read(dir.path(), 2).unwrap();
        assert_eq!(left.entries.len(), RECORDS - 1);
    }

    #[test]
    fn a_short_or_foreign_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), 2);
        fs::write(&path, [0; 100]).unwrap();
        assert!(matches!(
            Left::read(dir.path(), 2),
            Err(ImageError::Short { .. })
        ));
        fs::write(&path, vec![1; SIZE]).unwrap();
        assert!(matches!(
            Left::read(dir.path(), 2),
            Err(ImageError::Foreign { .. })
        ));
    }
}
