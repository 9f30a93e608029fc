//! The images that say which memory a process has: parsed, and written.

use std::ops::Range;

use protobuf::{CodedInputStream, CodedOutputStream};

/// `IMG_COMMON_MAGIC`, `PAGEMAP_MAGIC` and `MM_MAGIC` of CRIU's `criu/include/magic.h`.
const COMMON: u32 = 0x5456_4319;
const PAGEMAP: u32 = 0x5608_4025;
const MM: u32 = 0x5749_2820;

/// `PE_LAZY` and `PE_PRESENT` of CRIU's `criu/include/pagemap.h`: may be filled in later; is in the
/// pages file.
pub(super) const LAZY: u32 = 1 << 1;
pub(super) const PRESENT: u32 = 1 << 2;

/// One of a pagemap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) range: Range<u64>,
    pub(super) flags: u32,
}

/// A `pagemap-PID.img`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pagemap {
    /// Number of its pages file.
    pub(super) pages: u32,
    pub(super) entries: Vec<Entry>,
}

/// What a `mm-PID.img` lists.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) range: Range<u64>,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A mapping whose pages CRIU fills in later where it may, because it is private and anonymous
    /// and nothing else about it is special (`vma_entry_can_be_lazy` in `criu/include/vma.h`).
    Lazy,
    /// Another mapping.
    Other,
    /// Guard pages in a mapping (`MADV_GUARD_INSTALL`), listed behind all mappings.
    Guard,
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

fn bad() -> protobuf::Error {
    protobuf::Error::from(std::io::Error::from(std::io::ErrorKind::InvalidData))
}

/// The messages behind the magics.
fn messages(image: &[u8], magic: u32) -> protobuf::Result<Vec<&[u8]>> {
    let word = |at: usize| {
        let bytes = image.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    };
    if [word(0), word(4)] != [Some(COMMON), Some(magic)] {
        return Err(bad());
    }
    let mut messages = Vec::new();
    let mut at = 8;
    while at < image.len() {
        let length = word(at).ok_or_else(bad)? as usize;
        let message = image.get(at + 4..at + 4 + length).ok_or_else(bad)?;
        messages.push(message);
        at += 4 + length;
    }
    Ok(messages)
}

/// Calls `each` for the numbers and messages in a message.
fn fields<'a>(
    message: &'a [u8],
    mut each: impl FnMut(u32, u64, &'a [u8]) -> protobuf::Result<()>,
) -> protobuf::Result<()> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        match tag & 7 {
            0 => each(tag >> 3, stream.read_uint64()?, &[])?,
            1 => stream.read_fixed64().map(drop)?,
            2 => {
                let length = stream.read_raw_varint32()?;
                let start = stream.pos() as usize;
                stream.skip_raw_bytes(length)?;
                each(tag >> 3, 0, &message[start..start + length as usize])?;
            }
            _ => stream.read_fixed32().map(drop)?,
        }
    }
    Ok(())
}

impl Pagemap {
    pub(super) fn parse(image: &[u8]) -> protobuf::Result<Self> {
        let messages = messages(image, PAGEMAP)?;
        let (head, entries) = messages.split_first().ok_or_else(bad)?;
        let mut pages = None;
        fields(head, |number, value, _| {
            if number == 1 {
                pages = u32::try_from(value).ok();
            }
            Ok(())
        })?;
        let entries = entries.iter().map(|message| entry(message));
        Ok(Self {
            pages: pages.ok_or_else(bad)?,
            entries: entries.collect::<Result<_, _>>()?,
        })
    }

    /// The same file's bytes with other entries.
    pub(super) fn with(&self, entries: impl Iterator<Item = Entry>) -> Vec<u8> {
        let mut image = [COMMON.to_le_bytes(), PAGEMAP.to_le_bytes()].concat();
        put(&mut image, |out| out.write_uint32(1, self.pages));
        for Entry { range, flags } in entries {
            put(&mut image, |out| {
                out.write_uint64(1, range.start)?;
                // For readers from before there were 64 bits of it; the field must be there.
                out.write_uint32(2, 0)?;
                out.write_uint32(4, flags)?;
                out.write_uint64(5, (range.end - range.start) / page_size())
            });
        }
        image
    }
}

fn put(
    image: &mut Vec<u8>,
    write: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>,
) {
    let mut message = Vec::new();
    let mut out = CodedOutputStream::vec(&mut message);
    write(&mut out)
        .and_then(|()| out.flush())
        .expect("memory takes everything");
    drop(out);
    image.extend((message.len() as u32).to_le_bytes());
    image.extend(message);
}

fn entry(message: &[u8]) -> protobuf::Result<Entry> {
    let (mut start, mut compat_pages, mut parent, mut flags, mut pages) = (None, 0, 0, None, None);
    fields(message, |number, value, _| {
        match number {
            1 => start = Some(value),
            2 => compat_pages = value,
            3 => parent = value,
            4 => flags = u32::try_from(value).ok(),
            5 => pages = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    let start = start.ok_or_else(bad)?;
    let end = pages
        .unwrap_or(compat_pages)
        .checked_mul(page_size())
        .and_then(|length| start.checked_add(length))
        .ok_or_else(bad)?;
    // As CRIU reads them (`init_compat_pagemap_entry`).
    let flags = match flags {
        Some(flags) => flags,
        None if parent != 0 => 0,
        None => PRESENT,
    };
    Ok(Entry {
        range: start..end,
        flags,
    })
}

/// The mappings of a `mm-PID.img`, in order.
pub(super) fn areas(image: &[u8]) -> protobuf::Result<Vec<Area>> {
    /// `vmas` of `mm_entry` in CRIU's `images/mm.proto`.
    const VMAS: u32 = 14;
    let mut areas = Vec::new();
    for message in messages(image, MM)? {
        fields(message, |number, _, vma| {
            if number == VMAS {
                areas.push(area(vma)?);
            }
            Ok(())
        })?;
    }
    Ok(areas)
}

/// A `vma_entry` of CRIU's `images/vma.proto`.
fn area(message: &[u8]) -> protobuf::Result<Area> {
    /// `VMA_AREA_VSYSCALL`, `VMA_AREA_VDSO`, `VMA_AREA_VVAR` and `VMA_AREA_GUARD` of CRIU's
    /// `criu/include/image.h`.
    const SPECIAL: u64 = 1 << 2 | 1 << 3 | 1 << 12;
    const GUARD: u64 = 1 << 16;
    let mut numbers = [0; 8];
    fields(message, |number, value, _| {
        if let Some(place) = numbers.get_mut(number as usize) {
            *place = value;
        }
        Ok(())
    })?;
    let [_, start, end, _, _, _, flags, status] = numbers;
    let flag = |flag: libc::c_int| flags & u64::from(flag.cast_unsigned()) != 0;
    let plain = flag(libc::MAP_ANONYMOUS)
        && flag(libc::MAP_PRIVATE)
        && !flag(libc::MAP_LOCKED)
        && !flag(libc::MAP_HUGETLB)
        && status & SPECIAL == 0;
    let kind = match plain {
        _ if status & GUARD != 0 => Kind::Guard,
        true => Kind::Lazy,
        false => Kind::Other,
    };
    Ok(Area {
        range: start..end,
        kind,
    })
}
