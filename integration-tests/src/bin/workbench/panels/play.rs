//! Containers that sleep, wake and stay awake, and their clients, for about two minutes.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{App, Client, Image, Member, Node, Pod, PodContainer, Status};

use crate::listener;
use crate::report::Progress;

/// Where the servers listen.
const PORT: u16 = 8080;
/// How long it takes.
const LENGTH: Duration = Duration::from_secs(120);
/// More than any machine has left: a wake waits until it is given up.
const NO_MEMORY: &str = "pressure.wake_min_memory = \"100%\"\npressure.wake_wait = \"1h\"\n";

/// What cannot be restored is started anew, so that somebody is left who tells of it: with a container that ends its
/// series ends too.
const START_ANEW: &str = "checkpoint.on_restore_failure = \"cold-start\"\n";

/// A server with memory, and when it is asked for something.
struct Server {
    namespace: &'static str,
    name: &'static str,
    memory_mb: u32,
    /// Idle time before it sleeps.
    scaledown: &'static str,
    /// Time in light sleep before it is checkpointed.
    deep_after: &'static str,
    /// Requests, in seconds from the beginning.
    visits: &'static [u64],
}

const SERVERS: &[Server] = &[
    Server {
        namespace: "shop",
        name: "web",
        memory_mb: 80,
        scaledown: "6s",
        deep_after: "16s",
        visits: &[12, 20, 50, 82, 90],
    },
    Server {
        namespace: "shop",
        name: "cart",
        memory_mb: 30,
        scaledown: "5s",
        deep_after: "8s",
        visits: &[22, 44, 75],
    },
    Server {
        namespace: "shop",
        name: "search",
        memory_mb: 120,
        scaledown: "4s",
        deep_after: "never",
        visits: &[9, 20, 31, 42, 53, 64, 75, 86, 97, 108],
    },
    Server {
        namespace: "blog",
        name: "pages",
        memory_mb: 50,
        scaledown: "8s",
        deep_after: "15s",
        visits: &[35, 41, 86],
    },
];

/// Its checkpoint is damaged, and then it is asked for something.
const FEED: Server = Server {
    namespace: "blog",
    name: "feed",
    memory_mb: 20,
    scaledown: "5s",
    deep_after: "3s",
    visits: &[60],
};

/// Woken where there is no memory for it, until it is stopped.
const EXPORT: Server = Server {
    namespace: "batch",
    name: "export",
    memory_mb: 40,
    scaledown: "5s",
    deep_after: "never",
    visits: &[66, 80],
};

/// A command runs in one of the servers: its number, and from when to when.
const COMMAND: (usize, u64, &str) = (1, 92, "16");

/// The pods; containers go with theirs.
pub struct Pods {
    servers: Vec<Pod>,
    feed: Pod,
    export: Pod,
    awake: Pod,
}

impl Pods {
    /// Makes them.
    pub fn start(node: &Node) -> Result<Self> {
        let pod = |server: &Server| node.pod_in(server.namespace);
        let servers = SERVERS.iter().map(pod).collect::<Result<_>>()?;
        let pod_with = |server, settings| {
            // Its shim reads them once, when it starts.
            let _settings = node.set(settings)?;
            pod(server)
        };
        Ok(Self {
            servers,
            feed: pod_with(&FEED, START_ANEW)?,
            export: pod_with(&EXPORT, NO_MEMORY)?,
            awake: node.pod_in("batch")?,
        })
    }
}

/// Who plays.
pub struct Cast<'a> {
    servers: Vec<PodContainer<'a>>,
    feed: PodContainer<'a>,
    export: PodContainer<'a>,
    pods: &'a Pods,
    began: Instant,
}

impl<'a> Cast<'a> {
    /// Starts the containers.
    pub fn start(pods: &'a Pods) -> Result<Self> {
        for (name, app) in awake() {
            pods.awake.start(Member::new(name, app))?;
        }
        let servers = SERVERS.iter().zip(&pods.servers);
        Ok(Self {
            servers: servers
                .map(|(server, pod)| server.start(pod))
                .collect::<Result<_>>()?,
            feed: FEED.start(&pods.feed)?,
            export: EXPORT.start(&pods.export)?,
            pods,
            began: Instant::now(),
        })
    }

    /// Has all of it happen.
    pub fn play(&self, progress: &Progress) -> Result<()> {
        thread::scope(|scope| {
            let clients = SERVERS
                .iter()
                .zip(&self.pods.servers)
                .map(|(server, pod)| scope.spawn(|| self.visit(server, pod)));
            let mut players: Vec<_> = clients.collect();
            players.push(scope.spawn(|| self.fail()));
            players.push(scope.spawn(|| self.wait_for_memory()));
            players.push(scope.spawn(|| self.command()));
            while self.began.elapsed() < LENGTH {
                let seconds = self.began.elapsed().as_secs();
                progress.begin(&format!("containers sleep and wake: {seconds} s"));
                self.until(seconds + 1);
            }
            for player in players {
                match player.join() {
                    Ok(played) => played?,
                    Err(_) => bail!("a client panicked"),
                }
            }
            Ok(())
        })
    }

    /// People come when they come.
    fn until(&self, second: u64) {
        let at = self.began + Duration::from_secs(second);
        thread::sleep(at.saturating_duration_since(Instant::now()));
    }

    fn visit(&self, server: &Server, pod: &Pod) -> Result<()> {
        let name = server.name;
        for second in server.visits {
            self.until(*second);
            let answer = Client::default().get(pod.address(PORT)?, "/");
            let answer = answer.with_context(|| format!("{name} at {second} s"))?;
            ensure!(answer.status == 200, "{name} at {second} s: {answer:?}");
        }
        Ok(())
    }

    /// A checkpoint that cannot be restored.
    fn fail(&self) -> Result<()> {
        let sleeper = self.feed.sleeper();
        sleeper.wait_until("deep sleep", |status| status.depth == "deep")?;
        let image = Path::new("/var/lib/podmotion/checkpoints")
            .join(self.feed.id())
            .join("core-1.img");
        let mut bytes = fs::read(&image).with_context(|| format!("read {}", image.display()))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&image, bytes).with_context(|| format!("damage {}", image.display()))?;
        for second in FEED.visits {
            self.until(*second);
            ensure!(sleeper.wake().is_err(), "a wake from a damaged image");
        }
        let anew = |status: &Status| status.counters.cold_starts > 0;
        sleeper.wait_until("a cold start", anew).map(drop)
    }

    fn wait_for_memory(&self) -> Result<()> {
        let sleeper = self.export.sleeper();
        sleeper.wait_until("sleep", |status| status.state == "asleep")?;
        let [begin, end] = EXPORT.visits else {
            bail!("not a beginning and an end: {:?}", EXPORT.visits);
        };
        self.until(*begin);
        thread::scope(|scope| {
            let wake = scope.spawn(|| sleeper.wake());
            self.until(*end);
            self.export.stop(0)?;
            let woken = wake.join().ok().context("the wake panicked")?;
            ensure!(woken.is_err(), "a wake without memory for it");
            Ok(())
        })
    }

    fn command(&self) -> Result<()> {
        let (server, second, seconds) = COMMAND;
        self.until(second);
        let (exit, said) = self.servers[server].exec(&["sleep", seconds])?;
        ensure!(exit.status == 0, "the command ended with {exit:?}: {said}");
        Ok(())
    }
}

impl Server {
    fn start<'a>(&self, pod: &'a Pod) -> Result<PodContainer<'a>> {
        let app = App::counter()
            .mem_mb(self.memory_mb)
            .annotation("scaledown-duration", self.scaledown)
            .annotation("deep-sleep-after", self.deep_after);
        let container = pod.start(Member::new(self.name, app))?;
        listener::wait(pod.address(PORT)?)?;
        Ok(container)
    }
}

/// Containers of one pod that stay awake, each for a reason of its own.
fn awake() -> [(&'static str, App); 4] {
    let idle = || App::sh("while :; do sleep 1000; done").annotation("scaledown-duration", "5s");
    let busy = "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.2; done";
    [
        ("queue", idle().annotation("scaledown-duration", "0")),
        ("console", idle().terminal()),
        ("agent", idle()),
        (
            "report",
            App::sh(busy)
                .image(Image::Busybox)
                .annotation("scaledown-duration", "5s")
                .annotation("busy-cpu", "0.05")
                .annotation("ports-map", "report=80"),
        ),
    ]
}
