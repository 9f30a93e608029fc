//! What follows from what: the table that the tests walk and that people read.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, Depth};

use super::strike::{self, Scene};

/// When a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Awake,
    FallingAsleep,
    Asleep,
    Waking,
}

impl Moment {
    const ALL: [Self; 4] = [Self::Awake, Self::FallingAsleep, Self::Asleep, Self::Waking];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Awake => "awake",
            Self::FallingAsleep => "falling asleep",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
        })
    }
}

/// What becomes of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its state and its connections are what they would be without the fault.
    GoesOn,
    /// The same; it does not sleep meanwhile, and says why in these words.
    StaysAwake(&'static str),
    /// The kubelet starts it anew, with the end of the old one in the pod's status.
    Restarted,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GoesOn => "goes on",
            Self::StaysAwake(_) => "stays awake",
            Self::Restarted => "**restarted**",
        })
    }
}

/// One thing that goes wrong.
pub(super) struct Fault {
    /// The test's name.
    pub(super) name: &'static str,
    what: &'static str,
    /// What becomes of the container, for each of [`Moment::ALL`].
    fates: [Option<Fate>; 4],
    /// In which depths.
    in_depth: fn(Depth) -> bool,
    seen: &'static str,
    /// Once in each moment is enough.
    pub(super) takes_long: bool,
    /// Prepares it.
    pub(super) set: for<'a> fn(&'a Cluster) -> Result<Scene<'a>>,
}

impl Fault {
    /// Its moments in that depth.
    pub(super) fn fates(&self, depth: Depth) -> impl Iterator<Item = (Moment, Fate)> {
        let there = (self.in_depth)(depth);
        Moment::ALL
            .into_iter()
            .zip(self.fates)
            .filter_map(move |(moment, fate)| fate.filter(|_| there).map(|fate| (moment, fate)))
    }
}

fn any(_: Depth) -> bool {
    true
}

fn deep_only(depth: Depth) -> bool {
    depth == Depth::Deep
}

const GOES_ON: [Option<Fate>; 4] = [Some(Fate::GoesOn); 4];

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "shim_killed",
        what: "The shim is killed",
        fates: [Some(Fate::Restarted); 4],
        in_depth: any,
        seen: "containerd ends what belongs to a shim that is gone, as with every runtime. The kubelet starts the pod's \
               containers again: the restart count goes up, with the exit code in `lastState` or the event \
               `SandboxChanged`. What was in memory is lost; nobody ever reads zeros in its place.",
        takes_long: true,
        set: strike::shim_killed,
    },
    Fault {
        name: "shim_stopped",
        what: "The shim stands still for five seconds (`SIGSTOP`, or starved)",
        fates: GOES_ON,
        in_depth: any,
        seen: "Whoever needs the sleeping container waits until the shim runs again and is then answered. Nothing \
               is refused or reset.",
        takes_long: true,
        set: strike::shim_stopped,
    },
    Fault {
        name: "criu_killed",
        what: "CRIU is killed (deep sleep)",
        fates: [
            None,
            Some(Fate::StaysAwake("CRIU")),
            None,
            Some(Fate::GoesOn),
        ],
        in_depth: deep_only,
        seen: "A checkpoint is given up, with CRIU's last line in `podmotion inspect`, and tried again later. A \
               restore is tried once more while its client waits.",
        takes_long: false,
        set: strike::criu_killed,
    },
    Fault {
        name: "containerd_killed",
        what: "containerd is killed and started again",
        fates: GOES_ON,
        in_depth: any,
        seen: "Nothing: neither sleep nor wake needs it.",
        takes_long: false,
        set: strike::containerd_killed,
    },
    Fault {
        name: "kubelet_killed",
        what: "The kubelet is killed and started again",
        fates: GOES_ON,
        in_depth: any,
        seen: "Nothing. It finds its containers running, asleep or not.",
        takes_long: false,
        set: strike::kubelet_killed,
    },
    Fault {
        name: "manager_killed",
        what: "The manager is killed and started again",
        fates: GOES_ON,
        in_depth: any,
        seen: "Nothing: it only shows what the shims do. Until it is there again the node has no metrics and its pods' labels \
               stay as they are; then both are right at once.",
        takes_long: false,
        set: strike::manager_killed,
    },
    Fault {
        name: "disk_full",
        what: "The disk of the images is full",
        fates: [
            Some(Fate::StaysAwake("space")),
            Some(Fate::GoesOn),
            Some(Fate::GoesOn),
            Some(Fate::GoesOn),
        ],
        in_depth: any,
        seen: "Nobody falls asleep, and `podmotion ps` says `disk-pressure`, or the failed write. Who sleeps already \
               wakes as ever: a wake writes nothing.",
        takes_long: false,
        set: strike::disk_full,
    },
    Fault {
        name: "memory_limit_too_low",
        what: "The container's memory limit is lowered below what it needs",
        fates: [None, None, Some(Fate::Restarted), None],
        in_depth: any,
        seen: "The kernel's OOM killer ends it when it wakes, as it would have ended it awake; reason `OOMKilled` or \
               exit code 137 in `lastState`.",
        takes_long: false,
        set: strike::memory_limit_too_low,
    },
    Fault {
        name: "kube_proxy_rules",
        what: "kube-proxy's rules are there (a service's address, connection tracking)",
        fates: GOES_ON,
        in_depth: any,
        seen: "Nothing. A packet for the service's address wakes the pod behind it.",
        takes_long: false,
        set: strike::kube_proxy_rules,
    },
];

/// Where the table is, for people.
const PAGE: &str = "docs/failure-modes.md";

/// The page has the table as it is here, and each line has a test.
pub(super) fn documented(_: &Cluster) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let table = page();
    ensure!(text.contains(&table), "{PAGE} does not have this:\n{table}");
    for fault in FAULTS {
        let test = format!("kube::failures::{}", fault.name);
        ensure!(
            super::TESTS.iter().any(|(name, _)| *name == test),
            "no test is called {test}"
        );
    }
    Ok(())
}

/// The table in Markdown.
fn page() -> String {
    let mut page = String::from(
        "| what goes wrong | awake | falling asleep | asleep | waking |\n|---|---|---|---|---|\n",
    );
    for fault in FAULTS {
        let fates: Vec<_> = fault
            .fates
            .iter()
            .map(|fate| fate.map_or("—".to_owned(), |fate| fate.to_string()))
            .collect();
        page += &format!("| {} | {} |\n", fault.what, fates.join(" | "));
    }
    for fault in FAULTS {
        page += &format!("\n**{}.** {}\n", fault.what, fault.seen);
    }
    page
}
