//! The image: the content of pages that left memory.
//!
//! ```text
//!   directory/                        0600 each
//!     pages.img        header | slot 1 | slot 2 | ...      one page of content per slot
//!     index.img        header | body | checksum            which page of which process is in which
//!                                                          slot, and each slot's checksum
//!     journal-N.img    what happened to the addresses since index N    see `journal`
//!     working-set.img  what the last wakes touched                     see `working_set`
//! ```
//!
//! A page of zeros has no slot. Content is written first and the index put in place last, by
//! `rename`, so the directory always has the index of one complete image. Slots that the index in
//! force names are never written to: changed pages go to free slots, and what is no longer named
//! is free once the next index is in place.
//!
//! Everything is read with `read`, checked, and used from the buffer that was checked. A mapping
//! would save a copy, but what the file says can change between check and use, and a file that got
//! shorter would be a SIGBUS instead of an error.
//!
//! Nothing is synced: an image serves processes that are still there, and those do not outlive a
//! power failure either.

mod format;
mod store;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use format::{Index, ProcessRecord};
pub(crate) use store::{Pages, Reader, checksum, is_zero};

/// Name of the file with the content.
pub const PAGES: &str = "pages.img";
/// Name of the index.
pub const INDEX: &str = "index.img";

/// An image cannot be written or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
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
    /// The file ends too early.
    #[error("{} ends within {what}", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// Not such a file, or of a version this program does not know.
    #[error("{} is not an image this program can use: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How it shows.
        reason: String,
    },
    /// The content is not what was written.
    #[error("{}: {what} does not match its checksum", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The part of it.
        what: String,
    },
}

impl ImageError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges, of which some have one"
)]
mod tests;
