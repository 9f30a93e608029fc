//! The containers of this shim, by id, with those that are being created.
//!
//! ```text
//!  create ──> Seat ──take──> there ──remove──┐
//!              └──drop─────────────────────> gone ──> none is left, and the end was asked for, or nothing for a while:
//!                                                     the shim ends
//! ```
//!
//! containerd does not wait for a creation that its own client has given up: it deletes the container at once, and asks
//! for the shim's end. Whoever asks for a container that is being created therefore waits until it is there or
//! has failed; otherwise the deletion would find nothing, and what the runtime makes afterwards would be nobody's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::container::{Container, ContainerError};

/// Cheap to clone.
#[derive(Clone)]
pub struct Containers {
    inner: Arc<Mutex<Inner>>,
    shutdown: Arc<Notify>,
    /// There are none, nor any that are being created.
    none: watch::Sender<bool>,
}

#[derive(Default)]
struct Inner {
    /// None as long as a container is being created.
    slots: HashMap<String, watch::Receiver<Option<Container>>>,
    /// containerd has asked for the end while containers were being created.
    end: bool,
}

/// An id that a container is being created for. Dropped without a container, the id is free again.
pub struct Seat {
    containers: Containers,
    id: String,
    container: watch::Sender<Option<Container>>,
}

impl Containers {
    /// None yet. `shutdown` is notified when the shim is to end and no container is left.
    #[must_use]
    pub fn new(shutdown: Arc<Notify>) -> Self {
        Self {
            inner: Arc::default(),
            shutdown,
            none: watch::Sender::new(true),
        }
    }

    /// Returns once there has been no container for `patience`, nor one that was being created: containerd asks for the
    /// shim's end after the last one's deletion, or creates one after the shim's start, unless its own client has given
    /// that up in between.
    pub async fn left_alone(&self, patience: Duration) {
        let mut none = self.none.subscribe();
        // This has the other end.
        while none.wait_for(|none| *none).await.is_ok() {
            if timeout(patience, none.wait_for(|none| !*none))
                .await
                .is_err()
            {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // It is consistent between any two statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an id for a container that is to be created.
    ///
    /// # Errors
    /// [`ContainerError::Exists`] if one has it, or is being created for it.
    pub fn seat(&self, id: &str) -> Result<Seat, ContainerError> {
        let mut inner = self.lock();
        if inner.slots.contains_key(id) {
            return Err(ContainerError::Exists { id: id.to_owned() });
        }
        let (container, slot) = watch::channel(None);
        inner.slots.insert(id.to_owned(), slot);
        inner.end = false;
        self.none.send_replace(false);
        Ok(Seat {
            containers: self.clone(),
            id: id.to_owned(),
            container,
        })
    }

    /// A container; waits for one that is being created.
    ///
    /// # Errors
    /// [`ContainerError::NotCreated`] if there is none.
    pub async fn get(&self, id: &str) -> Result<Container, ContainerError> {
        let slot = self.lock().slots.get(id).cloned();
        let mut slot = slot.ok_or(ContainerError::NotCreated)?;
        let container = slot.wait_for(Option::is_some).await;
        container
            .ok()
            .and_then(|container| container.clone())
            .ok_or(ContainerError::NotCreated)
    }

    /// Those that are there.
    pub fn all(&self) -> Vec<Container> {
        let inner = self.lock();
        let there = inner.slots.values().map(|slot| slot.borrow().clone());
        there.flatten().collect()
    }

    /// Forgets a container that was deleted.
    pub fn remove(&self, id: &str) {
        let mut inner = self.lock();
        inner.slots.remove(id);
        self.none.send_replace(inner.slots.is_empty());
        if inner.end && inner.slots.is_empty() {
            self.shutdown.notify_one();
        }
    }

    /// The shim is to end if there are no containers: containerd says so after each deletion, of a pod's shim too. Where
    /// some are being created, it ends if none of them stays.
    pub fn end(&self) {
        let mut inner = self.lock();
        if inner.slots.is_empty() {
            self.shutdown.notify_one();
        }
        let mut slots = inner.slots.values();
        inner.end = slots.any(|slot| slot.borrow().is_none());
    }
}

impl Seat {
    /// The container is there.
    pub fn take(self, container: Container) {
        self.container.send_replace(Some(container));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // A container that was deleted meanwhile is not in the way: its id may be another's by now.
        if self.container.borrow().is_none() {
            self.containers.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_shim_is_left_alone_while_it_has_no_container_and_none_is_created() {
        const PATIENCE: Duration = Duration::from_millis(10);
        let containers = Containers::new(Arc::default());
        containers.left_alone(PATIENCE).await;
        let seat = containers.seat("a").expect("nobody has it");
        let waited = timeout(10 * PATIENCE, containers.left_alone(PATIENCE)).await;
        assert!(waited.is_err());
        drop(seat);
        containers.left_alone(PATIENCE).await;
    }
}
