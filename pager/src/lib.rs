//! Memory of stopped processes out to a file and back.

mod copy;
mod descriptor;
mod image;
mod journal;
mod maps;
mod out;
mod pager;
mod rescue;
mod runs;
mod server;
mod space;
mod stats;
mod sys;
mod working_set;

pub use image::{INDEX, ImageError, PAGES};
pub use out::OutError;
pub use pager::{FillFailed, Filling, Moved, NotMoved, Pager};
pub use rescue::{RescueError, rescue};
pub use server::ServerError;
pub use stats::{FillPolicy, FillStats, OutStats};
pub use working_set::WORKING_SET;
