//! `podmotion watch`: one task for each shim waits for its next answer, and the folder of the sockets tells
//! of new ones. Nothing is asked again and again.

mod folder;
mod view;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use podmotion_proto::shim::v1::Container;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::args::{Global, WatchArgs};
use crate::exit::Exit;
use crate::shims::{Shim, ShimError};
use crate::{node, shims};
use folder::Appearances;
use view::View;

/// A shim answers after this time without a change: that is how one is noticed that hangs.
const QUIET: Duration = Duration::from_secs(30);

/// What a task has to say.
enum News {
    /// All containers of a shim.
    Now(PathBuf, Vec<Container>),
    /// A shim is gone.
    Gone(PathBuf),
    /// A shim does not answer as it should. Nothing more comes from it.
    Failed(PathBuf, ShimError),
    /// A socket has appeared.
    Socket(PathBuf),
    /// The folder cannot be watched any more.
    Folder(anyhow::Error),
}

/// Prints changes until it is interrupted.
///
/// # Errors
/// When the folder cannot be watched, or nothing be printed.
pub fn run(global: &Global, args: &WatchArgs) -> Result<Exit> {
    let folder = node::sockets(global)?;
    shims::runtime()?.block_on(async {
        let (tell, news) = unbounded_channel();
        // Before the first look: a socket that appears in between is not missed.
        let appeared = Appearances::of(&folder)?;
        let first: BTreeSet<PathBuf> = shims::sockets(&folder)?.into_iter().collect();
        let mut view = View::new(global.output, args.filter.clone(), &first, !args.watch_only);
        appeared.tell(tell.clone())?;
        let mut follow = Follow {
            tell,
            followed: BTreeSet::new(),
            again: BTreeSet::new(),
        };
        for socket in first {
            follow.start(socket);
        }
        follow.all(news, &mut view).await
    })
}

/// The tasks.
struct Follow {
    tell: UnboundedSender<News>,
    followed: BTreeSet<PathBuf>,
    /// Followed ones that have not answered yet and were told of once more: worth another try.
    again: BTreeSet<PathBuf>,
}

impl Follow {
    fn start(&mut self, socket: PathBuf) {
        if self.followed.insert(socket.clone()) {
            tokio::spawn(follow(socket, self.tell.clone()));
        } else {
            self.again.insert(socket);
        }
    }

    fn ended(&mut self, socket: PathBuf, view: &mut View) -> Result<()> {
        view.now(&socket, Vec::new())?;
        self.followed.remove(&socket);
        if self.again.remove(&socket) {
            self.start(socket);
        }
        Ok(())
    }

    async fn all(&mut self, mut news: UnboundedReceiver<News>, view: &mut View) -> Result<Exit> {
        while let Some(one) = news.recv().await {
            match one {
                News::Now(socket, containers) => {
                    self.again.remove(&socket);
                    view.now(&socket, containers)?;
                }
                News::Socket(socket) => self.start(socket),
                News::Gone(socket) => self.ended(socket, view)?,
                News::Failed(socket, error) => {
                    crate::complain(&error.to_string());
                    self.ended(socket, view)?;
                }
                News::Folder(error) => return Err(error),
            }
        }
        Ok(Exit::Done)
    }
}

/// Follows one shim until its end.
async fn follow(socket: PathBuf, tell: UnboundedSender<News>) {
    let shim = match Shim::connect(&socket).await {
        Ok(shim) => shim,
        Err(error) => {
            // A shim that starts sets its socket's mode once it listens, and that is told.
            let quiet = is_new(&socket) || !socket.exists();
            let end = if quiet {
                News::Gone(socket)
            } else {
                News::Failed(socket, error)
            };
            drop(tell.send(end));
            return;
        }
    };
    let mut revision = 0;
    loop {
        match shim.watch(revision, QUIET).await {
            Ok(answer) => {
                revision = answer.revision;
                if tell
                    .send(News::Now(socket.clone(), answer.containers))
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                let lives = Shim::connect(&socket).await.is_ok();
                let end = if lives {
                    News::Failed(socket, error)
                } else {
                    News::Gone(socket)
                };
                drop(tell.send(end));
                return;
            }
        }
    }
}

/// Whether the socket was made within the last seconds.
fn is_new(socket: &Path) -> bool {
    const STARTING: Duration = Duration::from_secs(5);
    let made = socket.symlink_metadata().and_then(|about| about.modified());
    made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age < STARTING))
}
