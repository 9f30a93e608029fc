//! With no sleep configured, our runtime is containerd's own: every test runs with both, and the last
//! module holds what one says against what the other says.

mod crash;
mod process;
mod resources;
mod same;
mod stdio;

use libtest_mimic::Trial;
use podmotion_integration_tests::{Runtime, Versions};

use crate::{Body, trial};

/// Tests for every pair of versions: what differs between them.
const CORE: &[(&str, Body)] = &[
    ("plain::exit_code", process::exit_code),
    ("plain::exec_exit_code", process::exec_exit_code),
    ("plain::exec_terminal", process::exec_terminal),
    ("plain::kill_term_and_kill", process::kill_term_and_kill),
    ("plain::pause_resume", resources::pause_resume),
    ("plain::metrics", resources::metrics),
    ("plain::update_memory_limit", resources::update_memory_limit),
    ("plain::close_stdin", stdio::close_stdin),
    ("plain::pod_shares_one_shim", process::pod_shares_one_shim),
    ("plain::shim_killed", crash::shim_killed),
    ("plain::containerd_restarted", crash::containerd_restarted),
];

/// Tests for the newest pair.
const REST: &[(&str, Body)] = &[
    ("plain::stdout_10_mb", stdio::stdout_10_mb),
    ("plain::slow_reader", stdio::slow_reader),
    ("plain::log_file", stdio::log_file),
    ("plain::terminal_resize", stdio::terminal_resize),
    (
        "plain::output_of_a_background_process",
        stdio::output_of_a_background_process,
    ),
    ("plain::oom_event", resources::oom_event),
    ("plain::pids", process::pids),
    ("plain::init_exit_ends_execs", process::init_exit_ends_execs),
    ("plain::nothing_left", crash::nothing_left),
    (
        "plain::creation_that_is_given_up_leaves_nothing",
        crash::given_up,
    ),
];

/// Tests that run both runtimes and compare.
const SAME: &[(&str, Body)] = &[
    ("plain::same_events", same::events),
    (
        "plain::same_container_error_texts",
        same::container_error_texts,
    ),
    ("plain::same_stopped_error_texts", same::stopped_error_texts),
    ("plain::same_exec_error_texts", same::exec_error_texts),
    ("plain::same_start_error_texts", same::start_error_texts),
    ("plain::same_metrics_type", same::metrics_type),
];

/// The tests, each once.
pub(crate) fn tests() -> impl Iterator<Item = (&'static str, Body)> {
    CORE.iter().chain(REST).chain(SAME).copied()
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for versions in Versions::all() {
        for runtime in Runtime::ALL {
            let rest = if versions == Versions::default() {
                REST
            } else {
                &[]
            };
            for (name, body) in CORE.iter().chain(rest) {
                trials.push(trial(name, *body, runtime, versions));
            }
        }
        for (name, body) in SAME {
            trials.push(trial(name, *body, Runtime::Podmotion, versions));
        }
    }
    trials
}
