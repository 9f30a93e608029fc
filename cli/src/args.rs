//! The command line. `docs/cli.md`, the manual pages and the completions are made of it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use podmotion_cli::share::Shell;
use podmotion_model::{config, duration};

use crate::check::names::Name;
use crate::exit;

/// Containers that sleep: what they do, why one does not, and whether the node is fit for it
///
/// Each pod's shim answers for itself on a socket that only root can use; nothing here needs containerd
/// or Kubernetes to be up.
#[derive(Debug, Parser)]
#[command(name = "podmotion", version, after_long_help = exit::DOCS, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// How to print: for people, or as JSON
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
    /// The node's configuration; where there is no such file everything has its default
    #[arg(long, global = true, value_name = "FILE", env = "PODMOTION_CONFIG", hide_env_values = true, default_value = config::PATH)]
    pub config: PathBuf,
    /// Where the shims' sockets are, in place of what the configuration says
    #[arg(long, global = true, value_name = "DIR")]
    pub shims: Option<PathBuf>,
}

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List containers: state, why one is awake, what its sleep has freed
    Ps(PsArgs),
    /// Show all that its shim says about a container
    Inspect(InspectArgs),
    /// Put containers to sleep now, whatever their idle time
    ///
    /// Waits until they sleep. A container that cannot sleep stays awake, and the shim's reason is printed.
    Sleep(RequestArgs),
    /// Wake containers
    ///
    /// Waits until they run.
    Wake(RequestArgs),
    /// Print a line for each change, as it happens
    ///
    /// What is there at first is printed too. Runs until it is interrupted. States that pass within
    /// milliseconds can be left out.
    Watch(WatchArgs),
    /// Look whether this node has all that it takes
    ///
    /// Each line is a check: ok, or what to do about it. A warning costs something and does not make the
    /// command fail. Needs root.
    Check(CheckArgs),
    /// Remove what a crash or a reboot has left without an owner
    ///
    /// Checkpoints of containers that are gone, sockets and work directories of shims that are gone, and what the
    /// gate's BPF maps hold about network namespaces that are gone. Never what a shim that lives or a container that
    /// containerd has may still need: where that cannot be told, everything stays and the command fails.
    Gc(GcArgs),
    /// Print the completions for a shell
    Completion(CompletionArgs),
    /// Write manual pages and completions below a directory, as below /usr/share
    #[command(hide = true)]
    Share(ShareArgs),
    /// The process of the self-test
    #[command(hide = true)]
    SelfTestProcess,
}

/// Which containers.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Those that have ended and the pods' own containers too
    #[arg(short, long)]
    pub all: bool,
    /// Only those of pods in this Kubernetes namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only those of pods with this name
    #[arg(short, long, value_name = "POD")]
    pub pod: Option<String>,
    /// Only those in one of these states
    #[arg(short, long, value_enum, value_name = "STATE", value_delimiter = ',')]
    pub state: Vec<StateName>,
}

/// A state, or a depth of sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateName {
    /// Not started yet
    Created,
    /// Awake
    Running,
    /// On its way to sleep
    FallingAsleep,
    /// Asleep, light or deep
    Asleep,
    /// Asleep, its memory out
    Light,
    /// Asleep, checkpointed
    Deep,
    /// Asleep without processes or a checkpoint: stopped, to be started anew
    Cold,
    /// On its way back
    Waking,
    /// It could not be restored
    RestoreFailed,
    /// Ended
    Stopped,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    pub filter: Filter,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// An id, the beginning of one that no other has, or NAMESPACE/POD or NAMESPACE/POD/CONTAINER
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

#[derive(Debug, Args)]
pub struct RequestArgs {
    /// An id, the beginning of one that no other has, or NAMESPACE/POD or NAMESPACE/POD/CONTAINER
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
    /// How long to wait for each; what was begun goes on
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    pub filter: Filter,
    /// Leave out what is there at first
    #[arg(long)]
    pub watch_only: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Only these checks; without any, all of them
    #[arg(value_enum, value_name = "CHECK")]
    pub checks: Vec<Name>,
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

#[derive(Debug, Args)]
pub struct ContainerdArgs {
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = crate::containerd::PATH)]
    pub containerd_config: PathBuf,
}

#[derive(Debug, Args)]
pub struct GcArgs {
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// What is younger stays: its owner may be about to appear
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub min_age: Duration,
    /// A further folder in which a containerd keeps its state, such as /run/containerd
    #[arg(long, value_name = "DIR")]
    pub containerd_state: Vec<PathBuf>,
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub struct ShareArgs {
    /// The directory
    pub directory: PathBuf,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .map_err(|error| format!("{error}: expected a duration such as 30s or 1m30s"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use clap_markdown::MarkdownOptions;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    fn page() -> String {
        let options = MarkdownOptions::new()
            .title("The command line".to_owned())
            .show_footer(false);
        let text = clap_markdown::help_markdown_custom::<Cli>(&options);
        let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
        lines.join("\n") + "\n"
    }

    /// `UPDATE=1` rewrites it.
    #[test]
    fn the_documented_command_line_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, page()).expect("write docs/cli.md");
        }
        let found = std::fs::read_to_string(&path).expect("read docs/cli.md");
        assert_eq!(
            found,
            page(),
            "docs/cli.md is not current: run `UPDATE=1 cargo test -p podmotion-cli`"
        );
        assert!(page().contains(exit::DOCS), "the exit codes are not in it");
    }
}
