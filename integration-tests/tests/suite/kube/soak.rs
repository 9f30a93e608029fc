//! Many pods under random use for a long time: nothing is refused, restarted, or left behind.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use podmotion_integration_tests::{
    Census, Client, Cluster, PATIENCE, Random, Sleeper, Status, container_id, soak,
};
use serde_json::{Value, json};

use super::Body;
use super::manifest::{With, counter, pod};

/// In one depth only: its pods sleep in both.
pub(super) const TESTS: &[(&str, Body)] =
    &[("kube::soak::pods_under_random_use", pods_under_random_use)];

/// What they are called, how many there are, and what their `deep-sleep-after` is.
const GROUPS: [(&str, u64, &str); 3] = [
    ("soak-light", 7, "never"),
    ("soak-deep", 7, "0"),
    ("soak-both", 6, "4s"),
];

const PORT: u16 = 8080;

fn pods_under_random_use(cluster: &Cluster) -> Result<()> {
    let lasts = Duration::from_secs(60 * if soak() { 30 } else { 10 });
    // A first pod makes what stays for those that follow.
    let first = cluster.run(&pod(vec![counter("app", PORT)]))?;
    first.container("app")?.sleeper.sleep()?;
    first.delete()?;
    let before = Census::take()?;
    for (name, replicas, deep_after) in GROUPS {
        cluster
            .kubectl()
            .apply(&deployment(name, replicas, deep_after))?;
    }
    for (name, ..) in GROUPS {
        let ready = format!("deployment/{name}");
        cluster
            .kubectl()
            .run(&["rollout", "status", &ready, "--timeout=300s"])?;
    }
    let crowd = Crowd::new(cluster);
    crowd.look()?;
    let deadline = Instant::now() + lasts;
    let random = Random::of_this_run();
    let done = thread::scope(|scope| {
        let workers = [
            scope.spawn(|| {
                crowd.until(deadline, |crowd| {
                    crowd.pause(Duration::from_secs(1));
                    crowd.look()
                })
            }),
            scope.spawn(|| crowd.request_at_random(deadline, random.apart(1))),
            scope.spawn(|| crowd.request_at_random(deadline, random.apart(2))),
            scope.spawn(|| crowd.exec_at_random(deadline, random.apart(3))),
            scope.spawn(|| crowd.delete_at_random(deadline, random.apart(4))),
        ];
        workers.map(|worker| {
            let result = worker
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
            if result.is_err() {
                crowd.failed.store(true, Ordering::Relaxed);
            }
            result
        })
    });
    for result in done {
        result?;
    }
    crowd.everybody_sleeps()?;
    crowd.nothing_went_wrong()?;
    println!("{}", crowd.numbers());
    for (name, ..) in GROUPS {
        cluster
            .kubectl()
            .run(&["delete", "deployment", name, "--cascade=foreground"])?;
    }
    nothing_is_left(&before)
}

/// Waits until there is nothing that was not there before. The kubelet removes sandboxes when it comes to it.
fn nothing_is_left(before: &Census) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut left = Census::take()?.since(before).more;
        // Made by the first checkpoint of a node, for all that follow.
        left.remove("file /run/podmotion/work");
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left behind: {left:#?}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn deployment(name: &str, replicas: u64, deep_after: &str) -> Value {
    let probe = json!({
        "httpGet": {"path": "/mem", "port": PORT},
        "periodSeconds": 1,
        "timeoutSeconds": 1,
    });
    let app = counter("app", PORT)
        .with("env", json!([{"name": "MEM_MB", "value": "2"}]))
        .with(
            "startupProbe",
            probe.clone().with("failureThreshold", json!(120)),
        )
        .with(
            "readinessProbe",
            probe.clone().with("failureThreshold", json!(1)),
        )
        .with("livenessProbe", probe);
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"soak": name}},
            "template": {
                "metadata": {
                    "labels": {"soak": name, "crowd": "soak"},
                    "annotations": {
                        "komodor.com/podmotion-scaledown-duration": "2s",
                        "komodor.com/podmotion-deep-sleep-after": deep_after,
                    },
                },
                "spec": {
                    "runtimeClassName": "podmotion",
                    "dnsPolicy": "Default",
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 2,
                    "containers": [app],
                },
            },
        },
    })
}

/// A pod that is there and ready.
struct Member {
    address: SocketAddr,
    container: String,
    /// Requests that were answered.
    answered: u64,
    /// Requests under way.
    busy: u32,
}

struct Crowd<'a> {
    cluster: &'a Cluster,
    /// By name. One that is to be deleted is not among them.
    members: Mutex<BTreeMap<String, Member>>,
    deleted: Mutex<Vec<String>>,
    failed: AtomicBool,
    requests: AtomicU64,
    execs: AtomicU64,
    wakes: AtomicU64,
}

impl<'a> Crowd<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            members: Mutex::default(),
            deleted: Mutex::default(),
            failed: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            execs: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
        }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deleted(&self) -> MutexGuard<'_, Vec<String>> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `step` again and again. Stops all others when it fails.
    fn until(&self, deadline: Instant, mut step: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        while Instant::now() < deadline && !self.failed.load(Ordering::Relaxed) {
            if let Err(error) = step(self) {
                self.failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Time that passes between two uses: the pace is the test's subject.
    fn pause(&self, time: Duration) {
        thread::sleep(time);
    }

    /// Learns of pods that are ready, and checks that none was started again.
    fn look(&self) -> Result<()> {
        let pods = self
            .cluster
            .kubectl()
            .get(&["pods", "--selector=crowd=soak"])?;
        for pod in pods["items"].as_array().context("no list of pods")? {
            let name = pod["metadata"]["name"].as_str().context("no name")?;
            let container = &pod["status"]["containerStatuses"][0];
            // First: it is deleted from both lists with this one in hand.
            let mut members = self.members();
            if pod["metadata"]["deletionTimestamp"].is_string()
                || container["ready"] != true
                || self.deleted().iter().any(|deleted| deleted == name)
            {
                continue;
            }
            ensure!(
                container["restartCount"] == 0,
                "{name} was started again: {pod:#}"
            );
            let ip: IpAddr = pod["status"]["podIP"]
                .as_str()
                .context("no address")?
                .parse()?;
            let id = container_id(container)?;
            members.entry(name.to_owned()).or_insert_with(|| Member {
                address: SocketAddr::new(ip, PORT),
                container: id.to_owned(),
                answered: 0,
                busy: 0,
            });
        }
        Ok(())
    }

    /// One of them, which is not deleted before [`give_back`](Self::give_back).
    fn take(&self, random: &mut Random) -> Result<(String, SocketAddr)> {
        let mut members = self.members();
        let index = random.below(members.len().try_into()?);
        let (name, member) = members
            .iter_mut()
            .nth(index.try_into()?)
            .context("nobody is there")?;
        member.busy += 1;
        Ok((name.clone(), member.address))
    }

    fn give_back(&self, name: &str, answered: u64) {
        if let Some(member) = self.members().get_mut(name) {
            member.busy -= 1;
            member.answered += answered;
        }
    }

    fn request_at_random(&self, deadline: Instant, mut random: Random) -> Result<()> {
        self.until(deadline, |crowd| {
            let (name, address) = crowd.take(&mut random)?;
            let answer = Client::default()
                .get(address, "/")
                .with_context(|| format!("ask {name}"))?;
            ensure!(
                answer.status == 200 && answer.body.contains("\"mem_ok\": true"),
                "{name}: {answer:?}"
            );
            crowd.give_back(&name, 1);
            crowd.requests.fetch_add(1, Ordering::Relaxed);
            crowd.pause(Duration::from_millis(random.below(600)));
            Ok(())
        })
    }

    fn exec_at_random(&self, deadline: Instant, mut random: Random) -> Result<()> {
        self.until(deadline, |crowd| {
            let (name, _) = crowd.take(&mut random)?;
            let said = crowd
                .cluster
                .kubectl()
                .run(&["exec", &name, "--", "echo", "here"])?;
            ensure!(said == "here\n", "{name} said {said:?}");
            crowd.give_back(&name, 0);
            crowd.execs.fetch_add(1, Ordering::Relaxed);
            crowd.pause(Duration::from_millis(2000 + random.below(3000)));
            Ok(())
        })
    }

    fn delete_at_random(&self, deadline: Instant, mut random: Random) -> Result<()> {
        self.until(deadline, |crowd| {
            crowd.pause(Duration::from_millis(5000 + random.below(10_000)));
            let name = {
                let mut members = crowd.members();
                let free = members.iter().filter(|(_, member)| member.busy == 0);
                let names: Vec<_> = free.map(|(name, _)| name.clone()).collect();
                if names.is_empty() {
                    return Ok(());
                }
                let index: usize = random.below(names.len().try_into()?).try_into()?;
                let name = names[index].clone();
                if let Some(member) = members.get(&name) {
                    crowd.count_wakes(&member.container);
                }
                crowd.deleted().push(name.clone());
                members.remove(&name);
                name
            };
            crowd
                .cluster
                .kubectl()
                .run(&["delete", "pod", &name, "--wait=false"])
                .map(drop)
        })
    }

    fn count_wakes(&self, container: &str) {
        // One whose shim cannot be asked has woken too seldom for the sum to matter.
        if let Ok(status) = Sleeper::find(container).and_then(|sleeper| sleeper.status()) {
            self.wakes
                .fetch_add(status.counters.wakes, Ordering::Relaxed);
        }
    }

    /// Left alone, all of them fall asleep; with every request that was answered counted.
    fn everybody_sleeps(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.look()?;
            let wanted: u64 = GROUPS.iter().map(|(_, replicas, _)| replicas).sum();
            if u64::try_from(self.members().len())? >= wanted {
                break;
            }
            ensure!(Instant::now() < deadline, "not all pods came back");
            self.pause(Duration::from_millis(500));
        }
        for (name, member) in &*self.members() {
            let sleeper = Sleeper::find(&member.container).with_context(|| name.clone())?;
            let asleep = sleeper.wait_state("asleep").with_context(|| name.clone())?;
            ensure!(asleep.counters.cold_starts == 0, "{name}: {asleep:?}");
            self.wakes
                .fetch_add(asleep.counters.wakes, Ordering::Relaxed);
            let answer = Client::default().get(member.address, "/")?;
            let body: Value = serde_json::from_str(&answer.body)?;
            ensure!(
                body["count"] == member.answered + 1,
                "{name} has answered {} and says {body}",
                member.answered
            );
            sleeper.wait_until("sleep again", |status: &Status| status.state == "asleep")?;
        }
        Ok(())
    }

    /// No probe of a pod that had started has failed, and nobody was started again.
    fn nothing_went_wrong(&self) -> Result<()> {
        let events = self.cluster.kubectl().get(&["events"])?;
        for event in events["items"].as_array().context("no list of events")? {
            let about = event["involvedObject"]["name"].as_str().unwrap_or_default();
            let message = event["message"].as_str().unwrap_or_default();
            let started = !message.starts_with("Startup probe failed");
            let deleted = self.deleted().iter().any(|name| name == about);
            if about.starts_with("soak-") && event["type"] == "Warning" && started && !deleted {
                let at = event["lastTimestamp"].as_str().unwrap_or_default();
                let reason = &event["reason"];
                let members = self.members();
                let member = members.get(about);
                let before =
                    member.map(|it| self.cluster.node().log_about(&it.container, Some(at)));
                let before = before.unwrap_or_default();
                bail!("{about} at {at}: {reason}: {message}\nBefore that:\n{before}");
            }
        }
        Ok(())
    }

    fn numbers(&self) -> String {
        let [requests, execs, wakes] =
            [&self.requests, &self.execs, &self.wakes].map(|number| number.load(Ordering::Relaxed));
        let deleted = self.deleted().len();
        format!("{requests} requests, {execs} execs, {deleted} pods deleted, {wakes} wakes")
    }
}
