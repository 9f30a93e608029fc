//! Loads the programs and pins them and their maps.

pub mod cgroup;
mod probes;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::programs::links::LinkError;
use aya::programs::{Program, ProgramError, ProgramInfo};
use aya::{BtfError, Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

use crate::attach::{GATE_PROGRAM, TAP_PROGRAM};
use crate::kernel_function;
use crate::maps::{MapError, Maps, NAMES, NAMES_OF_PROBES};

static GATE_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate_ingress.o"));
/// The same program for Linux 6.2 and newer; see [`kernel_function`].
static KERNEL_CONTEXT_OBJECT: &[u8] =
    include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate_ingress_kernel_context.o"));
static TAP_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tap_ingress.o"));

/// The programs could not be loaded, pinned or removed.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The directory is not on a BPF file system.
    #[error("{} is not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`", path.display())]
    NotBpffs {
        /// The directory, or the part of it that exists.
        path: PathBuf,
    },
    /// The directory could not be made, read or removed.
    #[error("cannot {operation} {}", path.display())]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pinned map is from a version with another layout; its state cannot be kept.
    #[error("a pinned map does not fit; stop what uses it and remove the pins first")]
    Layout(#[source] MapError),
    /// The kernel refused a program or map.
    #[error("cannot load the BPF program {program}")]
    Load {
        /// Name of the program.
        program: &'static str,
        /// Why, with the verifier's log.
        #[source]
        source: EbpfError,
    },
    /// The kernel refused a program, or does not tell about one.
    #[error("cannot load the BPF program {program}")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// Why, with the verifier's log.
        #[source]
        source: ProgramError,
    },
    /// The kernel has no function that the program calls.
    #[error("the running kernel has no function {}", kernel_function::NAME)]
    Function(#[source] BtfError),
    /// The object file lacks its program: a broken build.
    #[error("the embedded object has no program {program}")]
    Missing {
        /// Name of the program.
        program: &'static str,
    },
    /// The link of the program that notes probes could not be made or looked at.
    #[error("cannot use the link of the BPF program {}", crate::SOCKOPS_PROGRAM)]
    Link(#[source] LinkError),
    /// That program has nothing to be attached to.
    #[error("cannot attach the BPF program {}", crate::SOCKOPS_PROGRAM)]
    Cgroup(#[source] cgroup::CgroupError),
    /// The program could not be pinned.
    #[error("cannot pin the BPF program {program}")]
    Pin {
        /// Name of the program.
        program: &'static str,
        /// Why.
        #[source]
        source: aya::pin::PinError,
    },
}

/// What became of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was not there.
    Created,
    /// Another build's was there. What is attached already goes on with the old program.
    Replaced,
    /// It is the same.
    Unchanged,
}

/// What was pinned.
#[derive(Debug)]
pub struct Loaded {
    /// Names of pins.
    pub pins: Vec<(&'static str, Outcome)>,
    /// Why probes are not told from other traffic, if they are not: what the kernel lacks. The gate
    /// does without, and probes wake and keep awake like everything else.
    pub without_probes: Option<LoadError>,
}

/// A build of the gate's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// For Linux 6.2 and newer: reads the kernel's fields itself, which takes half the time.
    KernelContext,
    /// For every kernel: asks for them with calls of helpers.
    Portable,
}

/// Loads the programs and pins them and their maps in `dir`, which is made (mode 0700) if needed. The
/// one that notes probes is attached to the root of the control groups, by a link that is pinned too.
///
/// Doing it again changes nothing. A pinned program of another build is replaced in one step; maps
/// that are pinned are kept with all they hold. Callers at the same time wait for one another.
///
/// The gate's program is the last to be there: whoever finds it finds all there will be. After a boot,
/// shims look for it before anybody has loaded anything.
///
/// Leaves nothing mounted: `dir` must be on a BPF file system.
pub fn load_and_pin(dir: &Path) -> Result<Loaded, LoadError> {
    load_and_pin_build(dir, None)
}

/// [`load_and_pin`], with one build of the gate's program instead of the best that the kernel takes.
pub fn load_and_pin_build(dir: &Path, build: Option<Build>) -> Result<Loaded, LoadError> {
    check_bpffs(dir)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(directory_error("create", dir))?;
    let _lock = lock(dir)?;
    if NAMES.iter().all(|name| dir.join(name).exists()) {
        Maps::open(dir).map_err(LoadError::Layout)?;
    }
    let mut pins = map_outcomes(dir, &NAMES);
    let first = !dir.join(GATE_PROGRAM).exists();
    let without_probes = match probes::pin(dir) {
        Ok(more) => {
            pins.extend(more);
            None
        }
        Err(error) => Some(error),
    };
    match pin_gate(dir, build) {
        Ok(more) => pins.extend(more),
        Err(error) => {
            if first {
                // Nobody can use it.
                probes::remove(dir)?;
            }
            return Err(error);
        }
    }
    Ok(Loaded {
        pins,
        without_probes,
    })
}

/// Pins the gate's own programs.
fn pin_gate(dir: &Path, build: Option<Build>) -> Result<[(&'static str, Outcome); 2], LoadError> {
    let tap = pin_program(dir, TAP_PROGRAM, TAP_OBJECT)?;
    let gate = pin_gate_program(dir, build)?;
    Maps::open(dir).map_err(LoadError::Layout)?;
    Ok([(TAP_PROGRAM, tap), (GATE_PROGRAM, gate)])
}

/// What will become of maps when programs that have them are loaded.
fn map_outcomes(dir: &Path, names: &[&'static str]) -> Vec<(&'static str, Outcome)> {
    let outcome = |name: &&'static str| match dir.join(name).exists() {
        true => (*name, Outcome::Unchanged),
        false => (*name, Outcome::Created),
    };
    names.iter().map(outcome).collect()
}

/// Removes the pins from `dir`, then `dir` and, if nothing else is in it, its parent. Attached
/// programs live on until they are detached.
///
/// Returns the names removed; none if there is no such directory.
pub fn unpin(dir: &Path) -> Result<Vec<&'static str>, LoadError> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    check_bpffs(dir)?;
    let lock = lock(dir)?;
    let mut removed = probes::remove(dir)?;
    for name in [GATE_PROGRAM, TAP_PROGRAM].into_iter().chain(NAMES) {
        remove_pin(&staging(dir, name))?;
        if remove_pin(&dir.join(name))? {
            removed.push(name);
        }
    }
    drop(lock);
    fs::remove_dir(dir).map_err(directory_error("remove", dir))?;
    if let Some(parent) = dir.parent().filter(|parent| is_bpffs(parent)) {
        // Another version's pins, or the mount point itself: not ours to remove.
        let _ = fs::remove_dir(parent);
    }
    Ok(removed)
}

fn pin_gate_program(dir: &Path, build: Option<Build>) -> Result<Outcome, LoadError> {
    match build {
        Some(Build::Portable) => pin_program(dir, GATE_PROGRAM, GATE_OBJECT),
        Some(Build::KernelContext) => {
            let object =
                kernel_function::resolve(KERNEL_CONTEXT_OBJECT).map_err(LoadError::Function)?;
            pin_program(dir, GATE_PROGRAM, &object)
        }
        None => match pin_gate_program(dir, Some(Build::KernelContext)) {
            // Whatever it was, the other build asks for less, and its failure is the one to tell.
            Err(LoadError::Function(_) | LoadError::Load { .. } | LoadError::Program { .. }) => {
                pin_gate_program(dir, Some(Build::Portable))
            }
            result => result,
        },
    }
}

fn pin_program(dir: &Path, name: &'static str, object: &[u8]) -> Result<Outcome, LoadError> {
    let program_error = |source| LoadError::Program {
        program: name,
        source,
    };
    let mut ebpf = load_object(dir, name, object)?;
    let program = ebpf
        .program_mut(name)
        .ok_or(LoadError::Missing { program: name })?;
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => return Err(LoadError::Missing { program: name }),
    }
    .map_err(program_error)?;
    let pin = dir.join(name);
    let outcome = match ProgramInfo::from_pin(&pin) {
        Err(_) if !pin.exists() => Outcome::Created,
        Err(source) => return Err(program_error(source)),
        Ok(pinned) => {
            let loaded = program.info().map_err(program_error)?;
            if same_program(&pinned, &loaded).map_err(program_error)? {
                return Ok(Outcome::Unchanged);
            }
            Outcome::Replaced
        }
    };
    let staging = staging(dir, name);
    remove_pin(&staging)?;
    program.pin(&staging).map_err(|source| LoadError::Pin {
        program: name,
        source,
    })?;
    fs::rename(&staging, &pin).map_err(directory_error("replace", &pin))?;
    Ok(outcome)
}

fn load_object(dir: &Path, name: &'static str, object: &[u8]) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    for map in NAMES.into_iter().chain(NAMES_OF_PROBES) {
        loader.map_pin_path(map, dir.join(map));
    }
    loader.load(object).map_err(|source| LoadError::Load {
        program: name,
        source,
    })
}

/// The same instructions on the same maps. The tag alone, a digest of the instructions, is also
/// that of a program whose maps have been unpinned and made anew.
fn same_program(one: &ProgramInfo, other: &ProgramInfo) -> Result<bool, ProgramError> {
    let maps = |info: &ProgramInfo| -> Result<BTreeSet<u32>, ProgramError> {
        Ok(info.map_ids()?.unwrap_or_default().into_iter().collect())
    };
    Ok(one.tag() == other.tag() && maps(one)? == maps(other)?)
}

/// Where a program is pinned before it takes its place. (No name in a BPF file system has a dot.)
fn staging(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}_new"))
}

fn remove_pin(pin: &Path) -> Result<bool, LoadError> {
    match fs::remove_file(pin) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(directory_error("remove", pin)(error)),
    }
}

fn check_bpffs(dir: &Path) -> Result<(), LoadError> {
    let existing = dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if is_bpffs(existing) {
        Ok(())
    } else {
        Err(LoadError::NotBpffs {
            path: existing.into(),
        })
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

fn lock(dir: &Path) -> Result<Flock<File>, LoadError> {
    let file = File::open(dir).map_err(directory_error("open", dir))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| directory_error("lock", dir)(errno.into()))
}

fn directory_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoadError {
    let path = path.to_owned();
    move |source| LoadError::Directory {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_directory_that_is_not_on_a_bpf_file_system() {
        let error = load_and_pin(Path::new("/tmp/podmotion-pins/v1")).unwrap_err();
        assert!(matches!(error, LoadError::NotBpffs { .. }), "{error:?}");
        assert!(!Path::new("/tmp/podmotion-pins").exists());
    }

    #[test]
    fn removing_what_is_not_there_removes_nothing() {
        assert!(unpin(Path::new("/nowhere/v1")).unwrap().is_empty());
    }
}
