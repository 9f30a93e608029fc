//! The filler is killed at any moment: whoever takes over finishes its work, or the program is
//! killed too. It never goes on with a wrong byte.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use podmotion_pager::{FillPolicy, NotMoved, OutError, Pager, RescueError, rescue};

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

/// Exit status of a filler that finds a descriptor of the one before it in a process.
const LEFT_OPEN: i32 = 3;

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
        let out = match cage.sleep(pager) {
            // The one before was killed between making a process's descriptor and closing it there.
            Err(NotMoved::Unchanged {
                error: OutError::Pinned { what, .. },
                ..
            }) if what.contains("userfaultfd") => std::process::exit(LEFT_OPEN),
            out => moved(out),
        };
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
    rescued: u32,
    complete: u32,
    interrupted: u32,
    killed_in_a_call: u32,
    left_alone: u32,
    left_open: u32,
}

fn no_byte_differs_when_killed() {
    let mut random = Random::new();
    let until = Instant::now() + Duration::from_secs(if soak() { 600 } else { 20 });
    let mut counts = Counts::default();
    while Instant::now() < until {
        let directory = directory();
        let cage = Cage::new();
        let mut tortured = Tortured::start(directory.path(), &cage);
        while Instant::now() < until {
            counts.rounds += 1;
            let mut filler = start_filler(directory.path(), &cage);
            sleep(Duration::from_millis(random.below(500)));
            filler.kill().unwrap();
            let ended = filler.wait().unwrap();
            if ended.code() == Some(LEFT_OPEN) {
                counts.left_open += 1;
                break;
            }
            // With its processes it may have ended by itself.
            assert!(
                ended.signal() == Some(libc::SIGKILL) || !tortured.runs(),
                "{ended}"
            );
            cage.thaw();
            // What waits for a page waits, what does not goes on.
            sleep(Duration::from_millis(random.below(100)));
            if !tortured.runs() {
                counts.killed_in_a_call += 1;
                break;
            }
            if random.below(8) == 0 {
                counts.left_alone += 1;
                sleep(Duration::from_millis(300));
                break;
            }
            match rescue(directory.path()) {
                Ok(moved) => {
                    let filling = moved.serve(FillPolicy::default()).unwrap();
                    filling.wait().unwrap();
                    counts.rescued += 1;
                }
                Err(RescueError::Complete { .. }) => counts.complete += 1,
                Err(RescueError::Interrupted) => {
                    counts.interrupted += 1;
                    break;
                }
                Err(error) => {
                    // The processes can have been killed a moment ago.
                    sleep(Duration::from_millis(200));
                    assert!(!tortured.runs(), "{error:?}");
                    counts.killed_in_a_call += 1;
                    break;
                }
            }
        }
        tortured.kill(&cage);
    }
    eprintln!("{counts:?}");
    assert!(counts.rescued > 0);
    keepers_end();
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
