//! Signals of a CRIU that dumps. Each would make a gap in the watch for its end.

use std::fs;

use podmotion_criu_driver::DumpControl;

use crate::cases::criu_processes;
use crate::container::{Container, criu};

pub fn a_criu_that_dumps_gets_none_of_its_tasks_stops() {
    let container = Container::server(2);
    let control = DumpControl::new().expect("control");
    let look = |_| {
        let seen = criu_processes();
        assert_eq!(seen.len(), 1, "{seen:?}");
        let status = fs::read_to_string(format!("/proc/{}/status", seen[0]))?;
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
