//! The node's configuration, read as the shim reads it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use podmotion_model::config::NodeConfig;

use crate::args::Global;

/// The configuration in `path`; the defaults where there is no such file.
///
/// # Errors
/// When the file is wrong or cannot be read.
pub fn read(path: &Path) -> Result<NodeConfig> {
    match fs::read_to_string(path) {
        Ok(text) => NodeConfig::from_toml(&text)
            .with_context(|| format!("configuration {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(NodeConfig::default()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Where the shims' sockets are.
///
/// # Errors
/// When the configuration has to say it and cannot be read.
pub fn sockets(global: &Global) -> Result<PathBuf> {
    match &global.shims {
        Some(folder) => Ok(folder.clone()),
        None => Ok(read(&global.config)
            .context("where the shims' sockets are, which --shims says too")?
            .shim
            .sockets),
    }
}
