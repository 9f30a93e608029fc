//! One node per pair of versions and one cluster, started when the first test comes, shared by all, stopped at the end.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::Result;
use podmotion_integration_tests::{Cluster, Node, Versions};

static NODES: LazyLock<Mutex<HashMap<Versions, Node>>> = LazyLock::new(Mutex::default);

static CLUSTER: Mutex<Option<Arc<Cluster>>> = Mutex::new(None);

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

/// The cluster, on a node that nobody else has: a kubelet ends pods that are not its own.
pub(crate) fn cluster() -> Result<Arc<Cluster>> {
    let mut shared = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = &*shared {
        return Ok(Arc::clone(cluster));
    }
    let cluster = Arc::new(Cluster::start(Node::start(Versions::default())?)?);
    *shared = Some(Arc::clone(&cluster));
    Ok(cluster)
}

/// Stops all of them.
pub(crate) fn stop_all() {
    CLUSTER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    NODES.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
