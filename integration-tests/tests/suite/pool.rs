//! One node per pair of versions, started when its first test comes, shared by all, stopped at the end.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::Result;
use podmotion_integration_tests::{Node, Versions};

static NODES: LazyLock<Mutex<HashMap<Versions, Node>>> = LazyLock::new(Mutex::default);

/// The pair's node. A test that stops it must start it again.
pub(crate) fn node(versions: Versions) -> Result<Node> {
    let mut nodes = NODES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(node) = nodes.get(&versions) {
        // A test that failed between stop and start would take all others with it.
        if node.pid().is_none() {
            node.start_again()?;
        }
        return Ok(node.clone());
    }
    let node = Node::start(versions)?;
    nodes.insert(versions, node.clone());
    Ok(node)
}

/// Stops all of them.
pub(crate) fn stop_all() {
    NODES.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
