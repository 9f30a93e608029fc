//! The tests that are left out, and why: the only way for a test not to run.

/// Part of a test's full name, and the reason.
const SKIPS: &[(&str, &str)] = &[(
    "install::pods_sleep_wake_and_outlive_it[containerd-1.6",
    "containerd 1.6 finds a sandbox's shim by its PATH alone, which the installer leaves to the node's owner",
)];

/// Why a test is left out, if it is.
pub(crate) fn reason(name: &str) -> Option<&'static str> {
    SKIPS
        .iter()
        .find(|(part, _)| name.contains(part))
        .map(|(_, reason)| *reason)
}
