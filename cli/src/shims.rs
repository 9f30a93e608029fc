//! The shims of this node, as the commands ask them.

use anyhow::{Context, Result};
pub use podmotion_proto::client::{
    Found, Shim, ShimError, Survey, is_socket_name, sockets, survey,
};

/// Says who did not answer; whether all have.
pub fn complain(survey: &Survey) -> bool {
    for error in &survey.silent {
        crate::complain(&error.to_string());
    }
    survey.silent.is_empty()
}

/// The event loop that the calls run in.
///
/// # Errors
/// When the system does not give what it needs.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")
}
