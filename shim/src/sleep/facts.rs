//! What is fixed about a container once it runs: all that its dump and restore need to know of
//! the world around it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use podmotion_criu_driver::spec::Spec;
use podmotion_criu_driver::{
    ExternalMount, InheritedPipe, Namespace, Subject,
    mounts::{self, MountError},
};

use crate::cgroup::Cgroup;

/// Why a container cannot be described to CRIU.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// A file that describes the container could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The container's mounts could not be told.
    #[error(transparent)]
    Mounts(#[from] MountError),
    /// A descriptor could not be copied.
    #[error("copy a descriptor: {0}")]
    Descriptor(#[source] io::Error),
}

/// A started container, as it stays over any number of sleeps.
#[derive(Debug)]
pub struct Facts {
    /// The container's id.
    pub id: String,
    /// Its root file system on the host.
    pub rootfs: PathBuf,
    /// Directories of its cgroups, one in each hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// The one of them with the freezer.
    pub freezer: PathBuf,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// runc's directory of this container.
    pub runc_state: PathBuf,
    /// The container's ends of its stdio pipes.
    pub stdio: Arc<Vec<OwnedFd>>,
    /// Its scope would go away with its last process: systemd owns the cgroup.
    pub systemd: bool,
    spec: Arc<Spec>,
    namespaces: Vec<(Namespace, OwnedFd)>,
}

/// What the driver knows of the container when it has started.
#[derive(Clone, Debug)]
pub struct Known {
    /// The container's id.
    pub id: String,
    /// Its init process.
    pub pid: i32,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What the bundle's configuration says.
    pub spec: Arc<Spec>,
    /// runc's directory of this container.
    pub runc_state: PathBuf,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Copies of the container's ends of its stdio pipes.
    pub stdio: Arc<Vec<OwnedFd>>,
    /// systemd owns the cgroup.
    pub systemd: bool,
}

impl Facts {
    /// Reads what there is to know while the process is there, and keeps the namespaces that
    /// outlive it.
    pub fn gather(known: Known) -> Result<Self, FactsError> {
        let namespaces = outliving(&known.spec, known.pid)?;
        Ok(Self {
            id: known.id,
            rootfs: known.bundle.join(&known.spec.root.path),
            cgroups: known.cgroup.folders(),
            freezer: known
                .cgroup
                .folder("freezer")
                .map(Path::to_owned)
                .unwrap_or_default(),
            cgroup: known.cgroup,
            runc_state: known.runc_state,
            stdio: known.stdio,
            systemd: known.systemd,
            spec: known.spec,
            namespaces,
        })
    }

    /// The external mounts of the running container; they can change while it runs.
    pub fn mounts(&self, pid: i32) -> Result<Vec<ExternalMount>, FactsError> {
        Ok(mounts::external(&self.spec, pid)?)
    }

    /// The container as CRIU wants it described, for a dump or for the restore after it.
    pub fn subject(&self, mounts: &[ExternalMount]) -> Result<Subject, FactsError> {
        let copy = |fd: &OwnedFd| {
            fd.as_fd()
                .try_clone_to_owned()
                .map_err(FactsError::Descriptor)
        };
        Ok(Subject {
            rootfs: self.rootfs.clone(),
            mounts: mounts.to_vec(),
            join: self
                .namespaces
                .iter()
                .map(|(kind, fd)| Ok((*kind, copy(fd)?)))
                .collect::<Result<_, FactsError>>()?,
            cgroups: self.cgroups.clone(),
            freezer: Some(self.freezer.clone()),
            stdio: self
                .stdio
                .iter()
                .map(|fd| InheritedPipe::new(copy(fd)?).map_err(FactsError::Descriptor))
                .collect::<Result<_, FactsError>>()?,
        })
    }
}

/// Namespaces that go on without the container's processes, by a descriptor held here: the network
/// always (the gate, the pod's address and its routes live in it), IPC and UTS where the pod
/// shares them, the view of the cgroups where it is not the node's. What stays out of this list is
/// the container's alone and part of its checkpoint.
fn outliving(spec: &Spec, pid: i32) -> Result<Vec<(Namespace, OwnedFd)>, FactsError> {
    let joined = |kind| spec.namespace(kind).is_none_or(|ns| !ns.path.is_empty());
    let mut kept = vec![Namespace::Network, Namespace::Cgroup];
    if joined("ipc") {
        kept.push(Namespace::Ipc);
    }
    if joined("uts") {
        kept.push(Namespace::Uts);
    }
    let mut open = Vec::with_capacity(kept.len());
    for kind in kept {
        let path = PathBuf::from(format!("/proc/{pid}/ns/{}", kind.proc_name()));
        let failed = |source| FactsError::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(failed)?;
        let own = PathBuf::from(format!("/proc/self/ns/{}", kind.proc_name()));
        let same = fs::metadata(&own)
            .and_then(|own| Ok(own.ino() == file.metadata()?.ino()))
            .map_err(failed)?;
        if !same {
            open.push((kind, OwnedFd::from(file)));
        }
    }
    Ok(open)
}
