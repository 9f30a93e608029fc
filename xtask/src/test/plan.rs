//! What is run when: on two processors most tests wait for something most of the time, builds never do, and some tests
//! look at how long things take.

use std::borrow::Cow;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Surroundings;
use super::programs::{FEATURES, Program, Programs};
use crate::arch::Arch;
use crate::{dist, process};

/// What is run one after the other.
#[derive(Debug)]
pub struct Lane {
    pub jobs: Vec<Job>,
    /// It gives way to all others.
    pub at_leisure: bool,
}

/// What is run at the same time.
#[derive(Debug, Default)]
pub struct Phase {
    /// Each for itself.
    pub lanes: Vec<Lane>,
    /// Whoever of two is free takes the next one that can be run: how long each takes differs between machines.
    pub shared: Vec<Shared>,
}

/// A job that one of two takes.
#[derive(Debug)]
pub struct Shared {
    pub job: Job,
    /// Nobody else has one of these meanwhile.
    pub alone_with: &'static [Scarce],
}

/// What there is one of at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scarce {
    /// An emulated machine takes a processor and more.
    Machine,
    /// A Kubernetes takes most of one when it starts, and looks at how long things take.
    Cluster,
}

/// Something to run.
#[derive(Debug)]
pub struct Job {
    /// For people.
    pub name: String,
    pub command: Command,
    /// It is one test by itself, and says nothing of others.
    pub single: bool,
}

/// Some of a program's tests, by their names: those with `of` in it and none of `without`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    of: Cow<'static, str>,
    without: &'static [&'static str],
}

const fn part(of: &'static str) -> Part {
    without(of, &[])
}

const fn without(of: &'static str, without: &'static [&'static str]) -> Part {
    Part {
        of: Cow::Borrowed(of),
        without,
    }
}

/// The part of the suite that looks at how long things take for minutes.
const SOAK: &[Part] = &[part("kube::soak")];

/// What else is run then: it has time too, and waits most of it. Not at leisure: who gives way keeps the kernel's locks
/// meanwhile, and once no network device was made or removed for 82 seconds, by nobody. One after the
/// other, for the same lock.
const BESIDE_SOAK: &[Part] = &[
    part("install::"),
    part("cli::"),
    part("plain::"),
    part("self_test::"),
    part("images::"),
    without("manager::", &["kube::"]),
    part("security::"),
];

/// A part, and what it needs for itself.
type Exclusive = (Part, &'static [Scarce]);

/// Of all others what takes minutes, before the tests of single crates that want root. Those that there can be one of at a time
/// come first: together they are half of it all, and one of two is always at them.
const LONG: &[Exclusive] = &[
    (part("vm::core"), &[Scarce::Machine]),
    (
        without("kube::", &["kube::failures", "kube::probes", "kube::soak"]),
        &[Scarce::Cluster],
    ),
    (part("kube::probes"), &[Scarce::Cluster]),
    (
        without("vm::", &["vm::core"]),
        &[Scarce::Machine, Scarce::Cluster],
    ),
    (part("kube::failures"), &[Scarce::Cluster]),
    (without("sleep::", &[GREEDY]), &[]),
];

/// Five containers that never stop computing, and as many threads that look at them without a pause. Pods get next to
/// nothing of a processor meanwhile, and miss what they are timed by.
const GREEDY: &str = "sleep::faults::shims_killed_in_every_moment";

/// The rest, so that both ends come at nearly the same time.
const SHORT: &[Exclusive] = &[
    (part(GREEDY), &[Scarce::Cluster]),
    (part("cluster::"), &[Scarce::Cluster]),
];

impl Part {
    /// Arguments that have a program run this.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<_> = self
            .without
            .iter()
            .flat_map(|name| ["--skip", *name])
            .map(str::to_owned)
            .collect();
        arguments.extend((!self.of.is_empty()).then(|| self.of.to_string()));
        arguments
    }

    fn has(&self, test: &str) -> bool {
        test.contains(&*self.of) && !self.without.iter().any(|name| test.contains(name))
    }
}

/// Tests with `name` in theirs.
pub fn only(programs: &Programs, name: &str, surroundings: &Surroundings) -> Vec<Phase> {
    let part = Part {
        of: Cow::Owned(name.to_owned()),
        ..Part::default()
    };
    let jobs = programs
        .0
        .iter()
        .map(|it| tests_of(it, &part, surroundings));
    vec![alone(lane(jobs.chain([documentation(&part)])))]
}

/// Everything.
///
/// # Errors
/// When a test would be run twice or never, or cargo or the compiler does not answer.
pub fn all(programs: &Programs, surroundings: &Surroundings) -> Result<Vec<Phase>> {
    let whole = |wanted: &dyn Fn(&Program) -> bool| {
        let wanted = programs.0.iter().filter(|program| wanted(program));
        let jobs = wanted.map(|program| tests_of(program, &Part::default(), surroundings));
        jobs.collect::<Vec<_>>()
    };
    let mut quick = whole(&|program| program.fast);
    quick.push(documentation(&Part::default()));
    if surroundings.product.is_none() {
        return Ok(vec![alone(lane(quick))]);
    }
    let slow = ["chart", "root", "suite"];
    for program in programs.0.iter().filter(|program| !program.fast) {
        ensure!(
            slow.contains(&program.target.as_str()),
            "nothing runs the tests of {}",
            program.name
        );
    }
    quick.extend(whole(&|program| program.target == "chart"));
    let suite = programs.0.iter().find(|program| program.target == "suite");
    let suite = suite.context("the suite was not built")?;
    check(&suite.tests()?)?;
    let parts = |parts: &[Part]| lane(parts.iter().map(|part| tests_of(suite, part, surroundings)));
    let shared = |(part, alone_with): &Exclusive| Shared {
        job: tests_of(suite, part, surroundings),
        alone_with,
    };
    let root = whole(&|program| program.target == "root");
    let root = root.into_iter().map(|job| Shared {
        job,
        alone_with: &[],
    });
    let long = LONG.iter().map(shared);
    let others = long.chain(root).chain(SHORT.iter().map(shared)).collect();
    quick.push(compiles(Arch::foreign()?)?);
    Ok(vec![
        Phase {
            lanes: vec![at_leisure(lane(quick))],
            shared: others,
        },
        Phase {
            lanes: vec![parts(SOAK), parts(BESIDE_SOAK)],
            shared: Vec::new(),
        },
    ])
}

/// Every test of the suite is in one part, and every part has tests.
fn check(tests: &[String]) -> Result<()> {
    let parts: Vec<_> = SOAK
        .iter()
        .chain(BESIDE_SOAK)
        .chain(LONG.iter().chain(SHORT).map(|(part, _)| part))
        .collect();
    for test in tests {
        let times = parts.iter().filter(|part| part.has(test)).count();
        ensure!(times == 1, "the test {test} would be run {times} times");
    }
    for part in parts {
        ensure!(
            tests.iter().any(|test| part.has(test)),
            "no test of the suite is called like {part:?}"
        );
    }
    Ok(())
}

fn lane(jobs: impl IntoIterator<Item = Job>) -> Lane {
    Lane {
        jobs: jobs.into_iter().collect(),
        at_leisure: false,
    }
}

fn alone(lane: Lane) -> Phase {
    Phase {
        lanes: vec![lane],
        shared: Vec::new(),
    }
}

fn at_leisure(lane: Lane) -> Lane {
    Lane {
        at_leisure: true,
        ..lane
    }
}

/// Tests of a program.
fn tests_of(program: &Program, part: &Part, surroundings: &Surroundings) -> Job {
    let arguments = part.arguments();
    let mut command = program.command(&arguments);
    command.env("PODMOTION_CACHE", &surroundings.cache);
    if let Some(product) = &surroundings.product {
        command
            .env("PODMOTION_BIN", &product.programs)
            .env("PODMOTION_IMAGES", &product.images);
    }
    if surroundings.soak {
        command.env("PODMOTION_SOAK", "1");
    }
    let words = [program.name.as_str()]
        .into_iter()
        .chain(arguments.iter().map(String::as_str));
    Job {
        name: words.collect::<Vec<_>>().join(" "),
        command,
        single: false,
    }
}

/// The tests in the documentation, which are programs of their own each.
fn documentation(part: &Part) -> Job {
    let mut command = process::command(process::cargo());
    command
        .current_dir(crate::project_root())
        .args(["test", "--no-fail-fast", "--workspace", "--doc"])
        .args(FEATURES)
        .arg("--")
        .args(part.arguments());
    Job {
        name: "documentation".to_owned(),
        command,
        single: false,
    }
}

/// Whether the programs compile for `arch`.
fn compiles(arch: Arch) -> Result<Job> {
    Ok(Job {
        name: format!("compile for {}", arch.name()),
        command: dist::check(arch)?,
        single: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tests: &[&str]) -> Vec<String> {
        tests.iter().map(|name| (*name).to_owned()).collect()
    }

    /// One of each part.
    const ONE_OF_EACH: [&str; 17] = [
        "kube::soak::pods_under_random_use[light]",
        "cli::ps[deep]",
        "install::twice[containerd-2]",
        "plain::starts[runc]",
        "self_test::passes",
        "kube::probes::tcp[deep]",
        "kube::failures::shim_killed[light]",
        "kube::reach::exec[light]",
        "kube::manager::serves[light]",
        "cluster::comes_and_goes",
        "images::are_small",
        "manager::serves",
        "sleep::core::wakes[light]",
        "sleep::faults::shims_killed_in_every_moment[light]",
        "security::sockets",
        "vm::core",
        "vm::installer",
    ];

    #[test]
    fn what_no_lane_runs_is_called_by_its_name() {
        check(&names(&ONE_OF_EACH)).expect("all are run");
        let more = [&ONE_OF_EACH[..], &["new::test"]].concat();
        let error = check(&names(&more)).expect_err("nothing runs it");
        assert!(error.to_string().contains("new::test"), "{error}");
        let error = check(&names(&ONE_OF_EACH[1..])).expect_err("a part without tests");
        assert!(error.to_string().contains("kube::soak"), "{error}");
    }

    #[test]
    fn the_long_variants_run_only_when_asked_for() {
        let program = Program {
            name: "integration-tests suite".to_owned(),
            target: "suite".to_owned(),
            fast: false,
            path: "suite".into(),
            folder: "integration-tests".into(),
        };
        for soak in [false, true] {
            let surroundings = Surroundings {
                cache: "cache".into(),
                product: None,
                soak,
            };
            let job = tests_of(&program, SOAK.first().expect("a part"), &surroundings);
            let set = job.command.get_envs().any(|(name, value)| {
                name == "PODMOTION_SOAK" && value.is_some_and(|value| value == "1")
            });
            assert_eq!(set, soak, "{job:?}");
        }
    }

    #[test]
    fn programs_choose_as_the_plan_does() {
        let part = without("kube::", &["kube::soak"]);
        assert_eq!(part.arguments(), ["--skip", "kube::soak", "kube::"]);
        assert!(part.has("kube::reach::exec[light]"));
        assert!(!part.has("kube::soak::pods_under_random_use[light]"));
        assert_eq!(Part::default().arguments(), Vec::<String>::new());
    }
}
