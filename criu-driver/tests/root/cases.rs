//! What must hold.

use std::cell::Cell;
use std::io::Write;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use podmotion_criu_driver::freezer::{Freezer, FreezerState};
use podmotion_criu_driver::restore::discard;
use podmotion_criu_driver::{Criu, DumpControl, Error, LogLevel, Tasks};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::container::{Container, Options, SERVER, ask, criu};

type Case = (&'static str, fn());

pub fn all() -> Vec<Case> {
    vec![
        ("state_mounts_and_connections_survive", state_survives),
        ("ten_cycles_leave_nothing_behind", cycles),
        ("a_full_pipe_loses_and_doubles_nothing", full_pipe),
        ("io_uring_is_refused_with_criu_s_line", io_uring),
        (
            "a_refused_commit_leaves_the_container_healthy",
            refused_commit,
        ),
        (
            "an_abort_while_memory_is_written_is_quick",
            abort_in_the_middle,
        ),
        ("a_timeout_leaves_the_container_healthy", timeout),
        ("criu_killed_in_the_middle_of_a_dump", killed_dumps),
        ("criu_killed_in_the_middle_of_a_restore", killed_restores),
        ("a_missing_criu_leaves_the_container_healthy", missing),
        ("a_criu_below_tmp_can_restore", below_tmp),
        ("a_truncated_image_is_refused", truncated),
        ("a_lazy_restore_fills_all_memory", lazy),
        ("a_killed_lazy_daemon_never_shows_zeros", killed_daemon),
        ("version_features_and_check", questions),
        (
            "a_criu_that_ends_at_once_says_so_itself",
            crate::reaped::criu_that_ends_at_once_says_so_itself,
        ),
        (
            "a_criu_that_dumps_gets_none_of_its_tasks_stops",
            crate::signals::a_criu_that_dumps_gets_none_of_its_tasks_stops,
        ),
        ("speed", speed),
    ]
}

/// Everything the container can be asked, after whatever happened to it.
fn assert_healthy(container: &Container, count: u32) {
    let freezer = Freezer::new(&container.freezer()).expect("freezer");
    assert_eq!(freezer.state().expect("state"), FreezerState::Thawed);
    assert_eq!(container.ask("count"), count.to_string());
    assert_eq!(container.ask("whole"), "whole");
    assert_eq!(container.ask("deleted"), "still here");
}

fn kill(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a pid");
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

/// Children of this process that run CRIU.
pub fn criu_processes() -> Vec<i32> {
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
fn wait_for_no_criu() {
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

fn state_survives() {
    let criu = criu();
    let mut container = Container::server(10);
    assert_eq!(container.ask("count"), "1");
    let mut kept = container.connect();
    assert_eq!(ask(&mut kept, "count"), "2");
    let mounts = container.ask("mounts");
    let cgroups = container.ask("cgroups");
    let tmpfs = container.ask("tmpfs");
    assert!(tmpfs.contains("/dev/null:"), "{tmpfs}");
    let report = container.dump(&criu).expect("dump");
    assert!(container.processes().is_empty());
    assert!(report.written.memory_bytes > 10 << 20, "{report:?}");
    assert!(report.stats.expect("stats").pages_written > 2560);
    let restored = container.restore(&criu, false).expect("restore");
    assert!(restored.fill.is_none());
    assert_eq!(ask(&mut kept, "count"), "3");
    assert_eq!(ask(&mut kept, "count"), "4");
    assert_eq!(container.ask("pid"), "1");
    assert_eq!(container.ask("mounts"), mounts);
    assert_eq!(container.ask("cgroups"), cgroups);
    assert_eq!(container.ask("tmpfs"), tmpfs);
    assert_healthy(&container, 5);
}

fn cycles() {
    let criu = criu();
    let mut container = Container::server(2);
    let mounts = container.ask("mounts");
    let left = |c: &Container| {
        let fds = std::fs::read_dir("/proc/self/fd").expect("fds").count();
        let own = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let ours = |line: &&str| line.contains(c.dir.path().to_str().expect("text"));
        let own = own.lines().filter(ours).count();
        let root = std::fs::read_dir(c.dir.path().join("rootfs"))
            .expect("root")
            .count();
        (fds, own, root)
    };
    let mut before = None;
    for n in 0..10 {
        container.dump(&criu).expect("dump");
        let restored = container.restore(&criu, n % 2 == 1).expect("restore");
        if let Some(fill) = restored.fill {
            fill.wait().expect("filled");
        }
        let now = left(&container);
        assert_eq!(*before.get_or_insert(now), now, "cycle {n}");
        wait_for_no_criu();
    }
    assert_eq!(container.ask("mounts"), mounts);
    assert_healthy(&container, 1);
}

fn full_pipe() {
    let criu = criu();
    let mut container = Container::server(1);
    let size = 200_000;
    let mut writer = container.connect();
    writer
        .write_all(format!("write {size} x\n").as_bytes())
        .expect("ask");
    // Full once the pipe holds what a pipe holds, and the writer blocks.
    let deadline = Instant::now() + Duration::from_secs(10);
    while rustix::io::ioctl_fionread(&container.output).expect("pipe") < 65536 {
        assert!(Instant::now() < deadline, "the pipe does not fill");
        thread::yield_now();
    }
    container.dump(&criu).expect("dump");
    container.restore(&criu, false).expect("restore");
    let output = container.read_output(size);
    assert!(output.iter().all(|&byte| byte == b'x'));
    let mut answer = [0; 8];
    std::io::Read::read_exact(&mut writer, &mut answer).expect("answer");
    assert_eq!(&answer, b"written\n");
    assert_eq!(container.ask("write 3 y"), "written");
    assert_eq!(container.read_output(3), b"yyy");
    let left = rustix::io::ioctl_fionread(&container.output).expect("pipe");
    assert_eq!(left, 0, "bytes came twice");
}

fn io_uring() {
    let criu = criu();
    let container = Container::server(1);
    let answer: i32 = container.ask("uring").parse().expect("a number");
    assert!(answer > 0, "io_uring_setup: {answer}");
    let failure = container
        .dump(&criu)
        .expect_err("CRIU cannot dump io_uring");
    assert_eq!(failure.tasks, Tasks::Running);
    let line = failure.criu_line().expect("CRIU's line");
    assert!(line.starts_with("Error (criu/"), "{line}");
    assert!(
        failure.cause.to_string().contains("io_uring"),
        "{failure:?}"
    );
    assert_healthy(&container, 1);
}

fn refused_commit() {
    let criu = criu();
    let container = Container::server(5);
    let mut kept = container.connect();
    assert_eq!(ask(&mut kept, "count"), "1");
    let control = DumpControl::new().expect("control");
    let failure = container
        .dump_with(&criu, &control, &|_| Err("no room for it".into()))
        .expect_err("refused");
    let told = match &failure.cause {
        Error::Vetoed(why) => why.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(told, "no room for it");
    assert_eq!(failure.tasks, Tasks::Running);
    assert_eq!(ask(&mut kept, "count"), "2");
    assert_healthy(&container, 3);
    container.dump(&criu).expect("the next dump");
}

/// Runs `act` once CRIU has written some of the memory.
fn when_pages_are_written(container: &Container, least: u64, act: impl FnOnce()) {
    let images = container.images();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let written: u64 = std::fs::read_dir(&images)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"))
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .sum();
        if written >= least {
            return act();
        }
        assert!(Instant::now() < deadline, "no pages are written");
        thread::yield_now();
    }
}

fn abort_in_the_middle() {
    let criu = criu();
    let container = Container::server(400);
    let mut kept = container.connect();
    assert_eq!(ask(&mut kept, "count"), "1");
    let committed = Cell::new(false);
    let commit = |_| {
        committed.set(true);
        Ok(())
    };
    let control = DumpControl::new().expect("control");
    podmotion_criu_driver::images::create(&container.images()).expect("images");
    let aborted = thread::scope(|scope| {
        let aborter = scope.spawn(|| {
            when_pages_are_written(&container, 8 << 20, || control.abort());
            Instant::now()
        });
        let failure = container
            .dump_with(&criu, &control, &commit)
            .expect_err("aborted");
        assert!(matches!(failure.cause, Error::Aborted), "{failure:?}");
        assert_eq!(failure.tasks, Tasks::Running);
        aborter.join().expect("aborter")
    });
    let took = aborted.elapsed();
    println!("abort to running: {took:?}");
    assert!(!committed.get());
    assert_eq!(ask(&mut kept, "count"), "2");
    assert_healthy(&container, 3);
    container.dump(&criu).expect("the next dump");
}

fn timeout() {
    let criu = criu();
    let container = Container::server(300);
    podmotion_criu_driver::images::create(&container.images()).expect("images");
    podmotion_criu_driver::images::create(&container.work()).expect("work");
    let (images, work) = (container.images(), container.work());
    let mut request = podmotion_criu_driver::DumpRequest::new(container.pid, &images, &work);
    request.timeout = Duration::from_millis(60);
    let control = DumpControl::new().expect("control");
    let failure = criu
        .dump(&container.subject, &request, &control, &|_| Ok(()))
        .expect_err("too slow");
    assert!(
        matches!(failure.cause, Error::TimedOut { .. }),
        "{failure:?}"
    );
    assert_eq!(failure.tasks, Tasks::Running);
    assert_healthy(&container, 1);
}

/// At many moments of a dump, CRIU is killed with a signal it cannot handle: the container is as
/// before. What is known to be missing for a process that is not the container's init (see the known
/// gaps in CONTRIBUTING.md) is told from all else by the signal that ends it.
fn killed_dumps() {
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

fn killed_restores() {
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

/// A restore covers /tmp; a CRIU that lies there must still be found.
fn below_tmp() {
    let place = tempfile::tempdir_in("/tmp").expect("a directory in /tmp");
    let binary = place.path().join("criu");
    std::fs::copy(criu().binary(), &binary).expect("copy CRIU");
    let criu = Criu::new(&binary, LogLevel::Info);
    let mut container = Container::server(1);
    container.dump(&criu).expect("dump");
    container.restore(&criu, false).expect("restore");
    assert_healthy(&container, 1);
}

fn missing() {
    let container = Container::server(1);
    let nowhere = Criu::new("/nowhere/criu", LogLevel::Error);
    let failure = container.dump(&nowhere).expect_err("missing");
    assert!(
        matches!(failure.cause, Error::MissingBinary { .. }),
        "{failure:?}"
    );
    assert_eq!(failure.tasks, Tasks::Running);
    assert_healthy(&container, 1);
    let exits = Criu::new("/bin/false", LogLevel::Error);
    let failure = container.dump(&exits).expect_err("exits");
    assert!(matches!(failure.cause, Error::Exited { .. }), "{failure:?}");
    assert_eq!(failure.tasks, Tasks::Running);
    assert_healthy(&container, 2);
}

fn truncated() {
    let criu = criu();
    let mut container = Container::server(5);
    container.dump(&criu).expect("dump");
    let pages = container.images().join("pages-1.img");
    let whole = std::fs::read(&pages).expect("pages");
    std::fs::write(&pages, &whole[..whole.len() / 2]).expect("truncate");
    // CRIU 4.2.1 tries for ever to read what is not there.
    let (images, work) = (container.images(), container.work());
    let mut request = podmotion_criu_driver::RestoreRequest::new(&images, &work);
    request.timeout = Duration::from_secs(3);
    let failure = criu
        .restore(&container.subject, &request)
        .expect_err("truncated");
    assert!(
        matches!(
            failure.cause,
            Error::TimedOut { .. } | Error::Refused { .. }
        ),
        "{failure:?}"
    );
    assert!(container.processes().is_empty());
    std::fs::write(&pages, &whole).expect("mend");
    container.restore(&criu, false).expect("restore");
    assert_healthy(&container, 1);
}

fn lazy() {
    let criu = criu();
    let mut container = Container::server(300);
    let mut kept = container.connect();
    assert_eq!(ask(&mut kept, "count"), "1");
    container.dump(&criu).expect("dump");
    let started = Instant::now();
    let restored = container.restore(&criu, true).expect("restore");
    println!("running after {:?}", started.elapsed());
    assert_eq!(ask(&mut kept, "count"), "2");
    println!("answer after {:?}", started.elapsed());
    assert_eq!(container.ask("whole"), "whole");
    let fill = restored.fill.expect("a fill");
    println!("filled after {:?}", fill.wait().expect("filled"));
    assert_healthy(&container, 3);
    container.dump(&criu).expect("the next dump");
    let restored = container.restore(&criu, true).expect("restore");
    restored.fill.expect("a fill").wait().expect("filled");
    assert_healthy(&container, 4);
}

fn killed_daemon() {
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

fn questions() {
    let criu = criu();
    let version = criu.version().expect("version");
    assert!((version.major, version.minor) >= (4, 2), "{version}");
    assert!(criu.features().expect("features").lazy_pages);
    criu.check().expect("check");
    let missing = Criu::new("/nowhere/criu", LogLevel::Error).version();
    assert!(matches!(missing, Err(Error::MissingBinary { .. })));
}

/// Prints times; what they have to be is not for a test to say.
fn speed() {
    let criu = Criu::new(
        crate::container::cache().join("criu/bin/criu"),
        LogLevel::Warning,
    );
    criu.features().expect("features");
    for megabytes in [50, 500, 2000] {
        let mut container = Container::server(megabytes);
        for lazy in [false, true, false, true] {
            let dump = container.dump(&criu).expect("dump");
            let started = Instant::now();
            let restored = container.restore(&criu, lazy).expect("restore");
            let running = started.elapsed();
            container.ask("count");
            let answered = started.elapsed();
            let fill = restored.fill.map(|fill| fill.wait().expect("filled"));
            let stats = dump.stats.expect("stats");
            println!(
                "{megabytes} MB: dump {:?} (freeze {:?}, frozen {:?}, memdump {:?}, memwrite {:?}); \
                 restore lazy={lazy} {running:?} (criu {:?}) first answer {answered:?} fill {fill:?}",
                dump.total,
                dump.freeze,
                stats.frozen,
                stats.memdump,
                stats.memwrite,
                restored.report.stats.map(|s| s.restore),
            );
        }
    }
}
