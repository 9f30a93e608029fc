//! The tests that are left out, and why: the only way for a test not to run.

/// Part of a test's full name, and the reason.
const SKIPS: &[(&str, &str)] = &[];

/// Why a test is left out, if it is.
pub(crate) fn reason(name: &str) -> Option<&'static str> {
    SKIPS
        .iter()
        .find(|(part, _)| name.contains(part))
        .map(|(_, reason)| *reason)
}
