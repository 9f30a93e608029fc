//! `podmotion-installer install`: looks, refuses before anything is touched, and does what `plan` says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use podmotion_bpf::loader::{Outcome, load_and_pin};
use podmotion_model::config::NodeConfig;
use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};

use crate::args;
use crate::containerd::opt;
use crate::containerd::place::{Change, Line, decide};
use crate::containerd::runtime::{OPTIONS, Runtime};
use crate::containerd::template;
use crate::containerd::tree::{Tree, TreeError};
use crate::cri::About;
use crate::daemon::Daemon;
use crate::files;
use crate::kernel::Kernel;
use crate::node::{Node, is_directory};
use crate::plan::{Action, CONFIG, DIRECTORIES, FOLDER, Facts, Link, VERSIONS, links, plan};
use crate::{runtime_class, versions};

/// Files that others may read.
const MODE: u32 = 0o644;

/// Installs.
///
/// # Errors
/// When the node lacks something, before anything is changed; or when an action fails.
pub async fn run(args: &args::Install) -> Result<()> {
    let node = Node::new(&args.node);
    let settings = settings(args)?;
    let version = versions::name(&args.source)?;
    let record = node.record()?;
    let lacking = lacking(&node)?;
    if !lacking.is_empty() {
        bail!(
            "this node cannot have Podmotion:\n  {}",
            lacking.join("\n  ")
        );
    }
    let (daemon, about) = node.containerd().await?;
    // What an interrupted run has left is taken back by now.
    let record = match record {
        None => None,
        Some(_) => node.record()?,
    };
    let runtime = Runtime::like_the_default(&about.effective);
    let tree = tree(&node, &daemon)?;
    let containerd = containerd_files(&node, &daemon, &tree, &about, &runtime)?;
    let opt = opt::link(&about.version, &tree);
    let links = all_links(&node, &version, opt)?;
    let facts = Facts {
        intact: versions::is_intact(&node.at(VERSIONS)?, &version)?,
        missing: missing(&node, &containerd, &links)?,
        links,
        files: own_files(&node, &runtime, settings)?,
        containerd,
        running: about.effective.runs(&runtime),
        unit: node.unit(&daemon).await?,
        self_test: args.self_test,
        class: args.node.class().map(str::to_owned),
        version,
    };
    println!(
        "node {}: containerd {}, {}",
        args.node.node_name,
        about.version,
        daemon.config.display()
    );
    let actions = plan(&facts, record, Node::without_ours);
    for action in actions {
        println!("{action}");
        perform(&node, args, &daemon, &runtime, action).await?;
    }
    println!("node {}: installed", args.node.node_name);
    Ok(())
}

async fn perform(
    node: &Node,
    args: &args::Install,
    daemon: &Daemon,
    runtime: &Runtime,
    action: Action,
) -> Result<()> {
    match action {
        Action::MakeDirectory(path, mode) => files::make_directory(&node.at(path)?, mode)?,
        Action::Note(record) => node.note(&record)?,
        Action::CopyVersion(name) => versions::copy(&args.source, &node.at(VERSIONS)?, &name)?,
        Action::Point { link, target } => files::point(&node.link_at(&link)?, &target)?,
        Action::Write(change) => files::write(&node.at(&change.path)?, &change.text, MODE)?,
        Action::LoadBpf => load_bpf(&node.pins()?)?,
        Action::Restart => restart(node, daemon, runtime).await?,
        Action::Prove => {
            if let Some(mut record) = node.record()? {
                record.unproven.clear();
                node.note(&record)?;
            }
        }
        Action::SelfTest => self_test(node, daemon).await?,
        Action::ApplyClass(name) => runtime_class::apply(&name, &args.node_selector).await?,
        Action::RemoveUnused(kept) => {
            let folder = node.at(VERSIONS)?;
            let in_use = versions::programs_in_use()?;
            for name in versions::unused(&folder, &kept, &in_use)? {
                files::remove_tree(&folder.join(&name))?;
                println!("{VERSIONS}/{name}: removed");
            }
        }
    }
    Ok(())
}

/// Our links, and the one that containerd needs, if any.
fn all_links(node: &Node, version: &str, more: Option<(PathBuf, PathBuf)>) -> Result<Vec<Link>> {
    let find = |(path, target): (PathBuf, PathBuf)| {
        let seen = node.link_at(&path)?;
        let now = match fs::read_link(&seen) {
            Ok(now) => Some(now),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => bail!(
                "{} is to be a link to {}, and something else is there: {error}",
                path.display(),
                target.display()
            ),
        };
        Ok(Link { path, target, now })
    };
    links(version).into_iter().chain(more).map(find).collect()
}

fn load_bpf(pins: &Path) -> Result<()> {
    let loaded = load_and_pin(pins)?;
    for (name, outcome) in loaded.pins {
        match outcome {
            Outcome::Created => println!("{name}: pinned"),
            Outcome::Replaced => println!("{name}: replaced"),
            Outcome::Unchanged => {}
        }
    }
    if let Some(reason) = loaded.without_probes {
        let reason = anyhow::Error::new(reason);
        println!("probes are not told from other traffic: {reason:#}");
    }
    Ok(())
}

/// Restarts containerd. What it does not come up with is taken back.
async fn restart(node: &Node, daemon: &Daemon, runtime: &Runtime) -> Result<()> {
    let runs = |about: &About| about.effective.runs(runtime);
    let Some(record) = node.record()? else {
        bail!("{} is gone", crate::record::PATH);
    };
    let Err(error) = node.restart(record.unit.as_deref(), runs).await else {
        return Ok(());
    };
    // One that was never restarted runs as before: there is nothing to take back, and somebody may yet do it.
    let untouched = node.daemon().is_ok_and(|now| now.pid == daemon.pid);
    if record.unproven.is_empty() || untouched {
        return Err(error);
    }
    println!("{error:#}");
    let back = node.roll_back(record).await;
    back.with_context(|| format!("{error:#}; its configuration of before was put back, but"))?;
    Err(error.context("containerd's configuration of before was put back"))
}

/// The node is ready once a container has slept and woken on it.
async fn self_test(node: &Node, daemon: &Daemon) -> Result<()> {
    let options = podmotion_self_test::Options {
        containerd: daemon.socket.clone(),
        shims: node.sockets()?,
        report: node.at("/run/podmotion/self-test.json")?,
        ..Default::default()
    };
    let report = podmotion_self_test::run(&options).await?;
    for step in &report.steps {
        println!("self-test: {}: {}", step.name, step.detail);
    }
    Ok(())
}

/// The shims' settings: a mistake in them would have every pod fail.
fn settings(args: &args::Install) -> Result<Option<String>> {
    let Some(path) = &args.config else {
        return Ok(None);
    };
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    NodeConfig::from_toml(&text).with_context(|| format!("{} is not valid", path.display()))?;
    Ok(Some(text))
}

/// What keeps the node from having it, each by name.
fn lacking(node: &Node) -> Result<Vec<String>> {
    let mut lacking = Kernel::look(&node.host)?.missing();
    for (path, what) in [
        (
            "/sys/kernel/btf/vmlinux",
            "the kernel is built without CONFIG_DEBUG_INFO_BTF",
        ),
        ("/dev/net/tun", "there are no tap devices: modprobe tun"),
    ] {
        if !node.at(path)?.exists() {
            lacking.push(format!("{path} does not exist: {what}"));
        }
    }
    if !node.has_bpffs()? {
        lacking.push(
            "no BPF file system on /sys/fs/bpf: mount -t bpf bpf /sys/fs/bpf, as systemd does"
                .to_owned(),
        );
    }
    for (path, _) in DIRECTORIES {
        lacking.extend(unusable(node, Path::new(path), path == FOLDER)?);
    }
    Ok(lacking)
}

/// Why nothing can be put into the directory, or into the one that it would be made in.
fn unusable(node: &Node, path: &Path, programs: bool) -> Result<Option<String>> {
    let seen = node.at(path)?;
    let existing = seen.ancestors().find(|one| one.exists()).unwrap_or(&seen);
    let why = |what: &str| Some(format!("{}: {what}", path.display()));
    if let Err(errno) = access(existing, Access::WRITE_OK) {
        return Ok(why(&format!(
            "it is on a file system that cannot be written to ({errno}): the node is immutable, or mounted read-only below --host-root"
        )));
    }
    let found = statvfs(existing).with_context(|| format!("look at {}", existing.display()))?;
    if programs && found.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Ok(why(
            "programs cannot be run from it: its file system is mounted noexec",
        ));
    }
    Ok(None)
}

/// Directories that are not there, outer ones first.
fn missing(node: &Node, changes: &Changes, links: &[Link]) -> Result<Vec<PathBuf>> {
    let ours = DIRECTORIES.iter().map(|(path, _)| Path::new(path));
    let theirs = changes
        .iter()
        .filter_map(|(change, _)| change.path.parent())
        .chain(links.iter().filter_map(|link| link.path.parent()));
    let mut missing = Vec::new();
    for path in ours.chain(theirs) {
        let mut outer: Vec<&Path> = path.ancestors().collect();
        outer.reverse();
        for path in outer {
            if !missing.iter().any(|one| one == path) && !is_directory(&node.at(path)?)? {
                missing.push(path.to_owned());
            }
        }
    }
    Ok(missing)
}

type Changes = Vec<(Change, Option<String>)>;

/// Files that only the shims read.
fn own_files(node: &Node, runtime: &Runtime, settings: Option<String>) -> Result<Changes> {
    let mut wanted = vec![(OPTIONS, runtime.options.clone())];
    wanted.extend(settings.map(|text| (CONFIG, text)));
    let mut changes = Changes::new();
    for (path, text) in wanted {
        let now = node.read(Path::new(path))?;
        if now.as_ref() != Some(&text) {
            let path = path.into();
            changes.push((Change { path, text }, now));
        }
    }
    Ok(changes)
}

/// All that containerd reads.
fn tree(node: &Node, daemon: &Daemon) -> Result<Tree> {
    Tree::read(&node.host, &daemon.config).map_err(|error| match error {
        TreeError::File(error) => anyhow::Error::new(error),
        TreeError::Config(error) => error.into(),
    })
}

/// Files that containerd reads, or is made to.
fn containerd_files(
    node: &Node,
    daemon: &Daemon,
    tree: &Tree,
    about: &About,
    runtime: &Runtime,
) -> Result<Changes> {
    let line = Line::of(&about.version).with_context(|| {
        format!(
            "containerd {} is not supported: expected 1.6, 1.7 or 2",
            about.version
        )
    })?;
    let changes: Vec<Change> = match daemon.templates() {
        Some(folder) => {
            let mut texts = std::collections::BTreeMap::new();
            for name in template::NAMES {
                texts.insert(name, node.read(&folder.join(name))?);
            }
            let old = |name: &str| texts.get(name).cloned().flatten();
            template::decide(folder, line, runtime, old)?
                .into_iter()
                .collect()
        }
        None => decide(tree, line, runtime)?,
    };
    let mut all = Changes::new();
    for change in changes {
        let now = node.read(&change.path)?;
        if let Some(lacks) = unusable(node, change.path.parent().unwrap_or(&change.path), false)? {
            bail!("this node cannot have Podmotion: {lacks}");
        }
        all.push((change, now));
    }
    Ok(all)
}
