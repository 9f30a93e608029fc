//! What the node has left of memory and disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use podmotion_model::idle::Room;

const MEMORY: &str = "/proc/meminfo";

/// What is left cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The system refused.
    #[error("look at {}", path.display())]
    Io {
        /// What was looked at.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A line is not there, or not as proc_meminfo(5) has it.
    #[error("{MEMORY} has no {0}")]
    Line(&'static str),
}

/// Memory that programs can still get without swapping (`MemAvailable`), of all there is.
///
/// # Errors
/// When the kernel does not tell.
pub fn memory() -> Result<Room, RoomError> {
    let text = fs::read_to_string(MEMORY).map_err(|source| RoomError::Io {
        path: MEMORY.into(),
        source,
    })?;
    parse(&text)
}

fn parse(text: &str) -> Result<Room, RoomError> {
    let line = |name: &'static str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
            .map(|kib| kib << 10)
            .ok_or(RoomError::Line(name))
    };
    Ok(Room {
        free: line("MemAvailable")?,
        total: line("MemTotal")?,
    })
}

/// What is left of the file system of `directory`, which need not be there yet, for root.
///
/// # Errors
/// When the file system does not tell.
pub fn disk(directory: &Path) -> Result<Room, RoomError> {
    let mut existing = directory;
    loop {
        let cause = match nix::sys::statvfs::statvfs(existing) {
            Ok(disk) => {
                let block = disk.fragment_size();
                return Ok(Room {
                    free: disk.blocks_free() * block,
                    total: disk.blocks() * block,
                });
            }
            Err(cause) => cause,
        };
        match existing.parent() {
            Some(parent) if cause == Errno::ENOENT => existing = parent,
            _ => {
                return Err(RoomError::Io {
                    path: existing.to_owned(),
                    source: cause.into(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_by_name() {
        let text = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    200 kB\n";
        let room = parse(text).unwrap();
        assert_eq!((room.free, room.total), (200 << 10, 1000 << 10));
        let old = parse("MemTotal: 1 kB\nMemFree: 1 kB\n").unwrap_err();
        assert_eq!(old.to_string(), "/proc/meminfo has no MemAvailable");
    }

    #[test]
    fn a_directory_that_is_not_there_is_where_it_would_be() {
        let dir = tempfile::tempdir().unwrap();
        let there = disk(dir.path()).unwrap();
        let below = disk(&dir.path().join("a/b")).unwrap();
        assert!(there.total > 0 && there.total == below.total);
    }
}
