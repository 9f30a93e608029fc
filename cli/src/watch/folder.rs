//! New sockets of shims, told by the folder that they are in.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc::UnboundedSender;

use super::News;
use crate::shims;

/// A socket is there before anybody listens on it; its mode is set when somebody does.
const APPEARS: AddWatchFlags = AddWatchFlags::IN_ATTRIB
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_MOVED_TO);

/// The folder is gone.
const OVER: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF
    .union(AddWatchFlags::IN_IGNORED)
    .union(AddWatchFlags::IN_MOVE_SELF);

/// The folder, watched.
pub struct Appearances {
    folder: PathBuf,
    inotify: Inotify,
}

impl Appearances {
    /// Makes the folder as the first shim would, since only what is there can be watched.
    ///
    /// # Errors
    /// When it cannot be made or watched.
    pub fn of(folder: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("create {}", folder.display()))?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("watch for new shims")?;
        let events = APPEARS | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        inotify
            .add_watch(folder, events)
            .with_context(|| format!("watch {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            inotify,
        })
    }

    /// Tells of sockets from a thread of its own, which ends with the command.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn tell(self, tell: UnboundedSender<News>) -> Result<()> {
        let work = move || {
            let error = match self.pass_on(&tell) {
                Ok(()) => anyhow!("{} was removed", self.folder.display()),
                Err(error) => error.context(format!("watch {}", self.folder.display())),
            };
            // The receiver is only gone when the command ends.
            drop(tell.send(News::Folder(error)));
        };
        let thread = thread::Builder::new().name("sockets".into()).spawn(work);
        thread.map(drop).context("start a thread")
    }

    /// Until the folder is gone.
    fn pass_on(&self, tell: &UnboundedSender<News>) -> Result<()> {
        loop {
            let events = match self.inotify.read_events() {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for event in events {
                if event.mask.intersects(OVER) {
                    return Ok(());
                }
                let sockets = match event.name {
                    // Some events were lost.
                    None => shims::sockets(&self.folder)?,
                    Some(name) => vec![self.folder.join(name)],
                };
                for socket in sockets
                    .into_iter()
                    .filter(|path| shims::is_socket_name(path))
                {
                    drop(tell.send(News::Socket(socket)));
                }
            }
        }
    }
}
