//! Figures: ours beside plain runc with the same CRIU, and beside containerd's own runtime.

mod awake;
mod crowd;
mod evict;
mod figure;
mod gate;
mod idle;
mod load;
mod machine;
mod manager;
mod memory;
mod plain;
mod pods;
mod shim;

use anyhow::Result;
use podmotion_integration_tests::{Node, Versions};
use serde_json::{Value, json};

use crate::report::Progress;
use figure::Figure;
use memory::Scale;

/// How much is measured.
pub struct Plan {
    /// Applications that sleep and wake.
    sizes: &'static [Scale],
    /// Sleeps of a container whose throughput is compared with that of one that never slept.
    sleeps: u64,
    /// Containers that are woken at once.
    crowd: usize,
    /// Pods of a cluster that sleep.
    pods: usize,
    /// Sleeps of a pod by itself.
    by_itself: u64,
    /// Runs of the load generator for each kind of load and runtime.
    loads: usize,
    /// Length of one, in seconds.
    load_seconds: u32,
}

const FULL: Plan = Plan {
    sizes: &[
        Scale {
            mb: 50,
            rounds: 10,
            wakes: 100,
        },
        Scale {
            mb: 500,
            rounds: 10,
            wakes: 100,
        },
        // A cycle takes two seconds, since all of it comes back before the next sleep.
        Scale {
            mb: 2000,
            rounds: 5,
            wakes: 40,
        },
    ],
    sleeps: 100,
    crowd: 100,
    pods: 100,
    by_itself: 20,
    loads: 4,
    load_seconds: 2,
};

const QUICK: Plan = Plan {
    sizes: &[
        Scale {
            mb: 50,
            rounds: 3,
            wakes: 20,
        },
        Scale {
            mb: 500,
            rounds: 3,
            wakes: 5,
        },
    ],
    sleeps: 10,
    crowd: 10,
    pods: 5,
    by_itself: 3,
    loads: 2,
    load_seconds: 1,
};

/// Figures so far, and why others could not be had: what took minutes is not lost with them.
#[derive(Default)]
struct Results {
    figures: Vec<Figure>,
    failures: Vec<String>,
}

impl Results {
    fn take(&mut self, of: &str, measured: Result<Vec<Figure>>) {
        match measured {
            Ok(figures) => self.figures.extend(figures),
            Err(error) => self.failures.push(format!("{of}: {error:#}")),
        }
    }
}

/// Measures. The answer is whether all of it could be done, a target that is not met included, and the figures.
pub fn run(quick: bool) -> Result<(bool, Value)> {
    let plan = if quick { &QUICK } else { &FULL };
    let versions = Versions::default();
    let progress = Progress::new();
    let mut results = Results::default();
    // First: for a while the kernel clears away what is left of many containers.
    let measured = pods::measure_one(versions, plan.by_itself, &progress);
    results.take("a pod", measured);
    progress.begin("containerd starts");
    let node = Node::start(versions)?;
    let before = machine::Facts::read(&node)?;
    progress.end(&before.to_string());

    for scale in plan.sizes {
        let measured = memory::measure(&node, scale, &progress);
        results.take(&format!("{} MB", scale.mb), measured);
    }
    results.take("the shim", shim::measure(&node, &progress));
    results.take("a crowd", crowd::measure(&node, plan.crowd, &progress));
    let measured = pods::measure(versions, plan.pods, &progress);
    results.take("a deployment", measured);
    results.take("awake", awake::measure(&node, plan, &progress));
    results.take("the gate", gate::measure(&node, plan, &progress));
    let Results { figures, failures } = results;

    let load = machine::load()?;
    println!("{before}");
    println!("{}", figure::table(&figures));
    println!("load average before {:.1}, after {load:.1}", before.load);
    if before.is_busy() {
        println!("the machine was busy with something else: the times are longer than its own");
    }
    let missed: Vec<&str> = figures
        .iter()
        .filter(|figure| figure.met() == Some(false))
        .map(Figure::name)
        .collect();
    if !missed.is_empty() {
        println!("not met: {}", missed.join(", "));
    }
    let json = json!({
        "machine": before.to_json(),
        "load_after": load,
        "quick": quick,
        "figures": figures.iter().map(Figure::to_json).collect::<Vec<_>>(),
    });
    for failure in &failures {
        println!("not measured: {failure}");
    }
    Ok((failures.is_empty(), json))
}
