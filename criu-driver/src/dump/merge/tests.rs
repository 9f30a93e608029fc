use std::fs;

use protobuf::CodedOutputStream;

use super::*;

const PAGE: u64 = 4096;

fn pages(first: u64, end: u64) -> Range<u64> {
    first * PAGE..end * PAGE
}

fn entry(first: u64, end: u64, flags: u32) -> Entry {
    Entry {
        range: pages(first, end),
        flags,
    }
}

fn area(first: u64, end: u64, kind: Kind) -> Area {
    Area {
        range: pages(first, end),
        kind,
    }
}

/// First page, page behind the last, and whether CRIU has it.
fn planned(entries: &[Entry], absent: &[Range<u64>], areas: &[Area]) -> Vec<(u64, u64, bool)> {
    plan(entries, absent, areas)
        .unwrap()
        .into_iter()
        .map(|piece| {
            assert!(!piece.dumped || piece.flags == PRESENT);
            assert!(piece.dumped || piece.flags == PRESENT | LAZY);
            (
                piece.range.start / PAGE,
                piece.range.end / PAGE,
                piece.dumped,
            )
        })
        .collect()
}

#[test]
fn what_criu_has_seen_wins() {
    let entries = [entry(2, 4, PRESENT), entry(6, 7, PRESENT)];
    let areas = [area(0, 10, Kind::Lazy)];
    let absent = [pages(0, 3), pages(3, 8)];
    assert_eq!(
        planned(&entries, &absent, &areas),
        [
            (0, 2, false),
            (2, 4, true),
            (4, 6, false),
            (6, 7, true),
            (7, 8, false)
        ]
    );
    assert_eq!(planned(&entries, &[], &areas), [(2, 4, true), (6, 7, true)]);
}

#[test]
fn no_entry_reaches_over_a_mapping_or_is_large() {
    let areas = [area(0, 3, Kind::Lazy), area(3, 2000, Kind::Lazy)];
    let absent = [pages(1, 1100)];
    let most = PIECE / PAGE;
    assert_eq!(
        planned(&[], &absent, &areas),
        [
            (1, 3, false),
            (3, 3 + most, false),
            (3 + most, 3 + 2 * most, false),
            (3 + 2 * most, 1100, false)
        ]
    );
}

#[test]
fn guard_pages_have_no_content() {
    let areas = [area(0, 10, Kind::Lazy), area(4, 6, Kind::Guard)];
    assert_eq!(
        planned(&[], &[pages(3, 7)], &areas),
        [(3, 4, false), (6, 7, false)]
    );
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let lazy = || vec![area(0, 10, Kind::Lazy)];
    let outside = "a missing page is not in a private anonymous mapping";
    for (entries, absent, areas, reason) in [
        (vec![], vec![pages(9, 11)], lazy(), outside),
        (vec![], vec![pages(20, 21)], lazy(), outside),
        (
            vec![],
            vec![pages(1, 2)],
            vec![area(0, 10, Kind::Other)],
            outside,
        ),
        (
            vec![entry(4, 5, PRESENT), entry(2, 3, PRESENT)],
            vec![pages(1, 2)],
            lazy(),
            "pages are not in order",
        ),
        (
            vec![],
            vec![pages(1, 3), pages(2, 4)],
            lazy(),
            "pages are not in order",
        ),
        (
            vec![entry(4, 5, LAZY)],
            vec![pages(1, 2)],
            lazy(),
            "CRIU has left pages out itself",
        ),
    ] {
        assert_eq!(plan(&entries, &absent, &areas), Err(reason));
    }
}

/// Misses pages of this process, each of which is full of its number.
#[derive(Debug)]
struct Numbered(Vec<Range<u64>>);

impl Absent for Numbered {
    fn ranges(&self, pid: i32) -> Vec<Range<u64>> {
        assert_eq!(pid, own());
        self.0.clone()
    }

    fn read(&self, _: i32, address: u64, into: &mut [u8]) -> Result<(), crate::Veto> {
        for (number, page) in (address / PAGE..).zip(into.chunks_mut(PAGE as usize)) {
            if number == 99 {
                return Err("page 99 is damaged".into());
            }
            page.fill(number as u8);
        }
        Ok(())
    }
}

fn own() -> i32 {
    std::process::id() as i32
}

fn message(write: impl FnOnce(&mut CodedOutputStream<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    write(&mut out);
    out.flush().unwrap();
    drop(out);
    bytes
}

/// A directory with the images of this process: one mapping of 200 pages, of which CRIU has seen
/// page 5 and page 7, full of `c`.
fn images() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let pagemap = Pagemap {
        pages: 3,
        entries: Vec::new(),
    };
    let entries = [entry(5, 6, PRESENT), entry(7, 8, PRESENT)];
    let write = |name: String, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    let inside = inner_pid(own()).unwrap();
    write(
        format!("pagemap-{inside}.img"),
        &pagemap.with(entries.into_iter()),
    );
    write("pages-3.img".into(), &[b'c'; 2 * PAGE as usize]);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let vma = message(|out| {
        out.write_uint64(1, 0).unwrap();
        out.write_uint64(2, 200 * PAGE).unwrap();
        out.write_uint32(6, flags.cast_unsigned()).unwrap();
        out.write_sint64(8, -1).unwrap();
    });
    let mm = message(|out| {
        out.write_uint64(1, 1).unwrap();
        out.write_bytes(14, &vma).unwrap();
    });
    let magics = [0x5456_4319u32, 0x5749_2820].map(u32::to_le_bytes).concat();
    let length = (mm.len() as u32).to_le_bytes();
    write(
        format!("mm-{inside}.img"),
        &[&magics, &length[..], &mm].concat(),
    );
    directory
}

fn parsed(directory: &Path) -> (Pagemap, Vec<u8>) {
    let inside = inner_pid(own()).unwrap();
    let image = fs::read(directory.join(format!("pagemap-{inside}.img"))).unwrap();
    let pages = fs::read(directory.join("pages-3.img")).unwrap();
    (Pagemap::parse(&image).unwrap(), pages)
}

#[test]
fn pages_are_in_the_order_of_addresses() {
    let directory = images();
    let absent = Numbered(vec![pages(1, 2), pages(5, 7)]);
    merge(directory.path(), &[own()], &absent, &|| Ok(())).unwrap();
    let (pagemap, content) = parsed(directory.path());
    let lazy = PRESENT | LAZY;
    assert_eq!(
        pagemap.entries,
        [
            entry(1, 2, lazy),
            entry(5, 6, PRESENT),
            entry(6, 7, lazy),
            entry(7, 8, PRESENT)
        ]
    );
    let firsts: Vec<_> = content.chunks(PAGE as usize).map(|page| page[9]).collect();
    assert_eq!(firsts, [1, b'c', 6, b'c']);
}

#[test]
fn nothing_changes_without_all_content() {
    let directory = images();
    let before = parsed(directory.path());
    let damaged = Numbered(vec![pages(98, 100)]);
    let error = merge(directory.path(), &[own()], &damaged, &|| Ok(())).unwrap_err();
    assert!(matches!(error, Error::AbsentContent { .. }), "{error:?}");
    let whole = Numbered(vec![pages(1, 2)]);
    let error = merge(directory.path(), &[own()], &whole, &|| Err(Error::Aborted)).unwrap_err();
    assert!(matches!(error, Error::Aborted), "{error:?}");
    assert_eq!(parsed(directory.path()), before);
}

#[test]
fn images_cut_short_are_refused() {
    let directory = images();
    let inside = inner_pid(own()).unwrap();
    let absent = Numbered(vec![pages(1, 2)]);
    for name in [
        format!("pagemap-{inside}.img"),
        format!("mm-{inside}.img"),
        "pages-3.img".into(),
    ] {
        let path = directory.path().join(name);
        let whole = fs::read(&path).unwrap();
        for length in [0, 3, 9, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let merged = merge(directory.path(), &[own()], &absent, &|| Ok(()));
            assert!(merged.is_err(), "{} of {length} bytes", path.display());
        }
        fs::write(&path, &whole).unwrap();
    }
}
