//! `cargo xtask test`: runs every test and ends with one line, `N passed, N failed`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::leisure::Leisure;
use crate::setup::{self, Cache};
use crate::{arm64, dist, image, process};

/// Of all tests: with one set of features everything is compiled once.
const FEATURES: [&str; 2] = [
    "--features",
    "podmotion-bpf/loader,podmotion-integration-tests/plot",
];

/// The suite in two parts that take about as long: what each leaves to the other.
const HALVES: [&[&str]; 2] = [
    &["kube::", "cluster::", "images::", "manager::", "security::"],
    &["cli::", "install::", "plain::", "self_test::", "sleep::"],
];

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only what needs neither root nor the tools of setup.
    #[arg(long)]
    fast: bool,
    /// Tests that have a long variant run in that one.
    #[arg(long, conflicts_with = "fast")]
    soak: bool,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// Folders of what is under test.
struct Product {
    /// The programs of a node.
    programs: PathBuf,
    /// The images, as archives.
    images: PathBuf,
}

/// Tests that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// Runs the command.
///
/// # Errors
/// When the tests could not be run at all. Failed tests make the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let product = if args.fast {
        None
    } else {
        setup::run(&setup::Args::default())?;
        let programs = dist::build(Arch::host()?)?;
        let images = image::of_host(&programs)?;
        Some(Product { programs, images })
    };
    let mut tally = Tally::default();
    for group in jobs(args, product.as_ref())? {
        tally.add(count_all(group)?);
    }
    if product.is_some() && args.only.is_none() {
        let foreign = Arch::foreign()?;
        tally.add(single(&format!("compile for {}", foreign.name()), || {
            dist::check(foreign)
        }));
        // Its programs take as long to build as all tests take.
        if args.soak {
            tally.add(single("arm64", || arm64::run(&arm64::Args::default())));
        }
    }
    ensure!(
        tally != Tally::default(),
        "no test ran: none has {:?} in its name",
        args.only
    );
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Something that is one test by itself.
fn single(name: &str, body: impl FnOnce() -> Result<()>) -> Tally {
    println!("test: {name}");
    match body() {
        Ok(()) => Tally {
            passed: 1,
            failed: 0,
        },
        Err(error) => {
            println!("test: {name}: {error:#}");
            Tally {
                passed: 0,
                failed: 1,
            }
        }
    }
}

/// Tests to run.
#[derive(Debug)]
struct Job {
    command: Command,
    /// It gives way to all others.
    at_leisure: bool,
}

/// What is run one after the other, and of each what is run at the same time. `product` is what is under
/// test, none for the fast tests.
fn jobs(args: &Args, product: Option<&Product>) -> Result<Vec<Vec<Job>>> {
    let cache = Cache::from_env()?;
    let tests = |targets: &[&str]| Job {
        command: command(args, product, &cache, targets),
        at_leisure: false,
    };
    let units = [
        "--lib",
        "--bins",
        "--test",
        "config_example",
        "--test",
        "docs",
    ];
    let mut groups = vec![vec![tests(&units)], vec![tests(&["--doc"])]];
    if product.is_none() {
        return Ok(groups);
    }
    groups.extend([
        vec![tests(&["--test", "root"])],
        vec![tests(&["--test", "chart"])],
    ]);
    let suite = ["--test", "suite"];
    if args.only.is_some() {
        groups.push(vec![tests(&suite)]);
        return Ok(groups);
    }
    let at_leisure = |job| Job {
        at_leisure: true,
        ..job
    };
    let of = |filter: &[&str]| tests(&[&suite[..], &["--"], filter].concat());
    groups.extend([
        // A soak looks at how long things take, and needs a third of the processors. Virtual machines have time.
        vec![
            of(&["kube::soak"]),
            at_leisure(of(&["vm::core"])),
            at_leisure(of(&["vm::", "--skip", "vm::core"])),
        ],
        // Most of the time they wait for something. What neither names is in both.
        HALVES
            .map(|skipped| {
                let skipped = skipped.iter().chain(&["vm::", "kube::soak"]);
                let filter: Vec<_> = skipped.flat_map(|name| ["--skip", *name]).collect();
                of(&filter)
            })
            .into(),
    ]);
    Ok(groups)
}

/// Cargo, to run the tests of `targets`.
fn command(args: &Args, product: Option<&Product>, cache: &Cache, targets: &[&str]) -> Command {
    let mut command = process::command(process::cargo());
    command
        .current_dir(crate::project_root())
        .args(["test", "--no-fail-fast", "--workspace"])
        .args(FEATURES)
        .args(targets)
        .env("PODMOTION_CACHE", cache.root());
    if let Some(product) = product {
        command
            .env("PODMOTION_BIN", &product.programs)
            .env("PODMOTION_IMAGES", &product.images);
    }
    if args.soak {
        command.env("PODMOTION_SOAK", "1");
    }
    if let Some(name) = &args.only {
        command.args(["--", name]);
    }
    command
}

/// Runs `jobs` at the same time.
fn count_all(jobs: Vec<Job>) -> Result<Tally> {
    let wanted = jobs.iter().any(|job| job.at_leisure);
    let leisure = wanted.then(Leisure::new).and_then(|made| {
        made.inspect_err(|error| println!("test: nobody gives way to others: {error:#}"))
            .ok()
    });
    let leisure = leisure.as_ref();
    let counted: Vec<Result<Tally>> = thread::scope(|scope| {
        let running: Vec<_> = jobs
            .into_iter()
            .map(|mut job| {
                let leisure = leisure.filter(|_| job.at_leisure);
                scope.spawn(move || count(&mut job.command, leisure))
            })
            .collect();
        let ended = running.into_iter().map(|one| match one.join() {
            Ok(counted) => counted,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    });
    let mut tally = Tally::default();
    for one in counted {
        tally.add(one?);
    }
    Ok(tally)
}

/// Runs `command`, repeats its output as it comes and counts its tests.
fn count(command: &mut Command, leisure: Option<&Leisure>) -> Result<Tally> {
    let line = process::describe(command);
    println!("test: {line}");
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    if let Some(leisure) = leisure
        && let Err(error) = leisure.take(&child)
    {
        // This error counts; the process is this one's child and cannot be another.
        drop(child.kill());
        return Err(error);
    }
    let stdout = child.stdout.take().context("the tests have no output")?;
    let mut tally = Tally::default();
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text.with_context(|| format!("cannot read what {line} says"))?;
        let text = String::from_utf8_lossy(&text);
        println!("{text}");
        if let Some(result) = parse(&text) {
            tally.add(result);
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {line}"))?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test took its whole process down.
        println!("test: {line}: {status}, counted as one failure");
        tally.failed += 1;
    }
    Ok(tally)
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Reads `test result: ok. 11 passed; 0 failed; ...`.
fn parse(line: &str) -> Option<Tally> {
    let (_, counts) = line
        .trim()
        .strip_prefix("test result: ")?
        .split_once(". ")?;
    let number = |what: &str| {
        counts
            .split("; ")
            .find_map(|count| count.strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tally {
        passed: number("passed")?,
        failed: number("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn results_are_read_from_good_and_bad_runs() {
        let good = "test result: ok. 11 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(
            parse(good),
            Some(Tally {
                passed: 11,
                failed: 0
            })
        );
        let bad = "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.52s";
        assert_eq!(
            parse(bad),
            Some(Tally {
                passed: 2,
                failed: 3
            })
        );
        assert_eq!(parse("test some::name ... ok"), None);
    }

    /// Those of a whole run.
    fn all_jobs(soak: bool) -> Vec<Vec<Job>> {
        let args = Args {
            fast: false,
            soak,
            only: None,
        };
        let product = Product {
            programs: PathBuf::from("bin"),
            images: PathBuf::from("images"),
        };
        jobs(&args, Some(&product)).expect("jobs")
    }

    #[test]
    fn every_program_of_tests_is_run() {
        let mut metadata = cargo_metadata::MetadataCommand::new();
        let metadata = metadata.no_deps().exec().expect("cargo's answer");
        let targets = metadata
            .packages
            .iter()
            .flat_map(|package| &package.targets);
        let programs: BTreeSet<_> = targets
            .filter(|target| target.is_test())
            .map(|target| target.name.clone())
            .collect();
        let run: BTreeSet<_> = all_jobs(false)
            .iter()
            .flatten()
            .flat_map(|job| {
                let args: Vec<_> = job
                    .command
                    .get_args()
                    .map(|arg| arg.to_string_lossy())
                    .collect();
                let named = args.windows(2).filter(|pair| pair[0] == "--test");
                let names: Vec<_> = named.map(|pair| pair[1].to_string()).collect();
                names
            })
            .collect();
        assert!(!programs.is_empty());
        assert_eq!(programs, run);
    }

    #[test]
    fn the_long_variants_run_only_when_asked_for() {
        for soak in [false, true] {
            for job in all_jobs(soak).into_iter().flatten() {
                let set = job.command.get_envs().any(|(name, value)| {
                    name == "PODMOTION_SOAK" && value.is_some_and(|value| value == "1")
                });
                assert_eq!(set, soak, "{job:?}");
            }
        }
    }

    #[test]
    fn a_single_test_counts_as_one() {
        assert_eq!(single("it", || Ok(())).passed, 1);
        assert_eq!(single("it", || anyhow::bail!("broken")).failed, 1);
    }

    #[test]
    fn a_run_that_dies_counts_as_a_failure() {
        let tally = count(&mut process::command("false"), None).expect("ran");
        assert_eq!(
            tally,
            Tally {
                passed: 0,
                failed: 1
            }
        );
    }
}
