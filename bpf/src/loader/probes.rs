//! Loads the programs that tell probes from other traffic. Not every kernel takes them, and the
//! gate does without.

use std::fs;
use std::path::Path;

use aya::include_bytes_aligned;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, ProgramInfo, SockOps};

use super::{LoadError, Outcome, cgroup, directory_error, pin_program, remove_pin, staging};
use crate::maps::NAMES_OF_PROBES;
use crate::probes::{Kubelets, Responders, SOCKOPS_PROGRAM, STEER_PROGRAM};

static SOCKOPS_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe_sockops.o"));
static STEER_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe_steer.o"));

/// Pin of the link between the program and the root of the control groups.
const SOCKOPS_LINK: &str = "probe_sockops_link";

/// In the order in which they are removed: first nothing is noted any more.
pub(super) const PINS: [&str; 3] = [SOCKOPS_LINK, SOCKOPS_PROGRAM, STEER_PROGRAM];

/// Pins both programs and their maps and attaches the one that is for the whole node.
///
/// # Errors
///
/// Nothing is left of it then, so that nobody relies on half of it.
pub(super) fn pin(dir: &Path) -> Result<Vec<(&'static str, Outcome)>, LoadError> {
    let pinned = try_pin(dir);
    if pinned.is_err() {
        remove(dir)?;
    }
    pinned
}

fn try_pin(dir: &Path) -> Result<Vec<(&'static str, Outcome)>, LoadError> {
    let mut outcomes = super::map_outcomes(dir, &NAMES_OF_PROBES);
    outcomes.push((
        STEER_PROGRAM,
        pin_program(dir, STEER_PROGRAM, STEER_OBJECT)?,
    ));
    outcomes.push((
        SOCKOPS_PROGRAM,
        pin_program(dir, SOCKOPS_PROGRAM, SOCKOPS_OBJECT)?,
    ));
    Kubelets::open(dir).map_err(LoadError::Layout)?;
    Responders::open(dir).map_err(LoadError::Layout)?;
    outcomes.push((SOCKOPS_LINK, attach(dir)?));
    Ok(outcomes)
}

/// Removes whatever there is. Returns what there was.
pub(super) fn remove(dir: &Path) -> Result<Vec<&'static str>, LoadError> {
    let mut removed = Vec::new();
    for name in PINS.into_iter().chain(NAMES_OF_PROBES) {
        remove_pin(&staging(dir, name))?;
        if remove_pin(&dir.join(name))? {
            removed.push(name);
        }
    }
    Ok(removed)
}

/// A link to the program that was there before is replaced after the new one is attached: no
/// connection is missed.
fn attach(dir: &Path) -> Result<Outcome, LoadError> {
    let failed = |source| LoadError::Program {
        program: SOCKOPS_PROGRAM,
        source,
    };
    let (program, link) = (dir.join(SOCKOPS_PROGRAM), dir.join(SOCKOPS_LINK));
    let outcome = match link.exists() {
        false => Outcome::Created,
        true => {
            let attached: FdLink = PinnedLink::from_pin(&link).map_err(LoadError::Link)?.into();
            let attached = attached.info().map_err(LoadError::Link)?.program_id();
            if attached == ProgramInfo::from_pin(&program).map_err(failed)?.id() {
                return Ok(Outcome::Unchanged);
            }
            Outcome::Replaced
        }
    };
    let root = cgroup::open_root().map_err(LoadError::Cgroup)?;
    let mut program = SockOps::from_pin(&program).map_err(failed)?;
    // A link never keeps others out, whatever the mode; the kernel takes it with no flags alone.
    let attached: FdLink = program
        .attach(&root, CgroupAttachMode::Single)
        .and_then(|id| program.take_link(id))
        .map_err(failed)?
        .try_into()
        .map_err(LoadError::Link)?;
    let staging = staging(dir, SOCKOPS_LINK);
    remove_pin(&staging)?;
    attached.pin(&staging).map_err(|source| LoadError::Pin {
        program: SOCKOPS_PROGRAM,
        source,
    })?;
    fs::rename(&staging, &link).map_err(directory_error("replace", &link))?;
    Ok(outcome)
}
