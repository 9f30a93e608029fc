//! Memory that CRIU did not see, added to the images it has written.
//!
//! ```text
//!   pagemap-1.img   |  a..b  |           |  e..f  |        CRIU's: what was in the process
//!   absent                   |   c..d    |                 ours, by Absent::read
//!   pages-1.img     |  a..b  |   c..d    |  e..f  |        written anew, in the order of addresses
//! ```
//!
//! CRIU's `images/pagemap.proto`: a file of two magics, a head with the number of the pages file, and
//! entries with address, number of pages and flags. The pages file has the content of the entries, one
//! after the other, which `criu/pagemap.c` counts on.
//!
//! CRIU's pages win: what a process had when CRIU looked is what it has. Everything else that was
//! missing when the dump began is as it was then, also where it has been filled in since. Both files
//! are put in place when they are complete; a dump that ends before has no manifest.

mod image;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Absent;
use crate::error::Error;
use image::{Area, Entry, Kind, LAZY, PRESENT, Pagemap};

/// Bytes that are read at once, and most bytes of an entry: about as many as in one of CRIU's, whose
/// lazy-pages daemon gets a buffer of the largest.
const PIECE: u64 = 2 << 20;

/// An entry of the merged pagemap.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    range: Range<u64>,
    flags: u32,
    /// It is one of CRIU's.
    dumped: bool,
}

/// Adds what the processes `pids` miss to the images of `directory`. `go_on` is asked between pieces.
pub(super) fn merge(
    directory: &Path,
    pids: &[i32],
    absent: &dyn Absent,
    go_on: &dyn Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for &pid in pids {
        let ranges = absent.ranges(pid);
        if ranges.is_empty() {
            continue;
        }
        let inside = inner_pid(pid)?;
        if !seen.insert(inside) {
            let reason = "another process has the same pid in the images";
            return Err(Error::Absent { pid, reason });
        }
        let process = Process {
            directory,
            pid,
            inside,
        };
        process.merge(&ranges, absent, go_on)?;
    }
    Ok(())
}

/// The pid in the innermost pid namespace, by which CRIU names images.
fn inner_pid(pid: i32) -> Result<i32, Error> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .and_then(|pids| pids.split_ascii_whitespace().last()?.parse().ok())
        .ok_or(Error::Absent {
            pid,
            reason: "the kernel does not tell its pid in its namespace",
        })
}

struct Process<'a> {
    directory: &'a Path,
    pid: i32,
    inside: i32,
}

impl Process<'_> {
    fn merge(
        &self,
        ranges: &[Range<u64>],
        absent: &dyn Absent,
        go_on: &dyn Fn() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let name = |kind: &str| self.directory.join(format!("{kind}-{}.img", self.inside));
        let pagemap_path = name("pagemap");
        let pagemap = read(&pagemap_path, Pagemap::parse)?;
        let areas = read(&name("mm"), image::areas)?;
        let pieces = plan(&pagemap.entries, ranges, &areas).map_err(|reason| Error::Absent {
            pid: self.pid,
            reason,
        })?;
        let pages_path = self.directory.join(format!("pages-{}.img", pagemap.pages));
        let old = File::open(&pages_path).map_err(|e| Error::io("open", &pages_path, e))?;
        let pages_next = pages_path.with_extension("next");
        let mut new = create(&pages_next)?;
        let mut buffer = vec![0; PIECE as usize];
        for piece in &pieces {
            go_on()?;
            let length = piece.range.end - piece.range.start;
            if piece.dumped {
                // Within the kernel, and without copying where the file system can share.
                let copied = io::copy(&mut (&old).take(length), &mut new)
                    .map_err(|e| Error::io("copy", &pages_path, e))?;
                if copied < length {
                    let reason = "the file of its pages is too short";
                    return Err(Error::Absent {
                        pid: self.pid,
                        reason,
                    });
                }
            } else {
                let content = &mut buffer[..length as usize];
                absent
                    .read(self.pid, piece.range.start, content)
                    .map_err(|source| Error::AbsentContent {
                        pid: self.pid,
                        source,
                    })?;
                new.write_all(content)
                    .map_err(|e| Error::io("write", &pages_next, e))?;
            }
        }
        let entries = pieces.iter().map(|piece| Entry {
            range: piece.range.clone(),
            flags: piece.flags,
        });
        let pagemap_next = pagemap_path.with_extension("next");
        create(&pagemap_next)?
            .write_all(&pagemap.with(entries))
            .map_err(|e| Error::io("write", &pagemap_next, e))?;
        for (from, to) in [(&pages_next, &pages_path), (&pagemap_next, &pagemap_path)] {
            fs::rename(from, to).map_err(|e| Error::io("put in place", to, e))?;
        }
        Ok(())
    }
}

fn read<T>(path: &Path, parse: impl FnOnce(&[u8]) -> protobuf::Result<T>) -> Result<T, Error> {
    let image = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    parse(&image).map_err(|source| Error::Image {
        path: path.to_owned(),
        source,
    })
}

fn create(path: &Path) -> Result<File, Error> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("make", path, e))
}

/// The merged pagemap, or why there can be none.
fn plan(
    entries: &[Entry],
    absent: &[Range<u64>],
    areas: &[Area],
) -> Result<Vec<Piece>, &'static str> {
    if !in_order(entries.iter().map(|entry| &entry.range)) || !in_order(absent.iter()) {
        return Err("pages are not in order");
    }
    if entries.iter().any(|entry| entry.flags & PRESENT == 0) {
        return Err("CRIU has left pages out itself");
    }
    let mut pieces: Vec<Piece> = entries
        .iter()
        .map(|entry| Piece {
            range: entry.range.clone(),
            flags: entry.flags,
            dumped: true,
        })
        .collect();
    // What a guard page covers nobody gets to see again.
    let guards = areas.iter().filter(|area| area.kind == Kind::Guard);
    let mut taken: Vec<_> = entries
        .iter()
        .map(|entry| &entry.range)
        .chain(guards.map(|area| &area.range))
        .collect();
    taken.sort_by_key(|range| range.start);
    let mappings: Vec<_> = areas
        .iter()
        .filter(|area| area.kind != Kind::Guard)
        .collect();
    let mut taken = taken.into_iter().peekable();
    for range in absent {
        let mut at = range.start;
        while at < range.end {
            while taken.next_if(|taken| taken.end <= at).is_some() {}
            let mut end = range.end.min(at + PIECE);
            match taken.peek() {
                Some(taken) if taken.start <= at => {
                    at = taken.end;
                    continue;
                }
                Some(taken) => end = end.min(taken.start),
                None => {}
            }
            let first = mappings.partition_point(|area| area.range.end <= at);
            let area = mappings
                .get(first)
                .filter(|area| area.range.start <= at && area.kind == Kind::Lazy)
                .ok_or("a missing page is not in a private anonymous mapping")?;
            end = end.min(area.range.end);
            pieces.push(Piece {
                range: at..end,
                flags: LAZY | PRESENT,
                dumped: false,
            });
            at = end;
        }
    }
    pieces.sort_by_key(|piece| piece.range.start);
    Ok(pieces)
}

fn in_order<'a>(mut ranges: impl Iterator<Item = &'a Range<u64>>) -> bool {
    let end = ranges.try_fold(0, |end, next| {
        (end <= next.start && next.start < next.end).then_some(next.end)
    });
    end.is_some()
}

#[cfg(test)]
mod tests;
