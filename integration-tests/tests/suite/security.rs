//! What `docs/security.md` claims: who may do what, and what does not happen although somebody tries.

mod client;
mod images;
mod settings;
mod tap;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{App, Container, Depth, Exec, Node, Runtime, Versions};

use crate::{Body, light_trial, trial};

/// Those that are run in both depths.
const TESTS: &[(&str, Body)] = &[
    ("security::nothing_is_open_to_others_asleep", closed),
    ("security::root_in_a_container_reaches_no_socket", no_socket),
    (
        "security::a_container_that_writes_into_the_tap_itself_costs_the_node_little",
        tap::flooded,
    ),
    (
        "security::a_pod_that_takes_its_tap_away_sleeps_and_wakes_all_the_same",
        tap::taken_away,
    ),
    (
        "security::links_in_the_directory_of_checkpoints_are_not_followed",
        links,
    ),
    (
        "security::a_client_that_talks_nonsense_changes_nothing",
        client::nonsense,
    ),
    (
        "security::ids_that_are_paths_lead_nowhere",
        client::paths_as_ids,
    ),
];

/// Those that have nothing to do with a depth.
const ONCE: &[(&str, Body)] = &[
    (
        "security::a_huge_annotation_is_refused_in_few_words",
        settings::huge,
    ),
    (
        "security::hostile_annotations_are_refused_by_name",
        settings::hostile,
    ),
];

/// Those about checkpoints.
const DEEP: &[(&str, Body)] = &[
    (
        "security::a_changed_manifest_is_never_woken_from",
        images::changed_manifest,
    ),
    (
        "security::a_manifest_that_leads_elsewhere_is_never_woken_from",
        images::leads_elsewhere,
    ),
    (
        "security::an_image_that_is_a_link_is_never_woken_from",
        images::link,
    ),
    (
        "security::an_image_that_nobody_wrote_is_never_woken_from",
        images::foreign,
    ),
];

const CHECKPOINTS: &str = "/var/lib/podmotion/checkpoints";

pub(crate) fn trials() -> Vec<Trial> {
    let versions = Versions::default();
    let light = TESTS.iter().chain(ONCE);
    let light = light.map(|(name, body)| light_trial(name, *body, versions));
    let deep = TESTS.iter().chain(DEEP);
    let deep = deep.map(|(name, body)| trial(name, *body, Runtime::Podmotion, versions));
    light.chain(deep).collect()
}

/// A counter that sleeps when it is told to.
fn counter(node: &Node) -> Result<Container> {
    let app = App::counter()
        .mem_mb(10)
        .annotation("scaledown-duration", "1h");
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// Where its memory or its checkpoint is.
fn images_of(node: &Node, container: &Container) -> PathBuf {
    let images = Path::new(CHECKPOINTS).join(container.id());
    match node.depth() {
        Depth::Light => images.with_added_extension("memory"),
        Depth::Deep => images,
    }
}

/// The folders that only root has to do with: sockets, images, pins.
const ROOTS: &[&str] = &["/run/podmotion", CHECKPOINTS, "/sys/fs/bpf/podmotion"];

fn closed(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    ensure!(crate::sleep::visit(container.address(8080)?)? == 1);
    container.sleep()?;
    let (mut files, mut sockets) = (0, 0);
    for root in ROOTS {
        walk(Path::new(root), &mut |path, about| {
            let mode = about.permissions().mode() & 0o7777;
            ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", path.display());
            files += usize::from(about.is_file());
            sockets += usize::from(about.file_type().is_socket());
            Ok(())
        })?;
        // The same as somebody else sees it.
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["find", root, "(", "-readable", "-o", "-writable", ")"])
            .output()
            .context("look as nobody")?;
        let seen = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(seen.is_empty(), "nobody reaches {seen}");
        ensure!(!output.status.success(), "nobody can list {root}");
    }
    ensure!(
        files > 10 && sockets > 0,
        "{files} files, {sockets} sockets"
    );
    let own = socket_for_containerd(node, container.id())?;
    let mode = own.symlink_metadata()?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{} has mode {mode:o}", own.display());
    Ok(())
}

/// Shows `look` all that is in `path`, itself included.
fn walk(path: &Path, look: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    let about = path
        .symlink_metadata()
        .with_context(|| format!("look at {}", path.display()))?;
    look(path, &about)?;
    if about.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
            walk(&entry?.path(), look)?;
        }
    }
    Ok(())
}

/// The socket on which the shim serves containerd.
fn socket_for_containerd(node: &Node, id: &str) -> Result<PathBuf> {
    let bundle = node
        .run_folder()
        .join("state/io.containerd.runtime.v2.task/k8s.io")
        .join(id);
    let address = fs::read_to_string(bundle.join("address"))
        .with_context(|| format!("read the address in {}", bundle.display()))?;
    Ok(PathBuf::from(address.trim_start_matches("unix://")))
}

/// What root in a container tries. Prints what it has got hold of.
const TRIES: &str = r#"
import os, socket
got = []
for path in ["/run/podmotion", "/var/lib/podmotion", "/sys/fs/bpf/podmotion", "/run/containerd",
             "/proc/1/root/run/podmotion", "/dev/net/tun"]:
    if os.path.exists(path):
        got.append(path)
for line in open("/proc/net/unix").read().splitlines()[1:]:
    words = line.split()
    if len(words) > 7:
        got.append(words[7])
for port in range(512, 1024):
    with socket.socket() as s:
        s.settimeout(5)
        if s.connect_ex(("127.0.0.1", port)):
            continue
        try:
            s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = s.recv(100)
        except OSError:
            continue
        if answer:
            got.append("port %d: %r" % (port, answer))
print("got", got)
"#;

fn no_socket(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    // So that all is there that there ever is.
    container.sleep()?;
    container.wake()?;
    let (exit, output) = container.exec_output(&Exec::new(["python3", "-c", TRIES]))?;
    ensure!(exit.status == 0, "{exit:?}: {output}");
    ensure!(output.trim() == "got []", "{output}");
    Ok(())
}

/// Something that links lead to, which must stay as it is.
struct Elsewhere {
    folder: PathBuf,
    file: PathBuf,
}

impl Elsewhere {
    fn new(node: &Node) -> Result<Self> {
        let folder = node.folder().join("elsewhere");
        drop(fs::remove_dir_all(&folder));
        fs::create_dir(&folder)?;
        let file = folder.join("kept");
        fs::write(&file, "kept")?;
        for path in [&folder, &file] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { folder, file })
    }

    fn ensure_untouched(&self) -> Result<()> {
        let names: Vec<_> = fs::read_dir(&self.folder)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        ensure!(names == ["kept"], "{names:?}");
        ensure!(fs::read_to_string(&self.file)? == "kept");
        for path in [&self.folder, &self.file] {
            let mode = path.metadata()?.permissions().mode() & 0o777;
            ensure!(mode == 0o755, "{} has mode {mode:o}", path.display());
        }
        Ok(())
    }
}

fn links(node: &Node, _: Runtime) -> Result<()> {
    let elsewhere = Elsewhere::new(node)?;
    let _set = node.set(&format!(
        "checkpoint.quota = \"90%\"\nsleep.deep_sleep_after = {}",
        match node.depth() {
            Depth::Light => "\"never\"",
            Depth::Deep => "0",
        }
    ))?;
    let container = counter(node)?;
    let images = images_of(node, &container);
    let name = images.file_name().context("images without a name")?;
    let reserved = Path::new(CHECKPOINTS).join(format!(".reserved-{}", name.to_string_lossy()));

    // In place of images and reservation: they go, and it sleeps.
    symlink(&elsewhere.folder, &images)?;
    symlink(&elsewhere.file, &reserved)?;
    container.sleep()?;
    elsewhere.ensure_untouched()?;
    ensure!(
        !images.is_symlink() && images.is_dir(),
        "{}",
        images.display()
    );
    container.wake()?;
    elsewhere.ensure_untouched()?;

    // In place of the lock: it stays awake and says so.
    let lock = Path::new(CHECKPOINTS).join(".lock");
    fs::remove_file(&lock)?;
    symlink(&elsewhere.file, &lock)?;
    let refused = container.sleep();
    fs::remove_file(&lock)?;
    let error = refused
        .err()
        .context("it sleeps with somebody else's lock")?;
    ensure!(format!("{error:#}").contains(".lock"), "{error:#}");
    elsewhere.ensure_untouched()?;
    container.sleep()?;
    container.wake()?;
    Ok(())
}
