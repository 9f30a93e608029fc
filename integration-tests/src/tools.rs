//! Which programs a test uses and where they lie.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A containerd release line, as `cargo xtask setup` provides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContainerdVersion {
    /// 1.6, configuration version 2.
    V1_6,
    /// 1.7, configuration version 2.
    V1_7,
    /// 2.x, configuration version 3.
    V2,
}

impl ContainerdVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2];
}

impl fmt::Display for ContainerdVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_6 => "containerd-1.6",
            Self::V1_7 => "containerd-1.7",
            Self::V2 => "containerd-2",
        })
    }
}

/// A runc release line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuncVersion {
    /// 1.1.
    V1_1,
    /// 1.3.
    V1_3,
}

impl RuncVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 2] = [Self::V1_1, Self::V1_3];
}

impl fmt::Display for RuncVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_1 => "runc-1.1",
            Self::V1_3 => "runc-1.3",
        })
    }
}

/// How deep containers of a node sleep, unless an annotation says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Depth {
    /// Their memory is out.
    Light,
    /// They are checkpointed at once.
    Deep,
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Light => "light",
            Self::Deep => "deep",
        })
    }
}

/// A containerd with a runc. The default is the newest of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Versions {
    /// The daemon.
    pub containerd: ContainerdVersion,
    /// What both runtimes call.
    pub runc: RuncVersion,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            containerd: ContainerdVersion::V2,
            runc: RuncVersion::V1_3,
        }
    }
}

impl Versions {
    /// Every pair, oldest first.
    pub fn all() -> impl Iterator<Item = Self> {
        ContainerdVersion::ALL.into_iter().flat_map(|containerd| {
            RuncVersion::ALL
                .into_iter()
                .map(move |runc| Self { containerd, runc })
        })
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.containerd, self.runc)
    }
}

/// The runtime a container is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// containerd's own: what ours is compared with.
    Runc,
    /// Ours.
    Podmotion,
}

impl Runtime {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Runc, Self::Podmotion];

    /// containerd's name for it.
    pub fn runtime_type(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Podmotion => "io.containerd.podmotion.v1",
        }
    }

    /// The CRI runtime handler.
    pub fn handler(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Podmotion => "podmotion",
        }
    }

    /// The shim's file name.
    pub fn shim(self) -> &'static str {
        match self {
            Self::Runc => "containerd-shim-runc-v2",
            Self::Podmotion => "containerd-shim-podmotion-v1",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.handler())
    }
}

/// Where the programs of one pair of versions lie.
#[derive(Clone, Debug)]
pub struct Tools {
    cache: PathBuf,
    dist: PathBuf,
    versions: Versions,
}

impl Tools {
    /// The cache is `$PODMOTION_CACHE`, or `~/.cache/podmotion`; our own binaries are in `$PODMOTION_BIN`,
    /// or `target/dist` of the checkout.
    pub fn new(versions: Versions) -> Result<Self> {
        let cache = match env::var_os("PODMOTION_CACHE") {
            Some(path) => PathBuf::from(path),
            None => env::home_dir()
                .context("find the home directory, where the cache is; PODMOTION_CACHE is not set")?
                .join(".cache/podmotion"),
        };
        let dist = env::var_os("PODMOTION_BIN").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist"),
            PathBuf::from,
        );
        Ok(Self {
            cache,
            dist,
            versions,
        })
    }

    /// A file below the cache; it must exist.
    pub fn cached(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.cache.join(path);
        ensure!(
            path.exists(),
            "{} is missing: run `cargo xtask setup`",
            path.display()
        );
        Ok(path)
    }

    /// Where the cache is.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// The daemon.
    pub fn containerd(&self) -> Result<PathBuf> {
        self.cached(format!("{}/bin/containerd", self.versions.containerd))
    }

    /// Its command line client.
    pub fn ctr(&self) -> Result<PathBuf> {
        self.cached(format!("{}/bin/ctr", self.versions.containerd))
    }

    /// The runc that both runtimes are told to use.
    pub fn runc(&self) -> Result<PathBuf> {
        self.cached(format!("{}/bin/runc", self.versions.runc))
    }

    /// Network plugins.
    pub fn cni(&self) -> Result<PathBuf> {
        for plugin in ["bridge", "host-local", "loopback"] {
            self.cached(format!("cni/{plugin}"))?;
        }
        self.cached("cni")
    }

    /// A runtime's shim; it must exist.
    pub fn shim(&self, runtime: Runtime) -> Result<PathBuf> {
        match runtime {
            Runtime::Runc => self.cached(format!(
                "{}/bin/{}",
                self.versions.containerd,
                runtime.shim()
            )),
            Runtime::Podmotion => {
                self.responder()?;
                self.built(runtime.shim())
            }
        }
    }

    /// The CRIU that shims are told to use.
    pub fn criu(&self) -> Result<PathBuf> {
        self.cached("criu/bin/criu")
    }

    /// Our command line.
    pub fn cli(&self) -> Result<PathBuf> {
        self.built("podmotion")
    }

    /// Our program that shows a cluster what sleeps.
    pub fn manager(&self) -> Result<PathBuf> {
        self.built("podmotion-manager")
    }

    /// kubectl's plugin, which kubectl finds by its name.
    pub fn kubectl_plugin(&self) -> Result<PathBuf> {
        self.built("kubectl-podmotion")
    }

    /// Our program that puts the others on a node and pins the gate's BPF programs.
    pub fn installer(&self) -> Result<PathBuf> {
        self.built("podmotion-installer")
    }

    /// Our program that speaks TLS and gRPC with kubelets; the shim finds it beside itself.
    pub fn responder(&self) -> Result<PathBuf> {
        self.built("podmotion-responder")
    }

    /// Our program that the node's self-test puts to sleep.
    pub fn self_test_app(&self) -> Result<PathBuf> {
        self.built("podmotion-self-test-app")
    }

    fn built(&self, name: &str) -> Result<PathBuf> {
        let path = self.dist.join(name);
        ensure!(
            path.exists(),
            "{} is missing: build the binaries or set PODMOTION_BIN",
            path.display()
        );
        Ok(path)
    }

    /// `PATH` of the daemon: it finds the shims there.
    pub(crate) fn path(&self) -> String {
        format!("{}:{}", self.dist.display(), self.plain_path())
    }

    /// The same without our programs.
    pub(crate) fn plain_path(&self) -> String {
        format!(
            "{cache}/{}/bin:{cache}/{}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.versions.containerd,
            self.versions.runc,
            cache = self.cache.display(),
        )
    }
}
