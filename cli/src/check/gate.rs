//! The gate's BPF programs: whether the kernel takes them, whether they are pinned, whether they attach.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use podmotion_bpf::loader::{load_and_pin, unpin};
use podmotion_bpf::{GATE_PROGRAM, Kubelets, Maps, Method, TAP_PROGRAM};

use super::{Context, Verdict};

const INSTALL: &str = "run `podmotion-installer bpf --mount`";
const WITHOUT_PROBES: &str = "probes wake containers and keep them awake";

/// Loads the programs of this build, pins them in a directory of their own and removes them.
pub fn load(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let pins = context.config()?.gate.pins;
    let trial = beside(&pins);
    let loaded = load_and_pin(&trial).context("load");
    // Also after half of it: a pin would keep a program for ever.
    let removed = unpin(&trial).with_context(|| format!("remove {}", trial.display()));
    Ok(match loaded.and_then(|loaded| removed.map(|_| loaded)) {
        Ok(loaded) => match loaded.without_probes {
            None => Verdict::ok("the kernel takes all of them"),
            Some(reason) => Verdict::warning(
                format!("{WITHOUT_PROBES}: {:#}", anyhow!(reason)),
                "use Linux 5.9 or newer with CONFIG_CGROUP_BPF",
            ),
        },
        Err(error) => Verdict::failed(
            format!("{error:#}"),
            format!(
                "use a kernel with BPF and BTF, and a BPF file system on /sys/fs/bpf: {INSTALL}"
            ),
        ),
    })
}

/// A directory next to the pins, on the same file system.
fn beside(pins: &Path) -> PathBuf {
    let parent = pins.ancestors().skip(1).find(|path| path.exists());
    let name = format!("podmotion_check_{}", std::process::id());
    parent.unwrap_or(Path::new("/")).join(name)
}

/// Opens the pinned maps, and looks for the programs.
pub fn pins(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let pins = context.config()?.gate.pins;
    Ok(match look(&pins) {
        Ok(()) if Kubelets::open(&pins).is_err() => Verdict::warning(
            format!("{WITHOUT_PROBES}: {} has nothing for them", pins.display()),
            format!("{INSTALL}, which says why if it cannot be had"),
        ),
        Ok(()) => Verdict::ok(pins.display().to_string()),
        Err(error) => Verdict::failed(format!("{error:#}"), INSTALL),
    })
}

fn look(pins: &Path) -> Result<()> {
    Maps::open(pins)?;
    for program in [GATE_PROGRAM, TAP_PROGRAM] {
        let pin = pins.join(program);
        pin.symlink_metadata()
            .with_context(|| format!("look at the pinned BPF program {}", pin.display()))?;
    }
    Ok(())
}

/// Attaches the pinned program in a network namespace that is only for this.
pub fn attach(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let pins = context.config()?.gate.pins;
    Ok(match try_attach(&pins) {
        Ok(Method::Tcx) => Verdict::ok("by tcx"),
        Ok(Method::Clsact) => Verdict::ok("by a clsact qdisc, as before Linux 6.6"),
        Err(error) => Verdict::failed(
            format!("{error:#}"),
            format!(
                "use Linux 6.6 or newer, or load the module cls_bpf; where the pins are missing {INSTALL}"
            ),
        ),
    })
}

fn try_attach(pins: &Path) -> Result<Method> {
    let netns = fresh_netns()?;
    let link = podmotion_bpf::attach(pins, GATE_PROGRAM, netns.as_fd(), "lo", None)?;
    let method = link.method();
    link.detach()?;
    Ok(method)
}

/// It goes with the descriptor.
fn fresh_netns() -> Result<File> {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        File::open("/proc/thread-self/ns/net").context("open a network namespace")
    });
    made.join().map_err(|_| anyhow!("a thread has panicked"))?
}
