//! Waking: from a checkpoint to running processes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use podmotion_criu_driver::{
    Criu, ExternalMount, Fill, Freezer, RestoreFailure, RestoreRequest, Restored,
    freezer::FreezerError,
    images::{self, ImagesError},
};

use super::{
    facts::{Facts, FactsError},
    runc_state::{self, RuncStateError},
};

/// Why a container did not wake.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// There is no checkpoint.
    #[error("the container has no checkpoint")]
    NothingToRestore,
    /// The container cannot be described.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// Its cgroup cannot be thawed.
    #[error(transparent)]
    Freezer(#[from] FreezerError),
    /// The images are not as they were written.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// The directory for CRIU's logs could not be made.
    #[error("make {path}")]
    WorkDirectory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// CRIU refused or failed.
    #[error(transparent)]
    Restore(#[from] RestoreFailure),
}

/// A container that runs again.
#[derive(Debug)]
pub struct Risen {
    /// Its init process, a child of the shim.
    pub pid: i32,
    /// From the request until its processes ran.
    pub total: Duration,
    /// Memory that is still on its way.
    pub fill: Option<Fill>,
    /// runc's record could not be brought up to date: `runc exec` and the like will fail.
    pub record: Result<(), RuncStateError>,
    /// CRIU's logs and its socket for lazy pages; needed until the fill has ended.
    pub work: WorkDirectory,
}

/// What a restore works with.
pub struct Attempt<'a> {
    /// The container.
    pub facts: &'a Facts,
    /// Its external mounts at the dump.
    pub mounts: &'a [ExternalMount],
    /// CRIU.
    pub criu: &'a Criu,
    /// The images.
    pub images: &'a Path,
    /// Where work directories are made; a short path.
    pub work: &'a Path,
    /// Let it run before its memory is there.
    pub lazy: bool,
    /// Time for CRIU.
    pub timeout: Duration,
    /// What holds its cgroups, and goes on doing so if this fails.
    pub placeholder: Option<i32>,
}

impl Attempt<'_> {
    /// Blocks until the container runs or is known not to. The images are left as they are.
    pub fn run(&self) -> Result<Risen, Trouble> {
        let started = Instant::now();
        images::verify(self.images)?;
        // A frozen cgroup would stop CRIU itself.
        Freezer::new(&self.facts.freezer)?.thaw()?;
        let work = WorkDirectory::create(self.work)?;
        let subject = self.facts.subject(self.mounts)?;
        let mut request = RestoreRequest::new(self.images, &work.path);
        request.lazy = self.lazy;
        request.timeout = self.timeout;
        request.spare = self.placeholder;
        let Restored { pid, fill, .. } = self.criu.restore(&subject, &request)?;
        let total = started.elapsed();
        let record = runc_state::refresh(&self.facts.runc_state, pid);
        Ok(Risen {
            pid,
            total,
            fill,
            record,
            work,
        })
    }
}

/// A directory that goes away with its owner. CRIU's lazy pages need a path short enough for a
/// socket's name, so it is not below the images.
#[derive(Debug)]
pub struct WorkDirectory {
    path: PathBuf,
}

impl WorkDirectory {
    fn create(parent: &Path) -> Result<Self, Trouble> {
        use std::os::unix::fs::DirBuilderExt;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{}-{count}", std::process::id()));
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path);
        made.map_err(|source| Trouble::WorkDirectory {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path })
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("remove {}: {error}", self.path.display());
        }
    }
}
