//! What all shims of the node have told last, and what those containers had counted that are gone while their
//! pod's shim is not: a container that could not be restored is removed at once, and its failure must be seen.
//!
//! ```text
//!   folder, shims --Report--> Store (one owner, `shims`) --watch--> metrics, health, kube
//! ```

mod sum;

use std::collections::BTreeMap;

use podmotion_proto::shim::v1::Container;

/// Something that a shim, or the folder of the sockets, has told.
#[derive(Debug)]
pub enum Report {
    /// All containers of a shim.
    Told(String, Vec<Container>),
    /// A shim does not answer; why.
    Silent(String, String),
    /// A shim is gone, and its socket too.
    Gone(String),
}

/// One shim, by its socket's name without suffix: the sandbox's id, or the only container's.
#[derive(Clone, Debug, Default)]
pub struct Shim {
    /// What it has told last, without the pod's own container.
    pub containers: Vec<Container>,
    /// Containers that it has told of before, one of each name, with the counts of all of that name.
    gone: BTreeMap<String, Container>,
    /// Why it does not answer.
    pub silent: Option<String>,
    /// The store's [`Store::revision`] when this was changed last.
    pub revision: u64,
}

/// All shims.
#[derive(Clone, Debug, Default)]
pub struct Store {
    shims: BTreeMap<String, Shim>,
    revision: u64,
}

impl Store {
    /// Takes in what was told; whether it is anything new.
    pub fn take_in(&mut self, report: Report) -> bool {
        let revision = self.revision + 1;
        let changed = match report {
            Report::Told(group, containers) => {
                let containers = without_sandbox(&group, containers);
                let shim = self.shims.entry(group).or_default();
                let new =
                    shim.revision == 0 || shim.silent.is_some() || shim.containers != containers;
                if new {
                    shim.replace(containers);
                    shim.silent = None;
                    shim.revision = revision;
                }
                new
            }
            Report::Silent(group, why) => {
                let shim = self.shims.entry(group).or_default();
                // What it has told stays known to who must not take silence for a change.
                shim.revision = revision;
                shim.silent = Some(why);
                true
            }
            Report::Gone(group) => self.shims.remove(&group).is_some(),
        };
        if changed {
            self.revision = revision;
        }
        changed
    }

    /// Grows with each change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All shims that have a socket.
    pub fn shims(&self) -> impl Iterator<Item = (&str, &Shim)> {
        self.shims
            .iter()
            .map(|(group, shim)| (group.as_str(), shim))
    }

    /// Containers of the shims that answer, by name. Of several with the same name, as after a restart, the
    /// one that came last.
    pub fn containers(&self) -> Vec<&Container> {
        newest(self.answered())
    }

    /// What has been counted of the containers of the shims that answer, by name: of all that had it.
    pub fn counted(&self) -> Vec<Container> {
        let mut counted: BTreeMap<_, Container> = BTreeMap::new();
        let answering = self.shims.values().filter(|shim| shim.silent.is_none());
        for one in answering.flat_map(|shim| shim.gone.values().chain(&shim.containers)) {
            let name = (&one.pod_namespace, &one.pod_name, &one.name);
            match counted.get_mut(&name) {
                Some(known) => sum::add(known, one),
                None => drop(counted.insert(name, one.clone())),
            }
        }
        counted.into_values().collect()
    }

    /// Those of one pod.
    pub fn pod(&self, uid: &str) -> Vec<&Container> {
        newest(self.answered().filter(|one| one.pod_uid == uid))
    }

    fn answered(&self) -> impl Iterator<Item = &Container> {
        let answering = self.shims.values().filter(|shim| shim.silent.is_none());
        answering.flat_map(|shim| &shim.containers)
    }
}

impl Shim {
    /// Takes these for its containers, and keeps what those had counted that are not among them.
    fn replace(&mut self, containers: Vec<Container>) {
        for old in std::mem::replace(&mut self.containers, containers) {
            if self.containers.iter().any(|one| one.id == old.id) {
                continue;
            }
            match self.gone.get_mut(&old.name) {
                Some(known) => sum::add(known, &old),
                None => drop(self.gone.insert(old.name.clone(), old)),
            }
        }
    }
}

fn newest<'a>(containers: impl Iterator<Item = &'a Container>) -> Vec<&'a Container> {
    let age = |one: &Container| (one.state != "stopped", one.since_unix_ms);
    let mut newest: BTreeMap<_, &Container> = BTreeMap::new();
    for one in containers {
        let name = (&one.pod_namespace, &one.pod_name, &one.name);
        let known = newest.entry(name).or_insert(one);
        if age(one) > age(known) {
            *known = one;
        }
    }
    newest.into_values().collect()
}

/// The pod's own container does nothing but hold its namespaces. A container without a pod has a shim
/// of its own, whose group is its id as well.
fn without_sandbox(group: &str, containers: Vec<Container>) -> Vec<Container> {
    let sandbox = |one: &Container| one.id == group && !one.pod_uid.is_empty();
    containers.into_iter().filter(|one| !sandbox(one)).collect()
}

#[cfg(test)]
mod tests {
    use podmotion_proto::shim::v1::{Tallies, WakeTally};

    use super::*;

    fn container(id: &str, uid: &str, state: &str) -> Container {
        Container {
            id: id.into(),
            name: id.into(),
            pod_uid: uid.into(),
            state: state.into(),
            ..Default::default()
        }
    }

    fn told(group: &str, containers: &[Container]) -> Report {
        Report::Told(group.into(), containers.to_vec())
    }

    fn ids(store: &Store) -> Vec<&str> {
        let containers = store.containers();
        containers.into_iter().map(|one| one.id.as_str()).collect()
    }

    #[test]
    fn the_pods_own_container_is_left_out_and_a_single_one_is_not() {
        let mut store = Store::default();
        store.take_in(told(
            "pod",
            &[
                container("pod", "u1", "running"),
                container("web", "u1", "asleep"),
            ],
        ));
        store.take_in(told("single", &[container("single", "", "running")]));
        assert_eq!(ids(&store), ["single", "web"]);
        assert_eq!(store.pod("u1").len(), 1);
    }

    #[test]
    fn of_two_with_one_name_the_one_that_came_last_counts() {
        let named = |id: &str, state: &str, since_unix_ms| Container {
            name: "web".into(),
            since_unix_ms,
            ..container(id, "u", state)
        };
        let mut store = Store::default();
        let (old, new) = (named("old", "stopped", 9), named("new", "created", 8));
        store.take_in(told("a", &[new.clone(), old.clone()]));
        assert_eq!(ids(&store), ["new"]);
        store.take_in(told("a", &[old, new]));
        assert_eq!(ids(&store), ["new"]);
    }

    #[test]
    fn the_same_once_more_is_no_change() {
        let mut store = Store::default();
        assert!(store.take_in(told("a", &[container("web", "u", "asleep")])));
        assert!(!store.take_in(told("a", &[container("web", "u", "asleep")])));
        assert_eq!(store.revision(), 1);
        assert!(store.take_in(told("a", &[container("web", "u", "waking")])));
        assert_eq!(store.revision(), 2);
    }

    #[test]
    fn nothing_is_said_of_a_silent_shim_until_it_answers() {
        let mut store = Store::default();
        store.take_in(told("a", &[container("web", "u", "asleep")]));
        store.take_in(Report::Silent("a".into(), "no answer".into()));
        assert!(ids(&store).is_empty());
        let (_, shim) = store.shims().next().unwrap();
        assert_eq!(
            (shim.containers.len(), shim.silent.as_deref()),
            (1, Some("no answer"))
        );
        assert!(store.take_in(told("a", &[container("web", "u", "asleep")])));
        assert_eq!(ids(&store), ["web"]);
    }

    #[test]
    fn nothing_is_left_of_a_shim_that_is_gone() {
        let mut store = Store::default();
        store.take_in(told("a", &[container("web", "u", "asleep")]));
        assert!(store.take_in(Report::Gone("a".into())));
        assert!(!store.take_in(Report::Gone("a".into())));
        assert_eq!(store.shims().count(), 0);
    }

    #[test]
    fn what_a_container_has_counted_outlives_it_and_never_shrinks() {
        let with = |id: &str, failed| Container {
            name: "web".into(),
            tallies: Some(Tallies {
                wakes: vec![WakeTally {
                    depth: "deep".into(),
                    failed,
                    ..Default::default()
                }],
                ..Default::default()
            })
            .into(),
            ..container(id, "u", "running")
        };
        let mut store = Store::default();
        let mut counts = |containers: &[Container]| {
            store.take_in(told("a", containers));
            let counted = store.counted();
            let wakes = counted.iter().flat_map(|one| &one.tallies.wakes);
            wakes.map(|tally| tally.failed).collect::<Vec<_>>()
        };
        assert_eq!(counts(&[with("one", 1)]), [1]);
        assert_eq!(counts(&[]), [1]);
        assert_eq!(counts(&[with("two", 0)]), [1]);
        assert_eq!(counts(&[with("two", 2), with("three", 0)]), [3]);
        assert_eq!(counts(&[with("three", 1)]), [4]);
        store.take_in(Report::Gone("a".into()));
        assert!(store.counted().is_empty());
    }

    #[test]
    fn a_shim_without_containers_is_new_once() {
        let mut store = Store::default();
        assert!(store.take_in(told("a", &[])));
        assert!(!store.take_in(told("a", &[])));
        assert_eq!(store.shims().count(), 1);
    }
}
