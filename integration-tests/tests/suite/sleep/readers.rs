//! Whoever looks at a sleeping container from outside gets an answer, a right one, and does not wake it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use perf_event::events::Software;
use perf_event::{Builder, SampleFlag};
use podmotion_integration_tests::{
    Client, Container, Node, PATIENCE, Runtime, cgroup_folders, rss_anon_kib, status_number,
};

use super::depth::counter;
use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::readers::monitoring_reads_everything",
        monitoring_reads_everything,
    ),
    (
        "sleep::readers::metrics_say_that_memory_is_free",
        metrics_say_that_memory_is_free,
    ),
    (
        "sleep::readers::memory_that_is_out_is_read_as_it_was",
        memory_that_is_out_is_read_as_it_was,
    ),
    (
        "sleep::readers::a_debugger_sees_no_wrong_byte",
        a_debugger_sees_no_wrong_byte,
    ),
    (
        "sleep::readers::a_profiler_waits_for_nothing",
        a_profiler_waits_for_nothing,
    ),
];

const PAGE: usize = 4096;
/// Room for samples, in bytes: some dozens of them.
const RING: usize = 256 << 10;
/// What the programs hold, in MiB.
const MEGABYTES: u32 = 20;

/// What a sleeping interpreter keeps at most, in bytes: 2.7 MB were seen, of them 1.8 in file mappings, and
/// each processor has up to 256 KiB more accounted than is used.
const LEFT: u64 = 6 << 20;

/// A container that sleeps light, has never been woken, and has been asked once.
fn sleeper(node: &Node) -> Result<(Container, Pid)> {
    let container = counter(node, "never", MEGABYTES)?;
    let pid = Pid::from_raw(container.pid()?.try_into()?);
    let threads = || status_number(pid.as_raw(), "Threads");
    let before = threads()?;
    ensure!(visit(container.address(8080)?)? == 1);
    // The thread of a request ends after its answer, and nothing tells.
    let deadline = Instant::now() + PATIENCE;
    while threads()? > before {
        ensure!(Instant::now() < deadline, "a thread does not end");
        thread::sleep(Duration::from_millis(1));
    }
    Ok((container, pid))
}

/// It was not woken by what was done to it, and wakes with all that it had.
fn sleeps_and_wakes(container: &Container) -> Result<()> {
    let status = container.status()?;
    ensure!(
        status.state == "asleep" && status.depth == "light" && status.counters.wakes == 0,
        "{status:?}"
    );
    wakes(container)
}

fn wakes(container: &Container) -> Result<()> {
    let address = container.address(8080)?;
    ensure!(visit(address)? == 2);
    let answer = Client::default().get(address, "/mem")?;
    ensure!(answer.body.contains("\"mem_ok\": true"), "{answer:?}");
    let status = container.sleeper().wait_whole()?;
    ensure!(status.last_error.is_empty(), "{status:?}");
    container.sleep()?;
    ensure!(visit(address)? == 3);
    Ok(())
}

/// Does something that may not come to an end, in a thread of its own.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver
        .recv_timeout(PATIENCE)
        .with_context(|| format!("{what}: no answer in {PATIENCE:?}"))
}

/// What `ps`, cadvisor, node exporters and `cat` read of a process and its control group.
fn monitoring_reads_everything(node: &Node, _: Runtime) -> Result<()> {
    let (container, pid) = sleeper(node)?;
    let group = container.cgroup()?;
    let read = || -> Result<BTreeSet<PathBuf>> {
        let mut readable = BTreeSet::new();
        let process = PathBuf::from(format!("/proc/{pid}"));
        for folder in cgroup_folders(&group)?.into_iter().chain([process]) {
            read_all(&folder, &mut readable)?;
        }
        Ok(readable)
    };
    let awake = read()?;
    for name in ["smaps", "environ", "stack", "net/tcp", "fd/0", "task"] {
        let path = format!("/proc/{pid}/{name}");
        ensure!(
            awake.iter().any(|found| found.starts_with(&path)),
            "{path} is not among what was read"
        );
    }
    container.sleep()?;
    let asleep = read()?;
    let lost: Vec<_> = awake.difference(&asleep).collect();
    ensure!(lost.is_empty(), "cannot be read asleep: {lost:?}");
    // As cadvisor does for `referenced_memory`.
    let references = format!("/proc/{pid}/clear_refs");
    in_time(&references.clone(), move || fs::write(references, "1"))??;
    for arguments in [["auxww"].as_slice(), &["-eLo", "pid,wchan,args"]] {
        let output = in_time("ps", move || Command::new("ps").args(arguments).output())??;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| {
            let mut words = line.split_ascii_whitespace();
            words.any(|word| word == pid.to_string())
        });
        ensure!(
            line.is_some_and(|line| line.contains("/apps/counter.py")),
            "ps says {line:?}"
        );
    }
    sleeps_and_wakes(&container)
}

/// Reads all files below a folder and follows no links. Adds those that it could read.
fn read_all(folder: &Path, readable: &mut BTreeSet<PathBuf>) -> Result<()> {
    /// The first has no end; memory itself has a test of its own.
    const NOT: [&str; 2] = ["pagemap", "mem"];
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        let name = path.display().to_string();
        // One that goes meanwhile, such as a descriptor, is none.
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let file = path.clone();
        let read = if kind.is_dir() {
            read_all(&path, readable)?;
            true
        } else if kind.is_symlink() {
            in_time(&name, move || fs::read_link(file).is_ok())?
        } else {
            let mode = entry.metadata()?.permissions().mode();
            let wanted = mode & 0o444 != 0 && !NOT.iter().any(|not| path.ends_with(not));
            wanted && in_time(&name, move || fs::read(file).is_ok())?
        };
        if read {
            readable.insert(path);
        }
    }
    Ok(())
}

/// What `kubectl top` shows: what containerd says that is in use, without file pages that nobody needs.
fn metrics_say_that_memory_is_free(node: &Node, _: Runtime) -> Result<()> {
    let (container, _) = sleeper(node)?;
    let awake = working_set(&container)?;
    ensure!(awake > u64::from(MEGABYTES) << 20, "{awake} bytes awake");
    container.sleep()?;
    let asleep = working_set(&container)?;
    ensure!(asleep < LEFT, "{asleep} bytes asleep, {awake} awake");
    sleeps_and_wakes(&container)
}

fn working_set(container: &Container) -> Result<u64> {
    let output = container
        .node()
        .ctr(["task", "metrics", "--format", "json", container.id()])?;
    let text = String::from_utf8_lossy(&output.stdout);
    let metrics: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("parse {output:?}"))?;
    let memory = &metrics["memory"];
    // Control groups of version 1, or 2.
    let pairs = [
        (&memory["usage"]["usage"], &memory["total_inactive_file"]),
        (&memory["usage"], &memory["inactive_file"]),
    ];
    pairs
        .into_iter()
        .find_map(|(usage, inactive)| {
            Some(
                usage
                    .as_u64()?
                    .saturating_sub(inactive.as_u64().unwrap_or(0)),
            )
        })
        .with_context(|| format!("no memory in {text}"))
}

/// The largest piece of private memory of a process.
fn largest(pid: Pid) -> Result<Range<usize>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    maps.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [range, "rw-p", _, _, "0"] = fields[..] else {
                return None;
            };
            let (start, end) = range.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some(number(start)?..number(end)?)
        })
        .max_by_key(|range| range.end - range.start)
        .with_context(|| format!("no private memory of {pid}"))
}

/// That much of its memory, as an outsider sees it.
fn peek(pid: Pid, range: Range<usize>) -> Result<Vec<u8>> {
    in_time("process_vm_readv", move || {
        let mut bytes = vec![0; range.end - range.start];
        let remote = RemoteIoVec {
            base: range.start,
            len: bytes.len(),
        };
        let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &[remote])?;
        ensure!(read == bytes.len(), "{read} bytes of {}", bytes.len());
        Ok(bytes)
    })?
}

fn memory_that_is_out_is_read_as_it_was(node: &Node, _: Runtime) -> Result<()> {
    let (container, pid) = sleeper(node)?;
    let range = largest(pid)?;
    let awake = peek(pid, range.clone())?;
    ensure!(awake.len() >= (MEGABYTES as usize) << 20, "{range:?}");
    container.sleep()?;
    ensure!(rss_anon_kib(pid.as_raw())? < 3 << 10, "memory stays");

    // The kernel does not wait for a missing page here. It must say so.
    let path = format!("/proc/{pid}/mem");
    let memory = File::open(&path).with_context(|| format!("open {path}"))?;
    let middle = range.len() / 2 / PAGE * PAGE;
    let address = u64::try_from(range.start + middle)?;
    let read = in_time(&path, move || {
        let mut page = vec![0; PAGE];
        memory.read_exact_at(&mut page, address).map(|()| page)
    })?;
    ensure!(
        read.as_ref()
            .map_or(true, |page| page[..] == awake[middle..middle + PAGE]),
        "{path} has other bytes than there were: {read:?}"
    );

    // A page here and there, then all of it.
    for start in (0..awake.len()).step_by(97 * PAGE) {
        let at = range.start + start;
        ensure!(
            peek(pid, at..at + PAGE)? == awake[start..start + PAGE],
            "other bytes at {at:#x}"
        );
    }
    ensure!(peek(pid, range)? == awake, "other bytes");
    sleeps_and_wakes(&container)
}

/// What a debugger does with a process: attach, wait for it to stop, look at its memory.
fn a_debugger_sees_no_wrong_byte(node: &Node, _: Runtime) -> Result<()> {
    let (container, pid) = sleeper(node)?;
    let range = largest(pid)?;
    let awake = peek(pid, range.clone())?;
    container.sleep()?;
    // All by one thread: the kernel takes a tracer's requests from no other.
    ptrace::attach(pid).context("attach")?;
    let all = WaitPidFlag::__WALL;
    // The freezer of version 1 lets nobody stop, that of version 2 does.
    let stopped = match waitpid(pid, Some(all | WaitPidFlag::WNOHANG))? {
        WaitStatus::StillAlive => false,
        WaitStatus::Stopped(_, Signal::SIGSTOP) => true,
        other => bail!("attached: {other:?}"),
    };
    if stopped {
        words(pid, &range, &awake)?;
    }
    let status = container.status()?;
    ensure!(
        status.state == "asleep" && status.counters.wakes == 0,
        "{status:?}"
    );
    thread::scope(|scope| -> Result<()> {
        let asking = scope.spawn(|| visit(container.address(8080)?));
        if !stopped {
            // Blocks until it runs, and then stops at once.
            let status = waitpid(pid, Some(all))?;
            ensure!(
                status == WaitStatus::Stopped(pid, Signal::SIGSTOP),
                "woken: {status:?}"
            );
        }
        let deadline = Instant::now() + PATIENCE;
        // Stopped, it misses nothing in the end.
        while !words(pid, &range, &awake)? {
            ensure!(Instant::now() < deadline, "memory does not come back");
            thread::sleep(Duration::from_millis(1));
        }
        ptrace::detach(pid, None).context("detach")?;
        ensure!(
            asking
                .join()
                .is_ok_and(|answer| answer.is_ok_and(|count| count == 2))
        );
        Ok(())
    })?;
    container.sleep()?;
    ensure!(visit(container.address(8080)?)? == 3);
    Ok(())
}

/// Whether a tracer can read a word of each page, and that those it reads are right.
fn words(pid: Pid, range: &Range<usize>, right: &[u8]) -> Result<bool> {
    let mut all = true;
    for start in (0..right.len()).step_by(PAGE) {
        let address = range.start + start;
        match ptrace::read(pid, address as ptrace::AddressType) {
            Ok(word) => ensure!(
                word.to_ne_bytes() == right[start..start + size_of_val(&word)],
                "other bytes at {address:#x}"
            ),
            Err(Errno::EIO | Errno::EFAULT) => all = false,
            Err(error) => bail!("read a word at {address:#x}: {error}"),
        }
    }
    Ok(all)
}

/// Samples of it, with a copy of the stack that may be missing.
fn a_profiler_waits_for_nothing(node: &Node, _: Runtime) -> Result<()> {
    let (container, pid) = sleeper(node)?;
    container.sleep()?;
    let mut sampler = Builder::new(Software::CPU_CLOCK)
        .observe_pid(pid.as_raw())
        .sample_period(1_000_000)
        .sample(SampleFlag::STACK_USER)
        .sample_stack_user(8 << 10)
        .build()
        .context("open a performance event")?
        .sampled(RING)
        .context("map its ring")?;
    sampler.enable().context("start it")?;
    ensure!(sampler.read()? == 0, "it runs");
    sleeps_and_wakes(&container)?;
    ensure!(sampler.read()? > 0, "it has not run");
    // Two requests can take less than a sample's time of a processor.
    let deadline = Instant::now() + PATIENCE;
    while sampler.next_record().is_none() {
        ensure!(Instant::now() < deadline, "no sample");
        visit(container.address(8080)?)?;
    }
    Ok(())
}
