//! A second place on the machine for a node: mount and network namespaces that differ from the machine's.
//!
//! ```text
//!   machine ── kube0 (bridge) ──┬── veth ──> eth0 in room 1: own /run, /etc/containerd, /sys/fs/bpf, ...
//!                               └── veth ──> eth0 in room 2
//! ```
//!
//! A room is a thread that has entered them; what that thread starts is in the room. The run folder of the
//! harness's daemons is the one place that all rooms share, so that their sockets have one name everywhere.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::containerd::RUN;
use crate::machine::{Machine, run};

/// Where the machine sees the `/run` of each room.
pub(crate) const ROOMS: &str = "/run/rooms";

/// Folders that each node has for itself, besides `/run` and `/sys/fs/bpf`.
const OWN: &[&str] = &[
    "/etc/containerd",
    "/etc/podmotion",
    "/opt/podmotion",
    "/var/lib/podmotion",
    "/var/lib/cni",
];

type Work = Box<dyn FnOnce() + Send>;

/// The namespaces, for as long as this or a process in them lives.
#[derive(Debug)]
pub(crate) struct Room {
    name: String,
    work: Mutex<Option<Sender<Work>>>,
    thread: Option<JoinHandle<()>>,
    id: u32,
}

impl Room {
    /// Makes one with `address` on `bridge`, which is there and reaches `gateway`. `name` must be new.
    ///
    /// Only where runc makes the control groups: nobody in a room reaches systemd.
    pub(crate) fn new(
        name: &str,
        address: Ipv4Addr,
        bridge: &str,
        gateway: Ipv4Addr,
    ) -> Result<Self> {
        let room = Self::unconnected(name)?;
        let thread = room.id;
        // The other end goes with the room.
        let outside = format!("room-{}", address.octets()[3]);
        ip(&format!(
            "link add {outside} type veth peer name eth0 netns {thread}"
        ))?;
        ip(&format!("link set {outside} master {bridge} up"))?;
        room.within(move || connect(address, gateway))??;
        Ok(room)
    }

    /// Makes one that reaches nobody. `name` must be new.
    pub(crate) fn apart(name: &str) -> Result<Self> {
        let room = Self::unconnected(name)?;
        room.within(|| {
            crate::machine::usable_addresses()?;
            ip("link set lo up")
        })??;
        Ok(room)
    }

    fn unconnected(name: &str) -> Result<Self> {
        let (work, jobs) = channel::<Work>();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || jobs.into_iter().for_each(|job| job()))
            .context("start the room's thread")?;
        let mut room = Self {
            name: name.to_owned(),
            work: Mutex::new(Some(work)),
            thread: Some(thread),
            id: 0,
        };
        let name = name.to_owned();
        room.id = room.within(move || furnish(&name))??;
        Ok(room)
    }

    /// The id of its thread, by which others find its namespaces.
    pub(crate) fn thread(&self) -> u32 {
        self.id
    }

    /// Does something in the room and waits for it.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = channel();
        let job = Box::new(move || {
            // Whoever asked waits below.
            let _ = answer.send(work());
        });
        let ended = || anyhow!("{}'s thread has ended", self.name);
        self.work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(|work| work.send(job).ok())
            .with_context(ended)?;
        answered.recv().with_context(ended)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // It has nothing left to do, and so no reason to fail.
        let _ = self.thread.take().map(JoinHandle::join);
        // Sockets of those that were killed; the machine removes the folder if somebody still writes to it.
        let _ = fs::remove_dir_all(Path::new(ROOMS).join(&self.name));
    }
}

/// Starts `command` in `room`, or where the caller is.
pub(crate) fn spawn_in(room: Option<&Room>, mut command: Command) -> Result<Child> {
    let name = format!("{:?}", command.get_program());
    match room {
        None => command.spawn(),
        Some(room) => room.within(move || command.spawn())?,
    }
    .with_context(|| format!("start {name}"))
}

/// Enters new namespaces and makes them a node's. Returns the thread's id.
fn furnish(name: &str) -> Result<u32> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("enter the room's namespaces")?;
    own_run(&Path::new(ROOMS).join(name))?;
    let own = Machine::get()?.work().join(name).join("own");
    for target in OWN {
        let source = own.join(target.trim_start_matches('/'));
        for folder in [source.as_path(), Path::new(target)] {
            create(folder)?;
        }
        mount(
            Some(&source),
            *target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("mount {} on {target}", source.display()))?;
    }
    let (bpf, mode) = (Some("bpf"), Some("mode=700"));
    mount(bpf, "/sys/fs/bpf", bpf, MsFlags::empty(), mode).context("mount the room's bpffs")?;
    Ok(rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs())
}

/// Replaces `/run`, mounts on it included: an inherited mount of a pod's namespace or root file system would
/// hold it for as long as the room is there.
fn own_run(folder: &Path) -> Result<()> {
    for folder in [folder, Path::new(RUN)] {
        create(folder)?;
    }
    let copy = |path: &Path| {
        open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE)
            .with_context(|| format!("copy the mount of {}", path.display()))
    };
    let (own, shared) = (copy(folder)?, copy(Path::new(RUN))?);
    umount2("/run", MntFlags::MNT_DETACH).context("unmount the machine's /run")?;
    for (copy, target) in [(own, "/run"), (shared, RUN)] {
        create(Path::new(target))?;
        move_mount(
            &copy,
            "",
            CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .with_context(|| format!("mount the room's {target}"))?;
    }
    create(Path::new("/run/netns"))
}

/// Gives the room's ends of the network their addresses.
fn connect(address: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
    crate::machine::usable_addresses()?;
    ip("link set lo up")?;
    ip(&format!("address add {address}/24 dev eth0"))?;
    ip("link set eth0 up")?;
    ip(&format!("route add default via {gateway}"))
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// Folders with the sockets of shims: the machine's and each room's.
pub(crate) fn socket_folders() -> Vec<PathBuf> {
    // Most machines have no room.
    let rooms = fs::read_dir(ROOMS).into_iter().flatten().flatten();
    let runs = rooms.map(|room| room.path());
    [PathBuf::from("/run")]
        .into_iter()
        .chain(runs)
        .map(|run| run.join("podmotion/shims"))
        .filter(|folder| folder.is_dir())
        .collect()
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split(' '))).map(drop)
}
