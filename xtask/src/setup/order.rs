//! Who is made when: what others need first, and what is compiled beside all that is fetched.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use super::ui::Ui;
use super::{Cache, Item, Work, apt, bring, go};

/// Who is still to be made, by name.
struct Pending {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    names: BTreeSet<String>,
    /// Something could not be made.
    failed: bool,
}

/// Makes `items`, each after those of them that it needs. These are before it in the list.
///
/// # Errors
/// When one cannot be made. Those made before stay.
pub fn bring_all(cache: &Cache, items: &[&dyn Item]) -> Result<()> {
    let ui = Ui::new();
    let (compiled, fetched): (Vec<_>, Vec<_>) =
        items.iter().copied().partition(|item| item.is_compiled());
    let pending = Pending::new(items);
    thread::scope(|scope| {
        let beside = ui.beside();
        let pending = &pending;
        let compiling = scope.spawn(move || bring_lane(cache, &beside, &compiled, pending));
        let fetching = bring_lane(cache, &ui, &fetched, pending);
        let compiling = match compiling.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        causes(fetching, compiling)
    })?;
    go::clean(cache)
}

/// What came of two lanes. That one has waited for the other in vain is no cause.
fn causes(fetching: Result<()>, compiling: Result<()>) -> Result<()> {
    match (fetching, compiling) {
        (Err(error), Err(other)) if error.is::<InVain>() => Err(other),
        (Err(error), Err(other)) if other.is::<InVain>() => Err(error),
        (Err(error), Err(other)) => bail!("{error:#}; {other:#}"),
        (fetching, compiling) => fetching.and(compiling),
    }
}

/// What an item needs was not made.
#[derive(Debug)]
struct InVain(String);

impl std::fmt::Display for InVain {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "what {} needs could not be made", self.0)
    }
}

impl std::error::Error for InVain {}

/// One after the other.
fn bring_lane(cache: &Cache, ui: &Ui, items: &[&dyn Item], pending: &Pending) -> Result<()> {
    let work = Work {
        cache,
        ui,
        apt: apt::Suites::new(cache),
    };
    let make = |item: &dyn Item| {
        pending.wait(item)?;
        bring(&work, item).with_context(|| format!("setup of {}", item.name()))
    };
    for item in items {
        make(*item).inspect_err(|_| pending.fail())?;
        pending.made(item.name());
    }
    work.apt.clean()
}

impl Pending {
    fn new(items: &[&dyn Item]) -> Self {
        Self {
            state: Mutex::new(State {
                names: items.iter().map(|item| item.name().to_owned()).collect(),
                failed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Returns once nothing is pending that `item` needs.
    fn wait(&self, item: &dyn Item) -> Result<()> {
        let is_pending = |state: &mut State| {
            !state.failed && item.needs().iter().any(|name| state.names.contains(*name))
        };
        let waited = self.changed.wait_while(self.lock(), is_pending);
        let state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.failed {
            bail!(InVain(item.name().to_owned()));
        }
        Ok(())
    }

    fn made(&self, name: &str) {
        self.lock().names.remove(name);
        self.changed.notify_all();
    }

    fn fail(&self) {
        self.lock().failed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Made from nothing, and named like the file that it is.
    struct Made {
        name: &'static str,
        needs: &'static [&'static str],
        compiled: bool,
        breaks: bool,
    }

    impl Item for Made {
        fn name(&self) -> &str {
            self.name
        }

        fn why(&self) -> &str {
            "for a test"
        }

        fn needs(&self) -> &[&str] {
            self.needs
        }

        fn is_compiled(&self) -> bool {
            self.compiled
        }

        fn place(&self) -> Option<&str> {
            Some(self.name)
        }

        fn recipe(&self, _cache: &Cache) -> Result<String> {
            Ok("1".to_owned())
        }

        fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
            for name in self.needs {
                anyhow::ensure!(work.cache.path(name).exists(), "{name} is not there yet");
            }
            anyhow::ensure!(!self.breaks, "broken");
            std::fs::write(partial, "")?;
            Ok("1".to_owned())
        }

        fn check(&self, _place: &Path) -> Result<()> {
            Ok(())
        }
    }

    const fn made(name: &'static str, needs: &'static [&'static str], compiled: bool) -> Made {
        Made {
            name,
            needs,
            compiled,
            breaks: false,
        }
    }

    #[test]
    fn what_is_needed_comes_first_in_both_lanes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let cache = Cache::at(folder.path());
        let items = [
            made("tools", &[], false),
            made("program", &["tools"], true),
            made("image", &["program"], false),
            made("other", &["image"], true),
        ];
        let items: Vec<&dyn Item> = items.iter().map(|item| item as &dyn Item).collect();
        bring_all(&cache, &items).expect("made");
        for item in items {
            assert!(cache.path(item.name()).exists(), "{}", item.name());
        }
    }

    #[test]
    fn what_cannot_be_made_is_the_error_and_nobody_waits_for_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let cache = Cache::at(folder.path());
        let broken = Made {
            breaks: true,
            ..made("program", &[], true)
        };
        let image = made("image", &["program"], false);
        let error = bring_all(&cache, &[&broken, &image]).expect_err("one is broken");
        assert_eq!(format!("{error:#}"), "setup of program: broken");
        assert!(!cache.path("image").exists());
    }

    #[test]
    fn of_two_causes_both_are_told() {
        let broken =
            |name: &str| Err(anyhow::anyhow!("broken").context(format!("setup of {name}")));
        let vain = || Err(InVain("image".to_owned()).into());
        let told = |fetching, compiling| {
            let error = causes(fetching, compiling).expect_err("one is broken");
            format!("{error:#}")
        };
        assert_eq!(
            told(broken("tools"), broken("program")),
            "setup of tools: broken; setup of program: broken"
        );
        assert_eq!(told(vain(), broken("program")), "setup of program: broken");
        assert_eq!(told(broken("tools"), vain()), "setup of tools: broken");
        assert_eq!(told(Ok(()), broken("program")), "setup of program: broken");
        assert!(causes(Ok(()), Ok(())).is_ok());
    }
}
