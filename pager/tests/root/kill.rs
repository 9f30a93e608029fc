//! The filler is killed at any moment: whoever touches a missing page waits until it is killed too. No
//! program goes on with a wrong byte.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use podmotion_pager::{CompressPolicy, Pager};

use crate::Case;
use crate::cage::Cage;
use crate::torture::Tortured;
use crate::victim::{Random, directory, moved, soak};

pub const CASES: &[Case] = &[(
    "no_byte_differs_when_the_filler_is_killed",
    no_byte_differs_when_killed,
)];

/// Argument that makes this program a filler.
pub const FILLER: &str = "filler";

/// Puts what is in the cage to sleep and wakes it, until it is killed.
pub fn filler(image: &Path, cage: &Path) -> ! {
    // The test removes it.
    let cage = Cage {
        directory: cage.to_owned(),
        version1: cage.join("freezer.state").exists(),
        owned: false,
    };
    let mut random = Random::new();
    let mut pager = Pager::create(image).unwrap();
    loop {
        let out = moved(cage.sleep(pager));
        if random.below(2) == 0 {
            drop(out.compress(CompressPolicy::at_once()).unwrap());
        }
        sleep(Duration::from_millis(random.below(20)));
        let filling = cage.wake(out).unwrap();
        pager = if random.below(2) == 0 {
            sleep(Duration::from_millis(random.below(20)));
            filling.pause().unwrap().0
        } else {
            filling.wait().unwrap().0
        };
        sleep(Duration::from_millis(random.below(60)));
    }
}

fn start_filler(image: &Path, cage: &Cage) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .arg(FILLER)
        .args([image, &cage.directory])
        .spawn()
        .unwrap()
}

#[derive(Debug, Default)]
struct Counts {
    rounds: u32,
    /// Some memory was not back.
    missing: u32,
    /// Killed with the filler: it had just been made to run a system call.
    killed_in_a_call: u32,
}

fn no_byte_differs_when_killed() {
    let mut random = Random::new();
    let until = Instant::now() + Duration::from_secs(if soak() { 600 } else { 10 });
    let mut counts = Counts::default();
    while Instant::now() < until || counts.missing == 0 {
        counts.rounds += 1;
        let directory = directory();
        let cage = Cage::new();
        let mut tortured = Tortured::start(directory.path(), &cage);
        let mut filler = start_filler(directory.path(), &cage);
        sleep(Duration::from_millis(random.below(500)));
        filler.kill().unwrap();
        let ended = filler.wait().unwrap();
        // With its processes it may have ended by itself.
        assert!(
            ended.signal() == Some(libc::SIGKILL) || !tortured.runs(),
            "{ended}"
        );
        counts.missing += u32::from(cage.pids().into_iter().any(is_registered));
        cage.thaw();
        // What waits for a page waits, what does not goes on.
        sleep(Duration::from_millis(random.below(300)));
        counts.killed_in_a_call += u32::from(!tortured.runs());
        tortured.kill(&cage);
    }
    eprintln!("{counts:?}");
    keepers_end();
}

/// Whether a mapping of a process is registered with a userfaultfd. Not of one that has ended.
fn is_registered(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/smaps")).is_ok_and(|smaps| {
        let mut flags = smaps
            .lines()
            .filter_map(|line| line.strip_prefix("VmFlags:"));
        flags.any(|flags| flags.split_ascii_whitespace().any(|flag| flag == "um"))
    })
}

/// Without processes there is nothing to keep.
fn keepers_end() {
    let deadline = Instant::now() + Duration::from_secs(20);
    let keepers = || {
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok())
            .filter(|name| name.trim() == "podmotion-keep")
            .count()
    };
    while keepers() > 0 {
        assert!(Instant::now() < deadline, "{} keepers are left", keepers());
        sleep(Duration::from_millis(100));
    }
}
