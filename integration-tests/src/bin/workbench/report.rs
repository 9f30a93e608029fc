//! What a run says: a spinner and lines while it goes on, a table at its end.

use std::cell::RefCell;
use std::io::{IsTerminal, stderr, stdout};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Row, Table, presets};
use indicatif::ProgressBar;

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(120);

/// What is being done: a spinner on a terminal, a line elsewhere.
pub struct Progress {
    terminal: bool,
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            terminal: stderr().is_terminal(),
            bar: RefCell::new(None),
        }
    }

    /// Something begins.
    pub fn begin(&self, what: &str) {
        if self.terminal {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(TURN);
            bar.set_message(what.to_owned());
            self.clear();
            self.bar.replace(Some(bar));
        }
    }

    /// How far it is.
    pub fn detail(&self, what: &str) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.set_message(what.to_owned());
        }
    }

    /// It is over.
    pub fn end(&self, line: &str) {
        self.clear();
        eprintln!("{line}");
    }

    fn clear(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A table with these columns; those in `right` are figures.
pub fn table(
    header: &[&str],
    right: &[usize],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    if stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(Row::from(row));
    }
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}
