//! Out-of-memory kills in a container's cgroup, as the kernel reports them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use log::warn;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::cgroup::Cgroup;
use crate::stdio::read_some;
use crate::sys;

/// Why a cgroup could not be watched.
#[derive(Debug, thiserror::Error)]
pub enum OomError {
    /// The memory controller is not there.
    #[error("cgroup without memory controller")]
    NoController,
    /// The notification could not be set up.
    #[error("watch {}: {source}", path.display())]
    Watch {
        /// The file watched.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Calls `report` for each notification until the cgroup is gone or the task is aborted.
///
/// # Errors
/// See [`OomError`].
pub fn watch(
    cgroup: &Cgroup,
    report: impl Fn() + Send + 'static,
) -> Result<JoinHandle<()>, OomError> {
    let folder = cgroup
        .folder("memory")
        .ok_or(OomError::NoController)?
        .to_owned();
    match cgroup {
        Cgroup::V1(_) => {
            let path = folder.join("memory.oom_control");
            let event = subscribe_v1(&folder, &path).map_err(|source| OomError::Watch {
                path: path.clone(),
                source,
            })?;
            Ok(tokio::spawn(async move {
                if let Err(error) = follow_v1(&event, &path, report).await {
                    warn!("watch {}: {error}", path.display());
                }
            }))
        }
        Cgroup::V2(_) => {
            let path = folder.join("memory.events");
            let inotify = subscribe_v2(&path).map_err(|source| OomError::Watch {
                path: path.clone(),
                source,
            })?;
            Ok(tokio::spawn(async move {
                if let Err(error) = follow_v2(&inotify, &path, report).await {
                    warn!("watch {}: {error}", path.display());
                }
            }))
        }
    }
}

fn subscribe_v1(folder: &Path, oom_control: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    // The kernel needs it only while it reads the line.
    let control = File::open(oom_control)?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    fs::write(folder.join("cgroup.event_control"), line)?;
    sys::event_source(event.into(), Interest::READABLE)
}

async fn follow_v1(
    event: &AsyncFd<OwnedFd>,
    oom_control: &Path,
    report: impl Fn(),
) -> io::Result<()> {
    loop {
        // The whole counter, however many kills it stands for.
        read_some(event, &mut [0; 8]).await?;
        // The removal of the cgroup counts as an event too.
        if !oom_control.exists() {
            return Ok(());
        }
        report();
    }
}

fn subscribe_v2(events: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(
        events,
        AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF,
    )?;
    sys::event_source(inotify.as_fd().try_clone_to_owned()?, Interest::READABLE)
}

async fn follow_v2(inotify: &AsyncFd<OwnedFd>, events: &Path, report: impl Fn()) -> io::Result<()> {
    let mut known = kills(events).unwrap_or_default();
    loop {
        // That something happened is enough: the file says what.
        read_some(inotify, &mut [0; 1024]).await?;
        let Some(now) = kills(events) else {
            return Ok(());
        };
        if now > known {
            report();
        }
        known = now;
    }
}

/// How many processes were killed so far; none if the cgroup is gone.
fn kills(events: &Path) -> Option<u64> {
    let text = fs::read_to_string(events).ok()?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.map_or(Some(0), |count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_kills() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("memory.events");
        fs::write(&events, "low 0\noom 3\noom_kill 2\noom_group_kill 9\n").unwrap();
        assert_eq!(kills(&events), Some(2));
        fs::write(&events, "low 0\n").unwrap();
        assert_eq!(kills(&events), Some(0));
        fs::remove_file(&events).unwrap();
        assert_eq!(kills(&events), None);
    }

    #[tokio::test]
    async fn reports_each_new_kill_until_the_cgroup_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("memory.events");
        fs::write(&events, "oom_kill 1\n").unwrap();
        let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel();
        let cgroup = Cgroup::V2(dir.path().to_owned());
        let task = watch(&cgroup, move || sender.send(()).unwrap()).unwrap();
        tokio::task::yield_now().await;
        fs::write(&events, "oom_kill 2\n").unwrap();
        reports.recv().await.unwrap();
        fs::remove_file(&events).unwrap();
        task.await.unwrap();
    }
}
