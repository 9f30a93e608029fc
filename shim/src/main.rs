//! containerd-shim-podmotion-v1.

fn main() {}
