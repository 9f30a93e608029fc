//! podmotion-installer.

fn main() {}
