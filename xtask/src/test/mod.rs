//! `cargo xtask test`: runs every test and ends with one line, `N passed, N failed`.

mod lanes;
mod leisure;
mod plan;
mod programs;
mod tally;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::arch::Arch;
use crate::setup::{self, Cache};
use crate::{arm64, dist, image};
use programs::Programs;
use tally::Tally;

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

/// What the tests' programs are told.
struct Surroundings {
    cache: PathBuf,
    /// What is under test, unless the tests are the fast ones.
    product: Option<Product>,
    /// Long variants are wanted.
    soak: bool,
}

/// Folders of what is under test.
struct Product {
    /// The programs of a node.
    programs: PathBuf,
    /// The images, as archives.
    images: PathBuf,
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
    let surroundings = Surroundings {
        cache: Cache::from_env()?.root().to_owned(),
        product,
        soak: args.soak,
    };
    let programs = Programs::build(&surroundings)?;
    let phases = match &args.only {
        Some(name) => plan::only(&programs, name, &surroundings),
        None => plan::all(&programs, &surroundings)?,
    };
    let mut tally = Tally::default();
    for phase in phases {
        tally.add(lanes::run(phase)?);
    }
    // Its programs take as long to build as all tests take.
    if args.soak && args.only.is_none() {
        tally.add(tally::single("arm64", || {
            arm64::run(&arm64::Args::default())
        }));
    }
    ensure!(
        tally != Tally::default(),
        "no test ran: none has {:?} in its name",
        args.only
    );
    // Lanes speak at the same time: once more, so that nobody has to look for it.
    for failure in &tally.failures {
        println!("{failure}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
