//! What the gate's maps hold about network namespaces that are gone.
//!
//! The namespaces are known by their cookies, which are never used again. A shim holds a descriptor of its
//! pod's namespace for as long as it has entries, so the shims' descriptors are what matters: each of them must be seen.
//! Other processes are looked at as far as that is allowed, so that what a namespace that is in use has stays in any case.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use podmotion_bpf::{Maps, netns};

use super::{Leftover, Plan};

/// Cookie to the number of its entries.
type Registered = BTreeMap<u64, usize>;

/// All that the maps hold. Must come before the namespaces are looked for. Maps that are not pinned hold nothing.
///
/// # Errors
/// When they cannot be read.
pub fn registered(pins: &Path) -> Result<Registered> {
    let mut registered = Registered::new();
    if !pins.exists() {
        return Ok(registered);
    }
    let maps = Maps::open(pins)?;
    let ports = maps.ports.keys()?.into_iter().map(|key| key.netns());
    let flows = maps.flows.keys()?.into_iter().map(|key| key.netns());
    let all = maps.netns.keys()?.into_iter().chain(maps.counters.keys()?);
    for cookie in all.chain(ports).chain(flows) {
        *registered.entry(cookie).or_default() += 1;
    }
    Ok(registered)
}

/// Removes what is registered of namespaces that are gone.
///
/// # Errors
/// When the living ones cannot be told, or the maps not be opened.
pub fn remove(pins: &Path, registered: Registered, plan: Plan) -> Result<Vec<Leftover>> {
    if registered.is_empty() {
        return Ok(Vec::new());
    }
    let living = living()
        .context("which network namespaces are there cannot be told, so all map entries stay")?;
    let mut maps = Maps::open(pins)?;
    let dead = registered
        .into_iter()
        .filter(|(cookie, _)| !living.contains(cookie));
    Ok(dead
        .map(|(cookie, entries)| {
            let mut found = Leftover::new("map entries", format!("network namespace {cookie}"));
            found.entries = Some(entries);
            found.with(plan.remove(|| Ok(maps.purge(cookie)?)))
        })
        .collect())
}

/// The cookies of all network namespaces that a process is in or has a descriptor of, or that are mounted.
fn living() -> Result<BTreeSet<u64>> {
    let mut namespaces = Namespaces::default();
    let entries = fs::read_dir("/proc").context("list /proc")?;
    for entry in entries {
        let path = entry.context("list /proc")?.path();
        let is_process = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok());
        if is_process {
            match namespaces.add_process(&path) {
                Err(error) if may_be_shim(&path) => return Err(error),
                _ => {}
            }
        }
    }
    for point in mounted()? {
        namespaces.add_file(&point)?;
    }
    Ok(namespaces.cookies)
}

#[derive(Default)]
struct Namespaces {
    /// Targets of links that were followed, `net:[INODE]`.
    seen: BTreeSet<PathBuf>,
    cookies: BTreeSet<u64>,
}

impl Namespaces {
    fn add_process(&mut self, process: &Path) -> Result<()> {
        self.add(&process.join("ns/net"))?;
        self.add_descriptors(&process.join("fd"))
    }

    /// Adds a link to a namespace. Other links, and those of processes that have ended, are none.
    fn add(&mut self, link: &Path) -> Result<()> {
        let target = match fs::read_link(link) {
            Ok(target) => target,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("read {}", link.display())),
        };
        if !target.to_string_lossy().starts_with("net:[") || self.seen.contains(&target) {
            return Ok(());
        }
        // Seen only once it was opened: another process may still have it.
        if self.add_file(link)? {
            self.seen.insert(target);
        }
        Ok(())
    }

    /// Whether it was still there.
    fn add_file(&mut self, path: &Path) -> Result<bool> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        let cookie = netns::cookie(file.as_fd()).with_context(|| path.display().to_string())?;
        self.cookies.insert(cookie);
        Ok(true)
    }

    fn add_descriptors(&mut self, folder: &Path) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("list {}", folder.display())),
        };
        for entry in entries {
            match entry {
                Ok(entry) => self.add(&entry.path())?,
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => {
                    return Err(error).with_context(|| format!("list {}", folder.display()));
                }
            }
        }
        Ok(())
    }
}

/// Everybody may read a process's name, of which the kernel keeps 15 bytes. One that has ended is none.
fn may_be_shim(process: &Path) -> bool {
    let name = fs::read_to_string(process.join("comm"));
    name.is_ok_and(|name| name.starts_with("containerd-shim"))
}

/// The process has ended, or closed the descriptor.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Where network namespaces are mounted, such as `/run/netns/NAME`.
fn mounted() -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let table = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(table.lines().filter_map(mount_of_netns).collect())
}

fn mount_of_netns(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    root.starts_with("net:[").then(|| point.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_namespaces_are_told_from_other_mounts() {
        let netns = "91 28 0:4 net:[4026532575] /run/netns/web rw - nsfs nsfs rw";
        assert_eq!(mount_of_netns(netns), Some("/run/netns/web".into()));
        assert_eq!(
            mount_of_netns("92 28 0:4 pid:[4026532576] /run/x rw - nsfs nsfs rw"),
            None
        );
        assert_eq!(mount_of_netns("1 0 8:1 / / rw - ext4 /dev/vda rw"), None);
    }

    #[test]
    fn maps_that_are_not_pinned_hold_nothing() {
        assert!(registered(Path::new("/nowhere/v1")).unwrap().is_empty());
    }
}
