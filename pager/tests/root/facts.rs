//! What a sleep and a wake leave, and what they do not.

use std::fs;
use std::io::IoSliceMut;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use podmotion_pager::{
    FillPolicy, ImageError, NotMoved, OutError, PAGES, Pager, Resumed, StayPolicy, WORKING_SET,
};
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use crate::Case;
use crate::cage::Cage;
use crate::compress::compressed;
use crate::holder::Holder;
use crate::victim::{compiled, directory, moved, proc};

pub const CASES: &[Case] = &[
    (
        "an_untouched_process_is_not_written_again",
        not_written_again,
    ),
    ("what_is_missing_is_not_moved_again", not_moved_again),
    (
        "another_program_in_a_process_that_had_memory_missing_is_not_taken_for_it",
        another_program,
    ),
    ("nothing_stays_registered_after_the_fill", nothing_stays),
    (
        "the_working_set_is_filled_before_the_wake",
        working_set_first,
    ),
    (
        "a_disk_is_asked_for_the_working_set_all_at_once",
        asked_at_once,
    ),
    (
        "what_wakes_need_is_left_in_place_until_they_do_not",
        left_in_place,
    ),
    ("memory_is_free_while_asleep", memory_is_free),
    ("a_process_without_rights_sleeps_too", without_rights),
    ("a_pause_that_no_sleep_follows_ends", resumed),
    ("a_sleeper_that_is_killed_leaves_nothing", killed_asleep),
    (
        "a_lock_of_a_process_that_is_killed_asleep_is_passed_on",
        lock_is_passed_on,
    ),
    ("two_hundred_cycles_leave_nothing", two_hundred_cycles),
    (
        "two_hundred_compressed_cycles_leave_nothing",
        two_hundred_compressed_cycles,
    ),
    ("huge_pages_come_back_as_such", huge_pages),
    (
        "what_does_not_fit_on_the_disk_leaves_it_as_it_was",
        full_disk,
    ),
];

const MEGABYTE: u64 = 1 << 20;

/// Nothing comes back that nobody asks for, so that it shows what is asked for.
pub const ONLY_ASKED_FOR: FillPolicy = FillPolicy {
    rate: 1,
    quiet: Duration::from_secs(100),
    patience: Duration::from_secs(100),
    head_start: Duration::ZERO,
    give_way: Duration::ZERO,
};

fn not_written_again() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 30);
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    assert!(
        out.stats().written_bytes >= 30 * MEGABYTE,
        "{:?}",
        out.stats()
    );
    let (pager, _) = cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("look 10"), "good");

    let out = moved(cage.sleep(pager));
    let stats = out.stats().clone();
    // Its stack and the buffers of its streams.
    assert!(stats.written_bytes < MEGABYTE / 4, "{stats:?}");
    assert!(stats.unchanged_bytes >= 30 * MEGABYTE, "{stats:?}");
    let (pager, _) = cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("touch 300"), "done");

    let out = moved(cage.sleep(pager));
    let (stats, page) = (out.stats().clone(), rustix::param::page_size() as u64);
    assert!(stats.written_bytes >= 300 * page, "{stats:?}");
    assert!(stats.written_bytes < 300 * page + MEGABYTE / 4, "{stats:?}");
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

fn huge_pages() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 32);
    assert_eq!(holder.ask("huge"), "done");
    let before = holder.huge_bytes();
    assert_eq!(before, 32 * MEGABYTE);
    let mut pager = Pager::create(directory.path()).unwrap();
    for _ in 0..2 {
        let out = moved(cage.sleep(pager));
        assert_eq!(holder.huge_bytes(), 0);
        let (whole, stats) = cage.wake(out).unwrap().wait().unwrap();
        // The kernel may decline single ones.
        assert!(2 * stats.huge_bytes >= before, "{stats:?}");
        assert!(2 * holder.huge_bytes() >= before);
        assert_eq!(holder.ask("check"), "good");
        pager = whole;
    }
}

fn full_disk() {
    let small = SmallDisk::new("size=20m");
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 30);
    let pager = Pager::create(small.path()).unwrap();
    let before = small.free();
    let refused = cage.sleep(pager);
    let Err(NotMoved::Unchanged { pager, error }) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        matches!(&error, OutError::Image(ImageError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
    assert_eq!(small.free(), before, "bytes that are free");
    cage.thaw();
    assert_eq!(holder.ask("check"), "good");
    small.resize("size=100m");
    let out = moved(cage.sleep(*pager));
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

/// A file system of its own in memory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(options: &str) -> Self {
        let disk = Self(directory());
        disk.mount(options);
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn resize(&self, options: &str) {
        self.mount(&format!("remount,{options}"));
    }

    fn mount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "small"])
            .arg(self.path())
            .status();
        assert!(status.unwrap().success());
    }

    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.path()).unwrap();
        disk.f_bfree * disk.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn not_moved_again() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 30);
    let mut pager = Pager::create(directory.path()).unwrap();
    for round in 1..6 {
        let out = moved(cage.sleep(pager));
        let stats = out.stats().clone();
        if round > 1 {
            assert!(stats.missing_bytes > 28 * MEGABYTE, "{stats:?}");
            assert!(stats.scanned_bytes < 2 * MEGABYTE, "{stats:?}");
        }
        let filling = out.serve(ONLY_ASKED_FOR).unwrap();
        cage.thaw();
        assert_eq!(holder.ask(&format!("touch {}", round * 20)), "done");
        (pager, _) = filling.pause().unwrap();
    }
    let out = moved(cage.sleep(pager));
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

fn nothing_stays() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 10);
    let descriptors = holder.descriptors();
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    assert!(holder.is_registered());
    assert_eq!(holder.descriptors(), descriptors);
    // It is a copy of this process, of which it keeps next to nothing.
    let keeper = proc(out.keeper() as u32, "smaps_rollup");
    let own = keeper
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"));
    let own: u32 = own.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    assert!(own < 100, "{keeper}");
    let keeper = out.keeper();
    assert!(fs::exists(format!("/proc/{keeper}")).unwrap());
    let (_pager, _) = cage.wake(out).unwrap().wait().unwrap();
    assert!(!holder.is_registered());
    assert!(!fs::exists(format!("/proc/{keeper}")).unwrap());
    assert_eq!(holder.ask("check"), "good");
}

/// Its address space was another process's too, and is still there with pages missing.
fn another_program() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 30);
    assert_eq!(holder.ask("touch 3000"), "done");
    assert_eq!(holder.ask("share"), "done");
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let filling = cage.wake_with(out, ONLY_ASKED_FOR).unwrap();
    assert_eq!(holder.ask("again"), "ready");
    let (pager, _) = filling.pause().unwrap();
    let out = moved(cage.sleep(pager));
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

fn working_set_first() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 30);
    let mut pager = Pager::create(directory.path()).unwrap();
    for round in 0..4 {
        let policy = FillPolicy {
            quiet: Duration::from_secs(1),
            patience: Duration::from_secs(10),
            ..FillPolicy::default()
        };
        let filling = cage.wake_with(moved(cage.sleep(pager)), policy).unwrap();
        assert_eq!(holder.ask("look 500"), "good");
        let stats;
        (pager, stats) = filling.wait().unwrap();
        if round == 0 {
            assert!(stats.faults >= 500, "{stats:?}");
        } else {
            // Of those whose lease has ended some are asked for.
            assert!(stats.faults < 100, "{round}: {stats:?}");
            assert!(stats.prefetch_bytes > MEGABYTE, "{stats:?}");
        }
    }
    assert!(fs::exists(directory.path().join(WORKING_SET)).unwrap());
}

fn asked_at_once() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 30);
    let mut pager = Pager::create(directory.path()).unwrap();
    let mut asked = Vec::new();
    for on_disk in [false, false, true] {
        let out = moved(cage.sleep(pager));
        if on_disk {
            evict(&directory.path().join(PAGES));
        }
        let filling = cage.wake(out).unwrap();
        assert_eq!(holder.ask("look 500"), "good");
        let stats;
        (pager, stats) = filling.wait().unwrap();
        asked.push(stats.prefetch_asked_bytes);
    }
    assert_eq!(asked[..2], [0, 0]);
    assert!(asked[2] > MEGABYTE, "{asked:?}");
    assert_eq!(holder.ask("check"), "good");
}

/// Has the page cache let go of a file.
fn evict(path: &Path) {
    let file = fs::File::open(path).unwrap();
    // What is not on disk yet stays, and what the kernel is doing something with.
    file.sync_all().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let cached = || {
        let mut byte = [0];
        let buffer = &mut [IoSliceMut::new(&mut byte)];
        preadv2(&file, buffer, 4096, ReadWriteFlags::NOWAIT).is_ok()
    };
    while cached() {
        assert!(Instant::now() < deadline);
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

fn left_in_place() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 30);
    let page = rustix::param::page_size() as u64;
    let needed = 500 * page;
    let mut pager = Pager::create(directory.path()).unwrap();
    pager.set_stay(StayPolicy {
        from: 20 * MEGABYTE,
        one_in: 10,
    });
    let mut left = Vec::new();
    for round in 0..100 {
        let out = moved(cage.sleep(pager));
        let asleep = holder.status("RssAnon:") * 1024;
        let bytes = out.stats().left_bytes;
        left.push(bytes);
        assert!(asleep >= bytes && asleep < bytes + MEGABYTE, "{asleep}");
        let filling = cage.wake_with(out, ONLY_ASKED_FOR).unwrap();
        // Changed in place: what the image has of it is old then.
        let order = if round % 2 == 0 { "look" } else { "touch" };
        let pages = if round < 4 { 500 } else { 1 };
        holder.ask(&format!("{order} {pages}"));
        let (paused, stats) = filling.pause().unwrap();
        if (1..4).contains(&round) {
            assert!(bytes > needed / 10 * 9, "{round}: {bytes}");
            assert!(stats.prefetch_bytes < MEGABYTE, "{round}: {stats:?}");
            assert!(stats.faults < 100, "{round}: {stats:?}");
        }
        pager = paused;
    }
    assert_eq!(left[0], 0, "nothing is known");
    assert!(left[99] < left[5] / 2, "{left:?}");
    let out = moved(cage.sleep(pager));
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

fn memory_is_free() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 50);
    let awake = holder.status("RssAnon:");
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let asleep = holder.status("RssAnon:");
    assert!(
        awake > 50 * 1024 && asleep < 1024,
        "{awake} kB and {asleep} kB"
    );
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

/// `userfaultfd(2)` is not for it: it gets one from `/dev/userfaultfd`.
fn without_rights() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start_as(&cage, 10, 65534);
    let descriptors = holder.descriptors();
    let mappings = proc(holder.pid(), "maps").lines().count();
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    assert!(out.stats().written_bytes > 10 * MEGABYTE);
    assert_eq!(holder.descriptors(), descriptors);
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
    assert_eq!(proc(holder.pid(), "maps").lines().count(), mappings);
}

fn resumed() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 30);
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let idle = FillPolicy {
        rate: 1,
        ..FillPolicy::default()
    };
    let filling = out.serve(idle).unwrap();
    cage.thaw();
    assert_eq!(holder.ask("look 10"), "good");
    assert!(filling.missing_bytes() > 20 * MEGABYTE);
    let (pager, _) = filling.pause().unwrap();
    let Resumed::Filling(filling) = pager.resume(FillPolicy::default()).unwrap() else {
        panic!("memory is missing");
    };
    let (pager, _) = filling.wait().unwrap();
    assert!(!holder.is_registered());
    assert_eq!(holder.ask("check"), "good");
    let resumed = pager.resume(FillPolicy::default()).unwrap();
    assert!(matches!(resumed, Resumed::Complete(_)));
}

fn killed_asleep() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 10);
    let (descriptors, threads) = (own_descriptors(), own_threads());
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let keeper = out.keeper();
    cage.kill();
    assert_eq!(holder.answer(), "");
    drop(out);
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::exists(format!("/proc/{keeper}")).unwrap() || own_threads() > threads {
        assert!(Instant::now() < deadline, "the keeper or the thread stays");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(own_descriptors(), descriptors);
}

/// The kernel looks through the list of a process's locks at its end, and waits for no page then.
fn lock_is_passed_on() {
    let directory = directory();
    let cage = Cage::new();
    let mut heir = Holder::start_program(&cage, &compiled("heir", &["heir.c"]), &[]);
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let filling = out.serve(ONLY_ASKED_FOR).unwrap();
    cage.thaw();
    assert_eq!(heir.ask("go"), "inherited");
    drop(filling);
}

fn own_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn own_threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// Waits until there are no more threads than these: one that has told its outcome still has to end, and
/// there is no event for that.
fn wait_for_threads(threads: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while own_threads() > threads {
        assert!(
            Instant::now() < deadline,
            "{} threads, {threads} at first",
            own_threads()
        );
        sleep(Duration::from_millis(1));
    }
}

fn two_hundred_cycles() {
    cycles(false);
}

fn two_hundred_compressed_cycles() {
    cycles(true);
}

fn cycles(compress: bool) {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 8);
    let mut pager = Pager::create(directory.path()).unwrap();
    let threads = own_threads();
    let mut first = None;
    for cycle in 0..220 {
        let out = moved(cage.sleep(pager));
        if compress {
            compressed(&out);
        }
        let filling = cage.wake(out).unwrap();
        assert_eq!(holder.ask(&format!("touch {}", cycle % 50)), "done");
        pager = if cycle % 3 == 0 {
            filling.pause().unwrap().0
        } else {
            filling.wait().unwrap().0
        };
        if cycle % 3 == 2 {
            wait_for_threads(threads);
            let files = fs::read_dir(directory.path()).unwrap().count();
            let now = (holder.descriptors(), own_descriptors(), files);
            let tables = holder.status("VmPTE:");
            let size = pager.image_bytes().unwrap();
            let (then, then_tables, then_size) = *first.get_or_insert((now, tables, size));
            assert_eq!(now, then, "cycle {cycle}");
            assert!(
                tables <= then_tables + 16,
                "{then_tables} kB, then {tables} kB"
            );
            assert!(size <= then_size + MEGABYTE, "{then_size}, then {size}");
        }
    }
    assert_eq!(holder.ask("check"), "good");
}
