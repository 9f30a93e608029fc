//! Tables as kubectl prints them.

use std::io::{self, Write};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use comfy_table::{Attribute, Cell, Table, presets};

/// An empty table with these titles.
pub fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let title = |title: &&str| Cell::new(title).add_attribute(Attribute::Bold);
    table.set_header(header.iter().map(title));
    table
}

/// Puts three blanks between columns and none at the edges. To be called when all rows are there.
pub fn pad(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
}

/// Prints it, in colours where there are any.
///
/// # Errors
/// When nothing can be printed.
pub fn print<S>(out: &mut AutoStream<S>, mut table: Table) -> io::Result<()>
where
    S: RawStream + anstream::stream::AsLockedWrite,
{
    if out.current_choice() == ColorChoice::Never {
        table.force_no_tty();
    } else {
        table.enforce_styling();
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
