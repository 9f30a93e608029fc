//! Versions of the programs, each in a directory of its own that is never changed.
//!
//! ```text
//!   /opt/podmotion/bin  -> current/bin       what others name
//!   /opt/podmotion/criu -> current/criu
//!   /opt/podmotion/current -> versions/0.1.0-1f0c2a3b4d5e
//!   /opt/podmotion/versions/0.1.0-1f0c2a3b4d5e/{bin,criu}
//! ```
//!
//! The name is the version and a digest of what is inside: a directory of that name is complete, since
//! it got its name after everything was on the disk. All of a version changes hands with one link. A
//! shim that runs goes on with the files it was started from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::files::{FileError, failed, make_directory, remove_tree};

/// What a version consists of.
pub const PARTS: [&str; 2] = ["bin", "criu"];

/// Begins the name of a directory that is not complete.
const PARTIAL: &str = ".new-";

/// Bytes of the digest in a name.
const DIGEST: usize = 6;

/// Something in a source or in a version's directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The source lacks a part.
    #[error("there is no {}: --source is to be a directory with {}", path.display(), PARTS.join(" and "))]
    Missing {
        /// The part.
        path: PathBuf,
    },
    /// A device, a socket and the like.
    #[error("{} is neither a file nor a directory nor a link", path.display())]
    Kind {
        /// What it is about.
        path: PathBuf,
    },
    /// A directory could not be walked.
    #[error("list {}: {source}", path.display())]
    Walk {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: walkdir::Error,
    },
}

/// The name of the version in `source`.
///
/// # Errors
/// When it cannot be read or a part is missing.
pub fn name(source: &Path) -> Result<String, VersionError> {
    let digest = digest(source)?;
    let short: String = digest[..DIGEST]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("{}-{short}", env!("CARGO_PKG_VERSION")))
}

/// Whether the version `name` is in `versions`, as it was put there.
///
/// # Errors
/// When it cannot be read.
pub fn is_intact(versions: &Path, name: &str) -> Result<bool, VersionError> {
    let directory = versions.join(name);
    if !directory.is_dir() {
        return Ok(false);
    }
    match self::name(&directory) {
        Ok(found) => Ok(found == name),
        Err(VersionError::Missing { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies the version in `source` to `versions`, under its name. One that is damaged is replaced.
///
/// # Errors
/// When something cannot be read or written. Nothing has the version's name then that was not there.
pub fn copy(source: &Path, versions: &Path, name: &str) -> Result<(), VersionError> {
    let partial = versions.join(format!("{PARTIAL}{name}"));
    remove_tree(&partial)?;
    make_directory(&partial, 0o755)?;
    for part in PARTS {
        copy_tree(&source.join(part), &partial.join(part))?;
    }
    let directory = File::open(&partial).map_err(failed("open", &partial))?;
    rustix::fs::syncfs(&directory).map_err(|errno| failed("sync", &partial)(errno.into()))?;
    let whole = versions.join(name);
    if whole.exists() {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, &partial, cwd, &whole, flags)
            .map_err(|errno| failed("replace", &whole)(errno.into()))?;
        remove_tree(&partial)?;
    } else {
        fs::rename(&partial, &whole).map_err(failed("create", &whole))?;
    }
    let directory = File::open(versions).map_err(failed("open", versions))?;
    directory.sync_all().map_err(failed("sync", versions))?;
    Ok(())
}

/// Versions in `versions` that are neither `kept` nor have a file among `in_use`, and what interrupted
/// copies have left.
///
/// # Errors
/// When the directory cannot be read.
pub fn unused(
    versions: &Path,
    kept: &str,
    in_use: &BTreeSet<(u64, u64)>,
) -> Result<Vec<String>, VersionError> {
    let entries = match fs::read_dir(versions) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", versions)(error).into()),
    };
    let mut unused = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", versions))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == kept {
            continue;
        }
        let used = entries_of(&entry.path())?.into_iter().any(|(_, path)| {
            path.symlink_metadata()
                .is_ok_and(|found| in_use.contains(&(found.dev(), found.ino())))
        });
        if name.starts_with(PARTIAL) || !used {
            unused.push(name);
        }
    }
    unused.sort();
    Ok(unused)
}

/// Device and inode of the program of every process.
///
/// # Errors
/// When processes cannot be listed.
pub fn programs_in_use() -> Result<BTreeSet<(u64, u64)>, FileError> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(failed("list", proc))?;
    // A kernel thread has none, and a process that ends meanwhile needs none.
    let programs = entries
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path().join("exe")).ok());
    Ok(programs.map(|found| (found.dev(), found.ino())).collect())
}

/// Everything below the directory by its relative name.
fn entries_of(directory: &Path) -> Result<BTreeMap<PathBuf, PathBuf>, VersionError> {
    let mut all = BTreeMap::new();
    for entry in WalkDir::new(directory).min_depth(1) {
        let entry = entry.map_err(|source| VersionError::Walk {
            path: directory.to_owned(),
            source,
        })?;
        let relative = entry.path().strip_prefix(directory);
        let relative = relative.unwrap_or(entry.path()).to_owned();
        all.insert(relative, entry.into_path());
    }
    Ok(all)
}

/// Of all names, kinds, modes and contents.
fn digest(version: &Path) -> Result<[u8; 32], VersionError> {
    let mut hash = Sha256::new();
    for part in PARTS {
        let directory = version.join(part);
        if !directory.is_dir() {
            return Err(VersionError::Missing { path: directory });
        }
        for (relative, path) in entries_of(&directory)? {
            hash.update(format!("{part}/{}\0", relative.display()));
            match Entry::of(&path)? {
                Entry::Directory => hash.update("directory"),
                Entry::Link(target) => hash.update(format!("link {}\0", target.display())),
                Entry::File { mode } => {
                    let contents = file_digest(&path).map_err(failed("read", &path))?;
                    hash.update(format!("file {mode:o} "));
                    hash.update(contents);
                }
            }
        }
    }
    Ok(hash.finalize().into())
}

fn file_digest(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&buffer[..length]),
        }
    }
}

/// What there can be in a version.
enum Entry {
    Directory,
    Link(PathBuf),
    File { mode: u32 },
}

impl Entry {
    fn of(path: &Path) -> Result<Self, VersionError> {
        let found = path.symlink_metadata().map_err(failed("look at", path))?;
        let kind = found.file_type();
        if kind.is_dir() {
            Ok(Self::Directory)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed("read", path))?;
            Ok(Self::Link(target))
        } else if kind.is_file() {
            // An image's layers may have been unpacked with another umask.
            let executable = found.permissions().mode() & 0o111 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            Ok(Self::File { mode })
        } else {
            Err(VersionError::Kind {
                path: path.to_owned(),
            })
        }
    }
}

fn copy_tree(source: &Path, target: &Path) -> Result<(), VersionError> {
    make_directory(target, 0o755)?;
    for (relative, from) in entries_of(source)? {
        let to = target.join(relative);
        match Entry::of(&from)? {
            Entry::Directory => make_directory(&to, 0o755)?,
            Entry::Link(link) => {
                std::os::unix::fs::symlink(link, &to).map_err(failed("create", &to))?;
            }
            Entry::File { mode } => {
                fs::copy(&from, &to).map_err(failed("copy to", &to))?;
                let mode = fs::Permissions::from_mode(mode);
                fs::set_permissions(&to, mode).map_err(failed("open up", &to))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(dir: &Path, shim: &str) -> PathBuf {
        let source = dir.join("source");
        remove_tree(&source).unwrap();
        for part in PARTS {
            fs::create_dir_all(source.join(part).join("lib")).unwrap();
        }
        fs::write(source.join("bin/shim"), shim).unwrap();
        fs::set_permissions(source.join("bin/shim"), fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink("lib", source.join("criu/lib64")).unwrap();
        source
    }

    #[test]
    fn a_copy_has_the_sources_name_and_an_altered_one_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let versions = dir.path().join("versions");
        let from = source(dir.path(), "one");
        let name = name(&from).unwrap();
        assert!(
            name.starts_with(concat!(env!("CARGO_PKG_VERSION"), "-")),
            "{name}"
        );
        assert!(!is_intact(&versions, &name).unwrap());
        fs::create_dir_all(versions.join(format!("{PARTIAL}{name}/bin/half"))).unwrap();
        copy(&from, &versions, &name).unwrap();
        assert!(is_intact(&versions, &name).unwrap());
        let shim = versions.join(&name).join("bin/shim");
        assert_eq!(fs::metadata(&shim).unwrap().mode() & 0o777, 0o755);
        fs::write(&shim, "other").unwrap();
        assert!(!is_intact(&versions, &name).unwrap());
        copy(&from, &versions, &name).unwrap();
        assert!(is_intact(&versions, &name).unwrap());
        assert_eq!(fs::read_dir(&versions).unwrap().count(), 1);
        assert_ne!(name, self::name(&source(dir.path(), "two")).unwrap());
    }

    #[test]
    fn what_nobody_runs_from_is_unused() {
        let dir = tempfile::tempdir().unwrap();
        let versions = dir.path().join("versions");
        for (name, file) in [("1", "a"), ("2", "b"), ("3", "c"), (".new-4", "d")] {
            fs::create_dir_all(versions.join(name)).unwrap();
            fs::write(versions.join(name).join(file), "").unwrap();
        }
        let running = fs::metadata(versions.join("2/b")).unwrap();
        let in_use = BTreeSet::from([(running.dev(), running.ino())]);
        assert_eq!(unused(&versions, "3", &in_use).unwrap(), [".new-4", "1"]);
        assert!(
            unused(&dir.path().join("none"), "", &in_use)
                .unwrap()
                .is_empty()
        );
        assert!(!programs_in_use().unwrap().is_empty());
    }

    #[test]
    fn a_source_without_a_part_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = name(dir.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("bin: --source is to be a directory with bin and criu"),
            "{error}"
        );
    }
}
