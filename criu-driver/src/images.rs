//! A checkpoint's directory: made private, sealed with a record of its files, verified before use.
//!
//! Durability: CRIU's images are in the page cache when a dump ends, and stay readable there while
//! the machine is up. [`seal`] writes a small record of them atomically, so a directory without one
//! is a dump that did not end. [`sync`] makes images and record survive a power failure; it takes
//! as long as the disk does, so it is not part of the way to sleep but done after it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Name of the record in the directory.
pub const RECORD: &str = "files.json";

/// Files up to this size are recorded with their digest; larger ones are pages, by size alone.
const DIGEST_LIMIT: u64 = 4 << 20;

/// Version of the record's format.
const FORMAT: u32 = 1;

/// What a sealed directory holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this format.
    pub format: u32,
    /// The images, ordered by name.
    pub files: Vec<ImageFile>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Its name in the directory.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its content in hexadecimal, for files of at most 4 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A checkpoint directory cannot be made or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The system refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// There is no record: the dump did not end.
    #[error("{} was never completed", directory.display())]
    NotSealed {
        /// The directory.
        directory: PathBuf,
    },
    /// The record itself does not decode.
    #[error("{} is damaged", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The decoder's answer.
        #[source]
        source: serde_json::Error,
    },
    /// The record is of a version that this program does not know.
    #[error("{} has format {found}, this program knows {FORMAT}", path.display())]
    Format {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// An image is missing.
    #[error("image {} is missing", path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// An image has another size than recorded.
    #[error("image {} has {found} bytes, {expected} were written", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its recorded size.
        expected: u64,
        /// Its size.
        found: u64,
    },
    /// An image has other content than recorded.
    #[error("image {} does not match its checksum", path.display())]
    Digest {
        /// The image.
        path: PathBuf,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImagesError {
    let path = path.to_owned();
    move |source| ImagesError::Io {
        operation,
        path,
        source,
    }
}

/// Makes an empty directory that only its owner can enter. Parents are made too, with the same
/// mode; what an earlier dump left there is removed.
///
/// # Errors
/// When the file system refuses.
pub fn create(directory: &Path) -> Result<(), ImagesError> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(failed("empty", directory)(e));
        }
        _ => {}
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("make directory", directory))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        .map_err(failed("close to others", directory))
}

/// Records what a finished dump wrote. The record is in place at once or not at all.
///
/// # Errors
/// When an image cannot be read or the record cannot be written.
pub fn seal(directory: &Path) -> Result<Record, ImagesError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        let path = entry.path();
        let metadata = entry.metadata().map_err(failed("look at", &path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !metadata.is_file() || !is_image(&name) {
            continue;
        }
        let size = metadata.size();
        let sha256 = if size <= DIGEST_LIMIT && !name.starts_with("pages-") {
            Some(digest(&path).map_err(failed("read", &path))?)
        } else {
            None
        };
        files.push(ImageFile { name, size, sha256 });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let record = Record {
        format: FORMAT,
        files,
    };
    let path = directory.join(RECORD);
    let text = serde_json::to_vec(&record).map_err(|source| ImagesError::Record {
        path: path.clone(),
        source,
    })?;
    replace(&path, &text).map_err(failed("write", &path))?;
    Ok(record)
}

/// Checks that every image is there, with its size, and the small ones with their content.
///
/// # Errors
/// The first difference from the record, or that there is no record.
pub fn verify(directory: &Path) -> Result<Record, ImagesError> {
    let path = directory.join(RECORD);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ImagesError::NotSealed {
                directory: directory.to_owned(),
            });
        }
        Err(e) => return Err(failed("read", &path)(e)),
    };
    let record: Record = serde_json::from_slice(&text).map_err(|source| ImagesError::Record {
        path: path.clone(),
        source,
    })?;
    if record.format != FORMAT {
        return Err(ImagesError::Format {
            path,
            found: record.format,
        });
    }
    for file in &record.files {
        let path = directory.join(&file.name);
        let found = match fs::metadata(&path) {
            Ok(metadata) => metadata.size(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ImagesError::Missing { path });
            }
            Err(e) => return Err(failed("look at", &path)(e)),
        };
        if found != file.size {
            return Err(ImagesError::Size {
                path,
                expected: file.size,
                found,
            });
        }
        if let Some(expected) = &file.sha256
            && digest(&path).map_err(failed("read", &path))? != *expected
        {
            return Err(ImagesError::Digest { path });
        }
    }
    Ok(record)
}

/// Makes images and record survive a power failure.
///
/// # Errors
/// When the disk does not take them.
pub fn sync(directory: &Path) -> Result<(), ImagesError> {
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let path = entry.map_err(failed("list", directory))?.path();
        if path.is_file() {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(failed("sync", &path))?;
        }
    }
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(failed("sync", directory))
}

/// Logs and sockets live beside the images and may change.
fn is_image(name: &str) -> bool {
    name.ends_with(".img")
}

/// Writes a file through a temporary one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    fs::rename(&temporary, path)
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
    }
    let digest = hasher.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
