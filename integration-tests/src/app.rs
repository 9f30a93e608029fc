//! What a test wants to run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::image::Image;
use crate::netns::Netns;
use crate::tools::Runtime;

/// Where a container's standard input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// Nowhere.
    Null,
    /// [`crate::Container::write_stdin`].
    Pipe,
}

/// Where standard output and error go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stdout {
    /// Nowhere.
    Null,
    /// [`crate::Container::stdout`] reads all the time.
    Captured,
    /// The same, once told to: a reader that is slow.
    CapturedLater,
    /// A file that the shim writes.
    File(PathBuf),
}

/// A container's network.
#[derive(Clone, Debug)]
pub enum Network {
    /// A namespace with nothing in it.
    None,
    /// The node's.
    Host,
    /// One that the harness made, with an address.
    Namespace(Arc<Netns>),
    /// As above, made when the container is.
    Own,
}

/// A container to be. The default runtime is ours, the image [`Image::Apps`].
#[derive(Clone, Debug)]
pub struct App {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) image: Image,
    pub(crate) runtime: Runtime,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) ports: Vec<u16>,
    pub(crate) network: Network,
    pub(crate) terminal: bool,
    pub(crate) stdin: Stdin,
    pub(crate) stdout: Stdout,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) mounts: Vec<(PathBuf, String)>,
    pub(crate) runc: Option<PathBuf>,
}

impl App {
    /// Runs a program of the image.
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
                // As the images have it: what Python would write is memory of its control group.
                "PYTHONDONTWRITEBYTECODE=1".into(),
            ],
            image: Image::Apps,
            runtime: Runtime::Podmotion,
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            network: Network::None,
            terminal: false,
            stdin: Stdin::Null,
            stdout: Stdout::Captured,
            memory_limit: None,
            mounts: Vec::new(),
            runc: None,
        }
    }

    /// Runs a shell script, in the small image.
    pub fn sh(script: &str) -> Self {
        Self::new(["/bin/sh", "-c", script]).image(Image::Busybox)
    }

    /// An HTTP server on port 8080 that counts its requests in memory, in a network of its own.
    pub fn counter() -> Self {
        Self::new(["python3", "/apps/counter.py"]).network(Network::Own)
    }

    /// Memory that [`App::counter`] fills and keeps, in MiB.
    pub fn mem_mb(self, megabytes: u32) -> Self {
        self.env("MEM_MB", &megabytes.to_string())
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Sets `komodor.com/podmotion-<name>`.
    pub fn annotation(self, name: &str, value: &str) -> Self {
        self.any_annotation(&format!("komodor.com/podmotion-{name}"), value)
    }

    /// Sets the ports that count and wake, for a container that does not listen: without a port none
    /// sleeps. Not for a pod's.
    pub fn ports(mut self, ports: &[u16]) -> Self {
        self.ports = ports.to_vec();
        self
    }

    /// Sets an annotation by its whole name.
    pub fn any_annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.into(), value.into());
        self
    }

    /// Chooses the runtime.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Chooses the image.
    pub fn image(mut self, image: Image) -> Self {
        self.image = image;
        self
    }

    /// Chooses the network.
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Gives it a terminal in place of pipes; what it prints is on standard output.
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// Chooses the input.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Chooses the output.
    pub fn stdout(mut self, stdout: Stdout) -> Self {
        self.stdout = stdout;
        self
    }

    /// Limits its memory, in bytes.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Chooses the program that is run as runc. Not for a pod's.
    pub fn runc(mut self, program: impl Into<PathBuf>) -> Self {
        self.runc = Some(program.into());
        self
    }

    /// Shows a folder or file of the host at `target`, writable.
    pub fn mount(mut self, source: impl Into<PathBuf>, target: &str) -> Self {
        self.mounts.push((source.into(), target.into()));
        self
    }
}
