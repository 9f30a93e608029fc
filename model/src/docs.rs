//! Pages of documentation that come from what the code knows; tests compare them.

mod annotations;
mod why_awake;

pub use annotations::page as annotations;
pub use why_awake::{advice, page as why_awake};

/// A cell of a table in Markdown.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
