//! Commands for working on Podmotion.

fn main() {}
