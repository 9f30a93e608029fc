//! The image: the content of pages that left memory.
//!
//! ```text
//!   directory/                        0600 each
//!     pages.img        header | slot 1 | slot 2 | ...      one page of content per slot
//!     compressed.img   what has been moved out of slots later           see `compressed`
//!     working-set.img  what the last wakes touched                     see `working_set`
//! ```
//!
//! Which page of which process is in which slot, and the checksum of each slot, is known to the
//! process that wrote it and to nobody else: an image is of no use without that process.
//!
//! A page of zeros has no slot. Slots that hold the content of a page are never written to: changed
//! pages go to free slots, and what is no longer needed is free once the whole image is complete.
//!
//! An image is written plain, since processes stand still meanwhile. What no wake is known to need
//! can be compressed afterwards ([`compressor`]); it keeps its slot, of which a hole is left.
//!
//! Everything is read with `read`, checked, and used from the buffer that was checked. A mapping
//! would save a copy, but what the file says can change between check and use, and a file that got
//! shorter would be a SIGBUS instead of an error.
//!
//! Nothing is synced: an image serves processes that are still there, and those do not outlive a
//! power failure either.

mod compressed;
mod compressor;
mod draft;
mod places;
mod reader;
mod store;

use std::io;
use std::path::{Path, PathBuf};

pub use compressor::{CompressError, discard};
pub(crate) use compressor::{Compressor, Done as Compression, Plan};
pub(crate) use draft::Draft;
pub(crate) use places::{Place, Places};
pub(crate) use reader::Reader;
pub(crate) use store::{Pages, SLACK, checksum, is_zero};

/// Name of the file with the content.
pub const PAGES: &str = "pages.img";
/// Name of the file with what of it is compressed.
pub const COMPRESSED: &str = "compressed.img";

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
