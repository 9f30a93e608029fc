//! Dump: from running processes to images.
//!
//! ```text
//!  freeze -> CRIU: seize, collect, write images -> "post-dump" -> commit? -> CRIU: kill -> Ok
//!                          |                            | no
//!                abort: file size limit 0               v
//!                          +-----------------> CRIU: cure, resume -> thaw -> Err(Tasks::Running)
//! ```
//!
//! Before CRIU touches them the state of all tasks is noted (`insurance.rs`), and at
//! whatever moment it dies the cgroup is frozen before it lets go of them (`guard.rs`):
//! what it leaves behind can be undone (`undo.rs`).
//!
//! Point of no return is the `Ok` of [`Criu::dump`]'s `commit`. Before it the tasks can always
//! resume; after it the driver goes on to the end even when CRIU dies.

mod merge;
mod outcome;
mod request;
mod undo;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use podmotion_inject::End;
use rust_criu::rust_criu_protobuf::rpc::{
    Criu_cg_mode, Criu_network_lock_method, Criu_opts, Criu_req, Criu_req_type,
};
use rustix::process::{Pid, Resource, Rlimit};

use crate::criu::{Criu, Directory, refused};
use crate::error::Error;
use crate::freezer::Freezer;
use crate::guard::Guard;
use crate::insurance::{self, Insurance, Task};
use crate::launch::{self, Process};
use crate::log::{self, LogErrors};
use crate::rpc::{self, Connection, Event};
use crate::stats;
use crate::subject::Subject;
use crate::timers;

pub use outcome::{DumpFailure, DumpReport, Tasks, Written};
pub use request::{Absent, DumpControl, DumpRequest, Veto};

/// Name of CRIU's log in the work directory.
pub const DUMP_LOG: &str = "dump.log";

impl Criu {
    /// Dumps a container: freezes its cgroup, writes the images, calls `commit`, kills the
    /// processes. The exit of the container's init is the caller's to reap.
    ///
    /// `request.pid` must be the init of a pid namespace of its own.
    ///
    /// `commit` is called at most once, when all images are written and the tasks still exist.
    /// `Ok` is the point of no return: whatever a restore will need must be there by then. Anything
    /// else makes the tasks run on.
    ///
    /// # Errors
    /// [`DumpFailure`] says what became of the container. Images of a failed dump are incomplete
    /// and stay where they are.
    pub fn dump(
        &self,
        subject: &Subject,
        request: &DumpRequest<'_>,
        control: &DumpControl,
        commit: &dyn Fn(Written) -> Result<(), Veto>,
    ) -> Result<DumpReport, DumpFailure> {
        let started = Instant::now();
        let fail = |tasks, cause| DumpFailure {
            pid: request.pid,
            tasks,
            cause,
        };
        let target = launch::pidfd(request.pid).map_err(|source| {
            let pid = request.pid;
            fail(Tasks::Lost, Error::NoProcess { pid, source })
        })?;
        let freezer = subject.freezer.as_deref().map(Freezer::new).transpose();
        let freezer = freezer.map_err(|e| fail(Tasks::Running, e.into()))?;
        let mut dump = Dump {
            criu: self,
            subject,
            request,
            control,
            commit,
            freezer,
            target,
            processes: Vec::new(),
            insurance: Insurance::default(),
            held: Vec::new(),
            freeze: Duration::ZERO,
            committed: None,
        };
        match dump.run(started) {
            Ok(written) => Ok(dump.report(started, written)),
            Err(cause) => match dump.committed {
                Some(written) => dump.finish(started, written, cause),
                None => {
                    let cause = dump.explain(cause);
                    Err(fail(dump.put_back(&cause), cause))
                }
            },
        }
    }
}

/// One dump under way.
struct Dump<'a> {
    criu: &'a Criu,
    subject: &'a Subject,
    request: &'a DumpRequest<'a>,
    control: &'a DumpControl,
    commit: &'a dyn Fn(Written) -> Result<(), Veto>,
    freezer: Option<Freezer>,
    target: OwnedFd,
    /// All processes in the cgroup when it was frozen.
    processes: Vec<OwnedFd>,
    /// Their state then.
    insurance: Insurance,
    /// Those of their threads that CRIU had stopped when it ended.
    held: Vec<Task>,
    freeze: Duration,
    /// What was written, from the commit on.
    committed: Option<Written>,
}

/// After an abort or timeout CRIU has this long to put everything back before it is killed.
const CURE_TIME: Duration = Duration::from_secs(10);

impl Dump<'_> {
    fn run(&mut self, started: Instant) -> Result<Written, Error> {
        let images = Directory::open(self.request.images_dir)?;
        let work = Directory::open(self.request.work_dir)?;
        let written_to = vec![images.written_to()?];
        let join = &self.subject.join;
        // Freezing and starting CRIU take a few milliseconds each: side by side.
        let (criu, request) = (self.criu, self.request);
        let worker = std::thread::scope(|scope| {
            let worker = scope.spawn(|| criu.worker(written_to, join, None, None));
            self.freeze(started)?;
            worker.join().unwrap_or_else(|_| {
                Err(Error::Spawn {
                    path: criu.binary.clone(),
                    step: "make a thread",
                    source: io::ErrorKind::Other.into(),
                })
            })
        });
        let (connection, process) = worker?;
        if self.control.aborted() {
            return Err(Error::Aborted);
        }
        process.spare_when_memory_is_short();
        let (freezer, within) = (self.freezer.clone(), request.freeze_timeout);
        let criu = process.pid();
        let guard = Guard::start(&process, move |how| {
            hold(criu, how, freezer.as_ref(), within)
        })?;
        let dumped = self.talk(&connection, &process, &self.message(&images, &work));
        if let Some(held) = guard.end() {
            self.held = held;
        }
        if dumped.is_ok()
            && let Some(freezer) = &self.freezer
        {
            // Killed after its answer, CRIU had nobody left to hold. Fails where the cgroup is gone.
            let _ = freezer.thaw();
        }
        dumped
    }

    /// Freezes the cgroup and notes the state of its tasks.
    fn freeze(&mut self, started: Instant) -> Result<(), Error> {
        let within = self.request.freeze_timeout;
        if let Some(freezer) = &self.freezer {
            freezer.freeze(within)?;
            let pids = freezer.processes()?;
            self.insurance = Insurance::take(freezer, &pids, within)?;
            self.processes = pids.into_iter().flat_map(launch::pidfd).collect();
        }
        self.freeze = started.elapsed();
        Ok(())
    }

    fn talk(
        &mut self,
        connection: &Connection,
        process: &Process,
        message: &Criu_req,
    ) -> Result<Written, Error> {
        match connection.send(message) {
            Err(e) if !rpc::is_gone(&e) => return Err(e),
            _ => {}
        }
        let written = self.converse(connection, process)?;
        // The answer comes before CRIU's own end; the processes are gone with the answer.
        launch::wait_exit(process.pidfd(), Instant::now() + CURE_TIME).map_err(Error::Transport)?;
        Ok(written)
    }

    fn converse(&mut self, connection: &Connection, process: &Process) -> Result<Written, Error> {
        let mut deadline = Instant::now() + self.request.timeout;
        let mut given_up: Option<Error> = None;
        loop {
            let abort = (given_up.is_none() && self.committed.is_none())
                .then(|| self.control.abort.as_fd());
            match connection.wait(process, deadline, abort)? {
                Event::Notify { script, .. } => {
                    let go_on = given_up.is_none() && !self.control.aborted();
                    let go_on = match script.as_str() {
                        "post-dump" => {
                            if go_on {
                                match self.complete(deadline) {
                                    Ok(written) => self.committed = Some(written),
                                    Err(e) => given_up = Some(e),
                                }
                            }
                            self.committed.is_some()
                        }
                        // Part of putting things back.
                        "network-unlock" => true,
                        _ => go_on,
                    };
                    if !go_on {
                        given_up.get_or_insert(Error::Aborted);
                    }
                    match connection.acknowledge(go_on) {
                        Err(e) if !rpc::is_gone(&e) => return Err(e),
                        _ => {}
                    }
                }
                Event::Answer(answer) if answer.success() => {
                    return match (answer.type_(), self.committed) {
                        (Criu_req_type::DUMP, Some(written)) => Ok(written),
                        (other, _) => Err(Error::UnexpectedAnswer { got: other as i32 }),
                    };
                }
                Event::Answer(answer) => {
                    return Err(given_up.unwrap_or_else(|| refused(&answer, self.log(process))));
                }
                Event::Closed => {
                    let log = self.log(process);
                    return Err(given_up.unwrap_or(Error::Exited { log }));
                }
                Event::Watched => {
                    given_up = Some(Error::Aborted);
                    deadline = Instant::now() + CURE_TIME;
                    self.stop_writing(process)?;
                }
                Event::Deadline if given_up.is_some() || self.committed.is_some() => {
                    process.kill();
                    let log = self.log(process);
                    let after = self.request.timeout;
                    return Err(given_up.unwrap_or(Error::TimedOut { after, log }));
                }
                Event::Deadline => {
                    let log = self.log(process);
                    let after = self.request.timeout;
                    given_up = Some(Error::TimedOut { after, log });
                    deadline = Instant::now() + CURE_TIME;
                    self.stop_writing(process)?;
                }
            }
        }
    }

    /// The images are written. What cannot be restored from them must not be dumped.
    fn complete(&self, deadline: Instant) -> Result<Written, Error> {
        if timers::mend(self.request.images_dir)?.is_some() {
            return Err(Error::Unsupported {
                what: "a timer descriptor of a clock that is neither real time nor monotonic time",
                pid: self.request.pid,
                log: LogErrors::default(),
            });
        }
        if let Some(absent) = self.request.absent {
            self.add(absent, deadline)?;
        }
        let written = Written::look(self.request.images_dir)?;
        (self.commit)(written).map_err(Error::Vetoed)?;
        Ok(written)
    }

    fn add(&self, absent: &dyn Absent, deadline: Instant) -> Result<(), Error> {
        let pids = match &self.freezer {
            Some(freezer) => freezer.processes()?,
            None => vec![self.request.pid],
        };
        let go_on = || {
            if self.control.aborted() {
                return Err(Error::Aborted);
            }
            if Instant::now() > deadline {
                let (after, log) = (self.request.timeout, LogErrors::default());
                return Err(Error::TimedOut { after, log });
            }
            Ok(())
        };
        merge::merge(self.request.images_dir, &pids, absent, &go_on)
    }

    /// Makes CRIU's next write to an image fail. It then takes the way out that it takes on a full
    /// disk: its code leaves the tasks, sockets leave repair mode, the tasks run on. No signal has
    /// that effect: CRIU handles none, and dying it would leave the sockets in repair mode.
    fn stop_writing(&self, process: &Process) -> Result<(), Error> {
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        match rustix::process::prlimit(Pid::from_raw(process.pid()), Resource::Fsize, none) {
            Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(Error::Transport(e.into())),
        }
    }

    fn log(&self, process: &Process) -> LogErrors {
        log::read(&self.request.work_dir.join(DUMP_LOG)).or_first(process.complaint())
    }

    fn message(&self, images: &Directory, work: &Directory) -> Criu_req {
        let mut options = Criu_opts::new();
        options.set_images_dir_fd(images.number());
        options.set_work_dir_fd(work.number());
        options.set_log_file(DUMP_LOG.to_owned());
        options.set_log_level(self.criu.log_level as i32);
        options.set_pid(self.request.pid);
        options.set_root(self.subject.rootfs.to_string_lossy().into_owned());
        options.set_notify_scripts(true);
        options.set_manage_cgroups(true);
        options.set_manage_cgroups_mode(Criu_cg_mode::IGNORE);
        options.set_network_lock(Criu_network_lock_method::SKIP);
        options.set_tcp_established(self.request.tcp_established);
        options.set_file_locks(true);
        options.set_ext_unix_sk(true);
        options.set_orphan_pts_master(true);
        options.set_ghost_limit(self.request.ghost_limit);
        // A mount that gets events from or shares them with the host is still external.
        options.set_ext_masters(true);
        options.set_ext_sharing(true);
        if let Some(freezer) = &self.subject.freezer {
            options.set_freeze_cgroup(freezer.to_string_lossy().into_owned());
        }
        options.external = self
            .subject
            .mounts
            .iter()
            .map(|mount| {
                let inside = mount.inside.display();
                format!("mnt[{inside}]:{inside}")
            })
            .collect();
        let mut request = rpc::request(Criu_req_type::DUMP);
        request.opts = Some(options).into();
        request
    }

    fn report(&self, started: Instant, written: Written) -> DumpReport {
        let total = started.elapsed();
        let stats = stats::read_dump(self.request.work_dir)
            .or_else(|_| stats::read_dump(self.request.images_dir))
            .ok();
        DumpReport {
            freeze: self.freeze,
            total,
            stats,
            written,
        }
    }
}

/// At CRIU's end: keeps the tasks that it has stopped from going on without it. Returns those.
fn hold(criu: i32, how: End, freezer: Option<&Freezer>, within: Duration) -> Vec<Task> {
    let Some(freezer) = freezer else {
        return Vec::new();
    };
    let freeze = || {
        if let Err(e) = freezer.freeze(within) {
            ::log::warn!("freeze at CRIU's end: {e}");
        }
    };
    // At once: a task that CRIU has had run can come to a trap that nobody would take from it.
    let killed = how.signal().is_some();
    if killed {
        freeze();
    }
    let held = insurance::traced_by(criu, &freezer.processes().unwrap_or_default());
    if !killed && !held.is_empty() {
        freeze();
    }
    held
}
