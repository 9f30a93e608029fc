//! The command line. Each flag can be given by environment too.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

use crate::server;

/// Shows a cluster what sleeps on a node.
#[derive(Debug, Parser)]
#[command(name = "podmotion-manager", version)]
pub struct Args {
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(
        long,
        env = "PODMOTION_METRICS_ADDRESS",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080"
    )]
    pub metrics_address: SocketAddr,

    /// Serve no /metrics; health stays.
    #[arg(long, env = "PODMOTION_NO_METRICS")]
    pub no_metrics: bool,

    /// The node's name in the cluster.
    #[arg(
        long,
        env = "PODMOTION_NODE_NAME",
        value_name = "NAME",
        required_unless_present = "no_kubernetes"
    )]
    pub node_name: Option<String>,

    /// Talk to no API server: metrics and health only.
    #[arg(long, env = "PODMOTION_NO_KUBERNETES")]
    pub no_kubernetes: bool,

    /// Runtime class of the pods that are looked after.
    #[arg(
        long,
        env = "PODMOTION_RUNTIME_CLASS",
        value_name = "NAME",
        default_value = "podmotion"
    )]
    pub runtime_class: String,

    /// Give pods a label status.podmotion.komodor.com/CONTAINER with the container's state.
    #[arg(long, env = "PODMOTION_STATUS_LABELS")]
    pub status_labels: bool,

    /// Write an event about each sleep, wake and failure.
    #[arg(long, env = "PODMOTION_STATUS_EVENTS")]
    pub status_events: bool,

    /// Lower the requests of sleeping containers, until they wake. Needs Kubernetes 1.33.
    #[arg(long, env = "PODMOTION_REDUCE_REQUESTS")]
    pub reduce_requests: bool,

    /// Give the node's pods back what is theirs, requests, labels and condition, and do nothing else but
    /// say on /readyz when that is done.
    #[arg(
        long,
        env = "PODMOTION_GIVE_BACK",
        conflicts_with_all = ["no_kubernetes", "status_labels", "status_events", "reduce_requests", "self_test_repeat"]
    )]
    pub give_back: bool,

    /// Folder of the shims' sockets.
    #[arg(
        long,
        env = "PODMOTION_SHIMS",
        value_name = "FOLDER",
        default_value = "/run/podmotion/shims"
    )]
    pub shims: PathBuf,

    /// Result of the node's self-test.
    #[arg(
        long,
        env = "PODMOTION_SELF_TEST",
        value_name = "FILE",
        default_value = "/run/podmotion/self-test.json"
    )]
    pub self_test: PathBuf,

    /// Make the self-test again when it was made with another kernel or containerd.
    #[arg(long, env = "PODMOTION_SELF_TEST_REPEAT")]
    pub self_test_repeat: bool,

    /// Where containerd listens: it is asked for its version, and to run the self-test where that is repeated.
    #[arg(
        long,
        env = "PODMOTION_CONTAINERD",
        value_name = "ADDRESS",
        default_value = "unix:///run/containerd/containerd.sock"
    )]
    pub containerd: String,

    /// The node server's.
    #[command(flatten)]
    pub server: server::Args,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_needs_its_name_unless_there_is_no_cluster() {
        let parse = |words: &[&str]| Args::try_parse_from([&["podmotion-manager"], words].concat());
        let error = parse(&[]).unwrap_err().to_string();
        assert!(error.contains("--node-name"), "{error}");
        assert!(parse(&["--no-kubernetes"]).is_ok());
        assert!(parse(&["--node-name", "node-1", "--reduce-requests"]).is_ok());
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        let error = Args::try_parse_from([
            "podmotion-manager",
            "--no-kubernetes",
            "--metrics-address",
            "8080",
        ]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("8080") && error.contains("--metrics-address"),
            "{error}"
        );
    }
}
