//! How a container comes to be: root file system, streams, runtime, driver.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim::mount;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use log::warn;
use podmotion_criu_driver::spec::Spec;
use podmotion_model::settings::Settings;
use tokio::sync::{mpsc, oneshot};

use super::driver::{Driver, Parts, identity};
use super::process::Process;
use super::{Container, ContainerError, Shared, guest};
use crate::cgroup::Cgroup;
use crate::runtime::Runtime;
use crate::runtime::options::Options;
use crate::sleep::mptcp;
use crate::stdio::{Addresses, Owner, Prepared, ProcessIo};

/// Commands that wait for the driver before their senders do.
const COMMANDS: usize = 16;

/// One mount of a root file system.
#[derive(Clone, Debug, Default)]
pub struct RootfsMount {
    /// File system type.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where, below the root file system; usually empty.
    pub target: String,
    /// Options as for mount(8).
    pub options: Vec<String>,
}

/// A container to be created.
#[derive(Clone, Debug, Default)]
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// Its bundle's folder.
    pub bundle: PathBuf,
    /// Its root file system; when empty the bundle has one already.
    pub rootfs: Vec<RootfsMount>,
    /// Addresses of its first process's streams.
    pub stdio: Addresses,
    /// containerd's options for the runtime.
    pub options: Option<Any>,
}

/// Creates the container; on failure nothing of it is left.
pub async fn create(
    new: NewContainer,
    others: &[Container],
    shared: Shared,
) -> Result<(Container, Driver), ContainerError> {
    let mut options = new
        .options
        .as_ref()
        .map_or_else(|| Ok(Options::default()), Options::from_any)?;
    if options.binary_name.is_empty() {
        let binary: &Path = shared.node.config.runc.binary.as_ref();
        options.binary_name = binary.to_string_lossy().into_owned();
    }
    let spec = Spec::read(&new.bundle)?;
    let name = identity(&new.id, &shared.namespace, &spec).name;
    let settings = Settings::resolve(&spec.annotations, &name, &shared.node.config)?;
    let host = guest::join(&new.bundle, &spec, others).await?;
    options.store(&new.bundle)?;
    let rootfs = (!new.rootfs.is_empty()).then(|| new.bundle.join("rootfs"));
    if let Some(rootfs) = &rootfs {
        make_folder(rootfs)?;
        mount_all(new.rootfs.clone(), rootfs.clone()).await?;
    }
    let created = create_mounted(&new, &shared, &options, &spec).await;
    let (runtime, pid, io, exit) = match created {
        Ok(created) => created,
        Err(error) => {
            if let Some(Err(cause)) = rootfs.as_deref().map(unmount) {
                warn!("failed to cleanup rootfs mount: {cause}");
            }
            return Err(error);
        }
    };
    if shared.node.config.gate.disable_mptcp && settings.may_sleep() && !spec.is_sandbox() {
        let id = new.id.clone();
        let switched = tokio::task::spawn_blocking(move || {
            if let Err(error) = mptcp::switch_off(pid) {
                warn!("switch MPTCP off for container {id}: {error}");
            }
        });
        // At worst it runs with MPTCP, and stays awake for that reason where it uses it.
        drop(switched.await);
    }
    let cgroup = Cgroup::of_process(pid)
        .inspect_err(|error| warn!("look up the cgroup of container {}: {error}", new.id))
        .ok();
    let (sender, commands) = mpsc::channel(COMMANDS);
    let container = Container {
        bundle: new.bundle.clone(),
        cgroup: cgroup.clone(),
        commands: sender,
    };
    let mut init = Process::new(new.stdio.clone());
    init.pid = pid;
    init.io = Some(io);
    let parts = Parts {
        new,
        spec,
        options,
        rootfs,
        runtime,
        cgroup,
        settings,
        host,
        init,
        exit,
    };
    Ok((container, Driver::new(parts, shared, commands)))
}

type Created = (
    Runtime,
    i32,
    ProcessIo,
    oneshot::Receiver<crate::reaper::Exit>,
);

async fn create_mounted(
    new: &NewContainer,
    shared: &Shared,
    options: &Options,
    spec: &Spec,
) -> Result<Created, ContainerError> {
    let owner = Owner {
        id: &new.id,
        namespace: &shared.namespace,
        uid: options.io_uid,
        gid: options.io_gid,
        reaper: &shared.reaper,
    };
    let stdio = |source| ContainerError::Stdio {
        operation: "failed to create init process I/O",
        source,
    };
    let prepared = Prepared::new(new.stdio.clone(), owner)
        .await
        .map_err(stdio)?;
    let runtime = Runtime::new(
        shared.reaper.clone(),
        options,
        &shared.namespace,
        &new.id,
        &new.bundle,
        spec.wants_systemd_cgroup(),
    );
    let expectation = shared.reaper.expect();
    let streams = prepared.streams().map_err(stdio)?;
    let pid = match runtime.create(streams).await {
        Ok(pid) => pid,
        Err(source) => {
            prepared.discard().await;
            return Err(ContainerError::Runtime {
                operation: "OCI runtime create failed",
                source,
            });
        }
    };
    let exit = shared.reaper.watch(pid);
    drop(expectation);
    match prepared.attach().await {
        Ok(io) => Ok((runtime, pid, io, exit)),
        Err(source) => {
            if let Err(error) = runtime.delete(true).await {
                warn!(
                    "remove container {} after its streams failed: {error}",
                    new.id
                );
            }
            Err(ContainerError::Stdio {
                operation: "failed to start io copy",
                source,
            })
        }
    }
}

fn make_folder(path: &Path) -> Result<(), ContainerError> {
    match DirBuilder::new().mode(0o711).create(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(ContainerError::Prepare {
                path: path.to_owned(),
                source,
            })
        }
        _ => Ok(()),
    }
}

/// Mounts in a thread of its own: for an overlay of many layers the mounting code unshares its
/// working directory and changes it.
async fn mount_all(mounts: Vec<RootfsMount>, rootfs: PathBuf) -> Result<(), ContainerError> {
    let (done, mounted) = oneshot::channel();
    let target = rootfs.clone();
    let thread = std::thread::Builder::new()
        .name("mount".into())
        .spawn(move || {
            let result = mounts.iter().try_for_each(|entry| {
                let some = |text: &String| (!text.is_empty()).then(|| text.clone());
                let target = target.join(entry.target.trim_start_matches('/'));
                mount::mount_rootfs(
                    some(&entry.kind).as_deref(),
                    some(&entry.source).as_deref(),
                    &entry.options,
                    &target,
                )
            });
            // The receiver waits for as long as the container's creation does.
            drop(done.send(result));
        });
    let _detached = thread.map_err(|source| ContainerError::Prepare {
        path: rootfs.clone(),
        source,
    })?;
    let result = mounted.await.unwrap_or_else(|_| {
        Err(containerd_shim::Error::Other(
            "mounting thread ended".into(),
        ))
    });
    result.map_err(|source| {
        if let Err(error) = unmount(&rootfs) {
            warn!("failed to cleanup rootfs mount: {error}");
        }
        ContainerError::Mount { source }
    })
}

/// Unmounts a root file system and everything below it.
pub fn unmount(rootfs: &Path) -> Result<(), ContainerError> {
    mount::umount_recursive(rootfs.to_str(), 0).map_err(|source| ContainerError::Unmount { source })
}

/// The same once nobody uses it any more. Whoever has just looked at the memory of a process that was
/// killed lets go of its files a moment after its end; there is no event for that. containerd's own
/// shim tries as often.
pub async fn unmount_when_unused(rootfs: &Path) -> Result<(), ContainerError> {
    const TRIES: u32 = 50;
    const PAUSE: Duration = Duration::from_millis(50);
    let mut tries = 0;
    loop {
        tries += 1;
        match unmount(rootfs) {
            Err(ContainerError::Unmount {
                source: containerd_shim::Error::Nix(errno),
            }) if errno as i32 == libc::EBUSY && tries < TRIES => tokio::time::sleep(PAUSE).await,
            result => return result,
        }
    }
}
