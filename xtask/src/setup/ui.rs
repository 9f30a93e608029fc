//! What setup says: a spinner on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget};

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(120);

/// Reports progress of one item at a time.
pub struct Ui {
    terminal: bool,
    bar: RefCell<ProgressBar>,
}

impl Ui {
    /// Reports to standard error.
    pub fn new() -> Self {
        let bar = ProgressBar::hidden();
        Self {
            terminal: !ProgressDrawTarget::stderr().is_hidden(),
            bar: RefCell::new(bar),
        }
    }

    /// An item's making begins.
    pub fn begin(&self, item: &str, why: &str) {
        if self.terminal {
            let bar = ProgressBar::new_spinner();
            bar.set_prefix(item.to_owned());
            bar.enable_steady_tick(TURN);
            bar.println(format!("getting {item}: {why}"));
            self.bar.replace(bar);
        } else {
            eprintln!("getting {item}: {why}");
        }
    }

    /// A step of the item at hand.
    pub fn step(&self, what: &str) {
        if self.terminal {
            let bar = self.bar.borrow();
            bar.set_message(format!("{}: {what}", bar.prefix()));
        } else {
            eprintln!("    {what}");
        }
    }

    /// The item is there. `bytes` is 0 for what is not in the cache.
    pub fn end(&self, item: &str, version: &str, took: Duration, bytes: u64) {
        self.bar.borrow().finish_and_clear();
        let size = if bytes > 0 {
            format!(", {}", HumanBytes(bytes))
        } else {
            String::new()
        };
        eprintln!(
            "    {item} {version}: ready in {:.1} s{size}",
            took.as_secs_f64()
        );
    }
}
