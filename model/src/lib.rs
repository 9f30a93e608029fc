//! Pure rules of Podmotion: what a user can set, when a container may sleep, which state it
//! is in and what follows from an event, and what a checkpoint says about itself.
//!
//! Nothing here does I/O, reads a clock or waits: callers bring facts and carry out effects.

#![forbid(unsafe_code)]

pub mod annotations;
pub mod chain;
pub mod config;
pub mod docs;
pub mod duration;
pub mod idle;
pub mod lifecycle;
pub mod manifest;
pub mod metrics;
pub mod overhead;
pub mod probe;
pub mod settings;
pub mod value;
