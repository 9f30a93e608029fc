//! `manifest.json`: what a checkpoint says about itself.
//!
//! ```text
//! { "format": 1, "checksum": "<SHA-256 in hex>", "manifest": { ... } }
//! ```
//!
//! Invariants:
//!
//! 1. `format` is looked at first, so an unknown version is told as such, whatever else has
//!    changed.
//! 2. The checksum is over the format and the compact JSON of `manifest` as this crate writes
//!    it: a changed byte either is an error or changes nothing that is read.
//! 3. A file's name is a plain name in the checkpoint's directory; nothing in a manifest leads
//!    out of it.
//!
//! The checksum guards against decay and cut-off writes, not against an attacker: only root
//! reads or writes checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Digest;

/// The name of the manifest in a checkpoint's directory.
pub const FILE_NAME: &str = "manifest.json";

/// The version that this crate reads and writes.
pub const FORMAT: u32 = 1;

/// Why a manifest cannot be taken, or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the manifest's shape.
    #[error("manifest cannot be read")]
    Json(#[source] serde_json::Error),
    /// Written by another version.
    #[error("manifest has format {found}, this version reads {FORMAT}")]
    Format {
        /// The version it claims.
        found: u32,
    },
    /// Its content is not what was written.
    #[error("manifest is damaged: its checksum is {found}, its content has {computed}")]
    Checksum {
        /// The checksum in the file.
        found: Sha256,
        /// The content's.
        computed: Sha256,
    },
    /// A name that is not a plain file name.
    #[error("manifest: {field} {name:?} is not a plain file name")]
    Name {
        /// What has this name.
        field: &'static str,
        /// The name.
        name: String,
    },
}

/// A SHA-256 digest, written as 64 small hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The digest of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(sha2::Sha256::digest(data).into())
    }

    fn from_hex(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        if text.len() != 2 * digest.len() {
            return None;
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(digest))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).ok_or_else(|| {
            de::Error::invalid_value(de::Unexpected::Str(&text), &"64 small hex digits")
        })
    }
}

/// What is known about one file of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Its length in bytes.
    pub size: u64,
    /// Its digest; `None` for files of pages, which are too large to be read twice.
    pub sha256: Option<Sha256>,
}

/// The pod a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Kubernetes' unique id.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
}

/// The container of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// containerd's id; also the name of the checkpoint's directory.
    pub id: String,
    /// Its name in the pod, or its id when it has no pod.
    pub name: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Its pod, when it has one.
    pub pod: Option<Pod>,
    /// The image reference it was made from, when known.
    pub image: Option<String>,
}

/// What a checkpoint was made with; a restore needs the like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// CRIU's version, `4.2.1`.
    pub criu_version: String,
    /// The kernel's release, as `uname -r` says it.
    pub kernel_release: String,
    /// The CPU flags that the processes may rely on.
    pub cpu_baseline: BTreeSet<String>,
}

/// A checkpoint's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Whose checkpoint it is.
    pub container: Container,
    /// What it was made with.
    pub platform: Platform,
    /// The ports whose packets wake the container.
    pub ports: BTreeSet<u16>,
    /// Memory in the images, in bytes.
    pub memory_bytes: u64,
    /// Whether it is to be restored lazily.
    pub lazy: bool,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Every file of the checkpoint but the manifest, by name.
    pub files: BTreeMap<String, ImageFile>,
}

/// The part that every version has.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    checksum: Sha256,
    manifest: Manifest,
}

impl Manifest {
    /// Reads and verifies the content of a manifest file.
    pub fn parse(content: &[u8]) -> Result<Self, ManifestError> {
        let header: Header = serde_json::from_slice(content).map_err(ManifestError::Json)?;
        if header.format != FORMAT {
            return Err(ManifestError::Format {
                found: header.format,
            });
        }
        let document: Document = serde_json::from_slice(content).map_err(ManifestError::Json)?;
        let computed = document.manifest.checksum()?;
        if document.checksum != computed {
            return Err(ManifestError::Checksum {
                found: document.checksum,
                computed,
            });
        }
        document.manifest.check_names()?;
        Ok(document.manifest)
    }

    /// The content of the manifest file.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check_names()?;
        let document = Document {
            format: FORMAT,
            checksum: self.checksum()?,
            manifest: self.clone(),
        };
        let mut content = serde_json::to_vec_pretty(&document).map_err(ManifestError::Json)?;
        content.push(b'\n');
        Ok(content)
    }

    /// The bytes of all files together.
    pub fn image_bytes(&self) -> u64 {
        self.files
            .values()
            .fold(0, |sum, file| sum.saturating_add(file.size))
    }

    fn checksum(&self) -> Result<Sha256, ManifestError> {
        let mut content = FORMAT.to_le_bytes().to_vec();
        serde_json::to_writer(&mut content, self).map_err(ManifestError::Json)?;
        Ok(Sha256::of(&content))
    }

    fn check_names(&self) -> Result<(), ManifestError> {
        let files = self.files.keys().map(|name| ("file", name));
        for (field, name) in files.chain([("container id", &self.container.id)]) {
            let plain = !matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\0']);
            if !plain || (field == "file" && name == FILE_NAME) {
                return Err(ManifestError::Name {
                    field,
                    name: name.clone(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
