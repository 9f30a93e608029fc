//! What goes wrong on a node, in every moment of a pod's sleep. What is to follow is in [`table`], and
//! in `docs/failure-modes.md` for people.

mod strike;
mod table;

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{Client, Cluster, KubePod, refusal, was_starved};
use serde_json::Value;

use self::strike::Scene;
use self::table::{FAULTS, Fate, Moment};
use super::Body;
use super::manifest::{With, counter, pod};
use crate::sleep::ask;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("kube::failures::are_documented", table::documented),
    ("kube::failures::shim_killed", |cluster| {
        run(cluster, "shim_killed")
    }),
    ("kube::failures::shim_stopped", |cluster| {
        run(cluster, "shim_stopped")
    }),
    ("kube::failures::criu_killed", |cluster| {
        run(cluster, "criu_killed")
    }),
    ("kube::failures::containerd_killed", |cluster| {
        run(cluster, "containerd_killed")
    }),
    ("kube::failures::kubelet_killed", |cluster| {
        run(cluster, "kubelet_killed")
    }),
    ("kube::failures::manager_killed", |cluster| {
        run(cluster, "manager_killed")
    }),
    ("kube::failures::disk_full", |cluster| {
        run(cluster, "disk_full")
    }),
    ("kube::failures::memory_limit_too_low", |cluster| {
        run(cluster, "memory_limit_too_low")
    }),
    ("kube::failures::kube_proxy_rules", |cluster| {
        run(cluster, "kube_proxy_rules")
    }),
];

const PORT: u16 = 8080;

/// How far into a sleep or a wake a fault comes. There is no event to wait for: the moment is what is
/// tried.
const DELAYS: [Duration; 2] = [Duration::from_millis(15), Duration::from_millis(1)];

/// Lets one fault happen in each of its moments.
fn run(cluster: &Cluster, name: &str) -> Result<()> {
    let fault = FAULTS.iter().find(|fault| fault.name == name);
    let fault = fault.with_context(|| format!("no fault is called {name}"))?;
    let scene = (fault.set)(cluster)?;
    let mut survivor = None;
    for (moment, fate) in fault.fates(cluster.node().depth()) {
        let rounds = match moment {
            Moment::FallingAsleep | Moment::Waking if !fault.takes_long => DELAYS.len(),
            _ => 1,
        };
        for delay in &DELAYS[..rounds] {
            let pod = match survivor.take() {
                Some(pod) => pod,
                None => Subject::start(cluster)?,
            };
            let fallen = pod
                .strike(&scene, moment, *delay, fate)
                .and_then(|()| scene.mend(&pod.pod))
                .and_then(|()| pod.check(fate))
                .with_context(|| format!("{name}, {moment} ({delay:?})"));
            fallen?;
            if fate != Fate::Restarted {
                survivor = Some(pod);
            }
        }
    }
    Ok(())
}

/// A pod with a container that counts requests, and a client that has a connection open all the time.
struct Subject<'a> {
    pod: KubePod<'a>,
    kept: TcpStream,
    requests: std::cell::Cell<u64>,
}

impl<'a> Subject<'a> {
    fn start(cluster: &'a Cluster) -> Result<Self> {
        let app = counter("app", PORT).with(
            "env",
            serde_json::json!([
                {"name": "PORT", "value": PORT.to_string()},
                {"name": "MEM_MB", "value": "30"},
            ]),
        );
        let pod = cluster.run(&pod(vec![app]))?;
        let kept = loop {
            // Without a probe ready means started, not that it listens.
            match Client::default().connect(pod.address(PORT)?) {
                Ok(kept) => break kept,
                Err(_) => pod.container("app")?.sleeper.status().map(drop)?,
            }
        };
        let subject = Self {
            pod,
            kept,
            requests: std::cell::Cell::new(0),
        };
        subject.ask_kept()?;
        Ok(subject)
    }

    /// The fault, in that moment.
    fn strike(&self, scene: &Scene<'_>, moment: Moment, delay: Duration, fate: Fate) -> Result<()> {
        let sleeper = self.pod.container("app")?.sleeper;
        match moment {
            Moment::Awake => {
                scene.strike(&self.pod)?;
                if let Fate::StaysAwake(why) = fate {
                    let refused = sleeper.try_sleep().err();
                    let said = refused.as_ref().and_then(refusal).unwrap_or_default();
                    ensure!(said.contains(why), "not {why:?}: {said:?}");
                }
                Ok(())
            }
            Moment::Asleep => {
                sleeper.sleep()?;
                scene.strike(&self.pod)
            }
            Moment::FallingAsleep => {
                // Else it says that, and does not even try.
                sleeper.wait_whole()?;
                let slept = beside(
                    || sleeper.try_sleep(),
                    || {
                        thread::sleep(delay);
                        scene.strike(&self.pod)
                    },
                )?;
                // The fault may have come too late for this sleep, or it has not come as far as the fault.
                if let (Fate::StaysAwake(why), Err(error)) = (fate, slept)
                    && !was_starved(&error)
                {
                    let said = refusal(&error).unwrap_or_default();
                    ensure!(said.contains(why), "not {why:?}: {said:?}");
                    ensure!(sleeper.status()?.state == "running", "it does not run");
                }
                Ok(())
            }
            Moment::Waking => {
                sleeper.sleep()?;
                let address = self.pod.address(PORT)?;
                let answer = beside(
                    || Client::default().get(address, "/"),
                    || {
                        thread::sleep(delay);
                        scene.strike(&self.pod)
                    },
                )?;
                if fate == Fate::Restarted {
                    // Its client sees the connection end.
                    return Ok(());
                }
                self.is_next(&answer?.body)
            }
        }
    }

    /// What has become of it.
    fn check(&self, fate: Fate) -> Result<()> {
        match fate {
            Fate::GoesOn | Fate::StaysAwake(_) => {
                let address = self.pod.address(PORT)?;
                self.is_next(&Client::default().get(address, "/")?.body)?;
                self.ask_kept()?;
                ensure!(self.pod.restarts("app")? == 0, "started again");
                Ok(())
            }
            Fate::Restarted => {
                let name = format!("pod/{}", self.pod.name());
                let again = "jsonpath={.status.containerStatuses[0].restartCount}=1";
                self.pod.cluster().kubectl().wait(&name, again)?;
                self.pod.wait_ready()?;
                self.ended_visibly()
            }
        }
    }

    /// The end of the first container is in the pod's status; or, where its sandbox has ended too, in
    /// the pod's events: the kubelet keeps nothing of containers of another sandbox.
    fn ended_visibly(&self) -> Result<()> {
        let pod = self.pod.get()?;
        let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
        let ended = last["exitCode"].as_i64().is_some_and(|code| code != 0);
        let about = format!("--field-selector=involvedObject.name={}", self.pod.name());
        let events = self.pod.cluster().kubectl().get(&["events", &about])?;
        let events = events["items"].as_array().context("no list of events")?;
        ensure!(
            ended
                || events
                    .iter()
                    .any(|event| event["reason"] == "SandboxChanged"),
            "not a visible end: {last:#}, {events:#?}"
        );
        Ok(())
    }

    fn ask_kept(&self) -> Result<()> {
        let answer = ask(&self.kept, "/").context("on the connection from before")?;
        rustix::net::sockopt::set_tcp_quickack(&self.kept, true).context("acknowledge")?;
        self.is_next(answer.rsplit("\r\n\r\n").next().unwrap_or_default())
    }

    /// That an answer is the next of the same process, with its memory whole.
    fn is_next(&self, body: &str) -> Result<()> {
        self.requests.set(self.requests.get() + 1);
        let body: Value = serde_json::from_str(body).with_context(|| format!("read {body:?}"))?;
        ensure!(
            body["count"] == self.requests.get() && body["mem_ok"] == true,
            "not request {}: {body}",
            self.requests.get()
        );
        Ok(())
    }
}

/// Runs `first` in a thread of its own and `second` in this one.
fn beside<T: Send>(
    first: impl FnOnce() -> T + Send,
    second: impl FnOnce() -> Result<()>,
) -> Result<T> {
    thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        let first = first.join().map_err(|_| anyhow!("a thread panicked"))?;
        second.map(|()| first)
    })
}
