//! Points in time as protobuf has them.

use std::time::{SystemTime, UNIX_EPOCH};

pub use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// The protobuf form of a point in time; times before 1970 become 1970.
#[must_use]
pub fn from(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

/// The present.
#[must_use]
pub fn now() -> Timestamp {
    from(SystemTime::now())
}

/// A point in time, or what containerd's own shim sends for none: Go's zero time, in year 1.
#[must_use]
pub fn or_never(time: Option<SystemTime>) -> Timestamp {
    match time {
        Some(time) => from(time),
        None => Timestamp {
            seconds: -62_135_596_800,
            ..Timestamp::default()
        },
    }
}
