//! Processes that are frozen before and after run nothing in between.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use podmotion_inject::{Seized, on_own_thread};

use crate::Case;
use crate::stops::BOUND;
use crate::victim::Victim;

pub const CASES: &[Case] = &[
    ("frozen_by_version_1_nothing_runs", version_1),
    ("frozen_by_version_2_nothing_runs", version_2),
    ("frozen_and_stopped_by_a_signal", stopped),
    ("frozen_waits_go_on", waits),
];

/// A cgroup of the test's own.
struct Cgroup {
    path: PathBuf,
    version: u32,
}

impl Cgroup {
    /// `None` where the machine has no such freezer.
    fn new(version: u32) -> Option<Self> {
        let roots = match version {
            1 => &["/sys/fs/cgroup/freezer"][..],
            _ => &["/sys/fs/cgroup/unified", "/sys/fs/cgroup"],
        };
        let file = if version == 1 {
            "freezer.state"
        } else {
            "cgroup.freeze"
        };
        let name = format!("inject-{}-{version}", std::process::id());
        roots.iter().find_map(|root| {
            let path = PathBuf::from(root).join(&name);
            fs::create_dir(&path).ok()?;
            let cgroup = Self { path, version };
            cgroup.path.join(file).exists().then_some(cgroup)
        })
    }

    fn add(&self, victim: &Victim) {
        fs::write(self.path.join("cgroup.procs"), victim.pid().to_string()).expect("add");
    }

    fn freeze(&self) {
        let (file, frozen) = self.files();
        while {
            fs::write(
                self.path.join(file),
                if self.version == 1 { "FROZEN" } else { "1" },
            )
            .expect("freeze");
            !fs::read_to_string(self.path.join(frozen.0))
                .expect("state")
                .contains(frozen.1)
        } {}
    }

    fn thaw(&self) {
        let value = if self.version == 1 { "THAWED" } else { "0" };
        fs::write(self.path.join(self.files().0), value).expect("thaw");
    }

    fn files(&self) -> (&str, (&str, &str)) {
        match self.version {
            1 => ("freezer.state", ("freezer.state", "FROZEN")),
            _ => ("cgroup.freeze", ("cgroup.events", "frozen 1")),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.thaw();
        // Whoever is left in it has been killed.
        let root = self.path.parent().expect("a root");
        for pid in fs::read_to_string(self.path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            let _ = fs::write(root.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.path);
    }
}

fn version_1() {
    nothing_runs(1);
}

fn version_2() {
    nothing_runs(2);
}

/// freeze, begin, thaw, wait: `work`: freeze, release.
fn between_freezes(cgroup: &Cgroup, pid: i32, work: impl FnOnce(&mut Seized) + Send) {
    cgroup.freeze();
    let (begun, hears) = mpsc::channel::<()>();
    thread::scope(|scope| {
        // A seizure that waits for the thaw would wait for ever.
        scope.spawn(move || {
            if hears.recv_timeout(BOUND) == Err(RecvTimeoutError::Timeout) {
                cgroup.thaw();
            }
        });
        seized_between(cgroup, pid, begun, work);
    });
}

fn seized_between(
    cgroup: &Cgroup,
    pid: i32,
    begun: mpsc::Sender<()>,
    work: impl FnOnce(&mut Seized) + Send,
) {
    on_own_thread(|| {
        let begin = Instant::now();
        let mut seized = Seized::begin(&[pid]).expect("seize");
        drop(begun);
        assert!(begin.elapsed() < BOUND, "it waited for the thaw");
        cgroup.thaw();
        seized.wait_stopped(BOUND).expect("stop");
        work(&mut seized);
        cgroup.freeze();
        seized.release().expect("release");
    })
    .expect("a thread");
}

fn nothing_runs(version: u32) {
    let Some(cgroup) = Cgroup::new(version) else {
        println!("this machine has no freezer of version {version}");
        return;
    };
    let victim = Victim::start(&["counter", "3"]);
    cgroup.add(&victim);
    let counts = || [0, 8, 16].map(|n| victim.word(n));
    victim.wait_until("counting", |_| counts().iter().all(|&n| n > 0));
    for _ in 0..50 {
        cgroup.freeze();
        let before = counts();
        between_freezes(&cgroup, victim.pid(), |seized| {
            let process = seized.process(victim.pid()).expect("there");
            let pid = process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
            assert_eq!(pid, victim.pid().into());
        });
        thread::sleep(Duration::from_millis(1));
        assert_eq!(counts(), before, "something ran");
        cgroup.thaw();
        victim.wait_until("counting", |_| {
            counts().iter().zip(before).all(|(&now, then)| now > then)
        });
    }
}

fn stopped() {
    for version in [1, 2] {
        let Some(cgroup) = Cgroup::new(version) else {
            continue;
        };
        let victim = Victim::start(&["counter", "2"]);
        cgroup.add(&victim);
        victim.signal(libc::SIGSTOP);
        victim.wait_until("a stop", |v| v.state(v.pid()) == 'T');
        let before = victim.word(0);
        between_freezes(&cgroup, victim.pid(), |seized| {
            let process = seized.process(victim.pid()).expect("there");
            process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
        });
        cgroup.thaw();
        victim.wait_until("a stop", |v| v.state(v.pid()) == 'T');
        assert_eq!(victim.word(0), before);
        victim.signal(libc::SIGCONT);
        victim.wait_until("counting", |v| v.word(0) > before);
    }
}

fn waits() {
    for version in [1, 2] {
        let Some(cgroup) = Cgroup::new(version) else {
            continue;
        };
        for kind in ["nanosleep", "poll_limit", "read", "epoll"] {
            let mut victim = Victim::start(&["blocked", kind]);
            cgroup.add(&victim);
            victim.wait_asleep(victim.pid());
            between_freezes(&cgroup, victim.pid(), |seized| {
                let process = seized.process(victim.pid()).expect("there");
                process.syscall(libc::SYS_getpid, [0; 6]).expect("call");
            });
            cgroup.thaw();
            let unlimited = matches!(kind, "read" | "epoll");
            if unlimited {
                victim.poke();
            }
            let (result, errno, took) = victim.numbers();
            assert_eq!((result, errno), (unlimited.into(), 0), "{kind}");
            assert!(
                unlimited || (0.69..0.9).contains(&took),
                "{kind} took {took}"
            );
        }
    }
}
