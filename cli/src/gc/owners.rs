//! Who may still need a checkpoint: the containers of the shims that live, and those that containerd has a
//! bundle of, whatever has become of their shims.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::args::GcArgs;
use crate::containerd::{Configuration, ContainerdError, STATE};
use crate::shims::Survey;

/// The program of the shims.
const SHIM: &str = "containerd-shim-podmotion-v1";

/// Below a containerd's state: `NAMESPACE/ID` for each container with a shim.
const BUNDLES: &str = "io.containerd.runtime.v2.task";

/// Where k3s and RKE2 have their containerd's state.
const K3S_STATE: &str = "/run/k3s/containerd";

/// Ids of containers that are somebody's.
#[derive(Debug, Default)]
pub struct Owners(BTreeSet<String>);

impl Owners {
    /// All of them. `Ok(Err(_))`: a shim that lives did not tell.
    ///
    /// # Errors
    /// When the bundles cannot be listed.
    pub fn find(survey: &Survey, args: &GcArgs) -> Result<Result<Self>> {
        let mut owners = Self::default();
        for folder in bundle_folders(args)? {
            owners.add_bundles(&folder)?;
        }
        owners.add_mounted()?;
        let told = survey.found.iter().map(|found| found.container.id.clone());
        owners.0.extend(told);
        let silent = survey.silent.iter().find(|error| !error.is_dead());
        Ok(match silent {
            None => Ok(owners),
            Some(error) => Err(anyhow!(
                "a shim does not say what it owns, so all checkpoints stay: {error}"
            )),
        })
    }

    /// These.
    #[cfg(test)]
    pub fn of(ids: &[&str]) -> Self {
        Self(ids.iter().map(|&id| id.to_owned()).collect())
    }

    /// Whether a container of this id is somebody's.
    pub fn have(&self, id: &str) -> bool {
        self.0.contains(id)
    }

    /// Adds the containers with a bundle below `folder`. A folder that does not exist has none.
    fn add_bundles(&mut self, folder: &Path) -> Result<()> {
        for namespace in list(folder)? {
            self.0
                .extend(list(&namespace)?.iter().filter_map(|bundle| name(bundle)));
        }
        Ok(())
    }

    /// Adds the containers whose root file system is mounted in a bundle, wherever that is.
    fn add_mounted(&mut self) -> Result<()> {
        let path = "/proc/self/mountinfo";
        let table = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        self.0.extend(table.lines().filter_map(mounted));
        Ok(())
    }
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// The id in a line of the mount table whose mount point is `.../BUNDLES/NAMESPACE/ID/rootfs`.
fn mounted(line: &str) -> Option<String> {
    let point = Path::new(line.split(' ').nth(4)?);
    let bundle = point.parent().filter(|_| point.ends_with("rootfs"))?;
    let folder = bundle.parent()?.parent()?;
    folder.ends_with(BUNDLES).then(|| name(bundle))?
}

/// Every folder with bundles: by default, by containerd's configuration, as told, and where a shim that lives
/// works, which is in a bundle.
fn bundle_folders(args: &GcArgs) -> Result<BTreeSet<PathBuf>> {
    let mut states: Vec<PathBuf> = vec![STATE.into(), K3S_STATE.into()];
    states.extend(args.containerd_state.iter().cloned());
    match Configuration::read(&args.containerd.containerd_config) {
        Ok(configuration) => states.extend(configuration.state()),
        Err(ContainerdError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let mut folders: BTreeSet<PathBuf> = states.iter().map(|state| state.join(BUNDLES)).collect();
    for bundle in working_folders()? {
        let folder = bundle.parent().and_then(Path::parent);
        folders.extend(
            folder
                .filter(|folder| folder.ends_with(BUNDLES))
                .map(Path::to_owned),
        );
    }
    Ok(folders)
}

/// The working directories of all shims.
fn working_folders() -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for process in list(Path::new("/proc"))? {
        // A process that has ended meanwhile is none; others than processes have no such link.
        let Ok(program) = fs::read_link(process.join("exe")) else {
            continue;
        };
        // After an upgrade the link's target is called deleted.
        if name(&program).is_some_and(|name| name.starts_with(SHIM)) {
            folders.extend(fs::read_link(process.join("cwd")));
        }
    }
    Ok(folders)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("list {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        other => other.with_context(failed)?,
    };
    entries
        .map(|entry| Ok(entry.with_context(failed)?.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_own_checkpoints_without_a_shim() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(BUNDLES);
        fs::create_dir_all(folder.join("k8s.io/abc")).unwrap();
        fs::create_dir_all(folder.join("default/web")).unwrap();
        let mut owners = Owners::default();
        owners.add_bundles(&folder).unwrap();
        owners.add_bundles(&dir.path().join("nowhere")).unwrap();
        assert!(owners.have("abc") && owners.have("web"));
        assert!(!owners.have("default") && !owners.have("other"));
    }

    #[test]
    fn so_do_root_file_systems_that_are_mounted() {
        let line = |point: &str| format!("36 35 98:0 / {point} rw,noatime - overlay overlay rw");
        let bundle = "/srv/state/io.containerd.runtime.v2.task/k8s.io/abc/rootfs";
        assert_eq!(mounted(&line(bundle)), Some("abc".to_owned()));
        assert_eq!(mounted(&line("/srv/abc/rootfs")), None);
        assert_eq!(mounted(&line("/")), None);
    }
}
