//! The sleep of one container: carries out what its lifecycle decides.
//!
//! Everything here runs in the driver's task and does not block; what blocks is handed to a thread,
//! and its result comes back as a [`Notice`]. Steps that must not overlap (opening the gate,
//! removing images, the next dump) wait for one another through `tail`.

mod admission;
mod by_hand;
mod cold;
mod compressing;
mod deepening;
mod effects;
mod ending;
mod falling;
mod idle;
mod probes;
mod rehearsal;
mod signalled;
mod state;
mod told;
mod waking;
mod waking_light;
mod watching;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use log::{error, info, warn};
use podmotion_criu_driver::{DumpControl, lazy::FillGuard};
use podmotion_model::{
    chain::Chain,
    idle::{AwakeReason, BackOff, CpuMeter, Deepened, OverQuota},
    lifecycle::{Depth, Effect, Event, Fill, Lifecycle, State, WakeCause},
    probe::{Book, Pending},
    settings::Settings,
};
use podmotion_pager::{FillFailed, Pager, Watch};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use self::by_hand::ByHand;
use self::probes::Probes;
pub use self::waking_light::RoseLight;
use super::{
    Node, Notice, Outcome, Refusal,
    facts::{Facts, FactsError, Known},
    fall::Fallen,
    leftover::LeftoverError,
    light::Memory,
    monotonic,
    placeholder::Placeholder,
    pod::{PodGateError, Seat},
    rise::WorkDirectory,
    signals::Signals,
    status::{Handle, Identity, Status},
};
use crate::container::guest::Lease;
use crate::footprint;
use crate::gate::{GateError, Released};
use crate::reaper::{Exit, Reaper};
use crate::responder::Verdict;

/// After a wake or an exec, the time until the container is looked at again.
const SETTLE: Duration = Duration::from_secs(1);

/// After a probe was in the way of sleep, the time until the container is looked at again. Probes come every second or
/// every few: in step with them the next one would be in the way too, and wait for its answer as long as that takes.
const AGAIN: Duration = Duration::from_millis(700);

/// A container for which sleep is to be looked after.
pub struct New {
    /// Who it is.
    pub identity: Identity,
    /// What holds for it.
    pub settings: Settings,
    /// What it shares with the others.
    pub node: Arc<Node>,
    /// Watches processes.
    pub reaper: Reaper,
    /// What about it never changes.
    pub fixed: Fixed,
}

/// What can keep a container awake for as long as it lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// It is the sandbox of its pod.
    pub sandbox: bool,
    /// It has a terminal.
    pub terminal: bool,
    /// It shares its PID namespace.
    pub shared_pid_namespace: bool,
}

/// The place at the gate, and what is known about the container.
pub struct Settled {
    facts: Facts,
    seat: Seat,
}

/// Why a container cannot be prepared for sleep.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// Its packets cannot be held.
    #[error(transparent)]
    Gate(#[from] PodGateError),
    /// It cannot be described.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// What a killed shim would leave of it could not be noted.
    #[error(transparent)]
    Note(#[from] LeftoverError),
}

/// The driver's part that looks after sleep.
pub struct Sleeper {
    new: New,
    lifecycle: Lifecycle,
    status: watch::Sender<Status>,
    notify: mpsc::UnboundedSender<Notice>,
    notices: mpsc::UnboundedReceiver<Notice>,

    pid: i32,
    known: Option<Known>,
    facts: Option<Arc<Facts>>,
    seat: Option<Arc<Seat>>,
    unsettled: Option<SettleError>,
    /// Containers that have joined its PID namespace have a copy each.
    lent: Lease,

    check_at: Option<Instant>,
    looking: bool,
    /// Somebody asked for sleep after the look that is under way had begun.
    outdated: bool,
    asked: Vec<oneshot::Sender<Result<(), Refusal>>>,
    by_hand: ByHand,
    wakers: Vec<oneshot::Sender<Result<(), Refusal>>>,
    execs: usize,
    paused: bool,
    /// The signal that has told it to end.
    terminating: Option<u32>,
    awake_since: Duration,
    last_use: Option<Duration>,
    cpu: CpuMeter,
    probes: Probes,
    /// Nothing but a request without an answer kept it awake at the last look.
    answering: bool,
    /// After a sleep that failed.
    back_off: BackOff,
    /// After a checkpoint that failed in light sleep, which keeps nobody from sleeping light again.
    deep_back_off: BackOff,

    /// After a sleep that the quota has refused.
    over_quota: Option<OverQuota>,

    /// When a checkpoint was last rehearsed.
    rehearsed_at: Option<Duration>,

    /// Gives the sleep up that is being begun.
    control: Option<DumpControl>,
    early_exit: Option<Exit>,
    asleep: Option<Fallen>,
    /// What is known of a container that was stopped.
    cold: Option<cold::Cold>,
    /// The memory of light sleep.
    memory: Option<Memory>,
    /// What the last light sleep has left for the next one.
    pager: Option<Pager>,
    /// What it has not written to lately.
    watch: Option<Watch>,
    /// Why there is no light sleep.
    not_movable: Option<String>,
    /// When to ask whether light sleep is to become deep.
    deepen_at: Option<Instant>,
    /// When to compress the image of light sleep.
    compress_at: Option<Instant>,
    /// When to look whether somebody has sent it a signal in light sleep.
    signals_at: Option<Instant>,
    /// What it has waiting.
    signals: Signals,
    /// When light sleep began.
    light_since: Duration,
    /// When it was last tried to make it deep.
    deepen_tried: Option<Duration>,
    /// Why that is being tried.
    deepening: Option<Deepened>,
    /// Keeps the memory of processes that are to be killed from being read as zeros.
    lost: Option<FillFailed>,
    /// How a container that is killed in light sleep is to have ended.
    ended_as: Option<u32>,
    placeholder: Option<Placeholder>,
    /// A wake that the node has no memory for.
    waits: Option<admission::Waits>,
    /// How long the wake that is under way has waited for memory.
    waited: Duration,
    /// What the gate gave back when a wake opened it.
    opened: Option<Result<Released, GateError>>,
    work: Option<WorkDirectory>,
    guard: Option<FillGuard>,
    tail: Option<JoinHandle<()>>,
}

impl Sleeper {
    /// For a container that has just been created.
    pub fn new(new: New) -> Self {
        let (notify, notices) = mpsc::unbounded_channel();
        let (status, watched) = watch::channel(Status::default());
        new.node.registry.insert(Handle {
            identity: Arc::new(new.identity.clone()),
            status: watched,
            driver: notify.clone(),
        });
        let back_off = BackOff::from_config(&new.node.config.checkpoint);
        Self {
            new,
            lifecycle: Lifecycle::new(),
            status,
            notify,
            notices,
            pid: 0,
            known: None,
            facts: None,
            seat: None,
            unsettled: None,
            lent: Lease::default(),
            check_at: None,
            looking: false,
            outdated: false,
            asked: Vec::new(),
            by_hand: ByHand::default(),
            wakers: Vec::new(),
            execs: 0,
            paused: false,
            terminating: None,
            awake_since: Duration::ZERO,
            last_use: None,
            cpu: CpuMeter::default(),
            probes: Probes::default(),
            answering: false,
            deep_back_off: back_off.clone(),
            back_off,
            over_quota: None,
            rehearsed_at: None,
            control: None,
            early_exit: None,
            asleep: None,
            cold: None,
            memory: None,
            pager: None,
            watch: None,
            not_movable: None,
            deepen_at: None,
            compress_at: None,
            signals_at: None,
            signals: Signals::default(),
            light_since: Duration::ZERO,
            deepen_tried: None,
            deepening: None,
            lost: None,
            ended_as: None,
            placeholder: None,
            waits: None,
            waited: Duration::ZERO,
            opened: None,
            work: None,
            guard: None,
            tail: None,
        }
    }

    /// The next thing to give to [`handle`](Self::handle). Can be dropped and asked for again.
    pub async fn next(&mut self) -> Notice {
        let at = |time: Option<Instant>| async move {
            match time {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // The sender is this struct's own: the channel does not end.
            Some(notice) = self.notices.recv() => notice,
            () = at(self.check_at) => Notice::Check,
            () = at(self.deepen_at) => Notice::Deepen,
            () = at(self.compress_at) => Notice::Compress,
            () = at(self.signals_at) => Notice::LookForSignals,
            () = at(self.waits.as_ref().map(admission::Waits::look_at)) => Notice::LookForMemory,
        }
    }

    fn used(&mut self) {
        self.by_hand.used();
        self.last_use = Some(monotonic());
    }

    /// Asks the idle policy again, now that something it waited for has happened.
    fn check_soon(&mut self) {
        if self.is_whole() {
            self.check_at = Some(Instant::now());
        }
    }

    /// The same in a moment, when what has just been done for it is over.
    fn check_settled(&mut self) {
        if self.is_whole() {
            self.check_at = Some(Instant::now() + SETTLE);
        }
    }

    /// The same after something was under way that is none of use.
    fn check_again(&mut self) {
        if self.is_whole() {
            self.check_at = Some(Instant::now() + AGAIN);
        }
    }

    /// Directory of the images.
    fn images(&self) -> PathBuf {
        self.new
            .node
            .config
            .checkpoint
            .directory
            .join(&self.new.identity.id)
    }

    /// Directory of what is moved out of its memory.
    fn memory_images(&self) -> PathBuf {
        memory_images(&self.images())
    }

    /// Runs `step` in a blocking thread, after everything that was handed over before.
    fn after_tail(&mut self, step: impl FnOnce() + Send + 'static) {
        let before = self.tail.take();
        self.tail = Some(tokio::spawn(async move {
            if let Some(before) = before {
                // A step that panicked has said so itself.
                drop(before.await);
            }
            drop(tokio::task::spawn_blocking(step).await);
        }));
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.new.node.registry.remove(&self.new.identity.id);
        remove_images(&self.images());
        remove_images(&self.memory_images());
    }
}

/// Where memory that is moved out is kept, beside the images of a checkpoint.
pub fn memory_images(images: &Path) -> PathBuf {
    images.with_added_extension("memory")
}

fn remove_images(images: &Path) {
    if let Err(cause) = fs::remove_dir_all(images)
        && cause.kind() != std::io::ErrorKind::NotFound
    {
        error!("remove the images {}: {cause}", images.display());
    }
}
