//! Calls of two threads that take effect in one order and are reported in another.

use podmotion_pager::Pager;

use crate::Case;
use crate::cage::Cage;
use crate::facts::ONLY_ASKED_FOR;
use crate::holder::Holder;
use crate::victim::{compiled, directory, moved};

pub const CASES: &[Case] = &[
    (
        "an_unmapping_that_is_reported_late_takes_nothing_else",
        || {
            overtaken("unmap alone", 1);
        },
    ),
    ("a_move_that_is_reported_late_takes_nothing_else", || {
        overtaken("move alone", 1);
    }),
    ("a_child_has_what_was_there_when_it_was_forked", || {
        for how in ["unmap", "move"] {
            overtaken(&format!("{how} before"), 2);
            overtaken(&format!("{how} after"), 2);
        }
    }),
];

/// Two pieces are missing, and what has happened to the first is reported after the second has moved to where it was.
/// So many processes find all of it right.
fn overtaken(how: &str, processes: usize) {
    let directory = directory();
    let cage = Cage::new();
    let program = compiled("overtaken", &["overtaken.c"]);
    let mut holder = Holder::start_program(&cage, &program, &[]);
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let filling = out.serve(ONLY_ASKED_FOR).unwrap();
    cage.thaw();
    holder.order(how);
    for _ in 0..processes {
        assert_eq!(holder.answer(), "good", "{how}");
    }
    drop(filling);
}
