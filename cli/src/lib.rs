//! What `podmotion` and `kubectl podmotion` have in common: how things are written for people, and what a
//! package puts below `/usr/share`.
#![forbid(unsafe_code)]

pub mod human;
pub mod share;
pub mod table;
