//! What is not written to shortly before a sleep is not read in it, and whatever changes is.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use podmotion_inject::{Seized, on_own_thread};
use podmotion_pager::{OutStats, Pager, Watch};
use tempfile::TempDir;

use crate::Case;
use crate::cage::Cage;
use crate::holder::Holder;
use crate::victim::{directory, moved};

pub const CASES: &[Case] = &[
    (
        "what_nobody_has_written_to_since_is_not_read_again",
        not_read_again,
    ),
    ("what_is_written_while_watched_is_written_out", written),
    (
        "what_was_written_before_the_watch_is_written_out_before_the_sleep",
        written_before,
    ),
    (
        "what_is_written_again_is_not_what_was_written_out_before",
        written_again,
    ),
    (
        "watches_that_no_sleep_follows_leave_the_image_as_it_is",
        no_sleep_follows,
    ),
    (
        "another_program_in_the_process_that_was_watched_sleeps_too",
        another_program,
    ),
    (
        "what_another_process_keeps_of_the_program_before_is_not_taken_for_the_new_ones",
        program_before,
    ),
    ("pages_that_change_places_while_watched_are_read", swapped),
    ("who_is_watched_keeps_huge_pages", huge),
    ("nothing_stays_registered_after_the_watch", nothing_stays),
    ("who_ends_while_watched_is_no_trouble", ends),
    (
        "a_sleep_that_was_prepared_and_does_not_come_leaves_nothing",
        stood_down,
    ),
];

const MEGABYTE: u64 = 1 << 20;
const SIZE: u64 = 30 * MEGABYTE;

/// Has writes of all processes in the cage noted from now on, and compares what they do not write to. None where there is nothing to compare
/// with, or one cannot be stopped now.
pub fn watch(cage: &Cage, pager: &mut Pager) -> Option<Watch> {
    let mut watching = pager.watching()?;
    watching.find().unwrap();
    let begin = || {
        let mut seized = Seized::begin(&cage.pids()).unwrap();
        seized.wait_stopped(Duration::from_millis(500)).ok()?;
        let watch = watching.begin(&mut seized);
        seized.release().unwrap();
        // One may have begun another program, or ended.
        watch.ok()
    };
    let mut watch = on_own_thread(begin).unwrap()?;
    watch
        .compare(Instant::now() + Duration::from_secs(60))
        .unwrap();
    Some(watch)
}

/// The same, for the next sleep.
pub fn set_watch(cage: &Cage, pager: &mut Pager) {
    let watch = watch(cage, pager);
    pager.set_watch(watch);
}

/// A program with so many MiB that has slept and is awake again.
fn slept_once(megabytes: u32) -> (TempDir, Cage, Holder, Pager) {
    let directory = directory();
    let cage = Cage::new();
    let holder = Holder::start(&cage, megabytes);
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let (pager, _) = cage.wake(out).unwrap().wait().unwrap();
    (directory, cage, holder, pager)
}

/// Puts a program with [`SIZE`] bytes to sleep for the second time; `meanwhile` comes once it is watched.
fn second_sleep(meanwhile: impl FnOnce(&mut Holder)) -> OutStats {
    let (_directory, cage, mut holder, mut pager) = slept_once(30);
    let watch = watch(&cage, &mut pager).expect("nothing to compare with");
    assert!(watch.same_bytes() >= SIZE, "{watch:?}");
    pager.set_watch(Some(watch));
    meanwhile(&mut holder);
    let out = moved(cage.sleep(pager));
    let stats = out.stats().clone();
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
    stats
}

fn not_read_again() {
    let stats = second_sleep(|_| ());
    assert!(stats.unread_bytes >= SIZE, "{stats:?}");
    // Its stack and the buffers of its streams.
    let read = stats.scanned_bytes - stats.unread_bytes;
    assert!(read < MEGABYTE / 4, "{stats:?}");
}

fn written() {
    let stats = second_sleep(|holder| assert_eq!(holder.ask("touch 300"), "done"));
    let pages = 300 * rustix::param::page_size() as u64;
    assert!(stats.written_bytes >= pages, "{stats:?}");
    assert!(stats.unread_bytes >= SIZE - pages, "{stats:?}");
    assert!(stats.unread_bytes < SIZE - pages + MEGABYTE, "{stats:?}");
}

/// A program with [`SIZE`] bytes that has written to so many pages since it was awake, and is watched then.
fn changed(pages: u64) -> (TempDir, Cage, Holder, Pager) {
    let (directory, cage, mut holder, mut pager) = slept_once(30);
    assert_eq!(holder.ask(&format!("touch {pages}")), "done");
    set_watch(&cage, &mut pager);
    (directory, cage, holder, pager)
}

fn written_before() {
    let (_directory, cage, mut holder, pager) = changed(300);
    let out = moved(cage.sleep(pager));
    let stats = out.stats().clone();
    let pages = 300 * rustix::param::page_size() as u64;
    assert!(stats.unread_bytes >= SIZE, "{stats:?}");
    assert!(stats.written_bytes >= pages, "{stats:?}");
    let (pager, _) = cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
    // They are known as they are now.
    let out = moved(cage.sleep(pager));
    assert!(out.stats().written_bytes < pages, "{:?}", out.stats());
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

fn written_again() {
    let (_directory, cage, mut holder, pager) = changed(300);
    assert_eq!(holder.ask("touch 200"), "done");
    let out = moved(cage.sleep(pager));
    let pages = 200 * rustix::param::page_size() as u64;
    let unread = out.stats().unread_bytes;
    assert!((SIZE - pages..SIZE - pages + MEGABYTE).contains(&unread));
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

/// Its room is given back, whether it was written to or not.
fn no_sleep_follows() {
    let (directory, cage, mut holder, mut pager) = changed(300);
    let size = || {
        let pages = directory.path().join("pages.img");
        fs::metadata(pages).unwrap().len()
    };
    let first = size();
    for _ in 0..20 {
        set_watch(&cage, &mut pager);
    }
    assert_eq!(size(), first);
    pager.stand_down();
    for _ in 0..3 {
        let out = moved(cage.sleep(pager));
        (pager, _) = cage.wake(out).unwrap().wait().unwrap();
        assert_eq!(holder.ask("touch 300"), "done");
        set_watch(&cage, &mut pager);
        assert!(
            size() < first + MEGABYTE / 2,
            "{} bytes after {first}",
            size()
        );
    }
    assert_eq!(holder.ask("check"), "good");
}

/// What was known of the old one says nothing of the new one, and what its memory was to be registered with is of no use.
fn another_program() {
    let (_directory, cage, mut holder, pager) = changed(0);
    assert_eq!(holder.ask("again"), "ready");
    let out = moved(cage.sleep(pager));
    let stats = out.stats().clone();
    assert_eq!(stats.unread_bytes, 0);
    assert!(
        stats.written_bytes + stats.unchanged_bytes >= SIZE,
        "{stats:?}"
    );
    assert!(holder.status("RssAnon:") < 1024);
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

/// The address space that was watched is still there, with other content at the same addresses.
fn program_before() {
    let (_directory, cage, mut holder, pager) = changed(3000);
    assert_eq!(holder.ask("share"), "done");
    assert_eq!(holder.ask("again"), "ready");
    let out = moved(cage.sleep(pager));
    assert_eq!(out.stats().unread_bytes, 0);
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

/// Their content comes to other addresses without a write.
fn swapped() {
    let stats = second_sleep(|holder| assert_eq!(holder.ask("swap 500"), "done"));
    let pages = 1000 * rustix::param::page_size() as u64;
    assert!(stats.written_bytes >= pages, "{stats:?}");
}

fn huge() {
    let (_directory, cage, mut holder, mut pager) = slept_once(32);
    assert_eq!(holder.ask("huge"), "done");
    let before = holder.huge_bytes();
    set_watch(&cage, &mut pager);
    assert_eq!(holder.ask("touch 2000"), "done");
    assert_eq!(holder.huge_bytes(), before);
    let out = moved(cage.sleep(pager));
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

fn nothing_stays() {
    let (_directory, cage, mut holder, mut pager) = slept_once(30);
    let watch = watch(&cage, &mut pager);
    assert!(watch.is_some() && holder.is_registered());
    drop(watch);
    assert!(!holder.is_registered());
    assert_eq!(holder.ask("check"), "good");
}

fn ends() {
    let (_directory, cage, holder, mut pager) = slept_once(30);
    set_watch(&cage, &mut pager);
    drop(holder);
    cage.kill();
    let out = moved(cage.sleep(pager));
    assert_eq!(out.stats().unread_bytes, 0);
}

fn stood_down() {
    let (_directory, cage, mut holder, mut pager) = slept_once(30);
    for _ in 0..3 {
        set_watch(&cage, &mut pager);
        pager.get_ready().unwrap();
        pager.stand_down();
    }
    // They end by themselves a moment later.
    let deadline = Instant::now() + Duration::from_secs(20);
    while helpers() != (0, 0, 0) {
        assert!(Instant::now() < deadline, "{:?}", helpers());
        sleep(Duration::from_millis(1));
    }
    assert!(!holder.is_registered());
    pager.get_ready().unwrap();
    let out = moved(cage.sleep(pager));
    cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

/// Threads of pagers that this process has, keepers and userfaultfds.
fn helpers() -> (usize, usize, usize) {
    let folder = |path: &str| fs::read_dir(path).unwrap().flatten();
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let threads = folder("/proc/self/task").map(|entry| text(entry.path().join("comm")));
    let own = format!("\nPPid:\t{}\n", std::process::id());
    let processes = folder("/proc").map(|entry| text(entry.path().join("status")));
    let links = folder("/proc/self/fd").flat_map(|entry| fs::read_link(entry.path()));
    (
        threads.filter(|name| name == "pager\n").count(),
        processes
            .filter(|status| status.starts_with("Name:\tpodmotion-keep") && status.contains(&own))
            .count(),
        links
            .filter(|link| link.as_os_str() == "anon_inode:[userfaultfd]")
            .count(),
    )
}
