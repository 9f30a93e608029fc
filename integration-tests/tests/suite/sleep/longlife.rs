//! A long life with many light sleeps: nothing grows, and nothing of a sleep is left.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Container, Depth, Node, PATIENCE, Runtime, fds, own_processes, rss_anon_kib, soak,
    status_number,
};

use super::depth::memory_images;
use super::{counter, visit};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[(
    "sleep::longlife::many_cycles_leave_nothing",
    many_cycles_leave_nothing,
)];

/// Requests before the first sleep: each runs in a thread, whose stack stays for the next.
const AWAKE: u64 = 10;
/// Mappings that a program may have more of: two threads' stacks with their guards, where requests
/// happened to overlap.
const STACKS: usize = 4;
/// Requests before what is there is compared: buffers, working set and image have reached their size then.
const FIRST: u64 = 50;
/// Sleeps after that, and in the long variant.
const MORE: u64 = 150;
const MORE_IN_A_SOAK: u64 = 1000;

/// What the shim may have more of after all of them, in KiB: where its allocator happens to put things
/// moves it by some pages, 20 KiB were seen. What is lost in each cycle is more: 1 KiB is 160 in the short
/// run, and 0.2 are 200 in the long one.
const SHIM_NOISE_KIB: u64 = 128;
/// What an image may have grown by: the interpreter goes on allocating, a page of its own at a time.
const IMAGE_NOISE: u64 = 1 << 20;
/// What page tables may have grown by, in KiB: two tables of a page each, where the interpreter's heap
/// happens to grow into a new range.
const TABLES_NOISE_KIB: u64 = 8;

/// A program whose allocator asks for huge pages. 8 MiB, so that there are some.
fn app() -> App {
    counter()
        .mem_mb(8)
        .env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        .annotation("deep-sleep-after", "never")
}

fn many_cycles_leave_nothing(node: &Node, _: Runtime) -> Result<()> {
    ensure!(node.depth() == Depth::Light);
    let container = node.run(app())?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    for number in 1..=AWAKE {
        ensure!(visit(address)? == number);
    }
    let young = Mapping::all(&container)?;
    let huge = huge_kib(&container)?;
    ensure!(
        young.iter().any(|one| one.has_flag("hg")),
        "nothing asks for huge pages: {young:#?}"
    );
    let cycles = |numbers: RangeInclusive<u64>| -> Result<()> {
        for number in numbers {
            container.sleep()?;
            ensure!(visit(address)? == number, "at {number}");
        }
        container.sleeper().wait_whole().map(drop)
    };
    let more = if soak() { MORE_IN_A_SOAK } else { MORE };
    cycles(AWAKE + 1..=FIRST)?;
    container.sleep()?;
    let before = Holdings::of(&container)?;
    cycles(FIRST + 1..=FIRST + more)?;

    let old = Mapping::all(&container)?;
    let other: Vec<_> = old.iter().filter(|one| !young.contains(one)).collect();
    ensure!(
        other.is_empty() && old.len() <= young.len() + STACKS,
        "{} mappings before, {} after, among them of another kind: {other:?}",
        young.len(),
        old.len()
    );
    let now = huge_kib(&container)?;
    // The kernel may decline single ones.
    ensure!(2 * now >= huge, "{now} KiB of {huge} are huge pages");
    container.sleep()?;
    Holdings::wait_as(&container, &before)?;
    ensure!(visit(address)? == FIRST + more + 1);
    Ok(())
}

/// A container's memory in huge pages, in KiB.
fn huge_kib(container: &Container) -> Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", container.pid()?);
    let smaps = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    smaps
        .lines()
        .find_map(|line| line.strip_prefix("AnonHugePages:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no AnonHugePages in {path}"))
}

/// A mapping of a process, without its addresses and its content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Mapping {
    /// Permissions, file and name.
    what: String,
    /// `VmFlags` of proc_pid_smaps(5): with `um` and `uw` where a userfaultfd is registered, `nh` where huge
    /// pages are ruled out.
    flags: String,
    /// Whether the kernel may put huge pages there, as far as it says.
    huge: Option<String>,
}

impl Mapping {
    /// Those of a container's first process, in order of their kinds.
    fn all(container: &Container) -> Result<Vec<Self>> {
        let path = format!("/proc/{}/smaps", container.pid()?);
        let smaps = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let mut all: Vec<Self> = Vec::new();
        for line in smaps.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match (words.as_slice(), all.last_mut()) {
                ([key, flags @ ..], Some(last)) if *key == "VmFlags:" => {
                    last.flags = flags.join(" ");
                }
                ([key, value], Some(last)) if *key == "THPeligible:" => {
                    last.huge = Some((*value).to_owned());
                }
                ([key, ..], _) if key.ends_with(':') => {}
                ([_, permissions, _, device, inode, name @ ..], _) => all.push(Self {
                    what: format!("{permissions} {device} {inode} {}", name.join(" ")),
                    flags: String::new(),
                    huge: None,
                }),
                _ => {}
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|one| one == flag)
    }
}

/// What a sleeping container and its shim have.
#[derive(Debug)]
struct Holdings {
    shim_kib: u64,
    shim_threads: u64,
    shim_descriptors: BTreeMap<String, usize>,
    /// All of the run: shim, keeper, container.
    processes: usize,
    image_bytes: u64,
    image_disk_bytes: u64,
    image_files: usize,
    tables_kib: u64,
    threads: u64,
    descriptors: BTreeMap<String, usize>,
}

impl Holdings {
    fn of(container: &Container) -> Result<Self> {
        let shim = container.node().shim_of(container.id())?.pid;
        let pid = container.pid()?.try_into()?;
        let files = files(&memory_images(container))?;
        Ok(Self {
            shim_kib: rss_anon_kib(shim)?,
            shim_threads: status_number(shim, "Threads")?,
            shim_descriptors: fds(shim)?,
            processes: own_processes()?.len(),
            image_bytes: files.iter().map(|(bytes, _)| bytes).sum(),
            image_disk_bytes: files.iter().map(|(_, bytes)| bytes).sum(),
            image_files: files.len(),
            tables_kib: status_number(pid, "VmPTE")?,
            threads: status_number(pid, "Threads")?,
            descriptors: fds(pid)?,
        })
    }

    /// Waits until there is no more than in `before`, but for noise. The shim's threads for blocking work
    /// end some seconds after they were last needed, and nothing tells.
    fn wait_as(container: &Container, before: &Self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::of(container)?;
            if now.is_no_more_than(before) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "before: {before:#?}\nafter: {now:#?}"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn is_no_more_than(&self, before: &Self) -> bool {
        self.shim_kib <= before.shim_kib + SHIM_NOISE_KIB
            && self.image_bytes <= before.image_bytes + IMAGE_NOISE
            && self.image_disk_bytes <= before.image_disk_bytes + IMAGE_NOISE
            && self.tables_kib <= before.tables_kib + TABLES_NOISE_KIB
            && self.shim_threads <= before.shim_threads
            && self.processes <= before.processes
            && self.image_files <= before.image_files
            && self.threads <= before.threads
            && is_no_more(&self.shim_descriptors, &before.shim_descriptors)
            && is_no_more(&self.descriptors, &before.descriptors)
    }
}

fn is_no_more(now: &BTreeMap<String, usize>, before: &BTreeMap<String, usize>) -> bool {
    now.iter()
        .all(|(kind, count)| before.get(kind).is_some_and(|before| count <= before))
}

/// Length, and room on disk, of each file in a folder.
fn files(folder: &Path) -> Result<Vec<(u64, u64)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    entries
        .map(|entry| {
            let data = entry?.metadata()?;
            Ok((data.len(), data.blocks() * 512))
        })
        .collect()
}
