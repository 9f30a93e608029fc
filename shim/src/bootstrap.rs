//! What containerd does with the shim's binary: `start` and `delete`, which do their work and
//! end, the server itself, and questions about the binary.
//!
//! `start` binds the socket itself and hands it to the server, so containerd can connect as soon
//! as it has the address. Containers of one pod share a server: `start` for a further one finds
//! the pod's socket answering and returns its address.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use containerd_shim::{Flags, mount};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::ttrpc::r#async::Server;
use containerd_shim_protos::ttrpc::r#async::transport::Listener;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use log::{info, warn};
use podmotion_criu_driver::spec::Spec;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::api::Api;
use crate::cgroup::Cgroup;
use crate::container::Shared;
use crate::containers::Containers;
use crate::events::Events;
use crate::reaper::Reaper;
use crate::runtime::options::Options;
use crate::runtime::{self, Runtime};
use crate::service::TaskService;
use crate::sleep::{Node, leftover};
use crate::{footprint, sys, timestamp};

/// The shim's runtime type.
pub const RUNTIME: &str = "io.containerd.podmotion.v1";
/// Annotations that say which containers share a shim; the first one present counts.
const GROUPING: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];
/// File in the bundle with the server's address.
const ADDRESS_FILE: &str = "address";
/// Exit status of containers whose shim is gone: ended by SIGKILL.
const KILLED: u32 = 137;
/// containerd creates a container at once after the shim's start, and asks for the shim's end after the last one's deletion.
/// A server that waits for longer has been forgotten: whoever wanted that went in between.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// Scores above it are not allowed.
const OOM_SCORE_ADJ_MAX: i32 = 1000;

/// `start`: has a server for the container in the current folder; returns its address.
///
/// # Errors
/// Fails when the bundle cannot be read or no server can be started.
pub fn start(flags: &Flags) -> Result<String> {
    // Here an error reaches whoever creates the container.
    Node::load()?;
    let spec = Spec::read(Path::new("."))?;
    let group = group(&spec, flags);
    let address = containerd_shim::socket_address(&flags.address, &flags.namespace, group);
    let path = socket_path(&address);
    if let Some(listener) = bind(path)? {
        spawn_server(flags, &address, &listener).inspect_err(|_| remove_socket(path))?;
    }
    fs::write(ADDRESS_FILE, &address).context("write the server's address")?;
    Ok(address)
}

/// Which shim the container belongs to.
fn group<'a>(spec: &'a Spec, flags: &'a Flags) -> &'a str {
    GROUPING
        .iter()
        .find_map(|name| spec.annotations.get(*name))
        .unwrap_or(&flags.id)
}

fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// Binds a socket; none if a server listens on it already.
fn bind(path: &Path) -> Result<Option<UnixListener>> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("create {}", folder.display()))?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            // Left behind by a server that was killed.
            fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
            UnixListener::bind(path)
        }
        other => other,
    };
    let listener = listener.with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restrict {}", path.display()))?;
    Ok(Some(listener))
}

fn spawn_server(flags: &Flags, address: &str, listener: &UnixListener) -> Result<()> {
    let mut command = Command::new(std::env::current_exe().context("find the shim's binary")?);
    command.args(["-namespace", &flags.namespace, "-id", &flags.id]);
    command.args(["-address", &flags.address, "-socket", address]);
    if flags.debug {
        command.arg("-debug");
    }
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::pass_fds(&mut command, &[listener.as_fd()]).context("pass the socket")?;
    command.env(sys::TUNABLES, sys::NO_STORES);
    let mut server = command.spawn().context("start the server")?;
    let result = place_server(server.id());
    if result.is_err() {
        // The first error counts; the process is this one's child and cannot be another.
        drop(server.kill());
    }
    result
}

/// Puts the server where the runtime options, from standard input, want it.
fn place_server(pid: u32) -> Result<()> {
    let options = options_from_stdin()?;
    if !options.shim_cgroup.is_empty() {
        Cgroup::join(&options.shim_cgroup, pid)
            .with_context(|| format!("join cgroup {}", options.shim_cgroup))?;
    }
    // A little above containerd's: containers go first, then shims, then containerd.
    let parent = format!(
        "/proc/{}/oom_score_adj",
        std::os::unix::process::parent_id()
    );
    let score: i32 = fs::read_to_string(&parent)
        .with_context(|| format!("read {parent}"))?
        .trim()
        .parse()
        .with_context(|| format!("parse {parent}"))?;
    let own = format!("/proc/{pid}/oom_score_adj");
    fs::write(&own, OOM_SCORE_ADJ_MAX.min(score + 1).to_string())
        .with_context(|| format!("write {own}"))
}

fn options_from_stdin() -> Result<Options> {
    let mut bytes = Vec::new();
    io::stdin()
        .read_to_end(&mut bytes)
        .context("read runtime options")?;
    if bytes.is_empty() {
        return Ok(Options::default());
    }
    let any = Any::parse_from_bytes(&bytes).context("decode runtime options")?;
    Ok(Options::from_any(&any)?)
}

/// `delete`: clears up after a container whose server is gone. What cannot be removed is logged
/// to standard error; containerd gets its answer all the same.
///
/// # Errors
/// Fails when the bundle cannot be found or its options not be read.
pub fn delete(flags: &Flags) -> Result<DeleteResponse> {
    let bundle = if flags.bundle.is_empty() {
        let current = std::env::current_dir().context("find the bundle")?;
        current
            .parent()
            .map_or_else(|| current.join(&flags.id), |all| all.join(&flags.id))
    } else {
        PathBuf::from(&flags.bundle)
    };
    let options = Options::load(&bundle)?;
    let pid = runtime::init_pid(&bundle);
    let address = fs::read_to_string(bundle.join(ADDRESS_FILE)).ok();
    // Another container's server may still be there, in a pod's shared shim.
    let dead = address
        .as_deref()
        .map(socket_path)
        .filter(|path| !leftover::is_served(path));
    if dead.is_some()
        && let Err(error) = delete_sleeping(flags, &bundle)
    {
        eprintln!("clear up after container {}: {error:#}", flags.id);
    }
    let runtime = Runtime::new(
        Reaper::default(),
        &options,
        &flags.namespace,
        &flags.id,
        &bundle,
        false,
    );
    if let Err(error) = runtime.force_delete() {
        eprintln!("remove container {}: {error}", flags.id);
    }
    let rootfs = bundle.join("rootfs");
    if let Err(error) = mount::umount_recursive(rootfs.to_str(), 0) {
        eprintln!("unmount {}: {error}", rootfs.display());
    }
    if let Some(path) = dead {
        remove_socket(path);
    }
    Ok(DeleteResponse {
        pid: pid.cast_unsigned(),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp::now()),
        ..Default::default()
    })
}

/// Removes what the runtime does not know of.
fn delete_sleeping(flags: &Flags, bundle: &Path) -> Result<()> {
    let spec = Spec::read(bundle)?;
    let node = Node::load()?;
    for error in leftover::remove(&node.config, bundle, &flags.id, group(&spec, flags)) {
        eprintln!("clear up after container {}: {error}", flags.id);
    }
    Ok(())
}

fn remove_socket(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!("remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// `-info`: what containerd 2 asks about a runtime.
///
/// # Errors
/// Fails when standard input holds no usable options.
pub fn info() -> Result<Vec<u8>> {
    let options = options_from_stdin()?;
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        features: features(options.binary()).into(),
        ..Default::default()
    };
    info.write_to_bytes().context("encode runtime info")
}

/// What the runtime can do, in its own words; runc before 1.1 does not tell.
fn features(binary: &str) -> Option<Any> {
    let output = Command::new(binary)
        .arg("features")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".to_owned(),
        value: serde_json::to_vec(&json).ok()?,
        ..Any::default()
    })
}

/// The server: works until containerd asks for its end.
///
/// # Errors
/// Fails when it was not started by `start`, or the system refuses what it needs.
pub fn serve(flags: &Flags) -> Result<()> {
    if flags.socket.is_empty() {
        bail!("no action: containerd starts this binary, with `start`");
    }
    let listener = sys::adopt_listener().context("take over the socket")?;
    sys::use_one_heap();
    nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    let node = Arc::new(Node::load()?);
    let level = node.config.shim.log_level.as_str();
    containerd_shim::logger::init(flags.debug, level, &flags.namespace, &flags.id)
        .context("open containerd's log")?;
    if let Err(error) = node.claim() {
        // Each sleep tries again, and says so.
        warn!("nothing of earlier shims is removed: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let result = runtime.block_on(serve_tasks(flags, listener, node));
    remove_socket(socket_path(&flags.socket));
    result
}

async fn serve_tasks(flags: &Flags, listener: UnixListener, node: Arc<Node>) -> Result<()> {
    let events_address = std::env::var("TTRPC_ADDRESS").context("TTRPC_ADDRESS")?;
    let events = Events::start(&events_address, &flags.namespace);
    let spec = Spec::read(Path::new("."))?;
    let api = Api::start(Arc::clone(&node), group(&spec, flags))
        .await
        .inspect_err(|error| warn!("no status of this shim: {error}"))
        .ok();
    let shared = Shared {
        namespace: flags.namespace.clone(),
        reaper: Reaper::start().context("watch for ended processes")?,
        events: events.clone(),
        node,
    };
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let shutdown = Arc::new(Notify::new());
    let containers = Containers::new(Arc::clone(&shutdown));
    let service = TaskService::new(shared, containers.clone());
    let listener = Listener::try_from(listener).context("serve the socket")?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(service.into_methods());
    server.start().await.context("start the server")?;
    footprint::tidy_soon();
    tokio::select! {
        () = shutdown.notified() => info!("shutting down"),
        () = containers.left_alone(FORGOTTEN) => {
            warn!("no container for {FORGOTTEN:?}: shutting down");
        }
        _ = terminate.recv() => info!("shutting down on SIGTERM"),
        _ = interrupt.recv() => info!("shutting down on SIGINT"),
    }
    if let Some(api) = api {
        api.stop().await;
    }
    events.flush().await;
    server.shutdown().await.context("stop the server")
}

/// Writes an answer to standard output, where containerd reads it.
///
/// # Errors
/// Fails when standard output is closed.
pub fn answer(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .context("write the answer")
}
