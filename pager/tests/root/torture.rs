//! A program that does to its memory whatever a program can, asleep and awake all the time.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use podmotion_pager::Pager;

use crate::Case;
use crate::cage::Cage;
use crate::victim::{Random, compiled, directory, moved};

pub const CASES: &[Case] = &[("no_byte_differs_in_a_tortured_process", no_byte_differs)];

/// `PODMOTION_SOAK` is a number of seconds.
fn duration() -> Duration {
    let seconds = std::env::var("PODMOTION_SOAK").map_or(20, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

fn no_byte_differs() {
    let directory = directory();
    let flag = directory.path().join("go-on");
    fs::write(&flag, "").unwrap();
    let program = compiled(include_str!("torture.c"), "torture");
    let mut child = Command::new(program)
        .arg(&flag)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let cage = Cage::new();
    cage.add(child.id());
    let mut random = Random::new();
    let mut pager = Pager::create(directory.path()).unwrap();
    let until = Instant::now() + duration();
    let (mut sleeps, mut faults, mut events, mut forks) = (0, 0, 0, 0);
    while Instant::now() < until {
        sleep(Duration::from_millis(20 + random.below(300)));
        ensure_running(&mut child);
        let t = Instant::now();
        let out = moved(cage.sleep(pager));
        eprintln!("{:?} {:?}", t.elapsed(), out.stats());
        forks += usize::from(cage.pids().len() > 3);
        sleep(Duration::from_millis(random.below(60)));
        let t = Instant::now();
        let filling = cage.wake(out).unwrap();
        let stats;
        if random.below(3) == 0 {
            // Again to sleep before everything is back.
            sleep(Duration::from_millis(random.below(20)));
            (pager, stats) = filling.pause().unwrap();
        } else {
            (pager, stats) = filling.wait().unwrap();
        }
        eprintln!("{:?} {:?}", t.elapsed(), stats);
        sleeps += 1;
        faults += stats.faults;
        events += stats.events;
    }
    fs::remove_file(&flag).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.starts_with("ok "), "{said}");
    eprintln!("{sleeps} sleeps, {forks} of them with a child, {faults} faults, {events} events, {said}");
    assert!(sleeps > 20 && faults > 100 && events > 10);
}

fn ensure_running(child: &mut Child) {
    if let Some(status) = child.try_wait().unwrap() {
        use std::io::Read;
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        panic!("{status}: {said}");
    }
}
