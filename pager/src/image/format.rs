//! The index's bytes. Little-endian, every number in 8 bytes.
//!
//! ```text
//!   header   magic, version, page size, encodings, image, generation, body length,
//!            checksum of the body, checksum of the header so far
//!   body     processes: count, then for each  pid, regions: count, then start, end
//!                                             runs: count, then start, end, slot, encoding
//!            sums: count, then one for each slot
//! ```
//!
//! `encodings` has a bit for each way that content is stored in: 1 is a run of slots with the
//! plain pages, and the only one there is. A compressed run would have another encoding and a byte
//! offset in place of the slot; a reader refuses bits it does not know.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::store::checksum;
use super::{INDEX, ImageError};
use crate::runs::{Run, RunMap};

/// Version of the index, the pages file and the journal together.
pub(super) const VERSION: u64 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"PODMIDX\n");
const ENCODING_PLAIN: u64 = 1;
const HEADER: usize = 9 * 8;

/// What is in an image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Index {
    /// Page size in bytes.
    pub(crate) page: u64,
    /// The pages file it belongs to.
    pub(crate) image: u64,
    /// Counts the sleeps.
    pub(crate) generation: u64,
    pub(crate) processes: Vec<ProcessRecord>,
    /// A checksum for each slot; of a free slot it means nothing.
    pub(crate) sums: Arc<Vec<u64>>,
}

/// One address space in an image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProcessRecord {
    /// A process that has it.
    pub(crate) pid: i32,
    /// The mappings whose pages are in the image.
    pub(crate) regions: Vec<Range<u64>>,
    /// Where the content is.
    pub(crate) runs: RunMap,
}

impl Index {
    /// Puts the index of `directory` in place, at once or not at all.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), ImageError> {
        let path = directory.join(INDEX);
        let temporary = path.with_extension("tmp");
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&self.encode()))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(ImageError::io("write", &path))
    }

    /// Reads the index of `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self, ImageError> {
        let path = directory.join(INDEX);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(ImageError::io("read", &path))?;
        Self::decode(&bytes, &path)
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut put = |number: u64| body.extend(number.to_le_bytes());
        put(self.processes.len() as u64);
        for process in &self.processes {
            put(process.pid as u64);
            put(process.regions.len() as u64);
            for region in &process.regions {
                put(region.start);
                put(region.end);
            }
            put(process.runs.len() as u64);
            for run in process.runs.iter() {
                put(run.start);
                put(run.end);
                put(run.slot);
                put(ENCODING_PLAIN);
            }
        }
        put(self.sums.len() as u64);
        self.sums.iter().copied().for_each(&mut put);
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        for number in [
            MAGIC,
            VERSION,
            self.page,
            ENCODING_PLAIN,
            self.image,
            self.generation,
            body.len() as u64,
            checksum(&body),
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(checksum(&bytes).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    fn decode(bytes: &[u8], path: &Path) -> Result<Self, ImageError> {
        let mut header = Numbers::new(bytes, "the header", path);
        let mut fields = [0; HEADER / 8];
        for field in &mut fields {
            *field = header.next()?;
        }
        let [
            magic,
            version,
            page,
            encodings,
            image,
            generation,
            length,
            sum,
            own,
        ] = fields;
        let foreign = |reason: String| ImageError::Foreign {
            path: path.to_owned(),
            reason,
        };
        if magic != MAGIC {
            return Err(foreign("it does not begin like one".to_owned()));
        }
        if version != VERSION {
            return Err(foreign(format!("version {version}, known is {VERSION}")));
        }
        let corrupt = |what: &str| ImageError::Corrupt {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        if checksum(&bytes[..HEADER - 8]) != own {
            return Err(corrupt("the header"));
        }
        if page != crate::sys::page_size() {
            return Err(foreign(format!("pages of {page} bytes")));
        }
        if encodings != ENCODING_PLAIN {
            return Err(foreign(format!("encodings {encodings:#x}")));
        }
        let body = &bytes[HEADER..];
        if (body.len() as u64) < length {
            return Err(ImageError::Short {
                path: path.to_owned(),
                what: "the body".to_owned(),
            });
        }
        if body.len() as u64 > length || checksum(body) != sum {
            return Err(corrupt("the body"));
        }
        let mut body = Numbers::new(body, "the body", path);
        let mut processes = Vec::new();
        for _ in 0..body.next()? {
            processes.push(process(&mut body, page)?);
        }
        let sums: Vec<u64> = (0..body.next()?)
            .map(|_| body.next())
            .collect::<Result<_, _>>()?;
        Ok(Self {
            page,
            image,
            generation,
            processes,
            sums: Arc::new(sums),
        })
    }
}

fn process(body: &mut Numbers<'_>, page: u64) -> Result<ProcessRecord, ImageError> {
    let pid = body.next()? as i32;
    let regions = (0..body.next()?)
        .map(|_| Ok(body.next()?..body.next()?))
        .collect::<Result<_, ImageError>>()?;
    let mut runs = RunMap::new(page);
    for _ in 0..body.next()? {
        let (start, end, slot, encoding) = (body.next()?, body.next()?, body.next()?, body.next()?);
        if encoding != ENCODING_PLAIN {
            return Err(ImageError::Foreign {
                path: body.path.to_owned(),
                reason: format!("a run with encoding {encoding}"),
            });
        }
        runs.insert(Run { start, end, slot });
    }
    Ok(ProcessRecord { pid, regions, runs })
}

/// Takes numbers off the front of bytes.
struct Numbers<'a> {
    rest: &'a [u8],
    what: &'static str,
    path: PathBuf,
}

impl<'a> Numbers<'a> {
    fn new(bytes: &'a [u8], what: &'static str, path: &Path) -> Self {
        Self {
            rest: bytes,
            what,
            path: path.to_owned(),
        }
    }

    fn next(&mut self) -> Result<u64, ImageError> {
        let Some((number, rest)) = self.rest.split_first_chunk() else {
            return Err(ImageError::Short {
                path: self.path.clone(),
                what: self.what.to_owned(),
            });
        };
        self.rest = rest;
        Ok(u64::from_le_bytes(*number))
    }
}
