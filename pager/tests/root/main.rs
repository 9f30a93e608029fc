//! Real processes whose memory leaves and comes back. Needs root.

mod cage;

fn main() {}
