//! The pod that is put to sleep: a sandbox and an application.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use podmotion_proto::client::{Shim, ShimError};

use crate::Options;
use crate::client::{CallError, PATIENCE};
use crate::containerd::Containerd;
use crate::memory::{self, MemoryError};
use crate::scenario::Depth;
use crate::spec::{self, Cgroups};

/// Where the application listens.
const PORT: &str = "8080";
/// How much memory it fills.
pub(crate) const MEBIBYTES: u64 = 16;

/// A request that was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The client could not be run.
    #[error("run the client in the sandbox")]
    Client(#[from] CallError),
    /// It has ended with a code that says so.
    #[error("{0}")]
    Answer(Answer),
    /// The application has lost what it knew, or was started anew.
    #[error(
        "the application answers {found} where {expected} comes next: its state is not what it was"
    )]
    Count {
        /// What it should say.
        expected: u32,
        /// What it says.
        found: u32,
    },
}

/// Why a client has no count. The numbers are the program's exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer(u32);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            101 => f.write_str("the client cannot connect to the application"),
            102 => f.write_str("the client is connected and gets no answer"),
            103 => f.write_str("the client does not understand the application's answer"),
            104 => f.write_str("the application sees another address than the client's own"),
            105 => f.write_str("the application's memory is not what it was"),
            code => write!(f, "the client has ended with code {code}"),
        }
    }
}

/// What the kernel counts of the application's memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// containerd does not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It answers with something else.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// It has none.
    #[error("the application has no metrics")]
    None,
}

/// The pod, for as long as the run lasts; everything in the namespace is removed at its end.
pub(crate) struct Pod<'a> {
    containerd: &'a Containerd,
    sandbox: String,
    app: String,
    requests: u32,
}

impl<'a> Pod<'a> {
    /// Makes and starts both.
    pub(crate) async fn start(
        options: &Options,
        containerd: &'a Containerd,
        depth: Depth,
    ) -> Result<Self, CallError> {
        // No two runs' shims have the same socket.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let number = since.map_or(0, |since| since.as_millis());
        let sandbox = format!("podmotion-self-test-{}-{number:x}", depth.as_str());
        let pod = Self {
            containerd,
            app: format!("{sandbox}-app"),
            sandbox,
            requests: 0,
        };
        let spec = spec::Pod {
            sandbox: &pod.sandbox,
            depth,
            app: &options.app,
            cgroups: Cgroups {
                systemd: containerd.systemd(),
                parent: options.cgroup_parent.as_deref(),
            },
        };
        let pid = containerd.start(&pod.sandbox, &spec.sandbox()).await?;
        let megabytes = MEBIBYTES.to_string();
        let app = spec.app(&pod.app, pid, &["serve", PORT, &megabytes]);
        containerd.start(&pod.app, &app).await?;
        Ok(pod)
    }

    /// Connects to the application, which must answer with the next number.
    pub(crate) async fn request(&mut self) -> Result<u32, RequestError> {
        self.requests += 1;
        let expected = self.requests;
        let process = spec::process(&["request", PORT]);
        let exec = format!("request-{expected}");
        let exit = self.containerd.exec(&self.sandbox, &exec, &process).await?;
        match exit.code {
            found @ 1..=99 if found != expected => Err(RequestError::Count { expected, found }),
            count @ 1..=99 => Ok(count),
            code => Err(RequestError::Answer(Answer(code))),
        }
    }

    /// The application's memory, as the kernel counts it.
    pub(crate) async fn memory(&self) -> Result<u64, MetricsError> {
        let metrics = self.containerd.metrics(&self.app).await?;
        Ok(memory::anonymous(&metrics.ok_or(MetricsError::None)?)?)
    }

    /// The way to its shim.
    pub(crate) async fn shim(&self, options: &Options) -> Result<Shim, ShimError> {
        let socket = options.shims.join(format!("{}.sock", self.sandbox));
        Shim::connect_within(&socket, PATIENCE).await
    }

    /// The application's id.
    pub(crate) fn app(&self) -> &str {
        &self.app
    }
}
