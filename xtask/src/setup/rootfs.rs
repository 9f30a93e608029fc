//! Root file systems of Debian suites, as tar files.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Work, apt, files};
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
                // Its own user may not read a keyring in our cache.
                .arg("--aptopt=APT::Sandbox::User \"root\"")
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

/// Unpacks the root file system `tar` at `root`.
pub fn unpack(tar: &Path, root: &Path) -> Result<()> {
    files::make_dir(root)?;
    process::output(
        process::command("tar")
            .args(["--numeric-owner", "-xpf"])
            .arg(tar)
            .arg("-C")
            .arg(root),
    )
    .map(drop)
}

/// A command that runs in the root file system at `root`, with a `/proc` of its own and the machine's `/dev`: Java finds
/// itself through the first, Erlang never begins without the second.
pub fn inside(root: &Path) -> Command {
    const ENTER: &str = r#"mkdir -p "$0/dev" && mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" &&
        exec chroot "$0" "$@""#;
    let mut command = process::command("unshare");
    command
        .args(["--mount", "--pid", "--fork", "sh", "-c", ENTER])
        .arg(root);
    command
}
