//! The handle on a CRIU binary, and what can be asked of it without a container.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rust_criu::rust_criu_protobuf::rpc::{Criu_features, Criu_req, Criu_req_type, Criu_resp};
use rustix::fs::FlockOperation;

use crate::error::Error;
use crate::launch::{self, Launch, Mounts, Process, RestoreMounts};
use crate::log::LogErrors;
use crate::rpc::{self, Connection, Event};
use crate::subject::Namespace;

/// A CRIU binary and how to use it. Cheap to clone; clones share what was learned about the
/// kernel.
#[derive(Debug, Clone)]
pub struct Criu {
    pub(crate) binary: PathBuf,
    pub(crate) log_level: LogLevel,
    kernel: Arc<OnceLock<Vec<u8>>>,
}

/// How much CRIU logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Errors only.
    Error = 1,
    /// Errors and warnings: what a failure needs, at no measurable cost.
    #[default]
    Warning = 2,
    /// One line for each step.
    Info = 3,
    /// Everything.
    Debug = 4,
}

/// CRIU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: i32,
    /// Second number.
    pub minor: i32,
    /// Third number, 0 where there is none.
    pub sublevel: i32,
}

/// What CRIU can do on this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Written pages can be told from unwritten ones (soft dirty).
    pub memory_tracking: bool,
    /// Memory can be filled after a restore (userfaultfd).
    pub lazy_pages: bool,
}

/// Time for a question that needs no container.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(20);

impl Criu {
    /// The CRIU at `binary`. Nothing is started yet.
    pub fn new(binary: impl Into<PathBuf>, log_level: LogLevel) -> Self {
        Self {
            binary: binary.into(),
            log_level,
            kernel: Arc::default(),
        }
    }

    /// Path of the binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Asks for CRIU's version.
    ///
    /// # Errors
    /// When CRIU is missing, cannot run, or does not answer.
    pub fn version(&self) -> Result<Version, Error> {
        let answer = self.ask(&rpc::request(Criu_req_type::VERSION), |_| ())?;
        Ok(Version {
            major: answer.version.major_number(),
            minor: answer.version.minor_number(),
            sublevel: answer.version.sublevel(),
        })
    }

    /// Asks what CRIU can do on this kernel, and remembers what CRIU found out about the kernel
    /// where it cannot keep that itself. Worth calling once before the first dump: it takes 50 ms
    /// off every later dump and restore with this handle.
    ///
    /// # Errors
    /// When CRIU is missing, cannot run, or does not answer.
    pub fn features(&self) -> Result<Features, Error> {
        let mut wanted = Criu_features::new();
        wanted.set_mem_track(true);
        wanted.set_lazy_pages(true);
        let mut request = rpc::request(Criu_req_type::FEATURE_CHECK);
        request.features = Some(wanted).into();
        // CRIU stays for another request, so its view of /run can still be looked at.
        request.set_keep_open(true);
        let answer = self.ask(&request, |pid| {
            if launch::run_is_tmpfs() {
                return;
            }
            if let Ok(cache) = fs::read(format!("/proc/{pid}/root/run/criu.kdat")) {
                // Set already by another caller: the same content.
                let _ = self.kernel.set(cache);
            }
        })?;
        Ok(Features {
            memory_tracking: answer.features.mem_track(),
            lazy_pages: answer.features.lazy_pages(),
        })
    }

    /// Lets CRIU test whether this kernel has all it needs.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first thing missing, or when CRIU cannot run.
    pub fn check(&self) -> Result<(), Error> {
        self.ask(&rpc::request(Criu_req_type::CHECK), |_| ())
            .map(drop)
    }

    /// One request without a container. `look` runs after the answer, while CRIU is still there.
    fn ask(&self, request: &Criu_req, look: impl FnOnce(i32)) -> Result<Criu_resp, Error> {
        let (connection, process) = self.worker(Vec::new(), &[], None, None)?;
        let event = match connection.send(request) {
            Ok(()) => connection.wait(&process, Instant::now() + QUESTION_TIMEOUT, None)?,
            Err(e) if rpc::is_gone(&e) => Event::Closed,
            Err(e) => return Err(e),
        };
        let complaint = || LogErrors::default().or_first(process.complaint());
        match event {
            Event::Answer(answer) if answer.success() => {
                look(process.pid());
                Ok(*answer)
            }
            Event::Answer(answer) => Err(refused(&answer, complaint())),
            Event::Closed => Err(Error::Exited { log: complaint() }),
            Event::Deadline => Err(Error::TimedOut {
                after: QUESTION_TIMEOUT,
                log: complaint(),
            }),
            Event::Notify { .. } | Event::Watched => Err(Error::UnexpectedAnswer {
                got: Criu_req_type::NOTIFY as i32,
            }),
        }
    }

    /// Starts a CRIU that waits for a request. `descriptors` become its 4, 5, ...
    pub(crate) fn worker(
        &self,
        descriptors: Vec<OwnedFd>,
        join: &[(Namespace, OwnedFd)],
        mounts: Option<RestoreMounts<'_>>,
        directory: Option<&Path>,
    ) -> Result<(Connection, Process), Error> {
        let (connection, theirs) = Connection::pair()?;
        let mut all = vec![theirs];
        all.extend(descriptors);
        let process = self.launch(
            ["swrk", "3"].map(OsString::from).into(),
            all,
            join,
            mounts,
            directory,
        )?;
        Ok((connection, process))
    }

    /// Starts CRIU with arguments of its command line. `descriptors` become its 3, 4, ...
    pub(crate) fn launch(
        &self,
        arguments: Vec<OsString>,
        descriptors: Vec<OwnedFd>,
        join: &[(Namespace, OwnedFd)],
        mounts: Option<RestoreMounts<'_>>,
        directory: Option<&Path>,
    ) -> Result<Process, Error> {
        let run = (!launch::run_is_tmpfs()).then(|| self.kernel.get().map(Vec::as_slice));
        // Files of the host that CRIU would read options from are none of ours.
        let mut all = vec![OsString::from("--no-default-config")];
        all.extend(arguments);
        Launch {
            binary: &self.binary,
            arguments: all,
            descriptors,
            join,
            mounts: Mounts {
                run,
                restore: mounts,
            },
            directory,
        }
        .start()
    }
}

pub(crate) fn refused(answer: &Criu_resp, log: LogErrors) -> Error {
    let message = answer.has_cr_errmsg().then(|| answer.cr_errmsg());
    Error::Refused {
        errno: answer.cr_errno(),
        log: log.or_first(message.map(|m| m.trim().to_owned())),
    }
}

/// A directory by descriptor, as CRIU's requests name it: CRIU opens `/proc/<us>/fd/<n>`.
pub(crate) struct Directory(OwnedFd, PathBuf);

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        fs::File::open(path)
            .and_then(|file| {
                if file.metadata()?.is_dir() {
                    Ok(Self(file.into(), path.to_owned()))
                } else {
                    Err(io::ErrorKind::NotADirectory.into())
                }
            })
            .map_err(|e| Error::io("open directory", path, e))
    }

    /// Says for as long as this or the result is open that images are written there, see
    /// [`images::wait_written`](crate::images::wait_written).
    pub(crate) fn written_to(&self) -> Result<OwnedFd, Error> {
        let copy = self.0.try_clone();
        copy.and_then(|copy| {
            rustix::fs::flock(&copy, FlockOperation::NonBlockingLockShared)?;
            Ok(copy)
        })
        .map_err(|e| Error::io("lock", &self.1, e))
    }

    pub(crate) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.sublevel)
    }
}
