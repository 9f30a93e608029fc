//! The state of a container's tasks from before CRIU touches them.
//!
//! CRIU has stopped tasks run system calls of its own, with registers and code of its own, and runs
//! a daemon in each process. When it is killed, nobody knows any more what was there before, unless it
//! has been noted. It takes about a millisecond, while CRIU is starting.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use podmotion_inject::{self as inject, Process, Seized, ThreadState, on_own_thread};

use crate::error::Error;
use crate::freezer::Freezer;
use crate::mappings::{self, Change, Mapping};
use crate::sys;

/// One thread of a process, both as ids on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub pid: i32,
    pub tid: i32,
}

/// All tasks of one cgroup.
#[derive(Default)]
pub(crate) struct Insurance {
    processes: Vec<Insured>,
}

struct Insured {
    pid: i32,
    threads: Vec<ThreadState>,
    mappings: Vec<Mapping>,
    /// Where CRIU writes instructions, and what is there.
    code: Option<(u64, [u8; CODE])>,
    descriptors: Vec<u64>,
    umask: String,
}

/// CRIU writes 16 bytes: an instruction or two, and a name (`compel_execute_syscall` and
/// `parasite_memfd_exchange` in `compel/src/lib/infect.c`).
const CODE: usize = 64;

impl Insurance {
    /// Notes the state of all tasks in a frozen cgroup. They run nothing meanwhile and are frozen
    /// afterwards; after an error they may be thawed.
    pub(crate) fn take(freezer: &Freezer, pids: &[i32], within: Duration) -> Result<Self, Error> {
        on_own_thread(|| {
            let mut seized = Seized::begin(pids)?;
            freezer.thaw()?;
            seized.wait_stopped(within)?;
            let mut processes = Vec::with_capacity(pids.len());
            for process in seized.processes() {
                match Insured::note(process, within) {
                    Ok(insured) => processes.push(insured),
                    // It has just been killed.
                    Err(Error::Stop(inject::Error::Gone { .. })) => {}
                    Err(e) => return Err(e),
                }
            }
            freezer.freeze(within)?;
            seized.release()?;
            Ok(Self { processes })
        })?
    }

    /// Puts the tasks `held` back into their state: those that CRIU had stopped when it ended. The
    /// cgroup must be frozen and CRIU gone; it is thawed afterwards.
    pub(crate) fn put_back(
        &self,
        held: &[Task],
        freezer: &Freezer,
        within: Duration,
    ) -> Result<(), Error> {
        let insured: Vec<_> = self
            .processes
            .iter()
            .filter(|insured| held.iter().any(|task| task.pid == insured.pid))
            .collect();
        let pids: Vec<_> = insured.iter().map(|insured| insured.pid).collect();
        on_own_thread(|| {
            let mut seized = Seized::begin(&pids)?;
            freezer.thaw()?;
            seized.wait_stopped(within)?;
            let mut first = Ok(());
            for insured in insured {
                match seized.process(insured.pid).map_err(Error::from) {
                    Ok(process) => first = first.and(insured.put_back(process, held)),
                    Err(e) => first = first.and(Err(e)),
                }
            }
            first.and(seized.release().map_err(Error::from))
        })?
    }
}

/// CRIU reads the threads' `struct rseq` and the code that it writes over with `PTRACE_PEEKDATA`,
/// which fails where a page is missing that a userfaultfd answers for. Reading them in a way that
/// waits brings them in. In a thread that can be left behind: a page that cannot be had lets nobody go
/// before the process is killed.
fn bring_in_what_is_peeked(
    process: &mut Process,
    code: Option<&Mapping>,
    within: Duration,
) -> Result<(), Error> {
    /// `rseq_cs` in `struct rseq`, and what it points to.
    const SEQUENCE: (usize, usize) = (8, 32);
    let pid = process.pid();
    let code = code.map(|code| code.start);
    let tids: Vec<_> = process.threads().collect();
    let mut areas = Vec::new();
    for tid in tids {
        areas.extend(process.restartable_sequence(tid)?);
    }
    let (tell, told) = mpsc::channel();
    let work = move || {
        // What cannot be read is CRIU's to complain about.
        let bring_in = |address, bytes: &mut [u8]| {
            let _ = sys::read_memory(pid, address, bytes);
        };
        if let Some(code) = code {
            bring_in(code, &mut [0; CODE]);
        }
        for area in areas {
            let mut name = [0; 8];
            bring_in(area + SEQUENCE.0 as u64, &mut name);
            let name = u64::from_ne_bytes(name);
            if name != 0 {
                bring_in(name, &mut [0; SEQUENCE.1]);
            }
        }
        // Whoever waited has given up.
        let _ = tell.send(());
    };
    thread::Builder::new()
        .name("criu-peek".to_owned())
        .spawn(work)
        .map_err(|source| inject::Error::System {
            operation: "make a thread",
            source,
        })?;
    told.recv_timeout(within).map_err(|_| Error::Absent {
        pid,
        reason: "what CRIU reads of it is not filled in",
    })
}

impl Insured {
    fn note(process: &mut Process, within: Duration) -> Result<Self, Error> {
        let pid = process.pid();
        let tids: Vec<_> = process.threads().collect();
        let threads = tids.into_iter().map(|tid| process.state(tid));
        let threads = threads.collect::<Result<_, _>>()?;
        let mappings = mappings::parse(&read(pid, "maps")?);
        bring_in_what_is_peeked(process, mappings::first_code(&mappings), within)?;
        let code = match mappings::first_code(&mappings) {
            Some(mapping) => {
                let mut bytes = [0; CODE];
                process.read(mapping.start, &mut bytes)?;
                Some((mapping.start, bytes))
            }
            None => None,
        };
        Ok(Self {
            pid,
            threads,
            mappings,
            code,
            descriptors: descriptors(pid)?,
            umask: umask(pid)?,
        })
    }

    fn put_back(&self, process: &mut Process, held: &[Task]) -> Result<(), Error> {
        let pid = self.pid;
        for state in &self.threads {
            let tid = state.tid();
            // The others have gone on by themselves.
            if held.contains(&Task { pid, tid }) {
                process.apply(state)?;
            }
        }
        if let Some((address, bytes)) = &self.code {
            let mut now = [0; CODE];
            process.read(*address, &mut now)?;
            if now != *bytes {
                process.write(*address, bytes)?;
            }
        }
        for change in mappings::undo(&self.mappings, &mappings::parse(&read(pid, "maps")?)) {
            let (number, arguments) = match change {
                Change::Unmap { start, length } => (libc::SYS_munmap, [start, length, 0]),
                Change::Protect {
                    start,
                    length,
                    protection,
                } => (libc::SYS_mprotect, [start, length, protection]),
            };
            call(process, number, arguments)?;
        }
        for descriptor in descriptors(pid)? {
            if !self.descriptors.contains(&descriptor) {
                call(process, libc::SYS_close, [descriptor, 0, 0])?;
            }
        }
        if umask(pid)? != self.umask {
            let mask = u64::from_str_radix(&self.umask, 8).unwrap_or(0o22);
            call(process, libc::SYS_umask, [mask, 0, 0])?;
        }
        Ok(())
    }
}

/// A system call that cannot fail but by a mistake here.
fn call(process: &mut Process, number: i64, [a, b, c]: [u64; 3]) -> Result<(), Error> {
    let answer = process.syscall(number, [a, b, c, 0, 0, 0])?;
    if answer >= 0 {
        return Ok(());
    }
    let error = i32::try_from(-answer).unwrap_or(libc::EINVAL);
    Err(Error::io(
        "undo what CRIU has done in",
        PathBuf::from(format!("/proc/{}", process.pid())),
        io::Error::from_raw_os_error(error),
    ))
}

/// Tasks among the processes that the process `tracer` traces.
pub(crate) fn traced_by(tracer: i32, pids: &[i32]) -> Vec<Task> {
    let line = format!("TracerPid:\t{tracer}\n");
    let mut tasks = Vec::new();
    for &pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for entry in entries.flatten() {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let tid = entry.file_name().to_str().and_then(|n| n.parse().ok());
            if let Some(tid) = tid.filter(|_| status.contains(&line)) {
                tasks.push(Task { pid, tid });
            }
        }
    }
    tasks
}

fn read(pid: i32, name: &str) -> Result<String, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    fs::read_to_string(&path).map_err(|e| Error::io("read", path, e))
}

fn descriptors(pid: i32) -> Result<Vec<u64>, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = fs::read_dir(&path).map_err(|e| Error::io("list", path, e))?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(entries.flatten().filter_map(number).collect())
}

fn umask(pid: i32) -> Result<String, Error> {
    let status = read(pid, "status")?;
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    Ok(umask.unwrap_or_default().trim().to_owned())
}
