//! For programs, and what all commands say about nodes that are missing.

use std::io::Write;

use anyhow::{Context, Result};
use podmotion_proto::record::{Outcome, Record};
use serde::{Deserialize, Serialize};

/// A container and its node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct OnNode {
    /// The node.
    pub node: String,
    /// What `podmotion ps` there says of it.
    #[serde(flatten)]
    pub record: Record,
}

/// What became of a request, and where.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct OutcomeOnNode {
    /// The node.
    pub node: String,
    /// What `podmotion sleep` there says.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Prints a value as JSON.
///
/// # Errors
/// When nothing can be printed.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("write JSON")?;
    writeln!(anstream::stdout(), "{text}")?;
    Ok(())
}

/// Prints a value as YAML.
///
/// # Errors
/// When nothing can be printed.
pub fn yaml(value: &impl Serialize) -> Result<()> {
    let text = serde_saphyr::to_string(value).context("write YAML")?;
    writeln!(anstream::stdout(), "{}", text.trim_end())?;
    Ok(())
}

/// Says that shims have not answered; whether all have.
pub fn complain(node: &str, silent: usize) -> bool {
    if silent != 0 {
        crate::complain(&format!(
            "node {node}: {silent} of its shims did not answer; `kubectl podmotion check {node}` \
             names them"
        ));
    }
    silent == 0
}
