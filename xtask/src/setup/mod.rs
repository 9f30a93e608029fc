//! `cargo xtask setup`: everything the other commands need, in one cache.
//!
//! An [`Item`] is one thing to bring. It is made in `<place>.partial`, renamed into place, tried out and only then
//! stamped, so an interrupted run leaves either a whole item or one that the next run makes anew. A stamp
//! holds the item's recipe and the cache's path (binaries carry the absolute path of their loader): when either
//! differs, the item is made again.

mod apps;
mod apt;
mod arm64;
mod bundle;
mod cache;
mod criu;
mod cross;
mod deny;
pub mod files;
mod go;
mod helm;
mod host;
mod images;
mod items;
mod kubernetes;
mod monitoring;
pub mod oci;
mod order;
mod programs;
mod rootfs;
mod schemas;
mod small;
mod ui;
mod vm;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

pub use arm64::{ARM64, ARM64_PLACE};
pub use bundle::{Origin, read_origins};
pub use cache::Cache;
use cache::Stamp;
pub use criu::{Criu, HOME as CRIU_HOME};
pub use cross::CROSS;
pub use deny::PROGRAM as CARGO_DENY;
pub use items::QEMU_USER;
use ui::Ui;

use crate::arch::Arch;
use crate::process;

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Bring only this item and what it needs (may be given several times).
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// List the items and whether they are there.
    #[arg(long)]
    list: bool,
}

/// What the making of an item works with.
struct Work<'a> {
    cache: &'a Cache,
    ui: &'a Ui,
    apt: apt::Suites,
}

/// One thing that setup brings.
trait Item: Sync {
    /// Name for `--only` and for the stamp.
    fn name(&self) -> &str;

    /// What it is for, as the end of "getting NAME: ...".
    fn why(&self) -> &str;

    /// Names of items that must be there before this one is made.
    fn needs(&self) -> &[&str] {
        &[]
    }

    /// Whether setup brings it when no item is named.
    fn by_default(&self) -> bool {
        true
    }

    /// Whether only root can make it.
    fn needs_root(&self) -> bool {
        true
    }

    /// Whether its making takes minutes of processors and little of anything else: others are fetched and unpacked
    /// meanwhile.
    fn is_compiled(&self) -> bool {
        false
    }

    /// Where it lives, relative to the cache; nothing for what goes to the machine itself.
    fn place(&self) -> Option<&str>;

    /// Links to make in the cache once it is there: (link, what it points to), both relative to the cache.
    fn links(&self) -> &[(&str, &str)] {
        &[]
    }

    /// What it is made from and how: another answer than the stamp's means that it is out of date.
    fn recipe(&self, cache: &Cache) -> Result<String>;

    /// Whether it is there and current.
    fn present(&self, cache: &Cache) -> Result<bool> {
        cache.is_current(self.name(), &self.recipe(cache)?, self.place())
    }

    /// Makes it at `partial` and returns the version that it turned out to be.
    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String>;

    /// Tries it out in its final place.
    fn check(&self, place: &Path) -> Result<()>;
}

/// Runs the command.
///
/// # Errors
/// When an item is unknown or cannot be brought. Items made before stay.
pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::from_env()?;
    let items = items::all();
    if args.list {
        return list(&cache, &items);
    }
    let names: Vec<&str> = if args.only.is_empty() {
        items
            .iter()
            .filter(|item| item.by_default())
            .map(|item| item.name())
            .collect()
    } else {
        args.only.iter().map(String::as_str).collect()
    };
    if !bring_named(&cache, &items, &names)? {
        println!("setup: everything is there, in {}", cache.root().display());
    }
    Ok(())
}

/// Brings what is missing of the items called `names`, and what they need.
///
/// # Errors
/// When an item is unknown or cannot be brought.
pub fn ensure(names: &[&str]) -> Result<()> {
    bring_named(&Cache::from_env()?, &items::all(), names).map(drop)
}

/// Says whether anything was missing.
fn bring_named(cache: &Cache, items: &[Box<dyn Item>], names: &[&str]) -> Result<bool> {
    let wanted = select(items, names)?;
    let missing = absent(cache, &wanted)?;
    if missing.is_empty() {
        return Ok(false);
    }
    ensure!(
        nix::unistd::geteuid().is_root() || !missing.iter().any(|item| item.needs_root()),
        "setup installs packages and makes root file systems: run it as root"
    );
    let _lock = cache.lock()?;
    // Asked again: another setup may have brought things while this one waited for the lock.
    order::bring_all(cache, &absent(cache, &wanted)?)?;
    Ok(true)
}

/// A command that runs `program`, which is for `arch`, on this machine.
///
/// # Errors
/// When Podmotion is not built for this machine.
pub fn emulated(cache: &Cache, arch: Arch, program: &Path) -> Result<Command> {
    if arch == Arch::host()? {
        return Ok(process::command(program));
    }
    let emulator = cache.path(items::QEMU_USER_PLACE).join("bin");
    let mut command = process::command(emulator.join(arch.emulator()));
    command.arg(program);
    Ok(command)
}

fn list(cache: &Cache, items: &[Box<dyn Item>]) -> Result<()> {
    for item in items {
        let state = match (item.present(cache)?, cache.stamp(item.name())) {
            (true, Some(stamp)) => stamp.version,
            (true, None) => "there".to_owned(),
            (false, Some(_)) => "out of date".to_owned(),
            (false, None) => "missing".to_owned(),
        };
        println!("{:<16} {:<28} {}", item.name(), state, item.why());
    }
    Ok(())
}

/// The items called `names` with what they need, in the order of making.
fn select<'a>(items: &'a [Box<dyn Item>], names: &[&str]) -> Result<Vec<&'a dyn Item>> {
    let mut wanted: Vec<&str> = Vec::new();
    let mut queue = names.to_vec();
    while let Some(name) = queue.pop() {
        let Some(item) = items.iter().find(|item| item.name() == name) else {
            bail!("no item is called {name}; `cargo xtask setup --list` shows them");
        };
        if !wanted.contains(&name) {
            wanted.push(name);
            queue.extend(item.needs());
        }
    }
    Ok(items
        .iter()
        .map(Box::as_ref)
        .filter(|item| wanted.contains(&item.name()))
        .collect())
}

fn absent<'a>(cache: &Cache, items: &[&'a dyn Item]) -> Result<Vec<&'a dyn Item>> {
    let mut absent = Vec::new();
    for item in items {
        if !item.present(cache)? {
            absent.push(*item);
        }
    }
    Ok(absent)
}

fn bring(work: &Work<'_>, item: &dyn Item) -> Result<()> {
    let start = Instant::now();
    work.ui.begin(item.name(), item.why());
    work.cache.forget(item.name())?;
    let recipe = item.recipe(work.cache)?;
    let mut bytes = 0;
    let version = if let Some(place) = item.place() {
        let place = work.cache.path(place);
        let partial = files::with_suffix(&place, ".partial");
        files::remove(&partial)?;
        files::make_parent(&partial)?;
        let version = item.make(work, &partial)?;
        files::remove(&place)?;
        files::rename(&partial, &place)?;
        for (link, target) in item.links() {
            files::link(&work.cache.path(link), &work.cache.path(target))?;
        }
        work.ui.step("trying it out");
        item.check(&place)?;
        bytes = files::size(&place)?;
        version
    } else {
        item.make(work, Path::new("/"))?
    };
    let elapsed = start.elapsed();
    work.cache.stamp_item(
        item.name(),
        &Stamp {
            recipe,
            cache: work.cache.root().to_owned(),
            version: version.clone(),
            seconds: elapsed.as_secs_f64(),
            bytes,
        },
    )?;
    work.ui.end(item.name(), &version, elapsed, bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_is_an_earlier_item() {
        let items = items::all();
        for (index, item) in items.iter().enumerate() {
            for need in item.needs() {
                assert!(
                    items[..index].iter().any(|other| other.name() == *need),
                    "{} needs {need}",
                    item.name()
                );
            }
        }
    }

    #[test]
    fn selecting_brings_what_is_needed_first() {
        let items = items::all();
        let chosen: Vec<&str> = select(&items, &["runc-1.3"])
            .expect("known")
            .iter()
            .map(|item| item.name())
            .collect();
        assert_eq!(chosen.first(), Some(&"packages"));
        assert_eq!(chosen.last(), Some(&"runc-1.3"));
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let error = select(&items::all(), &["nothing"]).err();
        assert!(error.is_some_and(|error| error.to_string().contains("nothing")));
    }
}
