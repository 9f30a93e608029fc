//! What keeps memory where it is is seen, and the process is left as it was.

use podmotion_inject::{Error, Seized, on_own_thread};
use podmotion_pager::{NotMoved, OutError, Pager};

use crate::Case;
use crate::cage::Cage;
use crate::holder::Holder;
use crate::victim::{compiled, directory, moved};

pub const CASES: &[Case] = &[
    ("pinned_memory_is_not_moved", pinned),
    ("a_process_that_is_traced_is_not_stopped", traced),
];

fn pinner(cage: &Cage, kind: &str) -> Holder {
    let program = compiled("pinner", &["pinner.c"]);
    Holder::start_program(cage, &program, &[kind.to_owned()])
}

fn pinned() {
    for (kind, named) in [
        ("ring", "[io_uring]"),
        ("mapped-ring", "[io_uring]"),
        ("thread-ring", "[io_uring]"),
        ("buffers", "pinned memory"),
        ("aio", "[aio]"),
        ("xdp", "socket:["),
        ("faults", "[userfaultfd]"),
        ("device", "/dev/loop-control"),
    ] {
        let directory = directory();
        let cage = Cage::new();
        let mut process = pinner(&cage, kind);
        let pager = Pager::create(directory.path()).unwrap();
        match cage.sleep(pager) {
            Err(NotMoved::Unchanged {
                error: OutError::Pinned { pid, what },
                ..
            }) => {
                assert_eq!(pid, process.pid() as i32, "{kind}");
                assert!(what.contains(named), "{kind}: {what}");
            }
            other => panic!("{kind}: {other:?}"),
        }
        cage.thaw();
        assert_eq!(process.ask("check"), "good", "{kind}");
    }
    // It is not for another reason.
    let directory = directory();
    let cage = Cage::new();
    let mut process = pinner(&cage, "nothing");
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let (_pager, _) = cage.wake(out).unwrap().wait().unwrap();
    assert_eq!(process.ask("check"), "good");
}

fn traced() {
    let cage = Cage::new();
    let mut process = pinner(&cage, "tracee");
    let pids = cage.pids();
    let refused = on_own_thread(|| Seized::begin(&pids).map(drop)).unwrap();
    let tracer = process.pid() as i32;
    assert!(
        matches!(refused, Err(Error::Traced { tracer: by, .. }) if by == tracer),
        "{refused:?}"
    );
    assert_eq!(process.ask("check"), "good");
}
