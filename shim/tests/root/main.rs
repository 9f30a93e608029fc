//! The gate, in network namespaces made for it. Needs root.

// Its unit tests are compiled in, but this harness does not run them.
#[allow(dead_code, unused_imports)]
#[path = "../../src/gate/mod.rs"]
mod gate;

mod books;
mod cost;
mod hold;
mod ignored;
mod keepalive;
mod kubelet;
mod probes;
mod rig;
mod sys;

use libtest_mimic::{Arguments, Trial};

macro_rules! trials {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$(Trial::test(
            concat!("gate::", stringify!($module), "::", stringify!($name)),
            || { $module::$name(); Ok(()) },
        )),*]
    };
}

fn main() {
    if kubelet::is_wanted() {
        kubelet::run();
        return;
    }
    let mut arguments = Arguments::from_args();
    // Times and segments sent again are counted: one at a time.
    arguments.test_threads.get_or_insert(1);
    if !nix::unistd::geteuid().is_root() {
        if std::env::var_os("PODMOTION_SKIP_ROOT").is_some_and(|value| value == "1") {
            return;
        }
        eprintln!("these tests need root; PODMOTION_SKIP_ROOT=1 skips them");
        std::process::exit(1);
    }
    let trials = trials![
        hold::connection_over_ipv4,
        hold::connection_over_ipv6,
        hold::connection_over_ipv4_loopback,
        hold::connection_over_ipv6_loopback,
        hold::connection_from_the_pod_to_its_own_address,
        hold::connection_with_clsact,
        hold::two_hundred_clients_at_once,
        hold::data_on_an_established_connection_is_delivered_once,
        hold::connection_without_a_socket_is_not_reset,
        hold::end_of_an_established_connection_wakes,
        hold::bare_acknowledgement_is_dropped_and_wakes_nobody,
        hold::datagram_is_held_and_delivered,
        hold::datagram_in_fragments_is_delivered_whole,
        hold::large_segments_are_delivered,
        hold::other_ports_are_not_affected,
        hold::containers_of_a_pod_wake_one_by_one,
        hold::what_a_release_reads_for_another_container_wakes_that,
        hold::connection_on_a_port_that_another_container_has,
        hold::frames_beyond_the_limit_are_counted,
        hold::no_packet_is_lost_between_hold_and_release,
        hold::connection_with_the_program_for_older_kernels,
        keepalive::peers_keep_connections_that_sleep,
        keepalive::two_sleeping_ends_do_not_answer_each_other,
        probes::connections_of_kubelets_are_noted_and_no_others,
        probes::programs_of_two_installations_note_beside_each_other,
        probes::a_node_that_does_not_tell_probes_still_ignores,
        probes::probes_are_not_use,
        probes::a_probe_that_waits_for_its_answer_is_no_request,
        probes::a_probe_that_is_answered_while_one_looks_is_no_request,
        probes::pauses_between_probes_are_told,
        probes::probes_of_a_sleeping_container_go_to_the_responder,
        probes::probes_of_an_awake_container_go_to_the_responder_if_told,
        probes::probes_of_ports_that_do_not_wake_go_to_the_responder_and_nothing_else_does,
        probes::without_a_responder_probes_wait_like_others,
        probes::what_the_shim_opens_itself_is_not_use_and_not_steered,
        probes::a_later_connection_with_the_same_addresses_is_no_probe,
        ignored::networks_that_are_ignored_are_not_use,
        ignored::user_agents_that_are_ignored_are_not_use,
        ignored::what_is_ignored_wakes,
        cost::packet_of_an_awake_container_is_cheap,
        books::activity_is_what_uses_the_container,
        books::activity_of_connections_that_the_pod_opened,
        books::ports_are_replaced_and_kept_apart,
        books::one_pod_does_not_fill_the_nodes_map_of_connections,
        books::between_two_holds_the_tap_stays_and_is_told_to_nobody,
        books::a_tap_that_the_pod_has_taken_away_is_made_again,
        books::closing_takes_everything_back,
        books::a_second_gate_is_refused_and_a_dead_ones_entries_removed,
        books::sockets_are_listed_with_what_waits,
        books::a_connection_that_is_being_opened_waits,
        books::listeners_with_mptcp_are_told_apart,
        books::connections_that_the_pod_opens_are_listed_from_the_first_packet_on,
        books::a_connection_that_was_reset_is_none,
        books::a_killed_shims_filters_are_taken_off,
    ];
    if !arguments.list {
        rig::prepare();
    }
    libtest_mimic::run(&arguments, trials).exit();
}
