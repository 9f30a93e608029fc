//! A program that does to its memory whatever a program can, asleep and awake all the time.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use podmotion_pager::{CompressPolicy, Pager, StayPolicy};

use crate::Case;
use crate::cage::Cage;
use crate::compress::compressed;
use crate::victim::{Random, compiled, directory, moved, soak};
use crate::watch::set_watch;

pub const CASES: &[Case] = &[("no_byte_differs_in_a_tortured_process", no_byte_differs)];

const SOURCES: &[&str] = &[
    "torture/main.c",
    "torture/memory.c",
    "torture/others.c",
    "torture/threads.c",
];

/// Programs that are tortured beside each other, as a machine's containers are.
const AT_ONCE: u64 = 2;

/// Seconds of each. Two minutes in all, and twenty with `cargo xtask test --soak`.
fn seconds() -> u64 {
    if soak() { 600 } else { 60 }
}

/// The program, running in a cage.
pub struct Tortured {
    child: Child,
    flag: PathBuf,
}

impl Tortured {
    pub fn start(directory: &Path, cage: &Cage) -> Self {
        let flag = directory.join("go-on");
        fs::write(&flag, "").unwrap();
        let child = cage
            .command(&compiled("torture", SOURCES))
            .arg(&flag)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, flag }
    }

    /// Whether its first process still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// All of it is killed. Nothing else may have ended it, and nothing have been wrong.
    pub fn kill(mut self, cage: &Cage) {
        cage.kill();
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        let mut output = self.child.stdout.take().unwrap();
        output.read_to_string(&mut said).unwrap();
        assert!(!said.contains("WRONG"), "{said}");
        // A process of it can be killed a moment before its parent, which sees it then; and one that a filler has just
        // made to run a system call ends with the filler.
        if !said.contains("KILLED") {
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}: {said}");
        }
    }

    /// Ends it, and returns what it says when all was well.
    pub fn finish(self) -> String {
        fs::remove_file(&self.flag).unwrap();
        let output = self.child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: {said}", output.status);
        assert!(said.starts_with("ok "), "{said}");
        said
    }
}

fn no_byte_differs() {
    let random = Random::new();
    // Once, before there are several that would.
    compiled("torture", SOURCES);
    std::thread::scope(|scope| {
        for number in 0..AT_ONCE {
            let random = random.apart(number);
            scope.spawn(move || torture(random));
        }
    });
}

fn torture(mut random: Random) {
    let directory = directory();
    let cage = Cage::new();
    let mut tortured = Tortured::start(directory.path(), &cage);
    let mut pager = Pager::create(directory.path()).unwrap();
    pager.set_stay(StayPolicy {
        from: 0,
        one_in: 20,
    });
    let until = Instant::now() + Duration::from_secs(seconds());
    let (mut sleeps, mut paused, mut faults, mut events) = (0, 0, 0, 0);
    let (mut compressed_pages, mut given_up, mut left, mut unread) = (0, 0, 0, 0);
    // However slow the machine is: some of everything has happened.
    while Instant::now() < until
        || [sleeps < 4, paused == 0, faults <= 100, events <= 10].contains(&true)
        || [compressed_pages, given_up, left, unread].contains(&0)
    {
        sleep(Duration::from_millis(20 + random.below(300)));
        if !tortured.runs() {
            tortured.kill(&cage);
            panic!("it was killed");
        }
        if random.below(2) == 0 {
            set_watch(&cage, &mut pager);
            sleep(Duration::from_millis(random.below(200)));
        }
        let out = moved(cage.sleep(pager));
        unread += out.stats().unread_bytes;
        left += out.stats().left_bytes;
        let compressing = match random.below(4) {
            0 => {
                let stats = compressed(&out);
                compressed_pages += stats.page_bytes / 4096;
                None
            }
            // So slowly that the wake comes first.
            1 => Some(out.compress(CompressPolicy { rest: 50 }).unwrap()),
            _ => None,
        };
        sleep(Duration::from_millis(random.below(60)));
        let filling = cage.wake(out).unwrap();
        let stats;
        if random.below(3) == 0 {
            // Again to sleep before everything is back.
            sleep(Duration::from_millis(random.below(20)));
            (pager, stats) = filling.pause().unwrap();
            paused += 1;
        } else {
            (pager, stats) = filling.wait().unwrap();
        }
        if let Some(compressing) = compressing {
            match compressing.wait() {
                Some(result) => compressed_pages += result.unwrap().page_bytes / 4096,
                None => given_up += 1,
            }
        }
        sleeps += 1;
        faults += stats.faults;
        events += stats.events;
    }
    let said = tortured.finish();
    eprintln!(
        "{sleeps} sleeps, {left} bytes left in place, {unread} not read again, {compressed_pages} pages compressed, {given_up} times given up, {paused} fills not finished, {faults} faults, {events} events, {said}"
    );
}
