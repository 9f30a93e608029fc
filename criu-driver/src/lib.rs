//! Drives CRIU.
