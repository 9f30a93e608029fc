//! `podmotion check` and `podmotion gc`.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use podmotion_bpf::{Counters, DEFAULT_PIN_DIR, Maps, netns};
use podmotion_integration_tests::{Container, Netns, Node, PATIENCE, Runtime, wait_gone};
use rustix::process::{Pid, Signal, kill_process};

use super::{SHIMS, dead_socket, line, run, sleeper};

const CHECKPOINTS: &str = "/var/lib/podmotion/checkpoints";

pub(super) fn check(node: &Node, _: Runtime) -> Result<()> {
    let containerd = node.folder().join("config.toml").display().to_string();
    let all = ["check", "--containerd-config", &containerd];
    let said = run(node, &all)?.ends_with(0)?;
    ensure!(said.out.contains("state intact"), "{}", said.out);
    // By the files there, shims see one another.
    let left = fs::read_dir(CHECKPOINTS)?.flatten().find(|entry| {
        entry.file_name().to_string_lossy().starts_with('.') && entry.path().is_dir()
    });
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

pub(super) fn configuration(node: &Node, _: Runtime) -> Result<()> {
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
    let file = File::open(netns.path())?;
    let cookie = netns::cookie(file.as_fd())?;
    let mut maps = Maps::open(Path::new(DEFAULT_PIN_DIR))?;
    maps.counters.insert(&cookie, &Counters::default())?;
    Ok(cookie)
}

pub(super) fn gc(node: &Node, _: Runtime) -> Result<()> {
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
pub(super) fn gc_killed(node: &Node, _: Runtime) -> Result<()> {
    let asleep = node.run(sleeper())?;
    asleep.sleep()?;
    let owned = checkpoints(&asleep);
    let shim = node.shim_of(asleep.id())?;
    node.kill9()?;
    let pid = Pid::from_raw(shim.pid).context("the shim's pid")?;
    kill_process(pid, Signal::KILL)?;
    wait_gone(shim.pid, PATIENCE)?;
    let said = run(node, &["gc", "--min-age", "0s"]);
    let kept = checkpoints(&asleep) == owned;
    // It clears up before it serves, and must be there whatever was seen.
    node.start_again()?;
    let said = said?.ends_with(0)?;
    ensure!(kept, "its images are gone: {}", said.out);
    let socket = format!("{SHIMS}/{}.sock", asleep.id());
    ensure!(said.out.contains(&socket), "{}", said.out);
    ensure!(
        checkpoints(&asleep).is_empty(),
        "containerd has not cleared up"
    );
    Ok(())
}

pub(super) fn hanging(node: &Node, _: Runtime) -> Result<()> {
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
    fs::remove_dir(&orphan).context("remove the checkpoint")
}
