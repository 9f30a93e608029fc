//! ttrpc services of Podmotion.
//!
//! [`shim::v1`] is what one shim says about its containers. The messages and services are
//! generated from the files in `proto/`, which document each field.
//!
//! Those who ask shims have more: `client` (the feature of that name) finds and asks them, `record` (likewise)
//! is what they say as JSON. A shim is built without both.

mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

/// `podmotion.shim`: status, sleep and wake of one shim's containers.
pub mod shim {
    /// Version 1. A server implements `Shim` and registers the methods that `create_shim` makes
    /// of it; a client uses `ShimClient`.
    pub mod v1 {
        pub use crate::generated::shim::*;
        pub use crate::generated::shim_ttrpc::*;
    }
}

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "record")]
pub mod record;
#[cfg(feature = "record")]
pub mod report;

pub use protobuf;
pub use ttrpc;

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use crate::shim::v1::{Container, Counters};

    #[test]
    fn container_survives_the_wire() {
        let container = Container {
            id: "abc".into(),
            state: "asleep".into(),
            memory_freed_bytes: 1 << 40,
            counters: Some(Counters {
                sleeps: 7,
                ..Counters::default()
            })
            .into(),
            ..Container::default()
        };
        let bytes = container.write_to_bytes().unwrap();
        assert_eq!(Container::parse_from_bytes(&bytes).unwrap(), container);
    }
}
