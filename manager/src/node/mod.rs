//! What is about the whole node: the result of its self-test, and the taint that waits for it.

mod containerd;
mod self_test;
mod taint;

pub use self_test::{Places, SelfTest, follow};
pub use taint::{NOT_READY, remove_taint};
