//! What is to be done on a node, decided from what was found there. Nothing is done here.
//!
//! Each action can be done again, and leaves the node in order whether or not the next one follows. Before
//! the first, everything that there will be to take back is on record.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::containerd::place::Change;
use crate::record::Record;

/// Below it everything of ours is.
pub const FOLDER: &str = "/opt/podmotion";
/// The versions are in here.
pub const VERSIONS: &str = "/opt/podmotion/versions";
/// Leads to the version in use.
pub const CURRENT: &str = "/opt/podmotion/current";
/// Settings of the shims.
pub const CONFIG: &str = podmotion_model::config::PATH;

/// Directories that there are to be, with their modes. All but the first are removed again if they were not there.
pub const DIRECTORIES: [(&str, u32); 4] = [
    (FOLDER, 0o755),
    ("/etc/podmotion", 0o755),
    ("/var/lib/podmotion", 0o700),
    ("/run/podmotion", 0o700),
];

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make a directory.
    MakeDirectory(PathBuf, u32),
    /// Note what there will be to take back.
    Note(Box<Record>),
    /// Copy the version of this name from the source.
    CopyVersion(String),
    /// Have a link lead somewhere.
    Point {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Write a file.
    Write(Change),
    /// Load and pin the gate's programs.
    LoadBpf,
    /// Restart containerd, and wait until it runs with what was written, or take that back.
    Restart,
    /// Note that containerd runs with what was written.
    Prove,
    /// Put a container to sleep and wake it.
    SelfTest,
    /// Create the RuntimeClass of this name.
    ApplyClass(String),
    /// Remove versions that nobody uses.
    RemoveUnused(String),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeDirectory(path, _) => write!(f, "create {}", path.display()),
            Self::Note(_) => write!(f, "write {}", crate::record::PATH),
            Self::CopyVersion(name) => write!(f, "copy {VERSIONS}/{name}"),
            Self::Point { link, target } => {
                write!(f, "link {} to {}", link.display(), target.display())
            }
            Self::Write(change) => write!(f, "write {}", change.path.display()),
            Self::LoadBpf => f.write_str("load the BPF programs"),
            Self::Restart => f.write_str("restart containerd"),
            Self::Prove => f.write_str("containerd runs with the runtime"),
            Self::SelfTest => f.write_str("self-test"),
            Self::ApplyClass(name) => write!(f, "apply RuntimeClass {name}"),
            Self::RemoveUnused(_) => f.write_str("remove versions that nobody uses"),
        }
    }
}

/// What was found, and what is wanted.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The version to install.
    pub version: String,
    /// It is there already, and whole.
    pub intact: bool,
    /// The links that there are to be.
    pub links: Vec<Link>,
    /// Directories of the node that are not there, of those that there are to be.
    pub missing: Vec<PathBuf>,
    /// Files of ours that are not as they are to be, with their present texts.
    pub files: Vec<(Change, Option<String>)>,
    /// The same of containerd's.
    pub containerd: Vec<(Change, Option<String>)>,
    /// containerd runs with the runtime as it is to be.
    pub running: bool,
    /// The unit that runs containerd, where this program restarts it.
    pub unit: Option<String>,
    /// The self-test is to run.
    pub self_test: bool,
    /// The RuntimeClass to apply.
    pub class: Option<String>,
}

/// A link that there is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name on the node.
    pub path: PathBuf,
    /// Where it is to lead.
    pub target: PathBuf,
    /// Where it leads.
    pub now: Option<PathBuf>,
}

/// Our own links and where they are to lead.
pub fn links(version: &str) -> Vec<(PathBuf, PathBuf)> {
    let mut links = vec![(CURRENT.into(), Path::new("versions").join(version))];
    for part in crate::versions::PARTS {
        links.push((
            Path::new(FOLDER).join(part),
            Path::new("current").join(part),
        ));
    }
    links
}

/// What to do, in this order. `record` is what earlier runs have noted; `without_ours` takes our lines
/// out of a file that others have changed since.
pub fn plan(
    facts: &Facts,
    record: Option<Record>,
    without_ours: impl Fn(&str) -> String,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let mode = |path: &Path| {
        let known = DIRECTORIES.iter().find(|(one, _)| Path::new(one) == path);
        known.map_or(0o755, |(_, mode)| *mode)
    };
    let (own, others): (Vec<_>, Vec<_>) = facts
        .missing
        .iter()
        .partition(|path| path.as_path() == Path::new(FOLDER));
    // The record is in there.
    actions.extend(
        own.into_iter()
            .map(|path| Action::MakeDirectory(path.clone(), mode(path))),
    );

    let mut next = record.clone().unwrap_or_else(Record::new);
    next.version = env!("CARGO_PKG_VERSION").to_owned();
    next.unit.clone_from(&facts.unit);
    next.directories
        .extend(others.iter().map(|path| (*path).clone()));
    for (change, now) in facts.files.iter().chain(&facts.containerd) {
        next.change(
            &change.path,
            now.clone(),
            change.text.clone(),
            &without_ours,
        );
    }
    let elsewhere = |link: &&Link| !link.path.starts_with(FOLDER);
    let theirs = facts.links.iter().filter(elsewhere);
    next.links.extend(theirs.map(|link| link.path.clone()));
    for (change, now) in &facts.containerd {
        next.doubt(&change.path, now.clone());
    }
    if record.as_ref() != Some(&next) {
        actions.push(Action::Note(Box::new(next.clone())));
    }
    actions.extend(
        others
            .into_iter()
            .map(|path| Action::MakeDirectory(path.clone(), mode(path))),
    );
    if !facts.intact {
        actions.push(Action::CopyVersion(facts.version.clone()));
    }
    for link in &facts.links {
        if link.now.as_ref() != Some(&link.target) {
            actions.push(Action::Point {
                link: link.path.clone(),
                target: link.target.clone(),
            });
        }
    }
    let write = |(change, _): &(Change, _)| Action::Write(change.clone());
    actions.extend(facts.files.iter().map(write));
    actions.push(Action::LoadBpf);
    actions.extend(facts.containerd.iter().map(write));
    if !facts.running {
        actions.push(Action::Restart);
    }
    if !next.unproven.is_empty() {
        actions.push(Action::Prove);
    }
    if facts.self_test {
        actions.push(Action::SelfTest);
    }
    actions.extend(facts.class.clone().map(Action::ApplyClass));
    actions.push(Action::RemoveUnused(facts.version.clone()));
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str) -> (Change, Option<String>) {
        let (path, text) = (path.into(), "new".into());
        (Change { path, text }, Some("old".into()))
    }

    fn fresh() -> Facts {
        Facts {
            version: "1-a".into(),
            links: known(|_| None),
            missing: DIRECTORIES.map(|(path, _)| path.into()).to_vec(),
            files: vec![change("/etc/podmotion/runtime.toml")],
            containerd: vec![change("/etc/containerd/config.toml")],
            self_test: true,
            class: Some("podmotion".into()),
            ..Facts::default()
        }
    }

    fn known(now: impl Fn(&PathBuf) -> Option<PathBuf>) -> Vec<Link> {
        let link = |(path, target)| Link {
            path,
            now: now(&target),
            target,
        };
        links("1-a").into_iter().map(link).collect()
    }

    fn words(actions: &[Action]) -> Vec<String> {
        actions.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_changed_before_it_is_on_record_and_containerd_last_of_all() {
        let actions = plan(&fresh(), None, str::to_owned);
        assert_eq!(
            words(&actions),
            [
                "create /opt/podmotion",
                "write /opt/podmotion/installed.json",
                "create /etc/podmotion",
                "create /var/lib/podmotion",
                "create /run/podmotion",
                "copy /opt/podmotion/versions/1-a",
                "link /opt/podmotion/current to versions/1-a",
                "link /opt/podmotion/bin to current/bin",
                "link /opt/podmotion/criu to current/criu",
                "write /etc/podmotion/runtime.toml",
                "load the BPF programs",
                "write /etc/containerd/config.toml",
                "restart containerd",
                "containerd runs with the runtime",
                "self-test",
                "apply RuntimeClass podmotion",
                "remove versions that nobody uses",
            ]
        );
        let Action::Note(record) = &actions[1] else {
            panic!("no record");
        };
        assert_eq!(record.unproven.len(), 1);
        assert_eq!(record.files.len(), 2);
        assert!(!record.directories.contains(Path::new(FOLDER)));
    }

    #[test]
    fn a_link_among_the_programs_of_others_is_on_record() {
        let path = PathBuf::from("/opt/containerd/bin/shim");
        let mut facts = fresh();
        facts.links.push(Link {
            path: path.clone(),
            target: "/opt/podmotion/bin/shim".into(),
            now: None,
        });
        let actions = plan(&facts, None, str::to_owned);
        let Action::Note(record) = &actions[1] else {
            panic!("no record");
        };
        assert_eq!(record.links.iter().collect::<Vec<_>>(), [&path]);
        let words = words(&actions);
        let link = "link /opt/containerd/bin/shim to /opt/podmotion/bin/shim";
        assert!(words.iter().any(|word| word == link), "{words:?}");
    }

    #[test]
    fn a_node_that_has_it_is_left_alone() {
        let facts = Facts {
            intact: true,
            links: known(|target| Some(target.clone())),
            missing: Vec::new(),
            files: Vec::new(),
            containerd: Vec::new(),
            running: true,
            self_test: false,
            class: None,
            ..fresh()
        };
        let record = Record::new();
        let actions = plan(&facts, Some(record), str::to_owned);
        assert_eq!(
            words(&actions),
            ["load the BPF programs", "remove versions that nobody uses"]
        );
    }

    #[test]
    fn a_run_that_was_killed_before_the_restart_goes_on_with_it() {
        let mut record = Record::new();
        record.doubt(Path::new("/etc/containerd/config.toml"), None);
        let facts = Facts {
            intact: true,
            missing: Vec::new(),
            files: Vec::new(),
            containerd: Vec::new(),
            class: None,
            links: known(|target| Some(target.clone())),
            ..fresh()
        };
        let actions = words(&plan(&facts, Some(record.clone()), str::to_owned));
        assert!(
            actions.contains(&"restart containerd".to_owned()),
            "{actions:?}"
        );
        // After the restart, before it was noted.
        let facts = Facts {
            running: true,
            ..facts
        };
        let actions = words(&plan(&facts, Some(record), str::to_owned));
        assert!(
            !actions.contains(&"restart containerd".to_owned()),
            "{actions:?}"
        );
        assert!(
            actions.contains(&"containerd runs with the runtime".to_owned()),
            "{actions:?}"
        );
    }
}
