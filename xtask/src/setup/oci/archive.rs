//! Tar files of layers and archives: nothing of this machine gets into them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};

use super::{EPOCH, PIECE};
use crate::setup::files;

/// What is at a path of a layer.
#[derive(Clone)]
pub enum Content {
    /// A folder.
    Directory,
    /// A file like this one.
    File(PathBuf),
    /// A file with this in it.
    Bytes(Vec<u8>),
}

/// Writes the tar of a layer: `content` is (path in the image, file).
pub fn write_layer(out: &Path, content: &[(String, PathBuf)]) -> Result<()> {
    let file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut archive = Archive::new(BufWriter::new(file), EPOCH);
    for (name, path) in content {
        archive.copy(name, path)?;
    }
    archive
        .finish()
        .and_then(|mut writer| writer.flush())
        .with_context(|| format!("cannot write {}", out.display()))
}

/// Writes the compressed tar of a layer, in which everything has the time `time`.
pub fn write_gzip_layer(out: &Path, content: &BTreeMap<String, Content>, time: u64) -> Result<()> {
    let file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    // Neither name nor time go into its header.
    let gzip = GzBuilder::new().write(BufWriter::new(file), Compression::best());
    let mut archive = Archive::new(gzip, time);
    for (name, content) in content {
        match content {
            Content::Directory => archive.directory(name)?,
            Content::File(path) => archive.copy(name, path)?,
            Content::Bytes(bytes) => archive.file(name, bytes, 0o644)?,
        }
    }
    archive
        .finish()
        .and_then(|gzip| gzip.finish())
        .and_then(|mut writer| writer.flush())
        .with_context(|| format!("cannot write {}", out.display()))
}

/// A tar whose headers depend on nothing but names, modes and content.
pub(super) struct Archive<W: Write> {
    tar: tar::Builder<W>,
    time: u64,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(writer: W, time: u64) -> Self {
        Self {
            tar: tar::Builder::new(writer),
            time,
        }
    }

    fn header(&self, kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        header
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        let mut header = self.header(tar::EntryType::Directory, 0, 0o755);
        self.tar
            .append_data(&mut header, format!("{name}/"), std::io::empty())
            .with_context(|| format!("cannot archive {name}"))
    }

    /// Readable by any user of the image, whatever the umask was here.
    fn copy(&mut self, name: &str, path: &Path) -> Result<()> {
        let meta = path
            .metadata()
            .with_context(|| format!("cannot read {}", path.display()))?;
        let executable = meta.permissions().mode() & 0o100 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        self.file(name, &files::read(path)?, mode)
    }

    pub(super) fn file(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.stream(name, content.len() as u64, content, mode)
    }

    pub(super) fn stream(
        &mut self,
        name: &str,
        size: u64,
        content: impl Read,
        mode: u32,
    ) -> Result<()> {
        let mut header = self.header(tar::EntryType::Regular, size, mode);
        let content = BufReader::with_capacity(PIECE, content);
        self.tar
            .append_data(&mut header, name, content)
            .with_context(|| format!("cannot archive {name}"))
    }

    pub(super) fn finish(self) -> std::io::Result<W> {
        self.tar.into_inner()
    }
}
