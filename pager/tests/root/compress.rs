//! Images that are compressed while memory is out.

use std::fs;
use std::path::Path;
use std::process::Command;

use podmotion_pager::{
    COMPRESSED, CompressError, CompressPolicy, CompressStats, FillStats, Moved, PAGES, Pager,
};

use crate::Case;
use crate::cage::Cage;
use crate::holder::Holder;
use crate::victim::{directory, moved};

pub const CASES: &[Case] = &[
    ("a_compressed_image_comes_back", comes_back),
    (
        "a_wake_while_the_image_is_compressed_loses_nothing",
        woken_meanwhile,
    ),
    (
        "a_sleep_while_the_image_is_compressed_loses_nothing",
        again_meanwhile,
    ),
    (
        "nothing_is_decompressed_before_the_thaw_when_it_is_known_what_is_needed",
        working_set_stays_plain,
    ),
    (
        "on_a_file_system_without_holes_an_image_stays_plain",
        without_holes,
    ),
    ("an_image_in_memory_is_compressed_too", in_memory),
];

const MEGABYTES: u32 = 20;
const BYTES: u64 = (MEGABYTES as u64) << 20;

/// Compresses all that is to be.
pub fn compressed(moved: &Moved) -> CompressStats {
    let compressing = moved.compress(CompressPolicy::at_once()).unwrap();
    compressing.wait().expect("nobody gives it up").unwrap()
}

fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    [PAGES, COMPRESSED]
        .iter()
        .filter_map(|name| fs::metadata(directory.join(name)).ok())
        .map(|about| about.blocks() * 512)
        .sum()
}

fn comes_back() {
    let directory = directory();
    comes_back_in(directory.path());
}

fn comes_back_in(directory: &Path) {
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, MEGABYTES);
    let mut pager = Pager::create(directory).unwrap();
    for round in 0..3 {
        let out = moved(cage.sleep(pager));
        let stats = compressed(&out);
        let took = disk_bytes(directory);
        // Those of before, and a few that the wake has needed.
        let new = if round == 0 { BYTES - (1 << 20) } else { 0 };
        assert!(stats.page_bytes >= new, "{stats:?}");
        assert_eq!(stats.image_bytes, took, "{stats:?}");
        assert!(took < BYTES / 4 * 3, "{took} bytes: {stats:?}");
        pager = cage.wake(out).unwrap().wait().unwrap().0;
        assert_eq!(pager.image_bytes().unwrap(), took);
        assert_eq!(holder.ask("check"), "good");
        assert_eq!(holder.ask("touch 10"), "done");
    }
}

fn woken_meanwhile() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, MEGABYTES);
    let mut pager = Pager::create(directory.path()).unwrap();
    for _ in 0..3 {
        let out = moved(cage.sleep(pager));
        // It would take an hour.
        let slowly = CompressPolicy { rest: 100_000 };
        let compressing = out.compress(slowly).unwrap();
        let filling = cage.wake(out).unwrap();
        assert!(compressing.wait().is_none());
        pager = filling.wait().unwrap().0;
        assert_eq!(holder.ask("check"), "good");
    }
}

fn again_meanwhile() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, MEGABYTES);
    let mut pager = Pager::create(directory.path()).unwrap();
    for _ in 0..5 {
        let out = moved(cage.sleep(pager));
        let compressing = out.compress(CompressPolicy { rest: 1 }).unwrap();
        pager = out.again();
        let out = moved(cage.sleep(pager));
        // Complete before that, or given up.
        if let Some(result) = compressing.wait() {
            result.unwrap();
        }
        compressed(&out);
        pager = cage.wake(out).unwrap().pause().unwrap().0;
    }
    let out = moved(cage.sleep(pager));
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

fn working_set_stays_plain() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, MEGABYTES);
    let mut pager = Pager::create(directory.path()).unwrap();
    let mut wakes: Vec<FillStats> = Vec::new();
    for compress in [true, true, true, false, true] {
        let out = moved(cage.sleep(pager));
        if compress {
            compressed(&out);
        }
        // Before the thaw: nothing else comes by itself while it looks.
        let filling = cage.wake(out).unwrap();
        assert_eq!(holder.ask("look 300"), "good");
        let stats;
        (pager, stats) = filling.wait().unwrap();
        wakes.push(stats);
    }
    assert_eq!(holder.ask("check"), "good");
    for stats in &wakes[1..] {
        assert_eq!(stats.prefetch_decompressed_bytes, 0, "{wakes:?}");
    }
    let last = &wakes[wakes.len() - 1];
    assert!(last.prefetch_bytes > 200 * 4096, "{last:?}");
}

/// A file system that is mounted for a test.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(kind: &str) -> Self {
        let directory = directory();
        let status = Command::new("mount")
            .args(["-t", kind, "podmotion-pager"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "mount {kind}: {status}");
        Self(directory)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is busy goes later.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

fn in_memory() {
    let mounted = Mounted::new("tmpfs");
    comes_back_in(mounted.0.path());
}

fn without_holes() {
    let mounted = Mounted::new("ramfs");
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, MEGABYTES);
    let out = moved(cage.sleep(Pager::create(mounted.0.path()).unwrap()));
    let compressing = out.compress(CompressPolicy::at_once()).unwrap();
    let error = compressing.wait().unwrap().unwrap_err();
    assert!(matches!(error, CompressError::NoHoles { .. }), "{error:?}");
    assert!(!mounted.0.path().join(COMPRESSED).exists());
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}
