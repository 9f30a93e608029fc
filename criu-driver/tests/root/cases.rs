//! What must hold.

use crate::container::{Container, ask, criu};

type Case = (&'static str, fn());

pub fn all() -> Vec<Case> {
    vec![("state_survives", state_survives)]
}

fn state_survives() {
    let criu = criu();
    let mut container = Container::server(10);
    assert_eq!(container.ask("count"), "1");
    let mut kept = container.connect();
    assert_eq!(ask(&mut kept, "count"), "2");
    let mounts = container.ask("mounts");
    let cgroups = container.ask("cgroups");
    let report = container.dump(&criu).expect("dump");
    println!("{report:?}");
    assert!(container.processes().is_empty());
    let restored = container.restore(&criu, false).expect("restore");
    println!("{:?}", restored.report);
    assert_eq!(container.ask("count"), "3");
    assert_eq!(ask(&mut kept, "count"), "4");
    assert_eq!(container.ask("whole"), "whole");
    assert_eq!(container.ask("deleted"), "still here");
    assert_eq!(container.ask("pid"), "1");
    assert_eq!(container.ask("mounts"), mounts);
    assert_eq!(container.ask("cgroups"), cgroups);
}
