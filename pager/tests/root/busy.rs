//! A fill on a node whose processors others want.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use podmotion_pager::{FillPolicy, Pager, Resumed};

use crate::Case;
use crate::cage::Cage;
use crate::holder::Holder;
use crate::victim::{directory, moved};

pub const CASES: &[Case] = &[("a_fill_gives_way_on_a_busy_node", gives_way)];

fn gives_way() {
    let directory = directory();
    let cage = Cage::new();
    let mut holder = Holder::start(&cage, 20);
    let out = moved(cage.sleep(Pager::create(directory.path()).unwrap()));
    let policy = FillPolicy {
        give_way: Duration::from_secs(3600),
        ..FillPolicy::default()
    };
    let busy = AtomicBool::new(true);
    let filling = thread::scope(|scope| {
        let processors = thread::available_parallelism().unwrap().get();
        for _ in 0..3 * processors {
            scope.spawn(|| {
                while busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let filling = out.serve(policy).unwrap();
        let missing = filling.missing_bytes();
        // Nothing happens, which has no event.
        thread::sleep(Duration::from_millis(300));
        let still = filling.missing_bytes();
        // Before a panic: the others would go on for ever.
        busy.store(false, Ordering::Relaxed);
        assert!(
            missing >= 20 << 20 && still == missing,
            "{missing}, then {still}"
        );
        filling
    });
    cage.thaw();
    // Others may keep the node busy for as long as they like.
    let (pager, _) = filling.pause().unwrap();
    if let Resumed::Filling(filling) = pager.resume(FillPolicy::at_once()).unwrap() {
        filling.wait().unwrap();
    }
    assert_eq!(holder.ask("check"), "good");
}
