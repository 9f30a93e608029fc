//! The node's file system, which this program may see below another folder.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;

/// Where the node's `/` is seen.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The node's `/` is `root` here.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Where the node's `/` is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the node's absolute `path` is. Links are followed as the node follows them: one to
    /// `/var/opt` leads below the node's root. What does not exist is kept as it is named.
    ///
    /// # Errors
    /// When links lead in a circle.
    pub fn at(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let mut left: Vec<OsString> = reversed(path.as_ref());
        let (mut inside, mut links) = (PathBuf::new(), 0);
        while let Some(name) = left.pop() {
            if name == ".." {
                inside.pop();
                continue;
            }
            let whole = self.root.join(&inside).join(&name);
            let Ok(target) = fs::read_link(&whole) else {
                inside.push(name);
                continue;
            };
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::from_raw_os_error(nix::libc::ELOOP));
            }
            if target.is_absolute() {
                inside = PathBuf::new();
            }
            left.extend(reversed(&target));
        }
        Ok(self.root.join(inside))
    }
}

/// The names in `path`, the last one first.
fn reversed(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("var/opt")).unwrap();
        symlink("var/opt", root.join("opt")).unwrap();
        symlink("/var", root.join("data")).unwrap();
        symlink("../../../../etc", root.join("var/up")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        let host = Host::new(root);
        let at = |path: &str| host.at(path).unwrap();
        assert_eq!(at("/opt/podmotion/bin"), root.join("var/opt/podmotion/bin"));
        assert_eq!(at("/data/lib"), root.join("var/lib"));
        assert_eq!(at("/data/up/passwd"), root.join("etc/passwd"));
        assert_eq!(at("/../nowhere"), root.join("nowhere"));
        assert!(host.at("/circle/x").is_err());
    }
}
