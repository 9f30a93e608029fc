//! Initial file systems of Linux, in the format that the kernel calls `newc`.

use std::io::Write;

use anyhow::{Context, Result};

/// Kinds of entries, as bits of a file mode.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Name of the entry that ends an archive.
const END: &str = "TRAILER!!!";

/// Writes entries as they are given; all belong to root.
pub struct Cpio<W> {
    writer: W,
    entries: u32,
}

impl<W: Write> Cpio<W> {
    /// An archive without entries.
    pub fn new(writer: W) -> Self {
        Self { writer, entries: 0 }
    }

    /// A folder; those above it must be there.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, DIRECTORY | 0o755, &[])
    }

    /// A file that may be run.
    pub fn program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, FILE | 0o755, content)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<W> {
        self.entry(END, 0, &[])?;
        Ok(self.writer)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len())
            .with_context(|| format!("{name} is too large for an initial file system"))?;
        let name_size = u32::try_from(name.len() + 1)?;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let mut head = String::from("070701");
        // Inode, mode, owner, group, links, time, size, four numbers of devices, size of the name, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        for field in fields {
            head.push_str(&format!("{field:08x}"));
        }
        head.push_str(name);
        head.push('\0');
        self.padded(head.as_bytes())
            .and_then(|()| self.padded(content))
            .with_context(|| format!("cannot write {name}"))
    }

    /// Everything begins at a multiple of four.
    fn padded(&mut self, content: &[u8]) -> std::io::Result<()> {
        self.writer.write_all(content)?;
        self.writer
            .write_all(&[0; 3][..content.len().next_multiple_of(4) - content.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_at_multiples_of_four_and_tell_their_sizes() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.directory("bin").expect("folder");
        cpio.program("bin/a", b"12345").expect("file");
        let archive = cpio.finish().expect("ended");
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        let begins: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(begins.len(), 3);
        assert!(begins.iter().all(|at| at % 4 == 0), "{begins:?}");
        let field = |entry: usize, number: usize| {
            let at = begins[entry] + 6 + 8 * number;
            u32::from_str_radix(&text[at..at + 8], 16).expect("number")
        };
        assert_eq!(field(0, 1), 0o040_755);
        assert_eq!((field(1, 1), field(1, 6), field(1, 11)), (0o100_755, 5, 6));
        assert_eq!(&text[begins[1] + 110..begins[1] + 115], "bin/a");
    }
}
