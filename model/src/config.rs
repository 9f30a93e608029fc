//! The node's configuration, `/etc/podmotion/config.toml`.
//!
//! One table in this file is the only place that knows a key, its documentation and its
//! default; the structs, the defaults, `config.toml.example` and the errors come from it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::de::DeTable;

use crate::value::{
    ByteSize, Compression, CriuLogLevel, DeepSleepAfter, List, LogLevel, Network, OnRestoreFailure,
    ProcessName, Program, Setting, Share, TerminateAsleep, UserAgent, deserialize, to_toml,
};

/// Where the configuration is on a node.
pub const PATH: &str = "/etc/podmotion/config.toml";

/// A gate that cannot hold the largest frame a peer can send loses it: 64 KiB of IP packet and
/// its Ethernet header, rounded up to whole pages.
const LARGEST_FRAME: ByteSize = ByteSize(68 << 10);

/// Itself, and the programs of K3s and MicroK8s that it is a part of.
const KUBELETS: [&str; 5] = ["kubelet", "k3s-server", "k3s-agent", "k3s", "kubelite"];

/// What is known about one key of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    name: &'static str,
    docs: &'static [&'static str],
    accepted: &'static str,
    /// As a TOML value.
    default: String,
}

/// What is known about one section of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    name: &'static str,
    docs: &'static [&'static str],
    keys: Vec<Key>,
}

fn key<T: Setting>(name: &'static str, docs: &'static [&'static str], default: &T) -> Key {
    Key {
        name,
        docs,
        accepted: T::ACCEPTED,
        default: to_toml(default),
    }
}

macro_rules! node_config {
    ($(
        $(#[doc = $about:literal])*
        $section:ident: $name:ident {
            $( $(#[doc = $doc:literal])* $field:ident: $ty:ty = $default:expr, )*
        }
    )*) => {
        /// The whole file. Keys that are not there have their default.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct NodeConfig {
            $( $(#[doc = $about])* pub $section: $name, )*
        }

        $(
            $(#[doc = $about])*
            #[derive(Debug, Clone, PartialEq, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $name {
                $( $(#[doc = $doc])* #[serde(deserialize_with = "deserialize")] pub $field: $ty, )*
            }

            impl Default for $name {
                fn default() -> Self {
                    Self { $( $field: $default, )* }
                }
            }
        )*

        impl NodeConfig {
            /// Every section and key, with the defaults, in the file's order.
            fn sections() -> Vec<Section> {
                let defaults = Self::default();
                vec![ $( Section {
                    name: stringify!($section),
                    docs: &[$($about),*],
                    keys: vec![ $( key(
                        stringify!($field),
                        &[$($doc),*],
                        &defaults.$section.$field,
                    ), )* ],
                }, )* ]
            }
        }
    };
}

node_config! {
    /// When containers sleep. Each key can be set for a pod by its annotation, such as
    /// komodor.com/podmotion-scaledown-duration, which wins.
    sleep: SleepConfig {
        /// Idle time before a container sleeps.
        scaledown_duration: Option<Duration> = Some(Duration::from_secs(60)),
        /// A container that uses more than this many CPU cores is not idle.
        busy_cpu: Option<f64> = Some(0.5),
        /// A request that has arrived on a connection and that nothing was sent for yet keeps a
        /// container awake for this long. Where the client has the last word (HTTP/2
        /// acknowledgements, one-way streams) it looks the same, so this is not without end.
        answer_wait: Option<Duration> = Some(Duration::from_secs(120)),
        /// Time in light sleep before the checkpoint.
        deep_sleep_after: DeepSleepAfter = DeepSleepAfter::After(Duration::from_secs(600)),
        /// Nothing ever sleeps; reported is when it would have.
        dry_run: bool = false,
        /// What a TERM on a sleeping container does: wake it and deliver the signal, or discard
        /// the checkpoint.
        terminate_asleep: TerminateAsleep = TerminateAsleep::Wake,
    }

    /// Containers that are stopped instead of being checkpointed
    /// (komodor.com/podmotion-disable-checkpointing).
    stop: StopConfig {
        /// Time for a container's processes to end after a TERM. Then they are killed.
        timeout: Duration = Duration::from_secs(30),
        /// The longest time that connections are held for a container that was started anew and
        /// does not listen on all of its ports yet. Then they go on as to any other container that
        /// starts.
        start_timeout: Duration = Duration::from_secs(60),
    }

    /// What is left alone for the rest of the node.
    pressure: PressureConfig {
        /// While less memory than this is available (MemAvailable in /proc/meminfo, percentages
        /// are of MemTotal), light sleep does not wait for deep_sleep_after but becomes deep at
        /// once, which frees page tables and shared memory too; "never" stays never. The kubelet
        /// begins to evict pods at 100MiB.
        min_memory: Share = Share::Percent(10),
        /// No sleep leaves less than this free on the file system of checkpoints: containers
        /// stay awake, or in light sleep. The kubelet begins to evict pods at 10%.
        min_disk: Share = Share::Percent(10),
        /// A wake waits for memory, for wake_wait at most, while the node would have less than
        /// this available with the container's memory back. Below 100MiB the kubelet evicts pods.
        wake_min_memory: Share = Share::Bytes(ByteSize::mebibytes(100)),
        /// The longest time that a wake waits for memory. Then it goes on without: somebody waits
        /// for an answer, and what is missing may be had all the same.
        wake_wait: Option<Duration> = Some(Duration::from_secs(3)),
    }

    /// Where checkpoints are kept, and what they may take.
    checkpoint: CheckpointConfig {
        /// Checkpoints, one directory below it for each container; only root can read them. Of one
        /// node: what is in it when no shim of the node lives is removed by the next one.
        directory: PathBuf = PathBuf::from("/var/lib/podmotion/checkpoints"),
        /// All images of the node together take no more than this; percentages are of the file
        /// system of the directory. A sleep that would need more does not begin. Images that
        /// awake containers keep to spare their next sleep writing count too.
        quota: Share = Share::Percent(50),
        /// What becomes of images of light sleep: "lz4" compresses what no wake is known to need,
        /// page by page, with at most a tenth of a processor for each container, and a wake ends it
        /// at once. A file system that cannot give up parts of a file has them stay as they are.
        compression: Compression = Compression::Lz4,
        /// Time in light sleep before the image is compressed: what wakes before then is spared
        /// the work.
        compress_after: Duration = Duration::from_secs(60),
        /// Checkpointed containers of one process with at least this much memory run again before
        /// all of it is back.
        lazy_threshold: ByteSize = ByteSize::mebibytes(64),
        /// A checkpoint that takes longer is given up and the container stays awake.
        dump_timeout: Duration = Duration::from_secs(60),
        /// A restore that takes longer has failed.
        restore_timeout: Duration = Duration::from_secs(30),
        /// Time without another attempt after a failed checkpoint; doubles with each failure.
        backoff_initial: Duration = Duration::from_secs(30),
        /// The longest time between attempts; not below backoff_initial.
        backoff_max: Duration = Duration::from_secs(1800),
        /// What follows when a container cannot be restored, not even on the second attempt.
        on_restore_failure: OnRestoreFailure = OnRestoreFailure::Exit,
    }

    /// The checkpoint tool.
    criu: CriuConfig {
        /// The criu to use; the host's own is never used.
        binary: Program = Program::new("/opt/podmotion/criu/bin/criu"),
        /// How much criu logs.
        log_level: CriuLogLevel = CriuLogLevel::WARNINGS,
    }

    /// The runtime that creates containers.
    runc: RuncConfig {
        /// The runc to use.
        binary: Program = Program::new("runc"),
    }

    /// The gate: notes traffic and holds packets for a sleeping container.
    gate: GateConfig {
        /// Where the BPF programs and maps are pinned.
        pins: PathBuf = PathBuf::from("/sys/fs/bpf/podmotion/v1"),
        /// Packets held for one pod at most.
        hold_packets: u32 = 4096,
        /// Bytes held for one pod at most; at least 68KiB, room for the largest frame.
        hold_bytes: ByteSize = ByteSize::mebibytes(16),
        /// Switch MPTCP off in the network namespace of a pod before a container that may sleep
        /// runs in it. CRIU cannot checkpoint MPTCP sockets, and Go programs listen on them where
        /// they can; without MPTCP they listen on plain TCP.
        disable_mptcp: bool = true,
    }

    /// The kubelet's probes, which neither wake a container nor keep it awake.
    probes: ProbesConfig {
        /// Connections that root's processes with these names open are probes, if they run in the
        /// mount and PID namespaces of containerd, as the kubelet does. Not so what runs in a
        /// container.
        kubelets: List<ProcessName> = List(
            KUBELETS.iter().map(|name| ProcessName((*name).to_owned())).collect()
        ),
    }

    /// Traffic that does not count as use. It wakes a sleeping container, which answers it, and
    /// keeps no container awake. What is changed here holds for all pods once another one starts.
    traffic: TrafficConfig {
        /// Senders in these networks.
        ignore_networks: List<Network> = List(Vec::new()),
        /// Unencrypted HTTP/1 requests whose user agent begins like this. It must stand in the
        /// first 512 bytes. If there is any, a connection counts from its first data on.
        ignore_user_agents: List<UserAgent> = List(Vec::new()),
    }

    /// The shim itself.
    shim: ShimConfig {
        /// How much the shim logs.
        log_level: LogLevel = LogLevel::Info,
        /// The sockets of the shims, one for each pod; only root can connect.
        sockets: PathBuf = PathBuf::from("/run/podmotion/shims"),
    }
}

/// Why a configuration cannot be taken. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML.
    #[error("line {line}: {message}")]
    Syntax {
        /// Where.
        line: usize,
        /// The parser's explanation.
        message: String,
    },
    /// A key or section that does not exist.
    #[error("line {line}: {key} does not exist, there are {}", known.join(", "))]
    UnknownKey {
        /// Where.
        line: usize,
        /// `section.key`, or `section`.
        key: String,
        /// The names that exist in this place.
        known: Vec<&'static str>,
    },
    /// A value that its key does not take.
    #[error("line {line}: {key} = {value} is not valid: expected {accepted}")]
    Value {
        /// Where.
        line: usize,
        /// `section.key`, or `section`.
        key: String,
        /// The value as written in the file.
        value: String,
        /// The accepted form.
        accepted: &'static str,
        /// The parser's explanation.
        message: String,
    },
    /// A value that its type takes, but below what makes sense beside the others.
    #[error("{key} = {value} is not valid: expected at least {least}, {why}")]
    TooSmall {
        /// `section.key`.
        key: &'static str,
        /// The value, as the file writes such values.
        value: String,
        /// The least value.
        least: String,
        /// Where the least value comes from.
        why: &'static str,
    },
}

impl NodeConfig {
    /// Reads the configuration file's text. An empty text gives the defaults.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| explain(text, &error))?;
        at_least(
            "checkpoint.backoff_max",
            config.checkpoint.backoff_max,
            config.checkpoint.backoff_initial,
            "which is checkpoint.backoff_initial",
        )?;
        at_least(
            "gate.hold_bytes",
            config.gate.hold_bytes,
            LARGEST_FRAME,
            "the size of the largest frame",
        )?;
        Ok(config)
    }

    /// The text of `config.toml.example`: every key with its documentation, its accepted form
    /// and its default, commented out.
    pub fn example() -> String {
        let mut out = format!(
            "# Settings of a node, {PATH}. A key that is commented out has the value\n\
             # shown. A key that does not exist is an error.\n"
        );
        for section in Self::sections() {
            out.push('\n');
            for line in section.docs {
                out.push_str(&format!("#{line}\n"));
            }
            out.push_str(&format!("[{}]\n", section.name));
            for key in section.keys {
                out.push('\n');
                for line in key.docs {
                    out.push_str(&format!("#{line}\n"));
                }
                out.push_str(&format!("# Expected: {}.\n", key.accepted));
                out.push_str(&format!("#{} = {}\n", key.name, key.default));
            }
        }
        out
    }
}

fn at_least<T: Setting + Ord>(
    key: &'static str,
    value: T,
    least: T,
    why: &'static str,
) -> Result<(), ConfigError> {
    if value >= least {
        return Ok(());
    }
    Err(ConfigError::TooSmall {
        key,
        value: to_toml(&value),
        least: to_toml(&least),
        why,
    })
}

/// Finds what an error of the deserializer is about: its span points into a key or a value.
fn explain(text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().unwrap_or_default().start;
    let syntax = || ConfigError::Syntax {
        line: line_of(text, at),
        message: error.message().to_owned(),
    };
    let Ok(document) = DeTable::parse(text) else {
        return syntax();
    };
    let sections = NodeConfig::sections();
    for (name, value) in document.get_ref() {
        let Some(section) = sections.iter().find(|known| known.name == name.get_ref()) else {
            return ConfigError::UnknownKey {
                line: line_of(text, name.span().start),
                key: name.get_ref().to_string(),
                known: sections.iter().map(|known| known.name).collect(),
            };
        };
        let Some(table) = value.get_ref().as_table() else {
            return ConfigError::Value {
                line: line_of(text, value.span().start),
                key: section.name.to_owned(),
                value: text[value.span()].to_owned(),
                accepted: "a section",
                message: error.message().to_owned(),
            };
        };
        for (name, value) in table {
            let Some(key) = section
                .keys
                .iter()
                .find(|known| known.name == name.get_ref())
            else {
                return ConfigError::UnknownKey {
                    line: line_of(text, name.span().start),
                    key: format!("{}.{}", section.name, name.get_ref()),
                    known: section.keys.iter().map(|known| known.name).collect(),
                };
            };
            if value.span().contains(&at) {
                return ConfigError::Value {
                    line: line_of(text, value.span().start),
                    key: format!("{}.{}", section.name, key.name),
                    value: text[value.span()].to_owned(),
                    accepted: key.accepted,
                    message: error.message().to_owned(),
                };
            }
        }
    }
    syntax()
}

/// The line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}

#[cfg(test)]
mod tests;
