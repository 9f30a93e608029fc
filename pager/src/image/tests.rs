mod compression;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

use super::*;
use crate::runs::{Run, RunMap};

/// Slots of the image, the header's not counted.
const SLOTS: u64 = 10;

fn page() -> u64 {
    crate::sys::page_size()
}

/// Ten pages, each full of its own number.
fn image(directory: &Path) -> Pages {
    let mut pages = Pages::create(directory, page()).unwrap();
    let content: Vec<Vec<u8>> = (1..=SLOTS)
        .map(|number| vec![number as u8; page() as usize])
        .collect();
    let sums: Vec<u64> = content.iter().map(|page| checksum(page)).collect();
    let [slots] = &pages.take(&sums)[..] else {
        panic!("one run");
    };
    pages
        .file()
        .write_all_at(&content.concat(), slots.start * page())
        .unwrap();
    pages
}

fn reader(directory: &Path, pages: &Pages) -> Result<Reader, ImageError> {
    let (sums, places) = (Arc::clone(pages.sums()), Arc::clone(pages.places()));
    Reader::open(directory, page(), pages.id(), sums, places)
}

fn read_all(directory: &Path, pages: &Pages) -> Result<Vec<u8>, ImageError> {
    let reader = reader(directory, pages)?;
    let mut all = vec![0; (SLOTS * page()) as usize];
    reader.read_into(1, &mut all)?;
    Ok(all)
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let pages = image(dir.path());
    let all = read_all(dir.path(), &pages).unwrap();
    for (number, page) in (1..).zip(all.chunks(page() as usize)) {
        assert!(page.iter().all(|byte| *byte == number));
    }
    let mode = fs::metadata(dir.path().join(PAGES)).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn each_flipped_byte_of_the_pages_is_an_error_that_names_the_slot() {
    let dir = tempfile::tempdir().unwrap();
    let pages = image(dir.path());
    let path = dir.path().join(PAGES);
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(61) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        let error = read_all(dir.path(), &pages).unwrap_err().to_string();
        let slot = at as u64 / page();
        assert!(
            error.contains(&format!("slot {slot}")),
            "byte {at}: {error}"
        );
    }
}

#[test]
fn a_short_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let pages = image(dir.path());
    let path = dir.path().join(PAGES);
    let good = fs::read(&path).unwrap();
    for len in (0..good.len()).step_by(97) {
        fs::write(&path, &good[..len]).unwrap();
        let error = read_all(dir.path(), &pages).unwrap_err();
        assert!(matches!(error, ImageError::Short { .. }), "{len}: {error}");
    }
    fs::write(&path, &good).unwrap();
    assert!(read_all(dir.path(), &pages).is_ok());
}

#[test]
fn another_image_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pages = image(dir.path());
    image(other.path());
    // Same content, same sums; only the identity differs. Slot 0 has it.
    fs::copy(other.path().join(PAGES), dir.path().join(PAGES)).unwrap();
    let error = read_all(dir.path(), &pages).unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[test]
fn slots_that_are_named_are_never_taken_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut pages = image(dir.path());
    // Nothing is free before it is said what is needed.
    assert_eq!(pages.take(&[1, 2]), [11..13]);
    let mut needed = RunMap::new(page());
    needed.insert(Run {
        start: 0x10_0000,
        end: 0x10_0000 + 3 * page(),
        slot: 3,
    });
    let bytes = |pages: &Pages| pages.file().metadata().unwrap().len();
    let before = bytes(&pages);
    pages.keep([&needed].into_iter()).unwrap();
    // 3 to 5 are named. What is free at the end of the file is little, and stays.
    assert_eq!(bytes(&pages), before);
    assert_eq!(pages.take(&[7, 8, 9]), [1..3, 6..7]);
    assert_eq!(pages.sums()[6], 9);
    assert_eq!(pages.take(&vec![1; 1000]), [7..1007]);
    pages.keep([&needed].into_iter()).unwrap();
    assert_eq!(bytes(&pages), 6 * page(), "the end of the file was cut off");
    assert_eq!(pages.take(&[7, 8, 9]), [1..3, 6..7]);
}

#[test]
fn slots_that_are_lent_are_nobody_elses_until_they_are_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut pages = image(dir.path());
    let content = vec![77; page() as usize];
    let mut draft = pages.lend(3).unwrap().unwrap();
    assert!(pages.lend(1).unwrap().is_none(), "lent twice");
    let slots = [11, 12, 13].map(|slot| {
        assert_eq!(draft.write(&content).unwrap(), Some(slot));
        slot
    });
    assert_eq!(draft.write(&content).unwrap(), None);
    assert_eq!(pages.take(&[1]), [14..15]);
    pages.keep(std::iter::empty()).unwrap();
    assert_eq!(pages.take(&[1; 12]), [1..11, 14..16]);

    // One is accepted, the others are free as soon as the draft is gone.
    pages.accept(std::iter::once((slots[1], checksum(&content))));
    drop(draft);
    assert_eq!(pages.take(&[1; 3]), [11..12, 13..14, 16..17]);
    let mut needed = RunMap::new(page());
    needed.insert(Run {
        start: page(),
        end: 2 * page(),
        slot: slots[1],
    });
    pages.keep([&needed].into_iter()).unwrap();
    let mut read = vec![0; page() as usize];
    let reader = reader(dir.path(), &pages).unwrap();
    reader.read_into(slots[1], &mut read).unwrap();
    assert_eq!(read, content);
    let draft = pages.lend(12).unwrap().unwrap();
    assert_eq!(pages.take(&[1; 2]), [14..16]);
    drop(draft);
    assert_eq!(pages.take(&[1; 2]), [1..3], "lent in vain");
}

#[test]
fn zeros_are_recognised_wherever_the_other_byte_is() {
    let mut bytes = vec![0; page() as usize];
    assert!(is_zero(&bytes));
    for at in 0..bytes.len() {
        bytes[at] = 1;
        assert!(!is_zero(&bytes), "byte {at}");
        bytes[at] = 0;
    }
}
