//! Root file systems of Debian suites, as tar files.

use std::path::Path;

use anyhow::Result;

use super::{Work, apt};
use crate::process;

/// What goes into a root file system.
pub struct RootFs<'a> {
    pub suite: &'a str,
    /// Beside the essential ones.
    pub packages: &'a [&'a str],
    /// Globs of paths that dpkg leaves out.
    pub left_out: &'a [&'a str],
}

impl RootFs<'_> {
    /// Makes it as the tar file `out`, without device files.
    pub fn write_tar(&self, work: &Work<'_>, out: &Path) -> Result<()> {
        let keyring = work.apt.keyring(self.suite)?;
        let source = format!(
            "deb [signed-by={}] {} {} main",
            keyring.display(),
            work.apt.mirror()?,
            self.suite
        );
        process::output(
            process::command("mmdebstrap")
                .args(["--mode=root", "--variant=minbase", "--format=tar"])
                .arg("--skip=output/dev")
                // It is thrown away when anything fails: no need to wait for the disk.
                .arg("--dpkgopt=force-unsafe-io")
                .args(
                    self.left_out
                        .iter()
                        .map(|glob| format!("--dpkgopt=path-exclude={glob}")),
                )
                .args(
                    apt::host_acquire_settings()?
                        .lines()
                        .map(|setting| format!("--aptopt={setting}")),
                )
                .arg(format!("--include={}", self.packages.join(",")))
                .arg(self.suite)
                .arg(out)
                .arg(source),
        )
        .map(drop)
    }
}
