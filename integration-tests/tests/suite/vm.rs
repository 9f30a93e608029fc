//! In a virtual machine with a distribution's kernel, containerd and runc, with systemd, cgroup v2 and systemd's
//! cgroup driver: the core of the tests once more, and the installer.
//!
//! [`outside`] are tests of the whole suite. `vm::core` boots the machine and runs this program in it, where
//! systemd makes the control groups; [`inside`] says which tests there are then.

mod installer;

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{
    App, CgroupDriver, Client, Disk, Machine, Node, Runtime, Tools, Vm,
};

use crate::{Body, light_trial, plain, self_test, sleep, to_failure, trial};

/// How long the tests may take inside. On two cores that do nothing else it is two minutes.
const PATIENCE: Duration = Duration::from_secs(2400);

/// Tests that run inside, of those that run outside too.
const CORE: &[&str] = &[
    "plain::exit_code",
    "plain::exec_exit_code",
    "plain::kill_term_and_kill",
    "plain::update_memory_limit",
    "self_test::passes_and_leaves_nothing",
    "sleep::core::a_request_wakes_it_where_it_was",
    "sleep::core::exec_wakes",
    "sleep::core::term_wakes_and_is_delivered",
    "sleep::core::kill_while_asleep",
    "sleep::core::pause_and_resume_wake",
    "sleep::core::metrics_do_not_wake",
    "sleep::core::update_wakes",
    "sleep::core::deleted_pod_leaves_nothing",
    "sleep::cgroup::limits_outlive_the_processes",
    "sleep::connections::idle_connection_survives",
    "sleep::ends::killed_asleep",
    "sleep::stdio::input_wakes",
];

/// Those of them that run with containers in light sleep as well: the freezer is another one.
const LIGHT: &[&str] = &[
    "sleep::core::a_request_wakes_it_where_it_was",
    "sleep::core::exec_wakes",
    "sleep::core::kill_while_asleep",
    "sleep::connections::idle_connection_survives",
    "sleep::depth::light_becomes_deep",
    "sleep::ends::killed_asleep",
];

/// The one about the machine itself, and those that would disturb whoever else is on a machine.
const OWN: [(&str, Body); 2] = [
    ("vm::is_what_most_users_have", is_what_most_users_have),
    ("vm::the_clock_jumps", the_clock_jumps),
];

/// The tests inside.
pub(crate) fn inside() -> Result<Vec<Trial>> {
    let find = |name: &&str| {
        plain::tests()
            .chain(self_test::tests())
            .chain(sleep::tests())
            .find(|(other, _)| other == name)
            .with_context(|| format!("no test is called {name}"))
    };
    let mut deep = OWN.to_vec();
    deep.extend(sleep::SHORT);
    for name in CORE {
        deep.push(find(name)?);
    }
    let mut trials: Vec<_> = deep
        .into_iter()
        .map(|(name, body)| trial(name, body, Runtime::Podmotion, Disk::VERSIONS))
        .collect();
    for name in LIGHT {
        let (name, body) = find(name)?;
        trials.push(light_trial(name, body, Disk::VERSIONS));
    }
    Ok(trials)
}

/// The test that runs them, and the one of the installer.
pub(crate) fn outside() -> [Trial; 2] {
    [
        Trial::test("vm::core", || core().map_err(to_failure)),
        Trial::test("vm::installer", || installer::test().map_err(to_failure)),
    ]
}

fn core() -> Result<()> {
    let started = Instant::now();
    // What follows is not part of the line that the test's result ends.
    println!();
    let tools = Tools::new(Disk::VERSIONS)?;
    let suite = env::current_exe().context("find this program")?;
    let disk = Disk::of_suite(&tools, &suite).context("make the disk of the virtual machine")?;
    let vm = Vm::boot(&tools, &disk)?;
    say(started, "booted");
    let (output, says) = io::pipe().context("make a pipe for the tests' output")?;
    let mut command = vm.ssh(PATIENCE, &[Disk::START]);
    command
        .stdout(says.try_clone().context("share the pipe")?)
        .stderr(says);
    let mut child = command.spawn().context("start the tests")?;
    // It has the pipe's other end, whose closing is to tell of their end.
    drop(command);
    let (mut said, mut passed) = (Vec::new(), 0);
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read what the tests say")?;
        let line = String::from_utf8_lossy(&line);
        passed += count(&line).unwrap_or_default();
        said.push(say(started, &line));
    }
    let status = child.wait().context("wait for the tests")?;
    let expected = inside()?.len();
    if !status.success() || passed != expected {
        // First what failed: the rest is long.
        let why = said.iter().position(|line| line.ends_with("| failures:"));
        bail!(
            "in the virtual machine {passed} of {expected} tests passed ({status}):\n{}\n\nAll of it:\n{}\n\nThe \
             console:\n{}",
            said.get(why.unwrap_or(said.len())..)
                .unwrap_or_default()
                .join("\n"),
            said.join("\n"),
            vm.console_tail()
        );
    }
    vm.power_off()?;
    say(started, "off");
    Ok(())
}

/// Prints a line, and returns it as printed: nobody is to take it for one of this suite's own.
fn say(started: Instant, line: &str) -> String {
    let line = format!("vm {:>4}s| {line}", started.elapsed().as_secs());
    println!("{line}");
    line
}

/// Tests that passed, of `test result: ok. 11 passed; 0 failed; ...`.
fn count(line: &str) -> Option<usize> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    counts.split_once(" passed")?.0.parse().ok()
}

fn is_what_most_users_have(node: &Node, _: Runtime) -> Result<()> {
    ensure!(Machine::get()?.cgroup_driver() == CgroupDriver::Systemd);
    ensure!(
        Path::new("/run/systemd/system").is_dir(),
        "systemd does not run this machine"
    );
    ensure!(
        Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        "/sys/fs/cgroup is not cgroup v2"
    );
    let kernel = fs::read_to_string("/proc/version").context("read the kernel's version")?;
    ensure!(kernel.contains("Debian"), "the kernel is {kernel}");
    let tools = node.tools();
    for (program, line) in [(tools.containerd()?, " 1.7."), (tools.runc()?, " 1.1.")] {
        let real = fs::canonicalize(&program)
            .with_context(|| format!("find what {} is", program.display()))?;
        ensure!(real.starts_with("/usr"), "{} is used", real.display());
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .with_context(|| format!("run {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains(line), "{} is {said}", program.display());
    }
    Ok(())
}

/// Hours forward and back, by the clock of the whole machine: asleep, and while the idle time passes.
fn the_clock_jumps(node: &Node, _: Runtime) -> Result<()> {
    let clock = Clock::take()?;
    let app = App::counter().annotation("scaledown-duration", "2s");
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    let ask = |requests: u64| -> Result<()> {
        let answer = Client::default().get(container.address(8080)?, "/")?;
        let body: serde_json::Value = serde_json::from_str(&answer.body)?;
        ensure!(body["count"] == requests, "not request {requests}: {body}");
        Ok(())
    };
    let mut wakes = 0;
    for (requests, hours) in (1..).zip([26, -26, -300, 300]) {
        ask(requests)?;
        if requests == 1 {
            // On a machine that is slow enough it has slept before its first request.
            wakes = container.status()?.counters.wakes;
        }
        clock.jump(hours)?;
        container.wait_state("asleep")?;
        clock.jump(-hours)?;
    }
    let counters = container.status()?.counters;
    ensure!(
        counters.sleeps_failed == 0 && counters.wakes == wakes + 3,
        "{counters:?}"
    );
    ask(5)
}

/// The machine's clock, which is put right in the end.
struct Clock {
    wall: Duration,
    since: Instant,
}

impl Clock {
    fn take() -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        Ok(Self {
            wall: now,
            since: Instant::now(),
        })
    }

    /// Sets it that many hours off.
    fn jump(&self, hours: i64) -> Result<()> {
        let right = i64::try_from((self.wall + self.since.elapsed()).as_secs())?;
        let time = format!("@{}", right + hours * 3600);
        let set = Command::new("date").args(["-s", &time]).output();
        let set = set.context("run date")?;
        ensure!(set.status.success(), "set the clock to {time}: {set:?}");
        Ok(())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = self.jump(0);
    }
}
