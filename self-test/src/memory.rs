//! A container's memory, as the kernel counts it.

use prost::Message;
use prost_types::Any;

use crate::client::{metrics_v1, metrics_v2};

/// Metrics that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// Neither of the two versions of control groups.
    #[error("metrics of the unknown type {0:?}")]
    Type(String),
    /// They do not decode.
    #[error("decode metrics")]
    Decode(#[from] prost::DecodeError),
}

/// Its anonymous memory in bytes.
pub(crate) fn anonymous(metrics: &Any) -> Result<u64, MemoryError> {
    // typeurl of some versions puts a host in front of the name.
    let name = metrics.type_url.rsplit('/').next().unwrap_or_default();
    Ok(match name {
        "io.containerd.cgroups.v1.Metrics" => metrics_v1::Metrics::decode(&*metrics.value)?
            .memory
            .map_or(0, |memory| memory.rss),
        "io.containerd.cgroups.v2.Metrics" => metrics_v2::Metrics::decode(&*metrics.value)?
            .memory
            .map_or(0, |memory| memory.anon),
        _ => return Err(MemoryError::Type(metrics.type_url.clone())),
    })
}
