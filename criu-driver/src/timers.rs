//! Timer descriptors (timerfd) in a finished dump: put right where CRIU restores them wrongly, and
//! refused where it cannot restore them at all.
//!
//! - A periodic timer that has expired and was not read yet shows no time left, because the kernel
//!   winds it up again only when it is read. CRIU 4.2 takes that for a timer that is switched off:
//!   what is due would still be read after the restore, but the timer never expires again. It is
//!   given one nanosecond, so that it expires as soon as it is restored; CRIU sets what is due after
//!   that.
//! - A timer that is switched off, and was set to a point in time when it last was, comes back as
//!   one that is set to the current second, and expires. It is made one that was set to a duration.
//! - A clock other than real time or monotonic time makes CRIU fail, but only at the restore.
//!
//! The changes keep the image's size: each writes over one byte.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use protobuf::CodedInputStream;

use crate::error::Error;

/// `IMG_COMMON_MAGIC` and `FILES_MAGIC` of CRIU's `criu/include/magic.h`.
const MAGICS: [u32; 2] = [0x5456_4319, 0x5630_3138];
/// `file_entry.tfd` of CRIU's `images/fdinfo.proto`.
const TIMER: u32 = 12;
/// Fields of `timerfd_entry` in CRIU's `images/timerfd.proto`.
const CLOCK: u32 = 4;
const FLAGS: u32 = 6;
const VALUE: [u32; 2] = [7, 8];
const NANOSECONDS: u32 = 8;
const INTERVAL: [u32; 2] = [9, 10];

/// `TFD_TIMER_ABSTIME` of timerfd_create(2).
const ABSOLUTE: u64 = 1;

/// One field of a message: number, value where it is a scalar, and the offsets of what it holds.
struct Field {
    number: u32,
    scalar: Option<u64>,
    start: usize,
    end: usize,
}

/// A byte to be written.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    offset: usize,
    byte: u8,
}

/// What is to be done about an image.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    changes: Vec<Change>,
    /// A clock that CRIU refuses to restore.
    clock: Option<u64>,
}

/// Puts the timers in `images_dir` right. Returns the clock, a number of clock_gettime(2), of one
/// that cannot be restored.
///
/// # Errors
/// When the image cannot be read, understood or written.
pub(crate) fn mend(images_dir: &Path) -> Result<Option<u64>, Error> {
    let path = images_dir.join("files.img");
    let image = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
    let findings = inspect(&image).map_err(|source| Error::Image {
        path: path.clone(),
        source,
    })?;
    if !findings.changes.is_empty() {
        let file = File::options()
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        for change in findings.changes {
            file.write_all_at(&[change.byte], change.offset as u64)
                .map_err(|e| Error::io("write", &path, e))?;
        }
    }
    Ok(findings.clock)
}

/// An image is two magics, then messages with their lengths before them.
fn inspect(image: &[u8]) -> protobuf::Result<Findings> {
    let mut findings = Findings::default();
    let mut stream = CodedInputStream::from_bytes(image);
    for magic in MAGICS {
        if stream.read_fixed32()? != magic {
            return Err(bad_image());
        }
    }
    while !stream.eof()? {
        let length = stream.read_fixed32()?;
        let start = offset(&stream)?;
        stream.skip_raw_bytes(length)?;
        for field in fields(image, start, offset(&stream)?)? {
            if field.number == TIMER {
                let timer = fields(image, field.start, field.end)?;
                inspect_timer(&timer, &mut findings);
            }
        }
    }
    Ok(findings)
}

fn inspect_timer(timer: &[Field], findings: &mut Findings) {
    let field = |number| timer.iter().find(|field| field.number == number);
    let value = |number| field(number).and_then(|field| field.scalar).unwrap_or(0);
    let is_zero = |numbers: [u32; 2]| numbers.map(value) == [0, 0];
    let clock = value(CLOCK);
    if clock > 1 {
        findings.clock = Some(clock);
    }
    if !is_zero(VALUE) {
        return;
    }
    let (number, byte) = if is_zero(INTERVAL) {
        (FLAGS, value(FLAGS) & !ABSOLUTE)
    } else {
        (NANOSECONDS, 1)
    };
    // Numbers below 128 are one byte, and both fields are required ones.
    if let (Some(field), Ok(byte)) = (field(number), u8::try_from(byte))
        && field.end - field.start == 1
        && field.scalar != Some(u64::from(byte))
    {
        findings.changes.push(Change {
            offset: field.start,
            byte,
        });
    }
}

/// The fields of the message in this part of the image.
fn fields(image: &[u8], start: usize, end: usize) -> protobuf::Result<Vec<Field>> {
    let message = image.get(start..end).ok_or_else(bad_image)?;
    let mut stream = CodedInputStream::from_bytes(message);
    let mut found = Vec::new();
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        let mut first = start + offset(&stream)?;
        let mut scalar = None;
        match tag & 7 {
            0 => scalar = Some(stream.read_uint64()?),
            1 => stream.skip_raw_bytes(8)?,
            2 => {
                let length = stream.read_raw_varint32()?;
                first = start + offset(&stream)?;
                stream.skip_raw_bytes(length)?;
            }
            5 => stream.skip_raw_bytes(4)?,
            _ => return Err(bad_image()),
        }
        found.push(Field {
            number: tag >> 3,
            scalar,
            start: first,
            end: start + offset(&stream)?,
        });
    }
    Ok(found)
}

fn offset(stream: &CodedInputStream<'_>) -> protobuf::Result<usize> {
    usize::try_from(stream.pos()).map_err(|_| bad_image())
}

fn bad_image() -> protobuf::Error {
    std::io::Error::from(std::io::ErrorKind::InvalidData).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A timer's field, as CRIU writes it; all are small enough for one byte.
    fn message(fields: &[(u8, u8)]) -> Vec<u8> {
        fields
            .iter()
            .flat_map(|(n, value)| [n << 3, *value])
            .collect()
    }

    fn timer(clock: u8, flags: u8, value: u8, interval: u8) -> Vec<u8> {
        let mut timer = message(&[(1, 9), (2, 2)]);
        // The owner, a message of its own, with a field that looks like one of the timer's.
        timer.extend([3 << 3 | 2, 2, 8 << 3, 0]);
        timer.extend(message(&[(4, clock), (5, 1), (6, flags)]));
        timer.extend(message(&[(7, 0), (8, value), (9, interval), (10, 0)]));
        timer
    }

    fn image(timers: &[Vec<u8>]) -> Vec<u8> {
        let mut image: Vec<u8> = MAGICS
            .iter()
            .flat_map(|magic| magic.to_le_bytes())
            .collect();
        for timer in timers {
            let mut entry = message(&[(1, 12), (2, 9)]);
            entry.extend([12 << 3 | 2, timer.len() as u8]);
            entry.extend(timer);
            image.extend((entry.len() as u32).to_le_bytes());
            image.extend(entry);
        }
        image
    }

    fn mended(timer: Vec<u8>) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("files.img");
        // The one before it is as it should be.
        fs::write(&path, image(&[self::timer(1, 0, 5, 1), timer])).unwrap();
        assert_eq!(mend(dir.path()).unwrap(), None);
        fs::read(&path).unwrap()
    }

    #[test]
    fn an_expired_periodic_timer_expires_again_at_once() {
        let expected = image(&[timer(1, 0, 5, 1), timer(1, 0, 1, 1)]);
        assert_eq!(mended(timer(1, 0, 0, 1)), expected);
    }

    #[test]
    fn a_timer_that_is_off_stays_off() {
        let expected = image(&[timer(1, 0, 5, 1), timer(0, 2, 0, 0)]);
        assert_eq!(mended(timer(0, 3, 0, 0)), expected);
    }

    #[test]
    fn a_running_timer_is_left_alone() {
        for (flags, interval) in [(0, 0), (0, 7), (1, 0), (1, 7)] {
            let running = timer(1, flags, 5, interval);
            let expected = image(&[timer(1, 0, 5, 1), running.clone()]);
            assert_eq!(mended(running), expected);
        }
    }

    #[test]
    fn a_clock_that_criu_does_not_restore_is_found() {
        const BOOTTIME: u8 = 7;
        let found = inspect(&image(&[timer(BOOTTIME, 0, 5, 0), timer(1, 0, 5, 0)])).unwrap();
        assert_eq!(found.clock, Some(7));
    }

    #[test]
    fn what_is_no_image_or_half_of_one_is_an_error() {
        let whole = image(&[timer(1, 0, 0, 1)]);
        for cut in [0, 5, 9, whole.len() - 1] {
            assert!(inspect(&whole[..cut]).is_err(), "cut at {cut}");
        }
        assert!(inspect(b"something else").is_err());
    }

    proptest! {
        /// Whatever an image holds, it is read or refused, and changes are within it.
        #[test]
        fn any_image_is_read_or_refused(
        noise in proptest::collection::vec(
            prop_oneof![4 => 0_u8..40, 1 => any::<u8>()], 0..80),
        ) {
            let magics = MAGICS.map(u32::to_le_bytes).concat();
            let length = (noise.len() as u32).to_le_bytes();
            for image in [[&magics, &length[..], &noise].concat(), [&magics, &noise[..]].concat(), noise] {
                if let Ok(found) = inspect(&image) {
                    prop_assert!(found.changes.iter().all(|change| change.offset < image.len()));
                }
            }
        }
    }
}
