//! The node's command line, `podmotion`, on real shims.

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
use podmotion_bpf::{Counters, DEFAULT_PIN_DIR, Maps, netns};
use podmotion_integration_tests::{
    App, Container, ContainerdVersion, Member, Netns, Network, Node, PATIENCE, Runtime, Versions,
    refusal,
};
use serde_json::Value;

use crate::{Body, light_trial};

const TESTS: &[(&str, Body)] = &[
    ("cli::ps_lists_what_sleeps_although_one_socket_is_dead", ps),
    ("cli::inspect_finds_by_every_name", inspect),
    ("cli::sleep_and_wake_say_what_happened", sleep_and_wake),
    ("cli::watch_tells_each_change_and_new_shims", watch),
    ("cli::check_passes_and_names_what_is_wrong", check),
    ("cli::gc_removes_only_what_has_no_owner", gc),
    (
        "cli::gc_keeps_what_a_killed_shim_has_left_to_containerd",
        gc_killed,
    ),
    ("cli::a_shim_that_hangs_spoils_nothing", hanging),
];

/// With each containerd: its configuration is looked at.
const EACH_CONTAINERD: (&str, Body) = ("cli::check_knows_containerds_configuration", configuration);

const SHIMS: &str = "/run/podmotion/shims";
const CHECKPOINTS: &str = "/var/lib/podmotion/checkpoints";

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

fn check(node: &Node, _: Runtime) -> Result<()> {
    let containerd = node.folder().join("config.toml").display().to_string();
    let all = ["check", "--containerd-config", &containerd];
    let said = run(node, &all)?.ends_with(0)?;
    ensure!(said.out.contains("state intact"), "{}", said.out);
    let left = fs::read_dir(CHECKPOINTS)?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with('.'));
    ensure!(left.is_none(), "{left:?} is left of the self-test");

    let criu = node.tools().cached("criu")?.join("bin/no-criu");
    let _set = node.set(&format!("criu.binary = \"{}\"", criu.display()))?;
    let said = run(node, &["check", "criu", "self-test", "-o", "json"])?
        .ends_with(1)?
        .json()?;
    ensure!(said["ok"] == false, "{said}");
    for one in said["checks"].as_array().context("no checks")? {
        let what = one["what"].as_str().unwrap_or_default();
        ensure!(
            one["result"] == "failed" && what.contains(&criu.display().to_string()),
            "{said}"
        );
        ensure!(one["advice"].is_string(), "{said}");
    }

    let wrong = node.folder().join("wrong.toml");
    fs::write(&wrong, "[sleep]\nscaledown_duration = \"soon\"\n")?;
    let wrong = wrong.display().to_string();
    let said = run(node, &["check", "--config", &wrong, "configuration"])?.ends_with(1)?;
    for words in [wrong.as_str(), "line 2", "\"soon\"", "a Go duration"] {
        ensure!(said.out.contains(words), "no {words:?} in {}", said.out);
    }
    let said = run(node, &["check", "moon"])?.ends_with(2)?;
    ensure!(
        said.err.contains("'moon'") && said.err.contains("self-test"),
        "{}",
        said.err
    );
    Ok(())
}

fn configuration(node: &Node, _: Runtime) -> Result<()> {
    let path = node.folder().join("config.toml");
    let check = |path: &Path| {
        let path = path.display().to_string();
        run(node, &["check", "containerd", "--containerd-config", &path])
    };
    let said = check(&path)?.ends_with(0)?;
    ensure!(said.out.starts_with("ok "), "{}", said.out);
    let without = node.folder().join("without.toml");
    let text =
        fs::read_to_string(&path)?.replace("io.containerd.podmotion.v1", "io.containerd.other.v1");
    fs::write(&without, text)?;
    let said = check(&without)?.ends_with(1)?;
    ensure!(
        said.out.contains("io.containerd.podmotion.v1"),
        "{}",
        said.out
    );
    Ok(())
}

/// Names in the directory of the checkpoints.
fn checkpoints(container: &Container) -> Vec<PathBuf> {
    let id = container.id();
    let names = [id.to_owned(), format!("{id}.memory")];
    let paths = names.map(|name| Path::new(CHECKPOINTS).join(name));
    paths.into_iter().filter(|path| path.exists()).collect()
}

/// Registers a network namespace that is gone by the time this returns.
fn dead_namespace() -> Result<u64> {
    let netns = Netns::new()?;
    let cookie = netns::cookie(std::os::fd::AsFd::as_fd(&fs::File::open(netns.path())?))?;
    let mut maps = Maps::open(Path::new(DEFAULT_PIN_DIR))?;
    maps.counters.insert(&cookie, &Counters::default())?;
    Ok(cookie)
}

fn gc(node: &Node, _: Runtime) -> Result<()> {
    let (awake, asleep) = (node.run(sleeper())?, node.run(sleeper())?);
    asleep.sleep()?;
    let owned = checkpoints(&asleep);
    ensure!(!owned.is_empty(), "it sleeps without images");
    let orphan = Path::new(CHECKPOINTS).join("orphan.memory");
    fs::create_dir_all(&orphan)?;
    fs::write(orphan.join("image"), [1; 10_000])?;
    let socket = dead_socket("orphan.sock")?;
    let cookie = dead_namespace()?;
    let entry = format!("network namespace {cookie}");
    let all = [
        orphan.display().to_string(),
        socket.display().to_string(),
        entry,
    ];
    let everything = ["--min-age", "0s"];

    // All of it is too young.
    let said = run(node, &["gc", "--dry-run"])?.ends_with(0)?;
    ensure!(
        !said.out.contains(&all[0]) && !said.out.contains(&all[1]),
        "{}",
        said.out
    );
    let said = run(node, &[&["gc", "--dry-run"], &everything[..]].concat())?.ends_with(0)?;
    for what in &all {
        ensure!(said.out.contains(what), "no {what} in {}", said.out);
    }
    ensure!(orphan.exists() && socket.exists(), "removed all the same");

    let said = run(node, &[&["gc", "-o", "json"], &everything[..]].concat())?
        .ends_with(0)?
        .json()?;
    for what in &all {
        let mut found = said.as_array().context("no list")?.iter();
        let found = found.find(|one| one["what"] == what.as_str());
        ensure!(
            found.is_some_and(|one| one["removed"] == true),
            "{what}: {said}"
        );
    }
    ensure!(!orphan.exists() && !socket.exists(), "it is still there");
    let maps = Maps::open(Path::new(DEFAULT_PIN_DIR))?;
    ensure!(
        maps.counters.get(&cookie)?.is_none(),
        "the entry is still there"
    );
    ensure!(
        checkpoints(&asleep) == owned,
        "a sleeping container's images are gone"
    );
    asleep.wake()?;
    awake.sleep()?;
    awake.wake()?;
    let said = run(node, &[&["gc"], &everything[..]].concat())?.ends_with(0)?;
    ensure!(said.out == "nothing is left over\n", "{}", said.out);
    Ok(())
}

/// containerd is down and will clear up after its shim itself: until then all of it is containerd's.
fn gc_killed(node: &Node, _: Runtime) -> Result<()> {
    let asleep = node.run(sleeper())?;
    asleep.sleep()?;
    let owned = checkpoints(&asleep);
    let shim = node.shim_of(asleep.id())?;
    node.kill9()?;
    let pid = rustix::process::Pid::from_raw(shim.pid).context("the shim's pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    podmotion_integration_tests::wait_gone(shim.pid, PATIENCE)?;
    let said = run(node, &["gc", "--min-age", "0s"])?.ends_with(0)?;
    ensure!(
        said.out.contains(&format!("{SHIMS}/{}.sock", asleep.id())),
        "{}",
        said.out
    );
    ensure!(
        checkpoints(&asleep) == owned,
        "its images are gone: {}",
        said.out
    );
    node.start_again()?;
    // It clears up before it serves.
    ensure!(
        checkpoints(&asleep).is_empty(),
        "containerd has not cleared up"
    );
    Ok(())
}

fn hanging(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(sleeper())?;
    // It lives, says nothing, and may own anything.
    let path = Path::new(SHIMS).join("hangs.sock");
    let _hangs = UnixListener::bind(&path)?;
    let orphan = Path::new(CHECKPOINTS).join("of-whom");
    fs::create_dir_all(&orphan)?;
    let (listed, collected) = thread::scope(|scope| {
        let gc = scope.spawn(|| run(node, &["gc", "--min-age", "0s"]));
        let ps = run(node, &["ps", "--no-trunc"]);
        (ps, gc.join())
    });
    let kept = orphan.exists();
    fs::remove_dir(&orphan)?;
    fs::remove_file(&path)?;
    let listed = listed?.ends_with(3)?;
    line(&listed.out, container.id())?;
    ensure!(listed.err.contains("hangs.sock"), "{}", listed.err);
    let Ok(collected) = collected else {
        bail!("a thread has panicked");
    };
    let collected = collected?.ends_with(1)?;
    ensure!(collected.err.contains("hangs.sock"), "{}", collected.err);
    ensure!(
        kept,
        "removed although its owner may be the shim that hangs"
    );
    Ok(())
}
