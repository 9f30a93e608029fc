//! Stopping and letting go.

use std::thread;
use std::time::Duration;

use podmotion_inject::{Error, Seized, Watch, on_own_thread};

use crate::Case;
use crate::victim::Victim;

pub const CASES: &[Case] = &[
    ("all_threads_stop_and_go_on", all_threads),
    (
        "ten_threads_stop_and_go_on_again_and_again",
        again_and_again,
    ),
    ("a_stopped_process_stays_stopped", stopped_by_signal),
    ("a_traced_process_is_refused", traced),
    ("a_32_bit_process_is_refused", foreign),
    ("a_process_that_is_gone_is_reported", gone),
    ("a_thread_that_cannot_stop_is_reported", stuck),
    ("a_process_killed_while_stopped_is_reported", killed),
    ("state_is_put_back_by_a_later_seizure", state),
    ("signals_sent_meanwhile_arrive", signals),
    ("a_killed_process_is_held_before_it_lets_go", held),
];

pub const BOUND: Duration = Duration::from_secs(5);

pub fn seize(pids: &[i32]) -> Seized {
    let mut seized = Seized::begin(pids).expect("seize");
    seized.wait_stopped(BOUND).expect("stop");
    seized
}

fn counts(victim: &Victim, threads: u64) -> Vec<u64> {
    (0..threads).map(|n| victim.word(n * 8)).collect()
}

fn all_threads() {
    let victim = Victim::start(&["counter", "4"]);
    victim.wait_until("counting", |v| counts(v, 4).iter().all(|&n| n > 0));
    let mut seized = seize(&[victim.pid()]);
    let process = seized.process(victim.pid()).expect("there");
    assert_eq!(process.threads().count(), 5);
    assert_eq!(process.threads().next(), Some(victim.pid()));
    assert!(process.is_past_seccomp());
    let before = counts(&victim, 4);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(counts(&victim, 4), before, "something ran");
    seized.release().expect("release");
    victim.wait_until("counting", |v| {
        counts(v, 4)
            .iter()
            .zip(&before)
            .all(|(now, then)| now > then)
    });
}

fn again_and_again() {
    let victim = Victim::start(&["counter", "9"]);
    for _ in 0..50 {
        let mut seized = seize(&[victim.pid()]);
        let process = seized.process(victim.pid()).expect("there");
        assert_eq!(process.threads().count(), 10);
        let before = counts(&victim, 9);
        seized.release().expect("release");
        victim.wait_until("counting", |v| {
            let now = counts(v, 9);
            now.iter().zip(&before).all(|(now, then)| now > then)
        });
    }
}

fn stopped_by_signal() {
    let victim = Victim::start(&["counter", "2"]);
    victim.signal(libc::SIGSTOP);
    victim.wait_until("a stop", |v| v.state(v.pid()) == 'T');
    let before = counts(&victim, 2);
    let mut seized = seize(&[victim.pid()]);
    let process = seized.process(victim.pid()).expect("there");
    assert_eq!(
        process.syscall(libc::SYS_getpid, [0; 6]).expect("call"),
        victim.pid().into()
    );
    seized.release().expect("release");
    thread::sleep(Duration::from_millis(20));
    assert_eq!(victim.state(victim.pid()), 'T');
    assert_eq!(counts(&victim, 2), before, "it went on");
    // Stopped while it is seized, it is stopped afterwards.
    victim.signal(libc::SIGCONT);
    victim.wait_until("counting", |v| counts(v, 2) > before);
    let mut seized = seize(&[victim.pid()]);
    victim.signal(libc::SIGSTOP);
    let process = seized.process(victim.pid()).expect("there");
    assert_eq!(
        process.syscall(libc::SYS_getpid, [0; 6]).expect("call"),
        victim.pid().into()
    );
    seized.release().expect("release");
    victim.wait_until("a stop", |v| v.state(v.pid()) == 'T');
    let before = counts(&victim, 2);
    victim.signal(libc::SIGCONT);
    victim.wait_until("counting", |v| counts(v, 2) > before);
}

fn traced() {
    let victim = Victim::start(&["counter", "1"]);
    let first = seize(&[victim.pid()]);
    let second = on_own_thread(|| Seized::begin(&[victim.pid()]).map(drop)).expect("a thread");
    let pid = victim.pid();
    let own = std::process::id().cast_signed();
    match second {
        Err(Error::Traced { pid: p, tracer, .. }) => assert_eq!((p, tracer), (pid, own)),
        other => panic!("{other:?}"),
    }
    first.release().expect("release");
    seize(&[pid]).release().expect("release");
}

fn foreign() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let victim = Victim::foreign();
    victim.wait_until("its program", |v| {
        std::fs::read_link(format!("/proc/{}/exe", v.pid()))
            .is_ok_and(|exe| exe.ends_with("foreign"))
    });
    let mut seized = Seized::begin(&[victim.pid()]).expect("seize");
    let error = seized.wait_stopped(BOUND).expect_err("32 bit");
    assert!(
        matches!(error, Error::Foreign { pid, .. } if pid == victim.pid()),
        "{error:?}"
    );
    drop(seized);
    victim.wait_until("running", |v| v.state(v.pid()) == 'R');
}

fn gone() {
    let victim = Victim::start(&["counter", "1"]);
    let other = Victim::start(&["counter", "1"]);
    let pid = victim.pid();
    // A zombie first, since nobody has waited for it.
    victim.signal(libc::SIGKILL);
    victim.wait_until("a zombie", |v| v.state(pid) == 'Z');
    let seized = seize(&[pid, other.pid()]);
    assert_eq!(seized.gone(), [pid]);
    seized.release().expect("release");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&victim.end()),
        Some(libc::SIGKILL)
    );
    let seized = seize(&[pid, other.pid()]);
    assert_eq!(seized.gone(), [pid]);
}

fn stuck() {
    let mut victim = Victim::start(&["vforked"]);
    let child: i32 = victim.said[1]
        .split(' ')
        .nth(1)
        .expect("child")
        .parse()
        .expect("pid");
    let mut seized = Seized::begin(&[victim.pid(), child]).expect("seize");
    // The parent waits for its child in a way that nothing interrupts.
    let error = seized
        .wait_stopped(Duration::from_millis(100))
        .expect_err("stuck");
    assert!(
        matches!(error, Error::Stuck { tid, .. } if tid == victim.pid()),
        "{error:?}"
    );
    victim.poke();
    drop(seized);
    assert_eq!(victim.numbers().0, 3);
    assert!(victim.end().success());
    // The child alone is no matter.
    let mut victim = Victim::start(&["vforked"]);
    let child: i32 = victim.said[1]
        .split(' ')
        .nth(1)
        .expect("child")
        .parse()
        .expect("pid");
    let mut seized = seize(&[child]);
    let process = seized.process(child).expect("there");
    assert_eq!(
        process.syscall(libc::SYS_getpid, [0; 6]).expect("call"),
        child.into()
    );
    seized.release().expect("release");
    victim.poke();
    assert_eq!(victim.numbers().0, 3);
}

fn killed() {
    let victim = Victim::start(&["counter", "3"]);
    let mut seized = seize(&[victim.pid()]);
    victim.signal(libc::SIGKILL);
    let process = seized.process(victim.pid()).expect("there");
    let error = process
        .syscall(libc::SYS_getpid, [0; 6])
        .expect_err("killed");
    assert!(
        matches!(error, Error::Gone { pid } if pid == victim.pid()),
        "{error:?}"
    );
    drop(seized);
    // Its exit status is still there for whoever it belongs to.
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&victim.end()),
        Some(libc::SIGKILL)
    );

    // In the middle of a call that does not end.
    let victim = Victim::start(&["blocked", "read"]);
    let pid = victim.pid();
    let mut seized = seize(&[pid]);
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        crate::victim::signal_process(pid, libc::SIGKILL);
    });
    let process = seized.process(pid).expect("there");
    let error = process
        .syscall(libc::SYS_pause, [0; 6])
        .expect_err("killed");
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    seized.release().expect("release");
    killer.join().expect("killer");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&victim.end()),
        Some(libc::SIGKILL)
    );
}

fn state() {
    for kind in ["read", "nanosleep"] {
        let mut victim = Victim::start(&["blocked", kind]);
        let pid = victim.pid();
        victim.wait_asleep(pid);
        let mut seized = seize(&[pid]);
        let process = seized.process(pid).expect("there");
        let state = process.state(pid).expect("state");
        seized.release().expect("release");
        victim.wait_asleep(pid);
        let mut seized = seize(&[pid]);
        let process = seized.process(pid).expect("there");
        // One begins again as itself, the other as a call for the rest of the time.
        let same = process.state(pid).expect("state") == state;
        assert_eq!(same, kind == "read");
        let call = process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
        assert_eq!(call, pid.into());
        process.apply(&state).expect("apply");
        assert_eq!(process.state(pid).expect("state"), state);
        seized.release().expect("release");
        if kind == "read" {
            victim.wait_asleep(pid);
            victim.poke();
        }
        let (result, errno, took) = victim.numbers();
        assert_eq!((result, errno), (i64::from(kind == "read"), 0), "{kind}");
        assert!(kind == "read" || (0.69..1.0).contains(&took), "{took} s");
    }
}

fn signals() {
    // As without a tracer: the one call begins again after the handler, the other does not.
    for (kind, expected) in [
        ("read_restart", (1, 0)),
        ("read", (-1, i64::from(libc::EINTR))),
    ] {
        let mut victim = Victim::start(&["blocked", kind]);
        victim.wait_asleep(victim.pid());
        let mut seized = seize(&[victim.pid()]);
        let process = seized.process(victim.pid()).expect("there");
        process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
        victim.signal(libc::SIGUSR1);
        let call = process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
        assert_eq!(call, victim.pid().into());
        seized.release().expect("release");
        if kind == "read_restart" {
            victim.wait_asleep(victim.pid());
            victim.poke();
        }
        let (result, errno, _) = victim.numbers();
        assert_eq!((result, errno), expected, "{kind}");
    }
}

fn held() {
    let mut victim = Victim::start(&["blocked", "read"]);
    let pid = victim.pid();
    let (ended, ends) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut watch = Watch::begin(pid).expect("watch");
            ended.send(None).expect("tell");
            ended.send(watch.wait().expect("wait")).expect("tell");
        });
        assert_eq!(ends.recv().expect("hear"), None);
        victim.wait_asleep(pid);
        // Its signals arrive.
        victim.signal(libc::SIGUSR1);
        assert_eq!(victim.numbers().1, i64::from(libc::EINTR));
        let end = ends.recv().expect("hear").expect("an end");
        assert_eq!(end.signal(), None);
    });
    assert!(victim.end().success());

    let victim = Victim::start(&["counter", "0"]);
    let pid = victim.pid();
    let (ended, ends) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut watch = Watch::begin(pid).expect("watch");
            ended.send(None).expect("tell");
            let end = watch.wait().expect("wait");
            // One more does not end the stop.
            crate::victim::signal_process(pid, libc::SIGKILL);
            thread::sleep(Duration::from_millis(20));
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("list");
            assert!(fds.count() > 3, "its descriptors are closed");
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("read");
            assert!(maps.contains("[stack]"), "its memory is gone");
            ended.send(end).expect("tell");
        });
        assert_eq!(ends.recv().expect("hear"), None);
        victim.signal(libc::SIGKILL);
        let end = ends.recv().expect("hear").expect("an end");
        assert_eq!(end.signal(), Some(libc::SIGKILL));
    });
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&victim.end()),
        Some(libc::SIGKILL)
    );
}
