//! The command line. `docs/kubectl.md`, the manual pages and the completions are made of it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use podmotion_cli::share::Shell;
use podmotion_model::duration;

use crate::exit;
use crate::token::Account;

/// The namespace of Podmotion's own pods.
const NAMESPACE: &str = "komodor-podmotion-system";

/// Containers that sleep: what they do, why one does not, and how the nodes are
///
/// Asks the manager on each node, through the API server. It takes the rights to list Podmotion's pods and to
/// reach them (pods/proxy), and to make a token of one of its service accounts: podmotion-viewer to see, and
/// podmotion-operator for sleep and wake. The node's manager gets that token, which is good for ten minutes and for
/// nothing else, never the user's own.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-podmotion",
    bin_name = "kubectl podmotion",
    version,
    after_long_help = exit::DOCS,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command: kubectl's own, and where Podmotion is.
#[derive(Debug, Args)]
pub struct Global {
    /// The kubeconfig file
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig file
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The cluster of the kubeconfig file
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The user of the kubeconfig file
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Another user, in whose place to ask the API server
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// A group, in whose place to ask; can be repeated
    #[arg(long, global = true, value_name = "GROUP", requires = "as_user")]
    pub as_group: Vec<String>,
    /// The namespace of the pods; without it, the context's
    #[arg(short, long, global = true, value_name = "NAMESPACE", value_parser = parse_name)]
    pub namespace: Option<String>,
    /// How long a node has to answer
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub request_timeout: Duration,
    /// The namespace of Podmotion's own pods
    #[arg(
        long, global = true, value_name = "NAMESPACE", env = "PODMOTION_NAMESPACE", hide_env_values = true,
        default_value = NAMESPACE, value_parser = parse_name
    )]
    pub podmotion_namespace: String,
    /// Whose token to show to the managers, in place of podmotion-viewer's and podmotion-operator's
    ///
    /// NAME in Podmotion's namespace, or NAMESPACE/NAME: what that service account may do is what can be done.
    #[arg(
        long,
        global = true,
        value_name = "ACCOUNT",
        env = "PODMOTION_SERVICE_ACCOUNT",
        hide_env_values = true
    )]
    pub service_account: Option<Account>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List containers: state, why one is awake or what woke it, what its sleep has freed
    Ps(PsArgs),
    /// Put the containers of pods to sleep now, whatever their idle time
    ///
    /// Waits until they sleep. A container that cannot sleep stays awake, and the reason is printed.
    Sleep(RequestArgs),
    /// Wake the containers of pods
    ///
    /// Waits until they run.
    Wake(RequestArgs),
    /// Explain in words what keeps the containers of a pod awake, and what to do about it
    Why(WhyArgs),
    /// Show a node's last self-test, and whether all of its shims answer
    Check(CheckArgs),
    /// Print the completions for a shell
    ///
    /// Those of the command kubectl-podmotion. For kubectl podmotion, put a link to this program into the PATH that is
    /// called kubectl_complete-podmotion: kubectl asks it.
    Completion(CompletionArgs),
    /// Write manual pages and completions below a directory, as below /usr/share
    #[command(hide = true)]
    Share(ShareArgs),
}

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For people, with more columns
    Wide,
    /// For programs
    Json,
    /// For programs
    Yaml,
}

/// A form of output that has no more columns to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people
    Text,
    /// For programs
    Json,
    /// For programs
    Yaml,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Only those of pods with this name
    #[arg(value_name = "POD", value_parser = parse_pod)]
    pub pods: Vec<String>,
    /// Pods of all namespaces, whatever --namespace says
    #[arg(short = 'A', long, conflicts_with = "pods")]
    pub all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct RequestArgs {
    /// A pod
    #[arg(value_name = "POD", required = true, value_parser = parse_pod)]
    pub pods: Vec<String>,
    /// Only this container of it
    #[arg(short, long, value_name = "CONTAINER", value_parser = parse_name)]
    pub container: Option<String>,
    /// How long to wait for each, five minutes at most; what was begun goes on
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_patience)]
    pub timeout: Duration,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Form::Text, value_name = "FORMAT")]
    pub output: Form,
}

#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The pod
    #[arg(value_name = "POD", value_parser = parse_pod)]
    pub pod: String,
    /// Only this container of it
    #[arg(short, long, value_name = "CONTAINER", value_parser = parse_name)]
    pub container: Option<String>,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The node
    #[arg(value_name = "NODE", value_parser = parse_node)]
    pub node: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Form::Text, value_name = "FORMAT")]
    pub output: Form,
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

/// Managers wait in whole seconds, and no longer than this.
fn parse_patience(text: &str) -> Result<Duration, String> {
    let range = Duration::from_secs(1)..=Duration::from_secs(300);
    let duration = parse_duration(text)?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    Err("expected a duration from 1s to 5m".to_owned())
}

/// A pod's name, in kubectl's way with its kind before it or without.
fn parse_pod(text: &str) -> Result<String, String> {
    let kinds = ["pod/", "pods/", "po/"];
    let name = kinds.iter().find_map(|kind| text.strip_prefix(kind));
    parse_name(name.unwrap_or(text))
}

fn parse_node(text: &str) -> Result<String, String> {
    let kinds = ["node/", "nodes/", "no/"];
    let name = kinds.iter().find_map(|kind| text.strip_prefix(kind));
    parse_name(name.unwrap_or(text))
}

/// The name of an object. It becomes part of an address: nothing else may.
pub fn parse_name(text: &str) -> Result<String, String> {
    const LONGEST: usize = 253;
    let is_sign =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if (1..=LONGEST).contains(&text.len()) && text.bytes().all(is_sign) {
        return Ok(text.to_owned());
    }
    Err("expected a name of small letters, digits, '-' and '.'".to_owned())
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

    #[test]
    fn names_are_accepted_as_kubectl_accepts_them() {
        assert_eq!(parse_pod("pod/web-0").unwrap(), "web-0");
        assert_eq!(parse_pod("web-0").unwrap(), "web-0");
        assert_eq!(parse_node("node/n1.example").unwrap(), "n1.example");
        for bad in ["", "a/b", "deploy/web", "../x", "WEB", "a?b", "a%2fb"] {
            assert!(parse_pod(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wrong_word_is_named_with_what_is_accepted() {
        let parse = |words: &[&str]| {
            let words = ["kubectl-podmotion"].iter().chain(words);
            Cli::try_parse_from(words).map_err(|error| error.to_string())
        };
        for (words, named) in [
            (&["sleep", "a", "--timeout=10m"][..], "from 1s to 5m"),
            (&["ps", "-A", "cart"], "--all-namespaces"),
            (&["why", "deploy/web"], "deploy/web"),
            (&["ps", "--service-account", "a/b/c"], "NAMESPACE/NAME"),
            (&["sleep"], "<POD>"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(named), "{words:?}: {error}");
        }
        parse(&[
            "ps",
            "-A",
            "-o",
            "wide",
            "--as",
            "jane",
            "--as-group",
            "dev",
        ])
        .unwrap();
    }

    fn page() -> String {
        let options = MarkdownOptions::new()
            .title("kubectl podmotion".to_owned())
            .show_footer(false);
        let text = clap_markdown::help_markdown_custom::<Cli>(&options);
        let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
        lines.join("\n") + "\n"
    }

    /// `UPDATE=1` rewrites it.
    #[test]
    fn the_documented_command_line_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubectl.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, page()).expect("write docs/kubectl.md");
        }
        let found = std::fs::read_to_string(&path).expect("read docs/kubectl.md");
        assert_eq!(
            found,
            page(),
            "docs/kubectl.md is not current: run `UPDATE=1 cargo test -p podmotion-cli`"
        );
        assert!(page().contains(exit::DOCS), "the exit codes are not in it");
    }
}
