//! ttrpc services of Podmotion.
//!
//! Generated from `proto/*.proto` at build time; the documentation of messages and fields is there.

/// Messages of `podmotion.shim.v1`: status, sleep and wake of one shim's containers.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod shim {
    include!(concat!(env!("OUT_DIR"), "/shim.rs"));
}

/// Client and server of `podmotion.shim.v1`.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod shim_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/shim_ttrpc.rs"));
}
