//! Harness for tests against a real containerd.
