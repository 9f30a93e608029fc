//! The kubelet's probes: what they ask, and which of them can be answered for a container that sleeps.
//!
//! ```text
//!   awake, idle:  kubelet --> responder --> application     its answer goes back, and into the book
//!   asleep:       kubelet --> responder: 200                if the book knows the request
//!                 kubelet --> responder --> wake, and as above    otherwise
//! ```
//!
//! Invariant: an answer that the application has not given is one that it gave before, to the same
//! request, when it was last in use or later. See [`Book`].

mod book;
mod head;
pub mod wire;

pub use book::{Book, Pending, PortSeen, STILL_COMING};
pub use head::{Head, HeadKind, MAX_HEAD, Request, RequestHead, response_status};

#[cfg(test)]
mod tests;
