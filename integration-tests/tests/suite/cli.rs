//! The node's command line, `podmotion`, on real shims.

mod node;

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{
    App, ContainerdVersion, Member, Network, Node, PATIENCE, Runtime, Versions, refusal,
};
use serde_json::Value;

use crate::{Body, light_trial};

const TESTS: &[(&str, Body)] = &[
    ("cli::ps_lists_what_sleeps_although_one_socket_is_dead", ps),
    ("cli::inspect_finds_by_every_name", inspect),
    ("cli::sleep_and_wake_say_what_happened", sleep_and_wake),
    ("cli::watch_tells_each_change_and_new_shims", watch),
    ("cli::check_passes_and_names_what_is_wrong", node::check),
    ("cli::gc_removes_only_what_has_no_owner", node::gc),
    (
        "cli::gc_keeps_what_a_killed_shim_has_left_to_containerd",
        node::gc_killed,
    ),
    ("cli::a_shim_that_hangs_spoils_nothing", node::hanging),
];

/// With each containerd: its configuration is looked at.
const EACH_CONTAINERD: (&str, Body) = (
    "cli::check_knows_containerds_configuration",
    node::configuration,
);

const SHIMS: &str = "/run/podmotion/shims";

pub(crate) fn trials() -> Vec<Trial> {
    let newest = TESTS
        .iter()
        .map(|(name, body)| light_trial(name, *body, Versions::default()));
    let each = ContainerdVersion::ALL.map(|containerd| {
        let runc = Versions::default().runc;
        let (name, body) = EACH_CONTAINERD;
        light_trial(name, body, Versions { containerd, runc })
    });
    newest.chain(each).collect()
}

/// The program, with the node's configuration and its runc. The first words are what runs it.
fn podmotion(node: &Node, runner: &[&str]) -> Result<Command> {
    let runc = node.tools().runc()?;
    let folder = runc.parent().context("runc lies nowhere")?;
    let program = node.tools().cli()?.into_os_string();
    let mut words = runner.iter().map(OsString::from).chain([program]);
    let mut command = Command::new(words.next().context("no program")?);
    command
        .args(words)
        .env("PATH", format!("{}:/usr/bin:/bin", folder.display()))
        .env("PODMOTION_CONFIG", node.folder().join("settings.toml"));
    Ok(command)
}

/// What it said, and how it ended.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails unless it ended with this code.
    fn ends_with(self, code: i32) -> Result<Self> {
        let Self { out, err, .. } = &self;
        ensure!(
            self.code == Some(code),
            "{:?}, not {code}: {out}{err}",
            self.code
        );
        Ok(self)
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("parse {}", self.out))
    }
}

fn run(node: &Node, arguments: &[&str]) -> Result<Said> {
    let patience = PATIENCE.as_secs().to_string();
    let output = podmotion(node, &["/usr/bin/timeout", &patience])?
        .args(arguments)
        .output()
        .context("run podmotion")?;
    Ok(Said::of(output))
}

/// A container that can sleep at once: nobody is connected to it, and it has hardly any memory.
fn sleeper() -> App {
    App::sh("while :; do sleep 1000; done")
        .network(Network::Own)
        .ports(&[80])
        .annotation("scaledown-duration", "1h")
}

/// The line of a container in a table.
fn line<'a>(table: &'a str, id: &str) -> Result<&'a str> {
    let mut lines = table.lines();
    let found = lines.find(|line| line.split(' ').any(|word| word == id));
    found.with_context(|| format!("{id} is not in {table}"))
}

/// The record of a container in a list.
fn record<'a>(list: &'a Value, id: &str) -> Result<&'a Value> {
    let mut records = list.as_array().context("no list")?.iter();
    let found = records.find(|one| one["id"] == id);
    found.with_context(|| format!("{id} is not in {list}"))
}

/// A socket that nobody listens on.
fn dead_socket(name: &str) -> Result<PathBuf> {
    let path = Path::new(SHIMS).join(name);
    drop(UnixListener::bind(&path).with_context(|| format!("make {}", path.display()))?);
    Ok(path)
}

fn ps(node: &Node, runtime: Runtime) -> Result<()> {
    let (awake, asleep) = (node.run(sleeper())?, node.run(sleeper())?);
    asleep.sleep()?;
    let pod = node.pod(runtime)?;
    let member = pod.start(Member::new("web", App::counter()))?;
    let dead = dead_socket("dead.sock")?;

    let said = run(node, &["ps", "--no-trunc"])?.ends_with(3)?;
    ensure!(said.out.starts_with("POD "), "{}", said.out);
    ensure!(
        !said.out.contains('\u{1b}'),
        "colours without a terminal: {}",
        said.out
    );
    ensure!(
        line(&said.out, awake.id())?.contains("running"),
        "{}",
        said.out
    );
    let row = line(&said.out, asleep.id())?;
    ensure!(
        row.contains("asleep (light)") && row.contains("KiB"),
        "{row}"
    );
    let row = line(&said.out, member.id())?;
    ensure!(row.starts_with("test/") && row.contains(" web "), "{row}");
    ensure!(
        line(&said.out, pod.id()).is_err(),
        "the sandbox is shown: {}",
        said.out
    );
    ensure!(
        said.err.contains(&dead.display().to_string()),
        "{}",
        said.err
    );
    fs::remove_file(&dead)?;

    let all = run(node, &["ps", "--all", "--no-trunc"])?.ends_with(0)?;
    ensure!(line(&all.out, pod.id())?.contains("(pod)"), "{}", all.out);
    let list = run(node, &["ps", "--output", "json"])?
        .ends_with(0)?
        .json()?;
    let one = record(&list, asleep.id())?;
    ensure!(one["state"] == "asleep" && one["depth"] == "light", "{one}");
    ensure!(
        one["lastSleep"]["memoryBytes"] == one["memoryFreedBytes"],
        "{one}"
    );
    ensure!(
        record(&list, member.id())?["pod"]["namespace"] == "test",
        "{list}"
    );

    let deep = run(node, &["ps", "-o", "json", "--state", "deep"])?
        .ends_with(0)?
        .json()?;
    ensure!(deep == Value::Array(Vec::new()), "{deep}");
    let light = run(node, &["ps", "-o", "json", "--state", "light"])?
        .ends_with(0)?
        .json()?;
    ensure!(
        light.as_array().is_some_and(|all| all.len() == 1),
        "{light}"
    );
    let wrong = run(node, &["ps", "--state", "awake"])?.ends_with(2)?;
    ensure!(
        wrong.err.contains("'awake'") && wrong.err.contains("falling-asleep"),
        "{}",
        wrong.err
    );
    Ok(())
}

fn inspect(node: &Node, runtime: Runtime) -> Result<()> {
    let pod = node.pod(runtime)?;
    let member = pod.start(Member::new("web", App::counter()))?;
    let list = run(node, &["ps", "-o", "json"])?.ends_with(0)?.json()?;
    let name = record(&list, member.id())?["pod"]["name"]
        .as_str()
        .context("no name")?
        .to_owned();
    let of_pod = format!("test/{name}");
    let whole = format!("{of_pod}/web");
    for given in [member.id(), &member.id()[..12], &of_pod, &whole] {
        let found = run(node, &["inspect", given, "-o", "json"])?
            .ends_with(0)?
            .json()?;
        ensure!(found["id"] == member.id(), "{given}: {found}");
    }
    let sleeper = member.sleeper();
    sleeper.wait_until("a reason", |status| status.awake_reason.is_some())?;
    let said = run(node, &["inspect", &whole])?.ends_with(0)?;
    for words in [
        member.id(),
        "State:",
        "running",
        "Awake because:",
        "Sleeps:",
    ] {
        ensure!(said.out.contains(words), "no {words:?} in {}", said.out);
    }
    let _second = pod.start(Member::new("db", App::counter().env("PORT", "8081")))?;
    let said = run(node, &["inspect", &of_pod])?.ends_with(4)?;
    ensure!(
        said.err.contains(&format!("{of_pod}/db")) && said.err.contains(&whole),
        "{}",
        said.err
    );
    let said = run(node, &["inspect", "nobody"])?.ends_with(4)?;
    ensure!(
        said.err.contains("\"nobody\"") && said.err.contains("NAMESPACE/POD/CONTAINER"),
        "{}",
        said.err
    );
    Ok(())
}

fn sleep_and_wake(node: &Node, _: Runtime) -> Result<()> {
    let (one, other) = (node.run(sleeper())?, node.run(sleeper())?);
    let said = run(node, &["sleep", one.id(), other.id()])?.ends_with(0)?;
    for container in [&one, &other] {
        ensure!(container.status()?.state == "asleep", "{}", container.id());
        let words = format!("{}: asleep (light) after ", container.id());
        ensure!(
            said.out.contains(&words) && said.out.contains(" freed, image "),
            "{}",
            said.out
        );
    }
    let said = run(node, &["sleep", one.id()])?.ends_with(0)?;
    ensure!(
        said.out == format!("{}: asleep (light) already\n", one.id()),
        "{}",
        said.out
    );

    let said = run(node, &["wake", one.id(), "-o", "json"])?
        .ends_with(0)?
        .json()?;
    ensure!(
        said[0]["changed"] == true && said[0]["container"]["state"] == "running",
        "{said}"
    );
    ensure!(
        said[0]["container"]["lastWake"]["cause"] == "request",
        "{said}"
    );
    ensure!(one.status()?.state == "running" && other.status()?.state == "asleep");

    // A name that is wrong: nobody is woken.
    let said = run(node, &["wake", other.id(), "nobody"])?.ends_with(4)?;
    ensure!(said.err.contains("\"nobody\""), "{}", said.err);
    ensure!(other.status()?.state == "asleep");

    let terminal = node.run(sleeper().terminal())?;
    let error = terminal
        .sleeper()
        .try_sleep()
        .err()
        .context("it sleeps with a terminal")?;
    let words = refusal(&error).context("no answer of the shim")?;
    let said = run(node, &["sleep", terminal.id()])?.ends_with(1)?;
    ensure!(
        said.err == format!("podmotion: {}: {words}\n", terminal.id()),
        "{}",
        said.err
    );
    ensure!(said.out.is_empty(), "{}", said.out);
    Ok(())
}

/// `podmotion watch`, read line by line.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(node: &Node) -> Result<Self> {
        let mut child = podmotion(node, &[])?
            .args(["watch", "--output", "json"])
            .stdout(Stdio::piped())
            .spawn()
            .context("run podmotion watch")?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        let (tell, lines) = channel();
        thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(line))
        });
        Ok(Self { child, lines })
    }

    /// Waits for a line about a container that is so.
    fn wait(&self, id: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
        let mut seen = Vec::new();
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                bail!("{id}: no {what}, but {seen:#?}");
            };
            let value: Value =
                serde_json::from_str(&line).with_context(|| format!("parse {line}"))?;
            if value["container"]["id"] == id && is(&value) {
                return Ok(());
            }
            seen.push(line);
        }
    }

    fn wait_state(&self, id: &str, state: &str) -> Result<()> {
        self.wait(id, state, |line| {
            line["event"] == "changed" && line["container"]["state"] == state
        })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watch(node: &Node, _: Runtime) -> Result<()> {
    let first = node.run(sleeper())?;
    let watching = Watching::start(node)?;
    watching.wait(first.id(), "present", |line| line["event"] == "present")?;
    // In a shim that was not there when the watch began.
    let second = node.run(sleeper())?;
    watching.wait_state(second.id(), "running")?;
    for container in [&first, &second] {
        container.sleep()?;
        watching.wait_state(container.id(), "asleep")?;
        container.wake()?;
        watching.wait_state(container.id(), "running")?;
    }
    let id = second.id().to_owned();
    drop(second);
    watching.wait(&id, "gone", |line| line["event"] == "gone")
}
