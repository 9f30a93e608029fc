//! The command line. Every flag can be given by the environment too.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

/// Where the node is, and its containerd.
#[derive(Args, Clone, Debug)]
pub struct Node {
    /// Where the node's / is mounted
    #[arg(
        long,
        value_name = "DIR",
        env = "PODMOTION_HOST_ROOT",
        default_value = "/host"
    )]
    pub host_root: PathBuf,
    /// The node's name, for messages
    #[arg(long, value_name = "NAME", env = "PODMOTION_NODE_NAME")]
    pub node_name: String,
    /// containerd's socket on the node [default: where Kubernetes, k3s and rke2 have it]
    #[arg(long, value_name = "PATH", env = "PODMOTION_CONTAINERD_SOCKET")]
    pub containerd_socket: Option<PathBuf>,
    /// Who restarts containerd when its configuration has changed
    #[arg(long, env = "PODMOTION_RESTART", value_enum, default_value_t = Restart::Auto)]
    pub restart: Restart,
    /// How long containerd may take to come up, or others to restart it
    #[arg(long, value_name = "SECONDS", env = "PODMOTION_RESTART_WAIT", default_value = "120", value_parser = seconds)]
    pub restart_wait: Duration,
    /// The RuntimeClass to create or remove; none leaves the cluster alone
    #[arg(
        long,
        value_name = "NAME",
        env = "PODMOTION_RUNTIME_CLASS",
        default_value = "podmotion"
    )]
    pub runtime_class: String,
}

impl Node {
    /// The RuntimeClass, if there is to be one.
    pub fn class(&self) -> Option<&str> {
        Some(self.runtime_class.as_str()).filter(|name| !["", "none"].contains(name))
    }
}

/// Who restarts containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Restart {
    /// This program, through the node's systemd
    Auto,
    /// Somebody else, who is waited for
    Never,
}

/// What `install` takes.
#[derive(Args, Clone, Debug)]
pub struct Install {
    #[command(flatten)]
    pub node: Node,
    /// What to install: a directory with bin and criu
    #[arg(
        long,
        value_name = "DIR",
        env = "PODMOTION_SOURCE",
        default_value = "/podmotion"
    )]
    pub source: PathBuf,
    /// Settings of the node's shims, for /etc/podmotion/config.toml [default: what is there]
    #[arg(long, value_name = "FILE", env = "PODMOTION_CONFIG")]
    pub config: Option<PathBuf>,
    /// A label of the nodes that have it, which their pods are scheduled by; can be repeated
    #[arg(long, value_name = "KEY=VALUE", env = "PODMOTION_NODE_SELECTOR", value_delimiter = ',', default_value = "komodor.com/podmotion-node=true", value_parser = label)]
    pub node_selector: Vec<(String, String)>,
    /// Put a container to sleep and wake it before the node is said to be ready
    #[arg(long, value_name = "BOOL", env = "PODMOTION_SELF_TEST", default_value_t = true, action = ArgAction::Set)]
    pub self_test: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected a label as KEY=VALUE".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("expected a whole number of seconds from 1 to 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_a_key_and_a_value() {
        let pool = ("example.com/pool".to_owned(), "sleepy".to_owned());
        assert_eq!(label("example.com/pool=sleepy"), Ok(pool));
        assert_eq!(label("pool="), Ok(("pool".to_owned(), String::new())));
        assert!(label("pool").is_err() && label("=x").is_err());
    }

    #[test]
    fn seconds_are_whole_and_bounded() {
        assert_eq!(seconds("90"), Ok(Duration::from_secs(90)));
        for bad in ["0", "-1", "1.5", "2m", "86401", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
