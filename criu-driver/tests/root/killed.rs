//! CRIU, or its lazy-pages daemon, is killed at whatever moment.

use std::io::Write;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use podmotion_criu_driver::restore::discard;
use podmotion_criu_driver::{DumpControl, Tasks};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::cases::assert_healthy;
use crate::container::{Container, Options, SERVER, ask, criu};

fn kill(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a pid");
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

/// Children of this process that run CRIU.
fn criu_processes() -> Vec<i32> {
    let mut pids = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")
        .expect("tasks")
        .flatten()
    {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        pids.extend(
            children
                .split_whitespace()
                .filter_map(|p| p.parse::<i32>().ok()),
        );
    }
    pids.retain(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("criu")
    });
    pids
}

/// A CRIU that has answered may still be on its way out: waits for its end, but not for long.
pub fn wait_for_no_criu() {
    for pid in criu_processes() {
        let Some(process) = Pid::from_raw(pid) else {
            continue;
        };
        let flags = PidfdFlags::empty();
        if let Ok(handle) = rustix::process::pidfd_open(process, flags) {
            let ended = rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN);
            let limit = rustix::event::Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            let ready = rustix::event::poll(&mut [ended], Some(&limit)).expect("poll");
            assert_eq!(ready, 1, "CRIU {pid} stays");
        }
    }
}

/// At many moments of a dump, CRIU is killed with a signal it cannot handle: the container is as
/// before. What is known to be missing for a process that is not the container's init (see the known
/// gaps in CONTRIBUTING.md) is told from all else by the signal that ends it.
pub fn killed_dumps() {
    let criu = criu();
    let (mut survived, mut finished, mut trapped) = (0, 0, 0);
    let start = || {
        Container::start(Options {
            script: SERVER,
            arguments: ["20", "fork"].map(str::to_owned).into(),
        })
    };
    let mut container = start();
    let mut kept = container.connect();
    let left = |container: &Container| {
        let of = |pid| {
            let proc = format!("/proc/{pid}");
            let fds = std::fs::read_dir(format!("{proc}/fd"))
                .expect("fds")
                .count();
            let maps = std::fs::read_to_string(format!("{proc}/maps")).expect("maps");
            (fds, maps.lines().count())
        };
        container
            .processes()
            .into_iter()
            .map(of)
            .collect::<Vec<_>>()
    };
    let mut count = 0;
    let mut before = None;
    // A dump takes about 35 ms, of which the first 5 are CRIU's start.
    for n in 0..120u32 {
        count += 1;
        assert_eq!(ask(&mut kept, "count"), count.to_string(), "{n}");
        assert_eq!(ask(&mut kept, "whole"), "whole", "{n}");
        assert_eq!(ask(&mut kept, "double 21"), "42", "{n}");
        if let Some(before) = before.take() {
            assert_eq!(left(&container), before, "left over at {n}");
        }
        let now = left(&container);
        let second = container.processes()[1];
        let begin = Instant::now();
        let killer = thread::spawn(move || {
            while begin.elapsed() < Duration::from_micros(400) * n {
                thread::yield_now();
            }
            criu_processes().into_iter().for_each(kill);
        });
        let dumped = container.dump(&criu);
        killer.join().expect("killer");
        match dumped {
            Ok(_) => {
                finished += 1;
                container.restore(&criu, false).expect("restore");
            }
            Err(failure) if failure.tasks == Tasks::Running => {
                survived += 1;
                before = Some(now);
            }
            Err(failure) => {
                assert_eq!(exit_status(second), Some(libc::SIGTRAP), "{n}: {failure:?}");
                trapped += 1;
                container = start();
                kept = container.connect();
                count = 0;
            }
        }
    }
    println!("ran on {survived}, trapped {trapped}, killed too late {finished}");
    assert!(survived > 40 && trapped < 4);
    assert_healthy(&container, count + 1);
}

/// Of a process that has ended and that nobody has waited for: the last field of its `stat`.
fn exit_status(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.split_whitespace().next_back()?.parse().ok()
}

pub fn killed_restores() {
    let criu = criu();
    let mut container = Container::server(20);
    let mut kept = container.connect();
    assert_eq!(ask(&mut kept, "count"), "1");
    container.dump(&criu).expect("dump");
    let yard = |entry: &std::fs::DirEntry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(b".criu.mntns")
    };
    let yards = || {
        std::fs::read_dir("/tmp")
            .expect("list")
            .flatten()
            .filter(yard)
            .count()
    };
    let before = yards();
    let (mut killed, mut finished) = (0, 0);
    for n in 2..18 {
        let begin = Instant::now();
        let killer = thread::spawn(move || {
            while begin.elapsed() < Duration::from_millis(n * 5) {
                thread::yield_now();
            }
            criu_processes().into_iter().for_each(kill);
        });
        let restored = container.restore(&criu, n % 2 == 1);
        killer.join().expect("killer");
        match restored {
            Err(_) => killed += 1,
            Ok(restored) => {
                finished += 1;
                // What a failed fill keeps goes last: without it memory that is missing is read as zeros.
                let filled = restored.fill.map(podmotion_criu_driver::Fill::wait);
                discard(&container.subject).expect("discard");
                drop(filled);
            }
        }
        assert!(container.processes().is_empty(), "left over at {n}");
    }
    println!("killed {killed}, killed too late {finished}");
    assert!(killed > 0);
    assert_eq!(yards(), before, "directories in /tmp");
    container.restore(&criu, false).expect("restore");
    // Neither end of it has heard of the failed ones.
    assert_eq!(ask(&mut kept, "count"), "2");
    assert_healthy(&container, 3);
}

pub fn killed_daemon() {
    let criu = criu();
    // So much that the fill cannot be over before the daemon is killed.
    let mut container = Container::server(1500);
    container.dump(&criu).expect("dump");
    let restored = container.restore(&criu, true).expect("restore");
    let fill = restored.fill.expect("a fill");
    kill(fill.daemon());
    let mut ended = [rustix::event::PollFd::from_borrowed_fd(
        fill.as_fd(),
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut ended, None).expect("poll");
    let failure = fill.wait().expect_err("the daemon was killed");
    // Whoever touches memory that is not there gets no answer, and no wrong one.
    let mut toucher = container.connect();
    toucher.write_all(b"whole\n").expect("ask");
    toucher
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("timeout");
    let mut answer = [0; 64];
    let read = std::io::Read::read(&mut toucher, &mut answer);
    assert!(read.is_err(), "{:?}", String::from_utf8_lossy(&answer));
    discard(&container.subject).expect("discard");
    assert!(container.processes().is_empty());
    drop(failure);
    let restored = container
        .restore(&criu, false)
        .expect("the images are whole");
    assert!(restored.fill.is_none());
    assert_healthy(&container, 1);
}

/// Each signal would make a gap in the watch for its end.
pub fn no_signals() {
    let container = Container::server(2);
    let control = DumpControl::new().expect("control");
    let look = |_| {
        let seen = criu_processes();
        assert_eq!(seen.len(), 1, "{seen:?}");
        let status = std::fs::read_to_string(format!("/proc/{}/status", seen[0]))?;
        let has = |set: &str| {
            let set = status.lines().find_map(|line| line.strip_prefix(set));
            let set = u64::from_str_radix(set.expect("a set").trim(), 16).expect("a number");
            set & 1 << (libc::SIGCHLD - 1) != 0
        };
        // It has been told of their stops, and has not heard it.
        assert!(has("SigBlk:") && has("ShdPnd:"), "{status}");
        Ok(())
    };
    container.dump_with(&criu(), &control, &look).expect("dump");
}
