//! The folder with programs of containerd's own, whose `bin` it has on its `PATH`.
//!
//! containerd 1.6 takes a runtime's `runtime_path` for containers, but not for the sandboxes of pods: their shim
//! it looks for on its `PATH` (`runtime/v2/shim/util.go`, `Command`). So it gets a link.

use std::path::{Path, PathBuf};

use super::runtime::SHIM;
use super::tree::Tree;

/// The plugin that makes the folder (`services/opt`), and where it does unless told otherwise.
const PLUGIN: &str = "io.containerd.internal.v1.opt";
const FOLDER: &str = "/opt/containerd";

/// The link that containerd of this version finds the shim by, and where that leads; `None` for one that needs
/// none.
pub fn link(version: &str, tree: &Tree) -> Option<(PathBuf, PathBuf)> {
    let version = version.trim_start_matches('v');
    version.starts_with("1.6.").then(|| {
        let folder = Path::new(tree.setting(PLUGIN, "path").unwrap_or(FOLDER));
        let shim = Path::new(SHIM);
        let name = shim.file_name().unwrap_or_default();
        (folder.join("bin").join(name), shim.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::super::tree::Files;
    use super::*;

    struct One(&'static str);

    impl Files for One {
        type Error = Infallible;

        fn read(&self, _: &Path) -> Result<Option<String>, Infallible> {
            Ok(Some(self.0.to_owned()))
        }

        fn fitting(&self, _: &str) -> Result<Vec<PathBuf>, Infallible> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn only_1_6_needs_it_and_it_is_where_the_configuration_says() {
        let at = |version: &str, text| {
            let tree = Tree::read(&One(text), Path::new("/etc/containerd/config.toml")).unwrap();
            link(version, &tree).map(|(link, _)| link.display().to_string())
        };
        let usual = "/opt/containerd/bin/containerd-shim-podmotion-v1";
        assert_eq!(at("1.6.38", "version = 2").as_deref(), Some(usual));
        assert_eq!(at("v1.6.0~ds1", "").as_deref(), Some(usual));
        let other = "[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"/var/opt\"";
        let there = "/var/opt/bin/containerd-shim-podmotion-v1";
        assert_eq!(at("1.6.1", other).as_deref(), Some(there));
        for version in ["1.7.28", "2.1.6", "1.60.0"] {
            assert_eq!(at(version, other), None, "{version}");
        }
    }
}
