//! `/metrics`: a view of the [`Store`], made at each scrape. Counters and times are the shims' own, so
//! nothing is counted twice, a manager that starts anew has all of it of containers that are there, and nothing
//! is left of a pod that is gone.

mod families;
mod labels;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

#[cfg(test)]
pub use self::families::STATES;
use crate::node::SelfTest;
use crate::store::Store;

/// What the text is called over HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Requests to the API server that failed, by what was to be done.
pub type ApiErrors = Family<[(&'static str, &'static str); 1], Counter>;

/// All metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
}

impl Metrics {
    /// Of what is known at each scrape.
    pub fn new(
        store: watch::Receiver<Store>,
        self_test: watch::Receiver<Option<SelfTest>>,
        errors: ApiErrors,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(View { store, self_test }));
        registry.register(
            "podmotion_kubernetes_errors",
            "Requests to the API server that failed",
            errors,
        );
        Self {
            registry: Arc::new(registry),
        }
    }

    /// All of them as text.
    ///
    /// # Errors
    /// None that the text's own encoder does not make up.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct View {
    store: watch::Receiver<Store>,
    self_test: watch::Receiver<Option<SelfTest>>,
}

impl Collector for View {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let store = self.store.borrow();
        let (containers, counted) = (store.containers(), store.counted());
        let counted: Vec<_> = counted.iter().collect();
        let self_test = self.self_test.borrow();
        families::node(&mut encoder, &store, &containers, self_test.as_ref())?;
        families::sleeps(&mut encoder, &counted)?;
        families::wakes(&mut encoder, &counted)?;
        families::now(&mut encoder, &containers)
    }
}

#[cfg(test)]
mod tests;
