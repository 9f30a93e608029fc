//! BPF programs and their maps.
