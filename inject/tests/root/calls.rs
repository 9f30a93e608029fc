//! System calls in other processes, and that they do not notice.

use std::time::Duration;

use podmotion_inject::Error;

use crate::Case;
use crate::stops::seize;
use crate::victim::Victim;

pub const CASES: &[Case] = &[
    ("a_call_changes_what_it_is_to_change", effect),
    ("calls_that_wait_go_on_waiting", waiting),
    ("waits_with_a_limit_keep_their_limit", limits),
    ("a_handler_on_its_own_stack_goes_on", altstack),
    ("seccomp_filters_are_passed_and_hold_afterwards", seccomp),
    ("vector_registers_are_kept", vectors),
    ("a_restartable_sequence_is_aborted", sequence),
    ("a_thousand_times_in_a_busy_program", busy),
];

fn call_in(victim: &Victim) {
    let mut seized = seize(&[victim.pid()]);
    let process = seized.process(victim.pid()).expect("there");
    let tids: Vec<_> = process.threads().collect();
    for _ in 0..2 {
        let pid = process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
        assert_eq!(pid, victim.pid().into());
    }
    assert_eq!(process.threads().collect::<Vec<_>>(), tids);
    seized.release().expect("release");
}

fn effect() {
    let victim = Victim::start(&["counter", "1"]);
    let mut seized = seize(&[victim.pid()]);
    let process = seized.process(victim.pid()).expect("there");
    let length = 1 << 20;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ;
    let arguments = [0, length, protection as u64, flags as u64, u64::MAX, 0];
    let address = process.syscall(libc::SYS_mmap, arguments).expect("call");
    let address = address.cast_unsigned();
    // Also where the process itself could not write.
    process.write(address, b"here").expect("write");
    let mut bytes = [0; 4];
    process.read(address, &mut bytes).expect("read");
    assert_eq!(&bytes, b"here");
    let result = process.syscall(libc::SYS_munmap, [address, length, 0, 0, 0, 0]);
    assert_eq!(result.expect("call"), 0);
    assert!(matches!(
        process.read(address, &mut bytes),
        Err(Error::Memory { .. })
    ));
    let bad = process.syscall(libc::SYS_close, [12345, 0, 0, 0, 0, 0]);
    assert_eq!(bad.expect("call"), -i64::from(libc::EBADF));
}

fn waiting() {
    for kind in ["read", "recv", "poll", "epoll", "epoll_pwait", "sigwait"] {
        let mut victim = Victim::start(&["blocked", kind]);
        for _ in 0..3 {
            victim.wait_asleep(victim.pid());
            call_in(&victim);
        }
        victim.wait_asleep(victim.pid());
        let expected = if kind == "sigwait" {
            victim.signal(libc::SIGUSR1);
            libc::SIGUSR1.into()
        } else {
            victim.poke();
            1
        };
        let (result, errno, _) = victim.numbers();
        assert_eq!((result, errno), (expected, 0), "{kind}");
    }
}

fn limits() {
    for (kind, result, errno) in [
        ("nanosleep", 0, 0),
        ("sleep_until", 0, 0),
        ("poll_limit", 0, 0),
        ("ppoll_limit", 0, 0),
        ("select_limit", 0, 0),
        ("futex_limit", -1, libc::ETIMEDOUT),
    ] {
        let mut victim = Victim::start(&["blocked", kind]);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(100));
            call_in(&victim);
        }
        let (got, error, took) = victim.numbers();
        assert_eq!((got, error), (result, errno.into()), "{kind}");
        assert!((0.69..0.9).contains(&took), "{kind} took {took} s");
    }
}

fn altstack() {
    let mut victim = Victim::start(&["altstack"]);
    victim.wait_asleep(victim.pid());
    call_in(&victim);
    victim.poke();
    let (inside, flags, _) = victim.numbers();
    assert_eq!((inside, flags), (1, 0));
    assert!(victim.end().success());
}

fn seccomp() {
    let mut victim = Victim::start(&["filtered"]);
    victim.wait_asleep(victim.pid());
    call_in(&victim);
    let mut seized = seize(&[victim.pid()]);
    let process = seized.process(victim.pid()).expect("there");
    let fd = process
        .syscall(libc::SYS_userfaultfd, [0; 6])
        .expect("call");
    assert!(fd > 0, "userfaultfd: {fd}");
    let closed = process.syscall(libc::SYS_close, [fd.cast_unsigned(), 0, 0, 0, 0, 0]);
    assert_eq!(closed.expect("call"), 0);
    seized.release().expect("release");
    victim.poke();
    assert_eq!(victim.numbers().0, 1);
    victim.poke();
    assert_eq!(victim.line(), "", "the filter is gone");
    let signal = std::os::unix::process::ExitStatusExt::signal(&victim.end());
    assert_eq!(signal, Some(libc::SIGSYS));
}

fn vectors() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let victim = Victim::start(&["vectors"]);
    for _ in 0..200 {
        let mut seized = seize(&[victim.pid()]);
        let process = seized.process(victim.pid()).expect("there");
        let tids: Vec<_> = process.threads().collect();
        for tid in tids {
            let state = process.state(tid).expect("state");
            process.apply(&state).expect("apply");
        }
        process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
        seized.release().expect("release");
    }
    let rounds = victim.word(8);
    victim.wait_until("more rounds", |v| v.word(8) > rounds);
    assert_eq!(victim.word(0), 0, "registers changed");
}

fn sequence() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let victim = Victim::start(&["sequence"]);
    victim.wait_until("a sequence", |v| v.word(1) > 0);
    for n in 0..50 {
        let mut seized = seize(&[victim.pid()]);
        let process = seized.process(victim.pid()).expect("there");
        let aborts = victim.word(0);
        process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
        assert_eq!(victim.word(0), aborts);
        seized.release().expect("release");
        victim.wait_until("an abort", |v| v.word(0) > aborts);
        assert!(victim.word(1) > 0, "{n}");
    }
}

fn busy() {
    let victim = Victim::start(&["busy"]);
    victim.wait_until("work", |v| v.word(0) > 0);
    for _ in 0..1000 {
        let mut seized = seize(&[victim.pid()]);
        let process = seized.process(victim.pid()).expect("there");
        assert_eq!(process.threads().count(), 9);
        let pid = process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
        assert_eq!(pid, victim.pid().into());
        seized.release().expect("release");
    }
    let rounds = victim.word(0);
    victim.wait_until("more work", |v| v.word(0) > rounds + 10);
    assert_eq!(victim.word(1), 0, "something went wrong in it");
}
