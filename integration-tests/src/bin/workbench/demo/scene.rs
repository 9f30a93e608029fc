//! The pod with its application, and what is done to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{
    App, Client, Depth, Member, Node, Pod, PodContainer, Response, Runtime, Sleeper, Status,
    own_processes, rss_anon_kib,
};
use serde_json::Value;

use super::kept::Kept;
use super::steps::{Note, Steps, kib};
use crate::listener;
use crate::numbers::{megabytes, time};

/// Where the application listens.
pub const PORT: u16 = 8080;
/// Idle time before the container sleeps.
pub const SCALEDOWN: &str = "3s";
/// Time in light sleep before the checkpoint.
const DEEP_AFTER: &str = "3s";
/// Memory that the application holds.
const MEMORY_MB: u32 = 50;
/// A line to standard output that often.
const TICK_MS: &str = "250";

/// Makes the pod.
pub fn pod(steps: &mut Steps, node: &Node) -> Result<Pod> {
    steps.step("a pod sandbox starts, with its network", |note| {
        let pod = node.pod(Runtime::Podmotion)?;
        let addresses: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
        note.say(addresses.join(", "));
        Ok(pod)
    })
}

/// The running application.
pub struct Scene<'a> {
    node: &'a Node,
    pod: &'a Pod,
    container: PodContainer<'a>,
    sleeper: Sleeper,
    address: SocketAddr,
    boot: String,
}

impl<'a> Scene<'a> {
    /// Starts it.
    pub fn start(steps: &mut Steps, node: &'a Node, pod: &'a Pod) -> Result<Self> {
        let address = pod.address(PORT)?;
        let name = format!("an application that holds {MEMORY_MB} MB starts");
        steps.step(&name, |note| {
            let app = App::counter()
                .mem_mb(MEMORY_MB)
                .env("LOG_EVERY_MS", TICK_MS)
                .annotation("scaledown-duration", SCALEDOWN)
                .annotation("deep-sleep-after", DEEP_AFTER);
            let container = pod.start(Member::new("counter", app))?;
            listener::wait(address)?;
            let scene = Self {
                sleeper: container.sleeper(),
                node,
                pod,
                container,
                address,
                boot: String::new(),
            };
            scene.note_processes(note)?;
            note.say(format!("counts requests on {address}"));
            Ok(scene)
        })
    }

    pub fn id(&self) -> &str {
        self.container.id()
    }

    /// Everything that is done to it.
    pub fn play(&mut self, steps: &mut Steps) -> Result<()> {
        let mut count = 0;
        for _ in 0..3 {
            count += 1;
            steps.step(&format!("request {count}"), |note| {
                let answer = self.request(note, count)?;
                self.boot = text(&answer, "boot")?;
                Ok(())
            })?;
        }

        let slept = steps.step("idle: its memory goes out", |note| {
            self.wait_asleep(note, Depth::Light)
        })?;
        let shim = self.node.shim_of(self.pod.id())?;
        let shim = rss_anon_kib(shim.pid)?;
        count += 1;
        let first_byte = steps.step("a new connection wakes it", |note| {
            self.request(note, count)?;
            self.note_wake(note, 1)?;
            note.took.context("a request without a time")
        })?;

        let mut kept = steps.step("a client keeps its connection open", |note| {
            count += 1;
            let mut kept = Kept::open(self.address)?;
            self.ask(note, &mut kept, count)?;
            Ok(kept)
        })?;
        steps.step("it falls asleep with the connection open", |note| {
            self.wait_asleep(note, Depth::Light).map(drop)
        })?;
        let second = steps.step("data on the open connection wakes it", |note| {
            count += 1;
            self.ask(note, &mut kept, count)?;
            self.note_wake(note, 2)?;
            note.took.context("a request without a time")
        })?;
        drop(kept);

        steps.step("it falls asleep again", |note| {
            self.wait_asleep(note, Depth::Light).map(drop)
        })?;
        steps.step("still idle: a checkpoint, no process is left", |note| {
            self.wait_asleep(note, Depth::Deep).map(drop)
        })?;
        count += 1;
        let restored = steps.step("a new connection wakes it from there too", |note| {
            self.request(note, count)?;
            self.note_wake(note, 3)?;
            note.took.context("a request without a time")
        })?;

        steps.step("once more it falls asleep", |note| {
            self.wait_asleep(note, Depth::Light).map(drop)
        })?;
        steps.step("a command in it wakes it", |note| {
            let (exit, said) = self.container.exec(&["cat", "/proc/1/cmdline"])?;
            ensure!(exit.status == 0, "the command ended with {}", exit.status);
            ensure!(said.contains("counter.py"), "the command said {said:?}");
            self.note_processes(note)?;
            note.say(format!("it said {:?}", said.replace('\0', " ").trim_end()));
            Ok(())
        })?;
        steps.step("all of its memory is as it was", |note| {
            self.check_memory(note)
        })?;
        steps.step("its log went on", |note| self.check_log(note, count))?;

        let freed = slept.last_sleep.memory_bytes;
        steps.conclude(format!(
            "asleep: {} freed, {} on disk, the shim keeps {}",
            megabytes(freed),
            megabytes(slept.last_sleep.image_bytes),
            kib(shim)
        ));
        steps.conclude(format!(
            "awake: first byte after {} from the first light sleep, {} once it is known what a wake \
             needs, {} from a checkpoint",
            time(first_byte),
            time(second),
            time(restored)
        ));
        Ok(())
    }

    /// A request on a connection of its own.
    fn request(&self, note: &mut Note, count: u64) -> Result<Value> {
        let response = Client::default().get(self.address, "/")?;
        let Response {
            status,
            body,
            local,
            first_byte,
            retransmits,
            ..
        } = response;
        ensure!(status == 200, "status {status}");
        ensure!(retransmits == 0, "{retransmits} packets were sent again");
        let answer = serde_json::from_str(&body).context("parse the answer")?;
        note.took = Some(first_byte);
        self.check_answer(note, &answer, count, local)?;
        Ok(answer)
    }

    fn ask(&self, note: &mut Note, kept: &mut Kept, count: u64) -> Result<()> {
        let (answer, first_byte) = kept.get("/")?;
        note.took = Some(first_byte);
        self.check_answer(note, &answer, count, kept.local()?)
    }

    fn check_answer(
        &self,
        note: &mut Note,
        answer: &Value,
        count: u64,
        local: SocketAddr,
    ) -> Result<()> {
        let counted = answer["count"].as_u64();
        ensure!(counted == Some(count), "it counts {counted:?}, not {count}");
        let client = text(answer, "client")?;
        ensure!(
            client == local.to_string(),
            "it sees {client}, which is not our {local}"
        );
        let boot = text(answer, "boot")?;
        ensure!(
            self.boot.is_empty() || boot == self.boot,
            "it was started anew"
        );
        ensure!(answer["mem_ok"] == true, "its memory has changed");
        self.note_processes(note)?;
        note.say(format!("counter {count}, sees its client {client}"));
        Ok(())
    }

    /// Waits until its own timer has put it to sleep that deep.
    fn wait_asleep(&self, note: &mut Note, depth: Depth) -> Result<Status> {
        let began = Instant::now();
        let depth_name = depth.to_string();
        let waited = self
            .sleeper
            .wait_until("sleep", |status| status.depth == depth_name);
        let Ok(status) = waited else {
            let status = self.sleeper.status()?;
            bail!(
                "{} after {}: {} {}",
                status.state,
                time(began.elapsed()),
                status.awake_reason.detail,
                status.last_error
            );
        };
        let waited = began.elapsed();
        self.note_processes(note)?;
        let gone = note.processes == Some(0);
        ensure!(
            gone == (depth == Depth::Deep),
            "{depth} with {:?} processes",
            note.processes
        );
        let (state, _) = self.container.status()?;
        ensure!(state == "CONTAINER_RUNNING", "CRI says {state}");
        let sleep = &status.last_sleep;
        let took = Duration::from_micros(sleep.took_us);
        note.took = Some(took);
        note.say(format!(
            "after {} of idleness; {} freed, image {}; CRI says {state}",
            time(waited.saturating_sub(took)),
            megabytes(sleep.memory_bytes),
            megabytes(sleep.image_bytes)
        ));
        Ok(status)
    }

    /// What its shim tells of the wake that a packet has caused.
    fn note_wake(&self, note: &mut Note, wakes: u64) -> Result<()> {
        let status = self.sleeper.wait_until("packet given back", |status| {
            status.counters.wakes == wakes && status.last_wake.packets > 0
        })?;
        let wake = &status.last_wake;
        ensure!(wake.cause == "traffic", "it woke for {}", wake.cause);
        note.say(format!(
            "first packet held {}, it ran after {}",
            time(Duration::from_micros(wake.first_packet_held_us)),
            time(Duration::from_micros(wake.took_us))
        ));
        Ok(())
    }

    fn check_memory(&self, note: &mut Note) -> Result<()> {
        let response = Client::default().get(self.address, "/mem")?;
        let answer: Value = serde_json::from_str(&response.body).context("parse the answer")?;
        ensure!(answer["mem_ok"] == true, "its memory has changed");
        let bytes = answer["bytes"].as_u64().context("no size")?;
        note.say(format!("{} compared with checksums", megabytes(bytes)));
        Ok(())
    }

    /// Each line there must be once, and in order; the program writes one every quarter of a second.
    fn check_log(&self, note: &mut Note, requests: u64) -> Result<()> {
        let log = self.container.log()?;
        // CRI's format: time, stream, whether the line is whole, the line.
        let lines: Vec<&str> = log
            .lines()
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .collect();
        let numbers = |word: &str| -> Vec<u64> {
            lines
                .iter()
                .filter_map(|line| line.strip_prefix(word)?.split(' ').nth(1)?.parse().ok())
                .collect()
        };
        let starts = lines.iter().filter(|line| line.starts_with("listening"));
        ensure!(starts.count() == 1, "the program started more than once");
        let ticks = numbers("tick");
        ensure!(ticks.len() > 3, "{} ticks", ticks.len());
        for (word, seen, last) in [
            ("tick", &ticks, ticks.len() as u64),
            ("request", &numbers("request"), requests),
        ] {
            ensure!(
                seen.iter().copied().eq(1..=last),
                "lines {word:?} are not 1 to {last}: {seen:?}"
            );
        }
        note.say(format!(
            "ticks 1 to {} and requests 1 to {requests}, each once and in order",
            ticks.len()
        ));
        Ok(())
    }

    fn note_processes(&self, note: &mut Note) -> Result<()> {
        let mut count = 0;
        let mut kilobytes = 0;
        for process in own_processes()? {
            let path = format!("/proc/{}/cgroup", process.pid);
            // One that ends meanwhile is none.
            let groups = std::fs::read_to_string(path).unwrap_or_default();
            if groups.contains(self.id())
                && let Ok(memory) = rss_anon_kib(process.pid)
            {
                count += 1;
                kilobytes += memory;
            }
        }
        note.processes = Some(count);
        note.memory = Some(kilobytes << 10);
        Ok(())
    }
}

fn text(answer: &Value, name: &str) -> Result<String> {
    let value = answer[name].as_str();
    Ok(value
        .with_context(|| format!("no {name} in the answer"))?
        .to_owned())
}
