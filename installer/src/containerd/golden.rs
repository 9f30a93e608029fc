//! Configurations of real nodes, before and after: `installer/golden/<node>/{before,after}`, where `SOURCE`
//! says whose it is. With `UPDATE=1` what comes after is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::place::{self, Change, Line};
use super::runtime::{Effective, Runtime};
use super::template;
use super::tree::Tree;
use crate::daemon::Daemon;
use crate::host::Host;
use crate::node::Node;

const MAIN: &str = "/etc/containerd/config.toml";
const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
const RKE2: &str = "/var/lib/rancher/rke2/agent/etc/containerd/config.toml";

const CASES: [(&str, Line, &str); 19] = [
    ("stock-1.6", Line::One, MAIN),
    ("stock-1.7", Line::One, MAIN),
    ("stock-2", Line::Two, MAIN),
    ("bare-1.7", Line::One, MAIN),
    ("none-1.7", Line::One, MAIN),
    ("none-2", Line::Two, MAIN),
    ("imports-1.7", Line::One, MAIN),
    ("imports-2", Line::Two, MAIN),
    ("lines-2", Line::Two, MAIN),
    ("kind-1.7", Line::One, MAIN),
    ("kind-2", Line::Two, MAIN),
    ("aks-1.7", Line::One, MAIN),
    ("aks-2", Line::Two, MAIN),
    ("gke-1.7", Line::One, MAIN),
    ("gke-2", Line::Two, MAIN),
    ("k3s-1.7", Line::One, K3S),
    ("k3s-2", Line::Two, K3S),
    ("rke2-1.7", Line::One, RKE2),
    ("rke2-2", Line::Two, RKE2),
];

fn decided(root: &Path, line: Line, main: &str, runtime: &Runtime) -> Vec<Change> {
    let host = Host::new(root);
    let daemon = Daemon {
        socket: PathBuf::new(),
        pid: 1,
        config: main.into(),
    };
    match daemon.templates() {
        Some(folder) => {
            let old = |name: &str| fs::read_to_string(host.at(folder.join(name)).unwrap()).ok();
            let change = template::decide(folder, line, runtime, old).unwrap();
            change.into_iter().collect()
        }
        None => {
            let tree = Tree::read(&host, &daemon.config).unwrap();
            place::decide(&tree, line, runtime).unwrap()
        }
    }
}

fn texts(root: &Path) -> BTreeMap<PathBuf, String> {
    let files = WalkDir::new(root).into_iter().flatten();
    let files = files.filter(|entry| entry.file_type().is_file());
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    files
        .map(|entry| {
            let relative = entry.path().strip_prefix(root).unwrap();
            (relative.to_owned(), text(entry.path()))
        })
        .collect()
}

fn write(root: &Path, texts: &BTreeMap<PathBuf, String>) {
    for (path, text) in texts {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// Nobody remembers whether a list that is empty again was there.
fn without_empty_imports(text: &str) -> String {
    text.replace("imports = []\n", "")
}

#[test]
fn configurations_of_real_nodes() {
    let update = std::env::var_os("UPDATE").is_some_and(|value| value == "1");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for (name, line, main) in CASES {
        let folder = golden.join(name);
        let (before, after) = (folder.join("before"), folder.join("after"));
        let running = fs::read_to_string(folder.join("running.json"));
        let effective = Effective::parse(running.as_deref().unwrap_or("{}")).unwrap();
        let runtime = Runtime::like_the_default(&effective);
        let mut found = texts(&before);
        let original = found.clone();
        let changes = decided(&before, line, main, &runtime);
        assert!(!changes.is_empty(), "{name}");
        for change in &changes {
            let path = change.path.strip_prefix("/").unwrap();
            found.insert(path.to_owned(), change.text.clone());
        }
        if update {
            let _ = fs::remove_dir_all(&after);
            write(&after, &found);
        }
        assert_eq!(
            found,
            texts(&after),
            "{name}: UPDATE=1 writes what comes after"
        );
        // Twice is once.
        assert_eq!(decided(&after, line, main, &runtime), [], "{name}");
        // What others have written since is kept when ours is cut out.
        for change in &changes {
            let path = change.path.strip_prefix("/").unwrap();
            let rest = Node::without_ours(&change.text);
            match original.get(path) {
                Some(text) => assert_eq!(
                    without_empty_imports(&rest),
                    without_empty_imports(text),
                    "{name}: {}",
                    path.display()
                ),
                None => assert!(
                    rest.is_empty() || rest.starts_with("version = "),
                    "{name}: {rest}"
                ),
            }
        }
    }
}

#[test]
fn what_cannot_be_added_to_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("etc/containerd/config.toml");
    fs::create_dir_all(main.parent().unwrap()).unwrap();
    let host = Host::new(dir.path());
    let refused = |text: &str, line| {
        fs::write(&main, text).unwrap();
        let tree = Tree::read(&host, Path::new(MAIN));
        match tree {
            Ok(tree) => place::decide(&tree, line, &Runtime::default())
                .unwrap_err()
                .to_string(),
            Err(super::tree::TreeError::Config(error)) => error.to_string(),
            Err(super::tree::TreeError::File(error)) => error.to_string(),
        }
    };
    for (text, line, words) in [
        (
            "[plugins.cri]\n",
            Line::One,
            "version = 1 is not valid: expected 2",
        ),
        (
            "version = 3\n",
            Line::One,
            "version = 3 is not valid: expected 2",
        ),
        (
            "version = 1\n",
            Line::Two,
            "version = 1 is not valid: expected 2 or 3",
        ),
        (
            "disabled_plugins = [\"cri\"]\n",
            Line::One,
            "disabled_plugins has \"cri\"",
        ),
        (
            "version = \n",
            Line::Two,
            "config.toml: TOML parse error at line 1",
        ),
        (
            "version = 3\nimports = [\"[\"]\n",
            Line::Two,
            "imports = \"[\" is not valid",
        ),
        (
            "version = 3\nimports = 7\n",
            Line::Two,
            "imports is not a list",
        ),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.podmotion]\n",
            Line::One,
            "has a runtime \"podmotion\" that this program has not written",
        ),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncontainerd = {}\n",
            Line::One,
            "a runtime cannot be added to it",
        ),
    ] {
        let error = refused(text, line);
        assert!(
            error.starts_with(MAIN) && error.contains(words),
            "{text}: {error}"
        );
    }
}
