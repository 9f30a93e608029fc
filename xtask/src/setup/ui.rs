//! What setup says: a spinner on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget};

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(120);

/// Reports progress of one item at a time.
pub struct Ui {
    /// Those of all reports, so that they stay apart. None where there is no terminal.
    bars: Option<MultiProgress>,
    bar: RefCell<ProgressBar>,
    item: RefCell<String>,
}

impl Ui {
    /// Reports to standard error.
    pub fn new() -> Self {
        let terminal = !ProgressDrawTarget::stderr().is_hidden();
        Self::with(terminal.then(MultiProgress::new))
    }

    /// Reports of another item at the same time.
    pub fn beside(&self) -> Self {
        Self::with(self.bars.clone())
    }

    fn with(bars: Option<MultiProgress>) -> Self {
        Self {
            bars,
            bar: RefCell::new(ProgressBar::hidden()),
            item: RefCell::default(),
        }
    }

    /// An item's making begins.
    pub fn begin(&self, item: &str, why: &str) {
        self.item.replace(item.to_owned());
        self.line(&format!("getting {item}: {why}"));
        if let Some(bars) = &self.bars {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.enable_steady_tick(TURN);
            self.bar.replace(bar);
        }
    }

    /// A step of the item at hand.
    pub fn step(&self, what: &str) {
        let text = format!("{}: {what}", self.item.borrow());
        if self.bars.is_some() {
            self.bar.borrow().set_message(text);
        } else {
            eprintln!("    {text}");
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
        let took = took.as_secs_f64();
        self.line(&format!("    {item} {version}: ready in {took:.1} s{size}"));
    }

    /// Writes a line above what moves.
    fn line(&self, text: &str) {
        match &self.bars {
            // A terminal that is gone is no reason to stop.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }
}
