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
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct SelfTest {
    /// Every step has gone well.
    pub passed: bool,
    /// The first step that has not, and why.
    pub error: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// containerd's version; empty if it did not say.
    pub containerd: String,
    /// The version of Podmotion that was tested.
    pub podmotion: String,
    /// When it came to its end, RFC 3339.
    pub finished: String,
    /// In their order.
    pub steps: Vec<Step>,
}

/// A step of a self-test.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Step {
    /// Its name, such as `deep: sleep`.
    pub name: String,
    /// Whether it went well.
    pub ok: bool,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// What was seen, or what was wrong.
    pub detail: String,
}
