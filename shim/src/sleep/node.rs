//! What the containers of a shim share for their sleep.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use podmotion_criu_driver::{Criu, LogLevel};
use podmotion_model::config::{self, ConfigError, NodeConfig};
use podmotion_model::manifest::Platform;

use super::{
    janitor::{self, Claim},
    manifest,
    pod::PodGates,
    shared::SharedError,
    status::Registry,
};

/// Names a configuration file other than [`config::PATH`].
pub const CONFIG_VARIABLE: &str = "PODMOTION_CONFIG";

/// The node's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The file is there and cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is wrong.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
}

/// The node, as the containers of this shim know it.
pub struct Node {
    /// Its configuration.
    pub config: NodeConfig,
    /// The gates of the pods.
    pub gates: PodGates,
    /// The containers.
    pub registry: Registry,
    claim: Mutex<Option<Claim>>,
    criu: Criu,
    platform: OnceLock<Platform>,
}

impl Node {
    /// Reads the node's configuration; without a file everything has its default.
    pub fn load() -> Result<Self, NodeError> {
        let path = std::env::var_os(CONFIG_VARIABLE)
            .map_or_else(|| PathBuf::from(config::PATH), PathBuf::from);
        let config = read(&path)?;
        Ok(Self {
            criu: criu(&config),
            config,
            gates: PodGates::default(),
            registry: Registry::default(),
            claim: Mutex::new(None),
            platform: OnceLock::new(),
        })
    }

    /// Has other shims leave alone what this one puts into the directory of the checkpoints. Must have
    /// succeeded before anything is put there.
    ///
    /// # Errors
    /// When there is no such directory to be had.
    pub fn claim(&self) -> Result<(), SharedError> {
        let mut claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if claim.is_none() {
            *claim = Some(janitor::claim(&self.config.checkpoint.directory)?);
        }
        Ok(())
    }

    /// CRIU, which learns about the kernel at its first use.
    pub fn criu(&self) -> &Criu {
        &self.criu
    }

    /// The machine, once CRIU has answered on it; otherwise why it did not. Asked before the first
    /// dump: what CRIU learns about the kernel then makes all later dumps and restores faster.
    pub fn platform(&self) -> Result<&Platform, podmotion_criu_driver::Error> {
        if let Some(platform) = self.platform.get() {
            return Ok(platform);
        }
        self.criu().features()?;
        Ok(self
            .platform
            .get_or_init(|| manifest::platform(self.criu())))
    }
}

/// Where restores have their work directories: a short path, for CRIU's sockets in them.
pub fn work_folder(config: &NodeConfig) -> PathBuf {
    let sockets = &config.shim.sockets;
    sockets.parent().unwrap_or(sockets).join("work")
}

fn criu(config: &NodeConfig) -> Criu {
    let level = match config.criu.log_level.get() {
        0 | 1 => LogLevel::Error,
        2 => LogLevel::Warning,
        3 => LogLevel::Info,
        _ => LogLevel::Debug,
    };
    Criu::new(own(config.criu.binary.as_ref()), level)
}

/// The program that is there now, wherever links lead later: an upgrade turns them, and what has been
/// learned about one CRIU need not be true of another. What is not there is reported by who runs it.
fn own(program: &Path) -> PathBuf {
    match program.is_absolute() {
        true => fs::canonicalize(program).unwrap_or_else(|_| program.to_owned()),
        false => program.to_owned(),
    }
}

fn read(path: &Path) -> Result<NodeConfig, NodeError> {
    match fs::read_to_string(path) {
        Ok(text) => NodeConfig::from_toml(&text).map_err(|source| NodeError::Config {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(NodeConfig::default()),
        Err(source) => Err(NodeError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_upgrade_does_not_give_a_running_shim_another_criu() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for version in ["1", "2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("criu"), version).unwrap();
        }
        symlink("1", at("current")).unwrap();
        let criu = own(&at("current/criu"));
        fs::remove_file(at("current")).unwrap();
        symlink("2", at("current")).unwrap();
        assert_eq!(fs::read_to_string(criu).unwrap(), "1");
        // Found in `PATH`, or to be reported.
        assert_eq!(own(Path::new("criu")), Path::new("criu"));
        assert_eq!(own(&at("nowhere")), at("nowhere"));
    }
}
