//! An image that is not what was written: nobody goes on with it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use podmotion_pager::{COMPRESSED, FillPolicy, ImageError, Moved, PAGES, Pager, ServerError};

use crate::Case;
use crate::cage::Cage;
use crate::compress::compressed;
use crate::holder::Holder;
use crate::victim::{directory, moved};

pub const CASES: &[Case] = &[
    ("a_corrupted_image_is_never_gone_on_with", corrupted),
    ("a_short_image_is_never_gone_on_with", short),
    (
        "a_corrupted_image_that_is_compressed_is_never_gone_on_with",
        corrupted_compressed,
    ),
    (
        "a_short_image_that_is_compressed_is_never_gone_on_with",
        short_compressed,
    ),
    (
        "an_image_on_a_disk_that_fails_is_never_gone_on_with",
        disk_fails,
    ),
    ("an_image_that_was_deleted_is_read_all_the_same", deleted),
    (
        "a_working_set_in_a_corrupted_image_stops_the_wake",
        corrupted_working_set,
    ),
];

fn corrupt(image: &Path) {
    // A byte in each page but the header's.
    corrupt_file(&image.join(PAGES), 4096);
}

/// A byte in every `step`, but in the first 4 KiB.
fn corrupt_file(path: &Path, step: usize) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    for at in (4096..len - 77).step_by(step) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at + 77).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at + 77).unwrap();
    }
}

fn shorten(image: &Path) {
    shorten_file(&image.join(PAGES));
}

fn shorten_file(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

/// A file system on a file, which is cut off while it is mounted.
struct Disk {
    backing: tempfile::NamedTempFile,
    mounted: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let backing = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        backing.as_file().set_len(100 << 20).unwrap();
        let mounted = directory();
        let make = ["-q", "-F", "-O", "^has_journal"];
        run(Command::new("mkfs.ext4").args(make).arg(backing.path()));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .args([backing.path(), mounted.path()]));
        Self { backing, mounted }
    }

    /// What was written is on the disk and not in memory, and the disk gives nothing back.
    fn fail(&self, file: &Path) {
        let file = File::open(file).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        self.backing.as_file().set_len(0).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Later if it is busy; the loop device goes with it.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.mounted.path())
            .status();
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn disk_fails() {
    let disk = Disk::new();
    let spoil = |image: &Path| disk.fail(&image.join(PAGES));
    never_gone_on_with_in(&disk.mounted.path().join("image"), spoil, |error| {
        matches!(
            error,
            ServerError::Image(
                ImageError::Io { .. }
                // Before Linux 6.16 a loop device reads zeros behind its end.
                | ImageError::Corrupt { .. }
            )
        )
    });
}

fn deleted() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 20);
    let moved = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    fs::remove_dir_all(directory.path()).unwrap();
    cage.wake(moved).unwrap().wait().unwrap();
    assert_eq!(holder.ask("check"), "good");
}

fn corrupted() {
    never_gone_on_with(corrupt, |error| {
        matches!(error, ServerError::Image(ImageError::Corrupt { .. }))
    });
}

/// Each record has a wrong byte.
fn corrupted_compressed() {
    let spoil = |image: &Path| corrupt_file(&image.join(COMPRESSED), 512);
    let directory = directory();
    never_gone_on_with_compressed(directory.path(), spoil, |error| {
        matches!(error, ServerError::Image(ImageError::Corrupt { .. }))
    });
}

fn short_compressed() {
    let spoil = |image: &Path| shorten_file(&image.join(COMPRESSED));
    let directory = directory();
    never_gone_on_with_compressed(directory.path(), spoil, |error| {
        matches!(error, ServerError::Image(ImageError::Short { .. }))
    });
}

fn short() {
    never_gone_on_with(shorten, |error| {
        matches!(error, ServerError::Image(ImageError::Short { .. }))
    });
}

fn never_gone_on_with(spoil: fn(&Path), expected: fn(&ServerError) -> bool) {
    never_gone_on_with_in(directory().path(), spoil, expected);
}

fn never_gone_on_with_in(
    directory: &Path,
    spoil: impl Fn(&Path),
    expected: fn(&ServerError) -> bool,
) {
    never_gone_on(directory, |_| spoil(directory), expected);
}

fn never_gone_on_with_compressed(
    directory: &Path,
    spoil: impl Fn(&Path),
    expected: fn(&ServerError) -> bool,
) {
    let spoil = |moved: &Moved| {
        let stats = compressed(moved);
        assert!(stats.page_bytes > 19 << 20, "{stats:?}");
        spoil(directory);
    };
    never_gone_on(directory, spoil, expected);
}

fn never_gone_on(directory: &Path, spoil: impl Fn(&Moved), expected: fn(&ServerError) -> bool) {
    fs::create_dir_all(directory).unwrap();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 20);
    let moved = moved(cage.sleep(Pager::create(directory).unwrap()));
    spoil(&moved);
    let filling = moved.serve(FillPolicy::default()).unwrap();
    // Before the thaw: a reader that waits for a page of its buffer has the pipe locked.
    holder.order("check");
    cage.thaw();
    let failed = filling.wait().unwrap_err();
    assert!(expected(failed.error()), "{failed:?}");
    // It waits, and reads nothing.
    sleep(Duration::from_millis(300));
    assert!(holder.is_registered());
    cage.kill();
    assert_eq!(holder.answer(), "");
    failed.abandon();
}

fn corrupted_working_set() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 20);
    let pager = Pager::create(directory.path()).unwrap();
    let policy = FillPolicy {
        // Nothing comes by itself while it looks.
        quiet: Duration::from_secs(1),
        patience: Duration::from_secs(60),
        ..FillPolicy::default()
    };
    let filling = moved(cage.sleep(pager)).serve(policy).unwrap();
    cage.thaw();
    assert_eq!(holder.ask("look 200"), "good");
    let (pager, stats) = filling.wait().unwrap();
    assert!(stats.faults >= 200, "{stats:?}");
    let moved = moved(cage.sleep(pager));
    corrupt(directory.path());
    let failed = cage.wake(moved).map(drop).unwrap_err();
    assert!(failed.to_string().contains("cannot be filled"));
    let corrupt = matches!(
        failed.error(),
        ServerError::Image(ImageError::Corrupt { .. })
    );
    assert!(corrupt, "{failed:?}");
    holder.order("check");
    // It was not, and must not be.
    assert!(cage.is_frozen());
    cage.thaw();
    sleep(Duration::from_millis(300));
    assert!(holder.is_registered());
    // Nobody holds the handle any more, and it waits all the same.
    drop(failed);
    sleep(Duration::from_millis(300));
    assert!(holder.is_registered());
    cage.kill();
    assert_eq!(holder.answer(), "");
    assert!(fs::exists(directory.path().join(PAGES)).unwrap());
}
