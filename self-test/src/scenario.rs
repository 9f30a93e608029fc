//! The steps of a self-test.

use std::path::Path;
use std::time::Duration;

use podmotion_proto::client::{Shim, ShimError};
use podmotion_proto::shim::v1::Container;
use tokio::time::{Instant, sleep};

use crate::Options;
use crate::client::{CallError, Client, PATIENCE, call, cri};
use crate::containerd::Containerd;
use crate::handler::{self, Handler, HandlerError};
use crate::pod::{MEBIBYTES, MetricsError, Pod, RequestError};
use crate::report::{NotDone, Recorder, Report};

/// Between two questions to a CRI that is starting: nothing tells when it has.
const PAUSE: Duration = Duration::from_millis(100);

/// How deep a container sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Its memory is out.
    Light,
    /// It is checkpointed.
    Deep,
}

impl Depth {
    /// As the shim says it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Deep => "deep",
        }
    }
}

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Handler(#[from] HandlerError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error("{what}: {said}")]
    Unexpected { what: &'static str, said: String },
    #[error(
        "the application's memory is {after} bytes asleep and was {before} awake: nothing is freed"
    )]
    NotFreed { before: u64, after: u64 },
    #[error("{}", join(.0))]
    Left(Vec<CallError>),
}

fn join(errors: &[CallError]) -> String {
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Takes all steps that can be taken, and says how they went.
pub(crate) async fn run(options: &Options) -> Report {
    let mut recorder = Recorder::default();
    let mut version = String::new();
    // What is not done is in the recorder.
    let _ = steps(options, &mut recorder, &mut version).await;
    recorder.finish(version)
}

async fn steps(
    options: &Options,
    recorder: &mut Recorder,
    version: &mut String,
) -> Result<(), NotDone> {
    let connected = recorder.step("containerd", connect(&options.containerd));
    let client;
    (client, *version) = connected.await?;
    let containerd = recorder
        .step("handler", look_up(options, client, version))
        .await?;
    recorder.step("leftovers", remove(&containerd)).await?;
    let slept = sleep_and_wake(options, &containerd, recorder).await;
    // Whatever happened.
    let removed = recorder.step("remove", remove(&containerd)).await;
    slept.and(removed)
}

async fn connect(socket: &Path) -> Result<((Client, String), String), StepError> {
    let client = Client::connect(socket).await?;
    let answer = call!(client, version::version_client::VersionClient, version, ());
    let version = answer.await?.version;
    Ok(((client, version.clone()), version))
}

/// What CRI says of itself. A containerd that was just started answers before its CRI has looked at all pods.
async fn status(client: &Client) -> Result<cri::StatusResponse, CallError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let message = cri::StatusRequest { verbose: true };
        let status = call!(
            client,
            cri::runtime_service_client::RuntimeServiceClient,
            status,
            message
        );
        match status.await {
            Err(error) if error.is_starting() && Instant::now() < deadline => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

async fn look_up(
    options: &Options,
    client: Client,
    version: &str,
) -> Result<(Containerd, String), StepError> {
    let info = status(&client).await?.info;
    let configuration = info.get("config").ok_or(HandlerError::Silent)?;
    let handler = Handler::parse(&options.handler, configuration, version)?;
    let snapshotter = match &handler.snapshotter {
        Some(name) => name.clone(),
        None => {
            let message = cri::ImageFsInfoRequest {};
            let images = call!(
                client,
                cri::image_service_client::ImageServiceClient,
                image_fs_info,
                message
            );
            let mut places = images.await?.image_filesystems.into_iter();
            let place = places.next().and_then(|place| place.fs_id);
            handler::snapshotter_of(&place.unwrap_or_default().mountpoint)?
        }
    };
    let driver = match handler.systemd {
        true => "systemd",
        false => "cgroupfs",
    };
    let seen = format!(
        "{}, snapshotter {snapshotter}, cgroup driver {driver}",
        handler.runtime
    );
    Ok((Containerd::new(client, handler, snapshotter), seen))
}

async fn remove(containerd: &Containerd) -> Result<((), String), StepError> {
    let (containers, errors) = containerd.remove_all().await;
    match errors.is_empty() {
        true => Ok(((), format!("{containers} containers"))),
        false => Err(StepError::Left(errors)),
    }
}

async fn sleep_and_wake(
    options: &Options,
    containerd: &Containerd,
    recorder: &mut Recorder,
) -> Result<(), NotDone> {
    let prepared = async {
        containerd.prepare().await?;
        Ok::<_, StepError>(((), "an empty layer is there".to_owned()))
    };
    recorder.step("snapshots", prepared).await?;
    for depth in [Depth::Light, Depth::Deep] {
        let named = |step: &str| format!("{}: {step}", depth.as_str());
        let mut pod = recorder
            .step(&named("start"), async {
                let pod = Pod::start(options, containerd, depth).await?;
                Ok::<_, StepError>((pod, "a sandbox and an application run".to_owned()))
            })
            .await?;
        let request = async {
            let count = pod.request().await?;
            Ok::<_, StepError>(((), format!("the application answers {count}")))
        };
        recorder.step(&named("request"), request).await?;
        let shim = recorder
            .step(&named("sleep"), fall_asleep(options, &pod, depth))
            .await?;
        recorder
            .step(&named("wake"), wake(&mut pod, &shim, depth))
            .await?;
    }
    Ok(())
}

async fn fall_asleep(
    options: &Options,
    pod: &Pod<'_>,
    depth: Depth,
) -> Result<(Shim, String), StepError> {
    let shim = pod.shim(options).await?;
    let before = pod.memory().await?;
    shim.sleep(pod.app(), PATIENCE).await?;
    let status = shim.inspect(pod.app()).await?;
    expect("it was to sleep", &status, |status| {
        status.state == "asleep" && status.depth == depth.as_str()
    })?;
    let after = pod.memory().await?;
    let freed = before.saturating_sub(after);
    if freed < (MEBIBYTES << 20) / 2 {
        return Err(StepError::NotFreed { before, after });
    }
    let last = status.last_sleep.get_or_default();
    let seen = format!(
        "{} KiB freed in {}, an image of {} KiB",
        freed >> 10,
        millis(last.took_us),
        last.image_bytes >> 10
    );
    Ok((shim, seen))
}

async fn wake(pod: &mut Pod<'_>, shim: &Shim, depth: Depth) -> Result<((), String), StepError> {
    let before = shim.inspect(pod.app()).await?;
    expect("it was to sleep on", &before, |status| {
        status.state == "asleep"
    })?;
    let count = pod.request().await?;
    let status = shim.inspect(pod.app()).await?;
    expect("the request was to wake it", &status, |status| {
        let last = status.last_wake.get_or_default();
        status.state == "running" && last.cause == "traffic" && last.depth == depth.as_str()
    })?;
    let last = status.last_wake.get_or_default();
    let seen = format!(
        "the application answers {count}, awake in {}, the first packet held for {}",
        millis(last.took_us),
        millis(last.first_packet_held_us)
    );
    Ok(((), seen))
}

/// Fails unless the container is as it should be; what the shim says of it is in the error.
fn expect(
    what: &'static str,
    status: &Container,
    is_so: impl Fn(&Container) -> bool,
) -> Result<(), StepError> {
    if is_so(status) {
        return Ok(());
    }
    let last = status.last_wake.get_or_default();
    let said = format!(
        "the shim says state {:?}, depth {:?}, last wake {:?} from {:?}, last error {:?}",
        status.state, status.depth, last.cause, last.depth, status.last_error
    );
    Err(StepError::Unexpected { what, said })
}

fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros / 100 % 10)
}
