//! A container's sleep, as its shim tells it and takes requests for it: the service on
//! `/run/podmotion/shims/<group>.sock`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use podmotion_proto::shim::v1::{
    InspectRequest, ListResponse, ShimClient, SleepRequest, WakeRequest, WatchRequest,
};
use podmotion_proto::ttrpc;

use crate::PATIENCE;
use crate::api::runtime;
use crate::room::socket_folders;

/// What a shim says about one container: the message `Container` of `shim.proto`.
pub use podmotion_proto::shim::v1::Container as Status;

/// Where shims of the machine's own namespaces listen.
const SOCKETS: &str = "/run/podmotion/shims";

/// The sleep of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleeper {
    socket: PathBuf,
    group: String,
    id: String,
}

/// One connection to a shim's service.
struct Connection {
    client: ShimClient,
    socket: PathBuf,
}

impl Connection {
    fn open(socket: &Path) -> Result<Self> {
        let address = format!("unix://{}", socket.display());
        let client = runtime()
            .block_on(ttrpc::r#async::Client::connect(&address))
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self {
            client: ShimClient::new(client),
            socket: socket.to_owned(),
        })
    }

    /// Waits for a call's answer. The shim's refusal stays the error's source.
    fn wait<T>(&self, what: &str, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T> {
        let patience = PATIENCE + Duration::from_secs(2);
        runtime()
            .block_on(async { tokio::time::timeout(patience, call).await })
            .map_err(|_| anyhow!("no answer in {PATIENCE:?}"))
            .and_then(|answer| answer.map_err(anyhow::Error::new))
            .with_context(|| format!("{what} at {}", self.socket.display()))
    }

    /// All containers: at once with `revision` 0, else after the next change or `limit`.
    fn watch(&self, revision: u64, limit: Duration) -> Result<ListResponse> {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        let request = WatchRequest {
            revision,
            timeout_ms,
            ..Default::default()
        };
        self.wait("watch", self.client.watch(context(), &request))
    }
}

fn context() -> ttrpc::context::Context {
    // Later than a `Watch` that waits for as long as it may.
    ttrpc::context::with_duration(PATIENCE + Duration::from_secs(1))
}

/// The shim's own words in an error of [`Sleeper::try_sleep`] or [`Sleeper::wake`], if it answered.
pub fn refusal(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref::<ttrpc::Error>() {
        Some(ttrpc::Error::RpcStatus(status)) => Some(status.message.clone()),
        _ => None,
    }
}

/// Whether sleep was refused because of processes that did not get to run, which then cannot stop either: the
/// shim gives up after two seconds.
pub fn was_starved(error: &anyhow::Error) -> bool {
    refusal(error).is_some_and(|words| {
        words.contains("did not freeze within") || words.contains("did not stop within")
    })
}

/// An error unless what woke a container last is `cause`.
pub fn ensure_woken_by(cause: &str, status: &Status) -> Result<()> {
    let last = &status.last_wake.cause;
    // The cause first: the rest is long.
    ensure!(
        last == cause,
        "woken by {last:?}, not by {cause:?}: {status:?}"
    );
    Ok(())
}

impl Sleeper {
    /// A container of the shim of `group`: the sandbox, or the container itself where there is none.
    pub(crate) fn new(group: &str, id: &str) -> Self {
        Self::at(Path::new(SOCKETS), group, id)
    }

    fn at(folder: &Path, group: &str, id: &str) -> Self {
        Self {
            socket: folder.join(format!("{group}.sock")),
            group: group.to_owned(),
            id: id.to_owned(),
        }
    }

    /// A container that has a shim of its own, as `ctr run` makes it.
    pub fn of_container(id: &str) -> Self {
        Self::new(id, id)
    }

    /// A container of whatever shim, in whatever room, says that it has it.
    pub fn find(id: &str) -> Result<Self> {
        let mut seen = Vec::new();
        for folder in socket_folders() {
            let sockets =
                std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
            for socket in sockets.flatten() {
                let name = socket.file_name().to_string_lossy().into_owned();
                let Some(group) = name.strip_suffix(".sock") else {
                    continue;
                };
                // A shim that ends meanwhile does not have it.
                let asked =
                    Connection::open(&socket.path()).and_then(|shim| shim.watch(0, PATIENCE));
                let containers = asked.map(|answer| answer.containers);
                let ids = containers.map(|all| all.into_iter().map(|one| one.id));
                let ids: Result<Vec<_>> = ids.map(Iterator::collect);
                if ids
                    .as_ref()
                    .is_ok_and(|all| all.iter().any(|one| one == id))
                {
                    return Ok(Self::at(&folder, group, id));
                }
                seen.push((socket.path(), ids));
            }
        }
        bail!("no shim has a container {id}: {seen:?}")
    }

    /// Whether a shim with this command line is the one that has it.
    pub fn is_of(&self, command: &str) -> bool {
        command.split(' ').any(|word| word == self.group)
    }

    /// What the shim says now.
    pub fn status(&self) -> Result<Status> {
        let connection = Connection::open(&self.socket)?;
        let request = InspectRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let call = connection.client.inspect(context(), &request);
        let answer = connection.wait("inspect", call)?;
        answer.container.into_option().context("an empty answer")
    }

    /// All containers of the same shim.
    pub fn siblings(&self) -> Result<Vec<Status>> {
        Ok(Connection::open(&self.socket)?
            .watch(0, PATIENCE)?
            .containers)
    }

    /// Asks for sleep, once.
    pub fn try_sleep(&self) -> Result<()> {
        let connection = Connection::open(&self.socket)?;
        let request = SleepRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let call = connection.client.sleep(context(), &request);
        connection.wait("sleep", call).map(drop)
    }

    /// Puts it to sleep as soon as it can be: once its memory is back, not in the moment in which its
    /// last connection ends, for which the shim gives up, and when the machine lets it stand still.
    pub fn sleep(&self) -> Result<()> {
        self.sleep_at_last().map(drop)
    }

    /// The same. Returns how often its processes did not get to run, which the shim counts as failures.
    pub fn sleep_at_last(&self) -> Result<u64> {
        let deadline = Instant::now() + PATIENCE;
        let mut failures = 0;
        loop {
            let before = self.status()?.counters.sleeps_aborted;
            let Err(error) = self.try_sleep() else {
                return Ok(failures);
            };
            let filling = refusal(&error).is_some_and(|words| words.contains("is not all back"));
            if filling {
                self.wait_whole()?;
            }
            let aborted = self.status()?.counters.sleeps_aborted != before;
            let starved = was_starved(&error);
            failures += u64::from(starved);
            if !(filling || aborted || starved) || Instant::now() > deadline {
                return Err(error);
            }
        }
    }

    /// Waits until it runs with all of its memory: it does not sleep again before that.
    pub fn wait_whole(&self) -> Result<Status> {
        // Nothing is said of why it is awake before that.
        self.wait_until("all of its memory", |status| {
            status.state == "running" && status.awake_reason.is_some()
        })
    }

    /// Wakes it.
    pub fn wake(&self) -> Result<()> {
        let connection = Connection::open(&self.socket)?;
        let request = WakeRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let call = connection.client.wake(context(), &request);
        connection.wait("wake", call).map(drop)
    }

    /// Waits for a state: `running`, `falling-asleep`, `asleep`, `waking` or `stopped`.
    pub fn wait_state(&self, state: &str) -> Result<Status> {
        self.wait_until(&format!("state {state}"), |status| status.state == state)
    }

    /// Waits until it stays awake for a reason of this name.
    pub fn wait_reason(&self, name: &str) -> Result<Status> {
        self.wait_until(&format!("reason {name}"), |status| {
            status.awake_reason.name == name
        })
    }

    /// Waits until `reached` is true of what the shim says; `what` is for the error. States that pass
    /// quickly can be missed.
    pub fn wait_until(&self, what: &str, reached: impl Fn(&Status) -> bool) -> Result<Status> {
        let connection = Connection::open(&self.socket)?;
        let deadline = Instant::now() + PATIENCE;
        let mut revision = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = connection.watch(revision, left)?;
            revision = answer.revision;
            let found = answer.containers.into_iter().find(|one| one.id == self.id);
            match found {
                Some(status) if reached(&status) => return Ok(status),
                found if Instant::now() > deadline => {
                    bail!("{}: no {what} in {PATIENCE:?}: {found:?}", self.id)
                }
                _ => {}
            }
        }
    }
}
