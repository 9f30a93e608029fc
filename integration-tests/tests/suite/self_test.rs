//! The node's self-test, as installer and manager run it.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{
    Census, CgroupDriver, ContainerdVersion, Depth, Machine, Node, PATIENCE, Random, Runtime,
    Versions, soak, wait_gone,
};
use podmotion_self_test::{Options, Report, read_report};

use crate::{Body, pool, to_failure, trial_in};

/// With each containerd.
const EACH_CONTAINERD: &[(&str, Body)] = &[
    ("self_test::passes_and_leaves_nothing", passes),
    (
        "self_test::a_node_without_the_runtime_does_not_pass",
        without_the_runtime,
    ),
];

const TESTS: &[(&str, Body)] = &[
    ("self_test::a_broken_criu_does_not_pass", broken_criu),
    ("self_test::a_node_without_pins_does_not_pass", without_pins),
    (
        "self_test::without_containerd_it_says_so",
        without_containerd,
    ),
    (
        "self_test::killed_in_the_middle_it_passes_next_time",
        killed,
    ),
    ("self_test::two_at_once_are_refused", two_at_once),
];

const REPORT: &str = "/run/podmotion/self-test.json";

/// What is there once containerd has had the namespace, and after the first report.
const KEPT: &[&str] = &[
    "file /run/podmotion",
    "file /run/containerd",
    "file /run/podmotion-test",
];

pub(crate) fn trials() -> Vec<Trial> {
    let each = ContainerdVersion::ALL.into_iter().flat_map(|containerd| {
        let runc = Versions::default().runc;
        EACH_CONTAINERD
            .iter()
            .map(move |(name, body)| one(name, *body, Versions { containerd, runc }))
    });
    let newest = TESTS
        .iter()
        .map(|(name, body)| one(name, *body, Versions::default()));
    each.chain(newest)
        .chain([Trial::test("self_test::passes_beside_a_kubelet", || {
            beside_a_kubelet().map_err(to_failure)
        })])
        .collect()
}

fn one(name: &str, body: Body, versions: Versions) -> Trial {
    trial_in(
        "both",
        name,
        body,
        Runtime::Podmotion,
        versions,
        Depth::Light,
    )
}

/// The tests for the default pair of versions, without a kubelet.
pub(crate) fn tests() -> impl Iterator<Item = (&'static str, Body)> {
    EACH_CONTAINERD.iter().chain(TESTS).copied()
}

/// What a process of this program has in its environment that runs the self-test in place of tests: it can be killed.
const CHILD: [&str; 3] = [
    "PODMOTION_SELF_TEST_CONTAINERD",
    "PODMOTION_SELF_TEST_APP",
    "PODMOTION_SELF_TEST_CGROUP",
];

/// Runs the self-test if this is such a process.
pub(crate) fn as_child() -> Option<Result<()>> {
    let [Some(containerd), Some(app), Some(parent)] = CHILD.map(env::var_os) else {
        return None;
    };
    let options = Options {
        containerd: containerd.into(),
        app: app.into(),
        cgroup_parent: Some(parent.to_string_lossy().into_owned()),
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime.map(|runtime| runtime.block_on(podmotion_self_test::run(&options)));
    Some(result.context("start the event loop").and_then(|report| {
        for step in report?.steps {
            println!("{:>6} ms  {:<16} {}", step.millis, step.name, step.detail);
        }
        Ok(())
    }))
}

fn start(node: &Node) -> Result<Child> {
    let app = node.tools().self_test_app()?;
    let machine = Machine::get()?;
    let parent = match machine.cgroup_driver() {
        CgroupDriver::Cgroupfs => format!("/{}", machine.name()),
        CgroupDriver::Systemd => format!("{}.slice", machine.name()),
    };
    let containerd = node.run_folder().join("containerd.sock");
    let values = [containerd.as_os_str(), app.as_os_str(), parent.as_ref()];
    Command::new(env::current_exe().context("find this program")?)
        .envs(CHILD.into_iter().zip(values))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the self-test")
}

/// Runs it to its end: what it wrote, and its error if it has one.
fn run(node: &Node) -> Result<(Report, Option<String>)> {
    let output = start(node)?.wait_with_output()?;
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = read_report(Path::new(REPORT))?
        .with_context(|| format!("no report in {REPORT}: {error}"))?;
    ensure!(
        report.passed == output.status.success(),
        "{error}{report:?}"
    );
    Ok((report, (!output.status.success()).then_some(error)))
}

fn ensure_passes(node: &Node) -> Result<Report> {
    let (report, error) = run(node)?;
    ensure!(error.is_none(), "{error:?}: {report:#?}");
    Ok(report)
}

/// It fails in `step`, says all of `words`, and leaves nothing.
fn ensure_fails(node: &Node, step: &str, words: &[&str]) -> Result<Report> {
    let before = Census::take()?;
    let (report, error) = run(node)?;
    let error = error.with_context(|| format!("it has passed: {report:#?}"))?;
    println!("{error}");
    let failed = report.steps.iter().find(|one| !one.ok);
    let failed = failed.context("no step has failed")?;
    ensure!(failed.name == step, "in another step: {report:#?}");
    let told = report.error.as_deref().unwrap_or_default();
    for word in words.iter().chain([&step]) {
        ensure!(
            told.contains(word) && error.contains(word),
            "no {word:?} in {error}"
        );
    }
    leaves_nothing(&before)?;
    Ok(report)
}

fn leaves_nothing(before: &Census) -> Result<()> {
    Census::wait_as_before_but(before, KEPT)?;
    // The rest of what is in those.
    for folder in ["/run/podmotion/shims", "/var/lib/podmotion/checkpoints"] {
        let names: Vec<_> = fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        let left = names.iter().find(|name| name.contains("self-test"));
        ensure!(left.is_none(), "{left:?} is left in {folder}");
    }
    Ok(())
}

fn passes(node: &Node, _: Runtime) -> Result<()> {
    let before = Census::take()?;
    let report = ensure_passes(node)?;
    leaves_nothing(&before)?;
    let steps: Vec<_> = report.steps.iter().map(|step| step.name.as_str()).collect();
    let expected = [
        "containerd",
        "handler",
        "leftovers",
        "snapshots",
        "light: start",
        "light: request",
        "light: sleep",
        "light: wake",
        "deep: start",
        "deep: request",
        "deep: sleep",
        "deep: wake",
        "remove",
    ];
    ensure!(steps == expected, "{steps:?}");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(
        report.kernel == kernel.trim() && report.error.is_none(),
        "{report:#?}"
    );
    ensure!(report.containerd.contains('.'), "{report:#?}");
    let mode = Path::new(REPORT).metadata()?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{REPORT} has mode {mode:o}");
    let listed = node.ctr(["namespaces", "list", "--quiet"])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(!listed.contains("self-test"), "{listed}");
    // A second time, on a node that knows it.
    ensure_passes(node)?;
    leaves_nothing(&before)
}

fn broken_criu(node: &Node, _: Runtime) -> Result<()> {
    let missing = node.folder().join("no-criu");
    {
        let missing = missing.display().to_string();
        let _set = node.set(&format!("criu.binary = \"{missing}\""))?;
        ensure_fails(node, "deep: sleep", &[&missing])?;
    }
    let broken = node.folder().join("broken-criu");
    let script = "#!/bin/sh\necho 'Error (bundle/cr.c:7): this bundle is broken' >&2\nexit 1\n";
    fs::write(&broken, script)?;
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755))?;
    let _set = node.set(&format!("criu.binary = \"{}\"", broken.display()))?;
    ensure_fails(node, "deep: sleep", &["this bundle is broken"])?;
    Ok(())
}

fn without_pins(node: &Node, _: Runtime) -> Result<()> {
    let _set = node.set("gate.pins = \"/sys/fs/bpf/nothing\"")?;
    ensure_fails(node, "light: sleep", &["/sys/fs/bpf/nothing"])?;
    Ok(())
}

fn without_containerd(node: &Node, _: Runtime) -> Result<()> {
    node.stop()?;
    let failed = ensure_fails(node, "containerd", &["containerd.sock"]);
    node.start_again()?;
    ensure!(failed?.steps.len() == 1, "it went on");
    ensure_passes(node)?;
    Ok(())
}

/// On a node of its own, whose configuration is changed.
fn without_the_runtime(shared: &Node, _: Runtime) -> Result<()> {
    let node = Node::start(shared.versions())?;
    let path = node.folder().join("config.toml");
    let original = fs::read_to_string(&path)?;
    let changes = [
        (
            "runtimes.podmotion",
            "runtimes.other",
            "handler",
            "has no runtime handler \"podmotion\"",
        ),
        (
            "io.containerd.podmotion.v1",
            "io.containerd.runc.v2",
            "handler",
            "io.containerd.runc.v2",
        ),
        (
            "[\"komodor.com/*\"]",
            "[\"other.com/*\"]",
            "handler",
            "pod_annotations",
        ),
    ];
    for (from, to, step, word) in changes {
        ensure!(original.contains(from), "no {from} in {original}");
        fs::write(&path, original.replace(from, to))?;
        node.restart()?;
        ensure_fails(&node, step, &[word])?;
    }
    fs::write(&path, &original)?;
    node.restart()?;
    ensure_passes(&node)?;
    Ok(())
}

/// Killed at any moment of its two seconds.
fn killed(node: &Node, _: Runtime) -> Result<()> {
    ensure_passes(node)?;
    let before = Census::take()?;
    let began = Instant::now();
    ensure_passes(node)?;
    let whole = began.elapsed();
    let mut random = Random::of_this_run();
    for _ in 0..if soak() { 60 } else { 8 } {
        let mut child = start(node)?;
        let limit = u64::try_from(whole.as_micros())?;
        // The moment is the choice, not something to wait for.
        thread::sleep(Duration::from_micros(random.below(limit)));
        child.kill().context("kill the self-test")?;
        child.wait()?;
    }
    ensure_passes(node)?;
    // Where containerd was about to start a shim, it does not know of it. It ends by itself.
    for shim in node.shims()? {
        if shim.command.contains("podmotion-self-test") {
            wait_gone(shim.pid, PATIENCE)?;
        }
    }
    leaves_nothing(&before)
}

fn two_at_once(node: &Node, _: Runtime) -> Result<()> {
    let children = [start(node)?, start(node)?];
    let mut outputs = Vec::new();
    for child in children {
        outputs.push(child.wait_with_output()?);
    }
    let (passed, refused): (Vec<_>, Vec<_>) =
        outputs.iter().partition(|output| output.status.success());
    let ([_], [refused]) = (&passed[..], &refused[..]) else {
        bail!("{outputs:?}");
    };
    let error = String::from_utf8_lossy(&refused.stderr);
    ensure!(error.contains("another one is under way"), "{error}");
    Ok(())
}

/// A kubelet ends what it does not know: it must never see it.
fn beside_a_kubelet() -> Result<()> {
    let cluster = pool::cluster()?;
    let deadline = Instant::now() + PATIENCE / 4;
    // Past some of its rounds, which are two seconds apart.
    while Instant::now() < deadline {
        ensure_passes(cluster.node())?;
    }
    Ok(())
}
