//! A containerd to run containers and pods on.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::PATIENCE;
use crate::api::{Api, NAMESPACE, rpc, version};
use crate::app::App;
use crate::container::Container;
use crate::containerd::Containerd;
use crate::cri::{self, Pod};
use crate::events::EventLog;
use crate::image::Image;
use crate::machine::{Machine, pin_programs};
use crate::process::{OwnProcess, own_processes};
use crate::room::Room;
use crate::tools::{Depth, Runtime, Tools, Versions};

/// Numbers for daemons, so that none gets another's folder or bridge.
static NODES: AtomicU32 = AtomicU32::new(0);
/// Numbers for containers, unique in the whole binary: control groups have no containerd namespace.
static CONTAINERS: AtomicU32 = AtomicU32::new(0);

/// Kubernetes' namespace of pods that a test has no other wish for.
const NAMESPACE_OF_PODS: &str = "test";

/// A change of the configuration, see [`Node::set`].
#[derive(Debug)]
#[must_use]
pub struct Settings(Node);

impl Drop for Settings {
    fn drop(&mut self) {
        // Only a full disk refuses; tests say so themselves then.
        let _ = lock(&self.0.0.daemon).set("");
    }
}

/// One containerd, shared by its clones; the last one stops it.
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    versions: Versions,
    tools: Tools,
    io: PathBuf,
    daemon: Mutex<Containerd>,
    connection: Mutex<Connection>,
    images: Mutex<HashSet<Image>>,
    number: u32,
    room: Option<Arc<Room>>,
}

#[derive(Debug)]
struct Connection {
    api: Api,
    events: Arc<EventLog>,
}

impl Connection {
    fn open(daemon: &Containerd) -> Result<Self> {
        type Client = version::version_client::VersionClient<tonic::transport::Channel>;
        let api = Api::connect(&daemon.socket())?;
        rpc!(api, Client, version, ()).context("first call to containerd")?;
        let events = Arc::new(EventLog::subscribe(&api)?);
        cri::wait_ready(&api)?;
        Ok(Self { api, events })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panicked must not take the others with it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Starts a containerd of its own. [`Machine::enter`] must have been called.
    pub fn start(versions: Versions) -> Result<Self> {
        Self::start_with(versions, "")
    }

    /// The same, with more in our runtime's configuration: lines that name their section, such as
    /// `checkpoint.on_restore_failure = "cold-start"`.
    pub fn start_with(versions: Versions, settings: &str) -> Result<Self> {
        Self::start_in(None, versions, settings)
    }

    /// The same in a room.
    pub(crate) fn start_in(
        room: Option<Arc<Room>>,
        versions: Versions,
        settings: &str,
    ) -> Result<Self> {
        let tools = Tools::new(versions)?;
        match &room {
            None => Machine::get()?.pin_programs(&tools)?,
            Some(room) => {
                let installer = tools.installer()?;
                room.within(move || pin_programs(&installer))??;
            }
        }
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        Self::start_numbered(number, room, versions, tools, Some(settings))
    }

    /// A node that Podmotion is still to be put on, with folders of its own for all that that changes.
    pub fn start_without(versions: Versions) -> Result<Self> {
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let room = Arc::new(Room::apart(&format!("without-{number}"))?);
        Self::start_numbered(number, Some(room), versions, Tools::new(versions)?, None)
    }

    /// The same in a room that is there.
    pub(crate) fn start_without_in(room: Arc<Room>, versions: Versions) -> Result<Self> {
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        Self::start_numbered(number, Some(room), versions, Tools::new(versions)?, None)
    }

    fn start_numbered(
        number: u32,
        room: Option<Arc<Room>>,
        versions: Versions,
        tools: Tools,
        settings: Option<&str>,
    ) -> Result<Self> {
        let daemon = Containerd::start(tools.clone(), versions, number, settings, room.clone())
            .with_context(|| format!("start {versions}"))?;
        let io = daemon.folder().join("io");
        fs::create_dir_all(&io).with_context(|| format!("create {}", io.display()))?;
        let connection = Connection::open(&daemon)
            .with_context(|| format!("{versions} says:\n{}", daemon.log_tail()))?;
        Ok(Self(Arc::new(Inner {
            versions,
            tools,
            io,
            daemon: Mutex::new(daemon),
            connection: Mutex::new(connection),
            images: Mutex::new(HashSet::new()),
            number,
            room,
        })))
    }

    /// Gives shims that start from now on these lines in their configuration, until the result is
    /// dropped; for a node without any of its own. `criu.binary` may be among them.
    pub fn set(&self, settings: &str) -> Result<Settings> {
        lock(&self.0.daemon).set(settings)?;
        Ok(Settings(self.clone()))
    }

    /// Has containers that are made later sleep that deep; at first, deep. Not while there are
    /// [`Settings`].
    pub fn sleep(&self, depth: Depth) -> Result<()> {
        lock(&self.0.daemon).sleep(depth)
    }

    /// How deep containers of it sleep.
    pub fn depth(&self) -> Depth {
        lock(&self.0.daemon).depth()
    }

    /// What it was started with.
    pub fn versions(&self) -> Versions {
        self.0.versions
    }

    /// Its programs.
    pub fn tools(&self) -> &Tools {
        &self.0.tools
    }

    /// Makes a container with its task; the program does not run yet.
    pub fn create(&self, app: App) -> Result<Container> {
        let container = self.record(app)?;
        container.create_task()?;
        Ok(container)
    }

    /// Makes a container without a task.
    pub fn record(&self, app: App) -> Result<Container> {
        self.0.tools.shim(app.runtime)?;
        Container::record(self, app)
    }

    /// Makes and starts a container.
    pub fn run(&self, app: App) -> Result<Container> {
        let container = self.create(app)?;
        container.start()?;
        Ok(container)
    }

    /// Makes a pod sandbox with its network, as the kubelet would.
    pub fn pod(&self, runtime: Runtime) -> Result<Pod> {
        self.pod_annotated(runtime, &[])
    }

    /// Makes a pod sandbox with annotations (whole names).
    pub fn pod_annotated(&self, runtime: Runtime, annotations: &[(&str, &str)]) -> Result<Pod> {
        self.pod_of(NAMESPACE_OF_PODS, runtime, annotations)
    }

    /// Makes a pod sandbox of ours in a namespace of Kubernetes, as it knows and shows it.
    pub fn pod_in(&self, namespace: &str) -> Result<Pod> {
        self.pod_of(namespace, Runtime::Podmotion, &[])
    }

    fn pod_of(
        &self,
        namespace: &str,
        runtime: Runtime,
        annotations: &[(&str, &str)],
    ) -> Result<Pod> {
        self.0.tools.shim(runtime)?;
        self.need_cri_image(Image::Pause)?;
        Pod::run(self, namespace, runtime, annotations)
    }

    /// Runs the daemon's own `ctr` in the harness's namespace, with the image for containers there.
    pub fn ctr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        self.need_image(Image::Apps)?;
        let socket = lock(&self.0.daemon).socket();
        let mut command = Command::new("timeout");
        command
            .arg(PATIENCE.as_secs().to_string())
            .arg(self.0.tools.ctr()?)
            .arg("--address")
            .arg(socket)
            .args(["--namespace", NAMESPACE])
            .args(arguments);
        command.output().with_context(|| format!("run {command:?}"))
    }

    /// The events since the daemon was (re)started.
    pub fn events(&self) -> Arc<EventLog> {
        Arc::clone(&lock(&self.0.connection).events)
    }

    /// Stops the daemon, gently, and starts it again. Containers go on.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Stops the daemon, gently. Containers go on.
    pub fn stop(&self) -> Result<()> {
        lock(&self.0.daemon).end(Signal::TERM)
    }

    /// Kills the daemon. Containers go on.
    pub fn kill9(&self) -> Result<()> {
        lock(&self.0.daemon).end(Signal::KILL)
    }

    /// Starts the daemon after [`Node::stop`] or [`Node::kill9`].
    pub fn start_again(&self) -> Result<()> {
        let mut daemon = lock(&self.0.daemon);
        daemon.spawn()?;
        let connection = Connection::open(&daemon)
            .with_context(|| format!("containerd says:\n{}", daemon.log_tail()))?;
        *lock(&self.0.connection) = connection;
        Ok(())
    }

    /// The daemon's gRPC socket.
    pub fn socket(&self) -> PathBuf {
        lock(&self.0.daemon).socket()
    }

    /// The daemon's pid, while it runs.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.0.daemon).pid()
    }

    /// Shims that this daemon has started and that still run.
    pub fn shims(&self) -> Result<Vec<OwnProcess>> {
        let address = lock(&self.0.daemon).socket().display().to_string();
        Ok(own_processes()?
            .into_iter()
            .filter(|process| Runtime::ALL.iter().any(|r| process.is(r.shim())))
            // A shim's own child, for as long as memory of its containers is missing.
            .filter(|process| !process.is_keeper())
            .filter(|process| process.command.contains(&address))
            .collect())
    }

    /// The shim that serves a container: the one with its id in the arguments.
    pub fn shim_of(&self, container: &str) -> Result<OwnProcess> {
        self.shims()?
            .into_iter()
            .find(|shim| shim.command.split(' ').any(|word| word == container))
            .with_context(|| format!("no shim of {container}"))
    }

    /// The last lines of the daemon's and its shims' log that are about something, where given up to a time as RFC 3339
    /// has it.
    pub fn log_about(&self, what: &str, until: Option<&str>) -> String {
        lock(&self.0.daemon).log_about(what, until)
    }

    /// The end of the daemon's and its shims' log.
    pub fn log_tail(&self) -> String {
        lock(&self.0.daemon).log_tail()
    }

    /// Folder of sockets and bundles.
    pub fn run_folder(&self) -> PathBuf {
        lock(&self.0.daemon).run_folder().to_owned()
    }

    /// Folder on disk, for what a test wants to keep beside its containers.
    pub fn folder(&self) -> PathBuf {
        lock(&self.0.daemon).folder().to_owned()
    }

    /// Loads an image, once.
    pub(crate) fn need_image(&self, image: Image) -> Result<()> {
        let mut images = lock(&self.0.images);
        if !images.contains(&image) {
            let socket = lock(&self.0.daemon).socket();
            image.import(&self.0.tools, &socket, NAMESPACE)?;
            images.insert(image);
        }
        Ok(())
    }

    /// The same for a [`Pod`]: CRI hears of the image by an event; returns when it has.
    pub(crate) fn need_cri_image(&self, image: Image) -> Result<()> {
        self.need_image(image)?;
        cri::wait_for_image(&self.api(), image.reference())
    }

    pub(crate) fn api(&self) -> Api {
        lock(&self.0.connection).api.clone()
    }

    pub(crate) fn io_folder(&self) -> &Path {
        &self.0.io
    }

    /// An id that no other container of the run has.
    pub fn next_id(&self) -> String {
        format!("c{}", CONTAINERS.fetch_add(1, Ordering::Relaxed))
    }

    /// The addresses of its pods.
    pub(crate) fn pod_network(&self) -> String {
        crate::containerd::pod_network(self.0.number)
    }

    /// Where the test sees the `/` of a node with folders of its own.
    pub fn root(&self) -> PathBuf {
        match self.room() {
            Some(room) => Path::new("/proc")
                .join(room.thread().to_string())
                .join("root"),
            None => PathBuf::from("/"),
        }
    }

    /// Does something where the node is: in its network, with its folders.
    pub fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        match self.room() {
            Some(room) => room.within(work),
            None => Ok(work()),
        }
    }

    /// Where it runs, if not in the machine's own namespaces.
    pub(crate) fn room(&self) -> Option<&Room> {
        self.0.room.as_deref()
    }

    /// The control group that pods are put below.
    pub(crate) fn cgroup_parent(&self) -> Result<String> {
        Ok(Machine::get()?.groups().pod_parent())
    }
}
