//! How a node is, as JSON: its manager serves it, `kubectl podmotion check` reads it.

use serde::{Deserialize, Serialize};

/// A node, as its manager sees it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Its name.
    pub node: String,
    /// The manager's version.
    pub version: String,
    /// The last self-test; missing where there was none since the node has started.
    pub self_test: Option<SelfTest>,
    /// The node's shims.
    pub shims: Shims,
}

/// Shims of a node.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Shims {
    /// How many answer.
    pub answered: usize,
    /// What was not to be had of the others.
    pub silent: Vec<String>,
}

/// A self-test of a node, as it is written down in `/run/podmotion/self-test.json`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SelfTest {
    /// A container slept and woke.
    pub passed: bool,
    /// Why not.
    pub error: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// containerd's version.
    pub containerd: String,
    /// The version of what was tested.
    pub podmotion: String,
    /// When it ended, in RFC 3339.
    pub finished: String,
    /// What it did.
    pub steps: Vec<Step>,
}

/// A step of a self-test.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// Whether it went well.
    pub ok: bool,
    /// How long it took.
    pub millis: u64,
    /// What it came to.
    pub detail: String,
}
