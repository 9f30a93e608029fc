//! What must hold.

use std::cell::Cell;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use podmotion_criu_driver::freezer::{Freezer, FreezerState};
use podmotion_criu_driver::{Criu, DumpControl, Error, LogLevel, Tasks};

use crate::container::{Container, ask, criu};
use crate::killed;

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
        ("criu_killed_in_the_middle_of_a_dump", killed::killed_dumps),
        (
            "criu_killed_in_the_middle_of_a_restore",
            killed::killed_restores,
        ),
        ("a_missing_criu_leaves_the_container_healthy", missing),
        ("a_criu_below_tmp_can_restore", below_tmp),
        ("a_truncated_image_is_refused", truncated),
        ("a_lazy_restore_fills_all_memory", lazy),
        (
            "a_killed_lazy_daemon_never_shows_zeros",
            killed::killed_daemon,
        ),
        ("version_features_and_check", questions),
        (
            "a_criu_that_ends_at_once_says_so_itself",
            crate::reaped::criu_that_ends_at_once_says_so_itself,
        ),
        (
            "a_criu_that_dumps_gets_none_of_its_tasks_stops",
            killed::no_signals,
        ),
        ("speed", speed),
    ]
}

/// Everything the container can be asked, after whatever happened to it.
pub fn assert_healthy(container: &Container, count: u32) {
    let freezer = Freezer::new(&container.freezer()).expect("freezer");
    assert_eq!(freezer.state().expect("state"), FreezerState::Thawed);
    assert_eq!(container.ask("count"), count.to_string());
    assert_eq!(container.ask("whole"), "whole");
    assert_eq!(container.ask("deleted"), "still here");
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
        killed::wait_for_no_criu();
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
