//! Images that are compressed, in part, again, and not at all.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::image::CompressError;

/// An image and what is to be in it, by address.
struct Image {
    dir: tempfile::TempDir,
    pages: Pages,
    map: RunMap,
    content: BTreeMap<u64, Vec<u8>>,
}

/// A page that can be compressed to a fraction, or not at all.
fn content(seed: u64, compressible: bool) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::new();
    while bytes.len() < page() as usize {
        let word = random();
        match compressible {
            true => bytes.extend((word % 200).to_le_bytes()),
            false => bytes.extend(word.to_le_bytes()),
        }
    }
    bytes
}

impl Image {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            pages: Pages::create(dir.path(), page()).unwrap(),
            dir,
            map: RunMap::new(page()),
            content: BTreeMap::new(),
        }
    }

    /// Pages of a sleep: these addresses have these contents from now on, `gone` have none.
    fn sleep(&mut self, changed: BTreeMap<u64, Vec<u8>>, gone: &[u64]) {
        for address in gone {
            self.map.remove(*address..address + page());
            self.content.remove(address);
        }
        let sums: Vec<u64> = changed.values().map(|page| checksum(page)).collect();
        let slots = self.pages.take(&sums).into_iter().flatten();
        for (slot, (address, content)) in slots.zip(changed) {
            let at = slot * page();
            self.pages.file().write_all_at(&content, at).unwrap();
            self.map.insert(Run {
                start: address,
                end: address + page(),
                slot,
            });
            self.content.insert(address, content);
        }
        self.pages.keep([&self.map].into_iter()).unwrap();
    }

    fn reader(&self) -> Reader {
        reader(self.dir.path(), &self.pages).unwrap()
    }

    /// So many steps, or all. True when that was all.
    fn compress(&self, plain: &[u64], steps: usize) -> Result<(bool, Compression), CompressError> {
        let mut reader = self.reader();
        let plan = self.pages.plan([&self.map].into_iter(), plain);
        let mut compressor = Compressor::begin(self.dir.path(), &mut reader, plan)?;
        for _ in 0..steps {
            if !compressor.step(&reader)? {
                let done = compressor.done();
                assert_eq!(compressor.disk_bytes()?, self.pages.disk_bytes()?);
                return Ok((true, done));
            }
        }
        Ok((false, compressor.done()))
    }

    fn check(&self) {
        let reader = self.reader();
        for (address, content) in &self.content {
            let mut read = vec![0; page() as usize];
            let slot = self.map.get(*address).unwrap();
            reader.read_into(slot, &mut read).unwrap();
            assert!(read == *content, "page {address:#x} in slot {slot}");
        }
        // And as a fill does it.
        for run in self.map.iter() {
            let mut read = vec![0; (run.end - run.start) as usize];
            reader.read_into(run.slot, &mut read).unwrap();
            let expected = self.content.range(run.start..run.end);
            assert!(
                read == expected
                    .map(|(_, page)| page)
                    .cloned()
                    .collect::<Vec<_>>()
                    .concat()
            );
        }
    }

    fn disk(&self) -> u64 {
        self.pages.disk_bytes().unwrap()
    }
}

fn pages_of(numbers: Range<u64>, seed: u64, compressible: bool) -> BTreeMap<u64, Vec<u8>> {
    let page_of = |number| {
        let content = content(seed ^ (number << 20), compressible);
        (number * page(), content)
    };
    numbers.map(page_of).collect()
}

#[test]
fn what_is_compressed_takes_less_and_is_read_as_it_was() {
    let mut image = Image::new();
    image.sleep(pages_of(0..200, 1, true), &[]);
    let before = image.disk();
    let (complete, done) = image.compress(&[], usize::MAX).unwrap();
    assert!(complete);
    assert_eq!(done.pages, 200 * page());
    image.check();
    let after = image.disk();
    assert!(after < before / 2, "{before}, then {after} bytes");
    let reader = image.reader();
    let mut one = vec![0; page() as usize];
    reader.read_into(7, &mut one).unwrap();
    assert_eq!(reader.decompressed_bytes(), page(), "nothing but the page");
}

#[test]
fn what_is_named_as_needed_stays_plain() {
    let mut image = Image::new();
    image.sleep(pages_of(0..50, 1, true), &[]);
    image.compress(&[10, 11, 30], usize::MAX).unwrap();
    image.check();
    let reader = image.reader();
    let mut two = vec![0; 2 * page() as usize];
    reader.read_into(10, &mut two).unwrap();
    reader.read_into(30, &mut two[..page() as usize]).unwrap();
    assert_eq!(reader.decompressed_bytes(), 0);
    reader.read_into(12, &mut two).unwrap();
    assert_eq!(reader.decompressed_bytes(), 2 * page());
}

#[test]
fn what_is_not_worth_it_stays_and_is_not_tried_again() {
    let mut image = Image::new();
    image.sleep(pages_of(0..50, 1, false), &[]);
    let before = image.disk();
    let (_, done) = image.compress(&[], usize::MAX).unwrap();
    assert_eq!((done.pages, done.stubborn), (0, 50 * page()));
    assert!(image.disk() <= before + page());
    let (_, done) = image.compress(&[], usize::MAX).unwrap();
    assert_eq!(done, Compression::default());
    image.check();
    // A slot with other content is.
    let all: Vec<u64> = image.content.keys().copied().collect();
    image.sleep(pages_of(100..150, 2, true), &all);
    image.sleep(pages_of(200..250, 3, true), &[]);
    let (_, done) = image.compress(&[], usize::MAX).unwrap();
    assert_eq!(done.pages, 100 * page());
    image.check();
}

#[test]
fn given_up_after_any_step_nothing_is_lost() {
    for steps in 0..20 {
        let mut image = Image::new();
        image.sleep(pages_of(0..150, 1, true), &[]);
        image.compress(&[], steps).unwrap();
        image.check();
        image.compress(&[], usize::MAX).unwrap();
        image.check();
    }
}

#[test]
fn a_flipped_byte_of_a_record_is_an_error_that_names_the_slot() {
    let mut image = Image::new();
    image.sleep(pages_of(0..30, 1, true), &[]);
    image.compress(&[], usize::MAX).unwrap();
    let path = image.dir.path().join(COMPRESSED);
    let good = fs::read(&path).unwrap();
    let places: Vec<_> = (1..=30)
        .map(|slot| (slot, image.pages.places().read().unwrap().get(slot)))
        .collect();
    for (slot, place) in places {
        let Place::Record { offset, length } = place else {
            panic!("slot {slot} is not compressed");
        };
        for at in (offset..offset + length).step_by(31) {
            let mut bad = good.clone();
            bad[at as usize] ^= 0x40;
            fs::write(&path, &bad).unwrap();
            let mut all = vec![0; 30 * page() as usize];
            let reader = image.reader();
            match reader.read_into(1, &mut all) {
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        error.contains(&format!("slot {slot} does not match")),
                        "{error}"
                    );
                }
                // Two ways to say the same.
                Ok(()) => image.check(),
            }
        }
    }
    for length in [0, 10, 65_536, 65_600] {
        fs::write(&path, &good[..length]).unwrap();
        let opened = reader(image.dir.path(), &image.pages);
        let mut all = vec![0; 30 * page() as usize];
        let error = opened.and_then(|reader| reader.read_into(1, &mut all));
        let error = error.unwrap_err();
        assert!(
            matches!(error, ImageError::Short { .. }),
            "{length}: {error}"
        );
    }
}

#[test]
fn the_compressed_file_of_another_image_is_refused() {
    let (mut image, mut other) = (Image::new(), Image::new());
    for image in [&mut image, &mut other] {
        image.sleep(pages_of(0..30, 1, true), &[]);
        image.compress(&[], usize::MAX).unwrap();
    }
    let file = |image: &Image| image.dir.path().join(COMPRESSED);
    fs::copy(file(&other), file(&image)).unwrap();
    let error = reader(image.dir.path(), &image.pages).unwrap_err();
    assert!(matches!(error, ImageError::Foreign { .. }), "{error}");
}

#[test]
fn a_damaged_slot_is_not_compressed_and_named() {
    let mut image = Image::new();
    image.sleep(pages_of(0..30, 1, true), &[]);
    image.pages.file().write_all_at(&[1], 20 * page()).unwrap();
    let error = image.compress(&[], usize::MAX).unwrap_err();
    assert!(error.to_string().contains("slot 20"), "{error}");
}

#[test]
fn an_image_does_not_grow_however_often_it_is_changed_and_compressed() {
    let mut image = Image::new();
    image.sleep(pages_of(0..400, 1, true), &[]);
    image.compress(&[], usize::MAX).unwrap();
    let first = image.disk();
    let mut random = 7u64;
    for cycle in 0..300 {
        let mut changed = BTreeMap::new();
        for _ in 0..20 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let number = (random >> 33) % 400;
            changed.extend(pages_of(number..number + 1, cycle + 2, true));
        }
        image.sleep(changed, &[]);
        image.compress(&[], usize::MAX).unwrap();
    }
    image.check();
    let last = image.disk();
    // A quarter of each segment can be of no use.
    assert!(last < first / 2 * 3, "{first}, then {last} bytes");
    let length = fs::metadata(image.dir.path().join(COMPRESSED))
        .unwrap()
        .len();
    assert!(length < first * 3, "{length} bytes long");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn no_byte_differs(cycles in proptest::collection::vec(
        (
            proptest::collection::vec((0..120u64, any::<u64>(), any::<bool>()), 0..40),
            proptest::collection::vec(0..120u64, 0..20),
            proptest::collection::vec(1..160u64, 0..30),
            0..12usize,
        ),
        1..12,
    )) {
        let mut image = Image::new();
        for (changed, gone, mut plain, steps) in cycles {
            let changed = changed
                .into_iter()
                .map(|(number, seed, compressible)| (number * page(), content(seed, compressible)))
                .collect();
            let gone: Vec<u64> = gone.into_iter().map(|number| number * page()).collect();
            image.sleep(changed, &gone);
            plain.sort_unstable();
            image.compress(&plain, steps).unwrap();
            image.check();
        }
    }
}
