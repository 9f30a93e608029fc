//! The node's containerd: which process it is, and which files it reads.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;

use crate::host::Host;

/// Where Kubernetes distributions have it listen.
const SOCKETS: [&str; 2] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// Where its configuration is unless it is told otherwise.
const CONFIG: &str = "/etc/containerd/config.toml";

/// Where k3s and rke2 have it, below their folder.
const RANCHER: &str = "agent/etc/containerd/config.toml";

/// There is no containerd, or it cannot be told how it was started.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Nobody listens anywhere.
    #[error("no containerd listens: {}", tried.join(", "))]
    Nobody {
        /// Each socket, and why it is none.
        tried: Vec<String>,
    },
    /// Its process is hidden.
    #[error("the process that listens on {} cannot be seen: run in the node's PID namespace (hostPID)", socket.display())]
    Hidden {
        /// The socket.
        socket: PathBuf,
    },
    /// What the system does not say.
    #[error("{what} of containerd, process {pid}: {source}")]
    Process {
        /// What was looked for.
        what: &'static str,
        /// Its pid.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A containerd that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Its socket, as it is seen from here.
    pub socket: PathBuf,
    /// Its pid.
    pub pid: u32,
    /// Its main file on the node.
    pub config: PathBuf,
}

impl Daemon {
    /// The one that listens on `named`, a path on the node, or where one usually does.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(host: &Host, named: Option<&Path>) -> Result<Self, DaemonError> {
        let usual = SOCKETS.map(Path::new);
        let sockets = named.as_slice();
        let sockets = if sockets.is_empty() { &usual } else { sockets };
        let mut tried = Vec::new();
        for path in sockets {
            let connected = host
                .at(path)
                .and_then(|seen| Ok((UnixStream::connect(&seen)?, seen)));
            match connected {
                Ok((stream, socket)) => return Self::behind(&stream, socket),
                Err(error) => tried.push(format!("{}: {error}", path.display())),
            }
        }
        Err(DaemonError::Nobody { tried })
    }

    /// The process that listens at the other end.
    fn behind(stream: &UnixStream, socket: PathBuf) -> Result<Self, DaemonError> {
        let pid = socket_peercred(stream).map(|peer| peer.pid.as_raw_nonzero().get());
        let Ok(Ok(pid)) = pid.map(u32::try_from) else {
            return Err(DaemonError::Hidden { socket });
        };
        let proc = Path::new("/proc").join(pid.to_string());
        let failed = |what| move |source| DaemonError::Process { what, pid, source };
        let line = fs::read(proc.join("cmdline")).map_err(failed("read the arguments"))?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let arguments: Vec<&str> = line.split('\0').collect();
        let config = Path::new(configuration(&arguments));
        let folder = fs::read_link(proc.join("cwd")).map_err(failed("read the directory"))?;
        Ok(Self {
            socket,
            pid,
            config: folder.join(config),
        })
    }

    /// The folder of its main file, if k3s or rke2 writes that from templates beside it.
    pub fn templates(&self) -> Option<&Path> {
        self.config.ends_with(RANCHER).then_some(())?;
        self.config.parent()
    }
}

/// What the arguments say about the configuration.
fn configuration<'a>(arguments: &[&'a str]) -> &'a str {
    let mut arguments = arguments.iter().skip(1);
    while let Some(argument) = arguments.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (*argument, None),
        };
        if ["-c", "--config", "-config"].contains(&name) {
            return value.or(arguments.next().copied()).unwrap_or(CONFIG);
        }
    }
    CONFIG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_say_where_the_configuration_is() {
        for (arguments, expected) in [
            (&["containerd"][..], CONFIG),
            (&["containerd", "--log-level", "debug"], CONFIG),
            (&["containerd", "-c", "/a", "-a", "/b"], "/a"),
            (&["containerd", "--log-level=info", "--config=/a"], "/a"),
            (&["--config", "--config", "/a", ""], "/a"),
        ] {
            assert_eq!(configuration(arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn the_files_of_k3s_and_rke2_are_known_by_their_place() {
        let daemon = |config: &str| Daemon {
            socket: "/s".into(),
            pid: 1,
            config: config.into(),
        };
        let k3s = daemon("/var/lib/rancher/k3s/agent/etc/containerd/config.toml");
        let folder = Path::new("/var/lib/rancher/k3s/agent/etc/containerd");
        assert_eq!(k3s.templates(), Some(folder));
        assert_eq!(
            daemon("/data/rke2/agent/etc/containerd/config.toml")
                .templates()
                .map(Path::new),
            Some(Path::new("/data/rke2/agent/etc/containerd"))
        );
        assert_eq!(daemon(CONFIG).templates(), None);
    }

    #[test]
    fn where_nobody_listens_every_socket_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Daemon::find(&Host::new(dir.path()), None)
            .unwrap_err()
            .to_string();
        assert!(
            SOCKETS.iter().all(|socket| error.contains(socket)),
            "{error}"
        );
        let named = Some(Path::new("/run/other.sock"));
        let error = Daemon::find(&Host::new(dir.path()), named)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no containerd listens: /run/other.sock: "),
            "{error}"
        );
    }
}
