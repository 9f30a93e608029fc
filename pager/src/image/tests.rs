use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

use super::*;
use crate::runs::{Run, RunMap};

fn page() -> u64 {
    crate::sys::page_size()
}

/// Ten pages of two processes, and the index over them.
fn image(directory: &Path) -> (Pages, Index) {
    let mut pages = Pages::create(directory, page()).unwrap();
    let content: Vec<Vec<u8>> = (1..=10).map(|n| vec![n; page() as usize]).collect();
    let sums: Vec<u64> = content.iter().map(|page| checksum(page)).collect();
    let [slots] = &pages.take(&sums)[..] else {
        panic!("one run");
    };
    pages
        .file()
        .write_all_at(&content.concat(), slots.start * page())
        .unwrap();
    let mut processes = Vec::new();
    for (pid, at, slot) in [(100, 0x10_0000, 1), (101, 0x70_0000_0000, 6)] {
        let mut runs = RunMap::new(page());
        let end = at + 5 * page();
        runs.insert(Run {
            start: at,
            end,
            slot,
        });
        processes.push(ProcessRecord {
            pid,
            regions: std::iter::once(at..end + page()).collect(),
            runs,
        });
    }
    let index = Index {
        page: page(),
        image: pages.id(),
        generation: 3,
        processes,
        sums: Arc::clone(pages.sums()),
    };
    index.write(directory).unwrap();
    (pages, index)
}

fn read_all(directory: &Path) -> Result<Vec<u8>, ImageError> {
    let index = Index::read(directory)?;
    let reader = Reader::open(directory, index.page, index.image, Arc::clone(&index.sums))?;
    let mut all = Vec::new();
    for run in index
        .processes
        .iter()
        .flat_map(|process| process.runs.iter())
    {
        let mut buffer = vec![0; (run.end - run.start) as usize];
        reader.read_into(run.slot, &mut buffer)?;
        all.extend(buffer);
    }
    Ok(all)
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (_, index) = image(dir.path());
    assert_eq!(Index::read(dir.path()).unwrap(), index);
    let all = read_all(dir.path()).unwrap();
    for (number, page) in (1..).zip(all.chunks(page() as usize)) {
        assert!(page.iter().all(|byte| *byte == number));
    }
    for file in [PAGES, INDEX] {
        let mode = fs::metadata(dir.path().join(file)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
}

#[test]
fn each_flipped_bit_of_the_index_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path());
    let path = dir.path().join(INDEX);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        let error = Index::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(INDEX), "byte {at}: {error}");
    }
}

#[test]
fn each_flipped_byte_of_the_pages_is_an_error_that_names_the_slot() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path());
    let path = dir.path().join(PAGES);
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(61) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        let error = read_all(dir.path()).unwrap_err().to_string();
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
    image(dir.path());
    for name in [INDEX, PAGES] {
        let path = dir.path().join(name);
        let good = fs::read(&path).unwrap();
        for len in (0..good.len()).step_by(97) {
            fs::write(&path, &good[..len]).unwrap();
            let error = read_all(dir.path()).unwrap_err();
            assert!(matches!(error, ImageError::Short { .. }), "{len}: {error}");
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(read_all(dir.path()).is_ok());
}

#[test]
fn an_index_of_another_image_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    image(dir.path());
    image(other.path());
    fs::copy(other.path().join(INDEX), dir.path().join(INDEX)).unwrap();
    // Same content, same sums; only the identity differs. Slot 0 has it.
    let error = read_all(dir.path()).unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[test]
fn slots_that_are_named_are_never_taken_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pages, index) = image(dir.path());
    // Nothing is free before an index without them is in place.
    assert_eq!(pages.take(&[1, 2]), [11..13]);
    let mut first = index.processes[0].runs.clone();
    first.remove(0x10_0000..0x10_0000 + 2 * page());
    pages.keep([&first].into_iter()).unwrap();
    // 3 to 5 are named, the end of the file is cut off.
    assert_eq!(pages.bytes(), 6 * page());
    assert_eq!(pages.take(&[7, 8, 9]), [1..3, 6..7]);
    assert_eq!(pages.sums()[6], 9);
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
