//! The statistics that CRIU leaves behind: `stats-dump` and `stats-restore`.
//!
//! The file format is CRIU's own ("crit"): magics, then one length-prefixed protobuf message.
//! Message: `images/stats.proto` of CRIU. Only scalar fields occur, so the wire format is read
//! without generated code.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protobuf::CodedInputStream;

/// `IMG_SERVICE_MAGIC` and `STATS_MAGIC` of CRIU's `criu/include/magic.h`.
const SERVICE_MAGIC: u32 = 0x5510_5940;
const STATS_MAGIC: u32 = 0x5709_3306;

/// What CRIU measured while dumping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DumpStats {
    /// Time to stop all tasks.
    pub freezing: Duration,
    /// Time the tasks were stopped by CRIU.
    pub frozen: Duration,
    /// Time to collect memory.
    pub memdump: Duration,
    /// Time to write memory to the images.
    pub memwrite: Duration,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages written to the images.
    pub pages_written: u64,
}

/// What CRIU measured while restoring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreStats {
    /// Time to create the processes.
    pub forking: Duration,
    /// Time of the whole restore.
    pub restore: Duration,
    /// Pages read from the images; with lazy pages only those that were not lazy.
    pub pages_restored: u64,
}

/// A statistics file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file does not start with CRIU's magics or is cut short.
    #[error("{} is not a CRIU statistics file", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The message in it does not decode.
    #[error("decode {}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The decoder's answer.
        #[source]
        source: protobuf::Error,
    },
}

/// Reads `stats-dump` in `dir`.
///
/// # Errors
/// When the file is missing, cut short or not CRIU's.
pub fn read_dump(dir: &Path) -> Result<DumpStats, StatsError> {
    let path = dir.join("stats-dump");
    let fields = entry(&path, 1)?;
    Ok(DumpStats {
        freezing: fields.micros(1),
        frozen: fields.micros(2),
        memdump: fields.micros(3),
        memwrite: fields.micros(4),
        pages_scanned: fields.number(5),
        pages_written: fields.number(7) + fields.number(14),
    })
}

/// Reads `stats-restore` in `dir`.
///
/// # Errors
/// When the file is missing, cut short or not CRIU's.
pub fn read_restore(dir: &Path) -> Result<RestoreStats, StatsError> {
    let path = dir.join("stats-restore");
    let fields = entry(&path, 2)?;
    Ok(RestoreStats {
        forking: fields.micros(3),
        restore: fields.micros(4),
        pages_restored: fields.number(5),
    })
}

/// Scalar fields of one message by number.
#[derive(Default)]
struct Fields(Vec<(u32, u64)>);

impl Fields {
    fn number(&self, field: u32) -> u64 {
        self.0
            .iter()
            .find(|(number, _)| *number == field)
            .map_or(0, |(_, value)| *value)
    }

    fn micros(&self, field: u32) -> Duration {
        Duration::from_micros(self.number(field))
    }
}

fn entry(path: &Path, wanted: u32) -> Result<Fields, StatsError> {
    let bytes = fs::read(path).map_err(|source| StatsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let payload = payload(&bytes).ok_or_else(|| StatsError::Format {
        path: path.to_owned(),
    })?;
    scalars(payload, wanted).map_err(|source| StatsError::Decode {
        path: path.to_owned(),
        source,
    })
}

fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<u32> {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if word(0)? != SERVICE_MAGIC || word(4)? != STATS_MAGIC {
        return None;
    }
    let length = usize::try_from(word(8)?).ok()?;
    bytes.get(12..12usize.checked_add(length)?)
}

/// The varint fields of the embedded message with number `wanted`.
fn scalars(payload: &[u8], wanted: u32) -> protobuf::Result<Fields> {
    let mut fields = Fields::default();
    let mut outer = CodedInputStream::from_bytes(payload);
    while let Some(tag) = outer.read_raw_tag_or_eof()? {
        if tag != wanted << 3 | 2 {
            skip(&mut outer, tag)?;
            continue;
        }
        let message = outer.read_bytes()?;
        let mut inner = CodedInputStream::from_bytes(&message);
        while let Some(tag) = inner.read_raw_tag_or_eof()? {
            if tag & 7 == 0 {
                fields.0.push((tag >> 3, inner.read_uint64()?));
            } else {
                skip(&mut inner, tag)?;
            }
        }
    }
    Ok(fields)
}

fn skip(stream: &mut CodedInputStream<'_>, tag: u32) -> protobuf::Result<()> {
    match tag & 7 {
        0 => stream.read_uint64().map(drop),
        1 => stream.read_fixed64().map(drop),
        2 => stream.read_bytes().map(drop),
        _ => stream.read_fixed32().map(drop),
    }
}

#[cfg(test)]
mod tests;
