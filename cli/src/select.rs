//! Which containers are meant.

use podmotion_proto::client::{Found, title};
use podmotion_proto::shim::v1::Container;

use crate::args::{Filter, StateName};

/// A name that does not stand for one container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Nobody has it.
    #[error(
        "no container {name:?}: expected an id, the beginning of one, NAMESPACE/POD or \
         NAMESPACE/POD/CONTAINER, as `podmotion ps` shows them{}",
        if *complete { "" } else { "; not all shims have answered" }
    )]
    None {
        /// The name as it was given.
        name: String,
        /// All shims have answered.
        complete: bool,
    },
    /// Several have it.
    #[error("{name:?} is more than one container: {}", candidates.join(", "))]
    Several {
        /// The name as it was given.
        name: String,
        /// What would name each of them.
        candidates: Vec<String>,
    },
}

/// The container that `name` stands for. `complete` is whether `all` are the containers of all shims.
///
/// An id wins over the beginning of another. By pod, containers that have ended and the pod's own are only meant
/// where no other is.
///
/// # Errors
/// When it is none, or more than one.
pub fn one<'a>(all: &'a [Found], name: &str, complete: bool) -> Result<&'a Found, SelectError> {
    let none = || SelectError::None {
        name: name.to_owned(),
        complete,
    };
    let parts: Vec<&str> = name.split('/').collect();
    let matches: Vec<&Found> = match parts[..] {
        [""] => Vec::new(),
        [id] => match all.iter().find(|found| found.container.id == id) {
            Some(found) => return Ok(found),
            None => all
                .iter()
                .filter(|one| one.container.id.starts_with(id))
                .collect(),
        },
        [namespace, pod] => preferred(
            of_pod(all, namespace, pod)
                .filter(|one| !one.sandbox)
                .collect(),
        ),
        [namespace, pod, container] => {
            let named = |one: &&Found| one.container.name == container;
            preferred(of_pod(all, namespace, pod).filter(named).collect())
        }
        _ => Vec::new(),
    };
    match matches[..] {
        [] => Err(none()),
        [found] => Ok(found),
        _ => Err(SelectError::Several {
            name: name.to_owned(),
            candidates: matches
                .iter()
                .map(|one| candidate(one, parts.len()))
                .collect(),
        }),
    }
}

fn of_pod<'a>(all: &'a [Found], namespace: &str, pod: &str) -> impl Iterator<Item = &'a Found> {
    all.iter().filter(move |found| {
        let container = &found.container;
        container.pod_namespace == namespace && container.pod_name == pod && !pod.is_empty()
    })
}

/// Those that have not ended, where there are any.
fn preferred(matches: Vec<&Found>) -> Vec<&Found> {
    let ended = |found: &&Found| found.container.state == StateName::Stopped.as_str();
    if matches.iter().all(ended) {
        return matches;
    }
    matches.into_iter().filter(|found| !ended(found)).collect()
}

/// What to write in place of a name of so many parts to mean this one.
fn candidate(found: &Found, parts: usize) -> String {
    match parts {
        2 => title(&found.container),
        _ => found.container.id.clone(),
    }
}

impl StateName {
    /// The shim's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::FallingAsleep => "falling-asleep",
            Self::Asleep => "asleep",
            Self::Light => "light",
            Self::Deep => "deep",
            Self::Cold => "cold",
            Self::Waking => "waking",
            Self::RestoreFailed => "restore-failed",
            Self::Stopped => "stopped",
        }
    }

    fn is_of(self, container: &Container) -> bool {
        match self {
            Self::Light | Self::Deep | Self::Cold => container.depth == self.as_str(),
            _ => container.state == self.as_str(),
        }
    }
}

impl Filter {
    /// Whether a container is to be shown. One whose state is asked for is, also when it has ended.
    pub fn shows(&self, found: &Found) -> bool {
        let container = &found.container;
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|w| w == value);
        let by_state = self.state.iter().any(|state| state.is_of(container));
        let ended = container.state == StateName::Stopped.as_str();
        (self.all || !found.sandbox)
            && (self.all || by_state || !ended)
            && (self.state.is_empty() || by_state)
            && is(&self.namespace, &container.pod_namespace)
            && is(&self.pod, &container.pod_name)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn found(id: &str, pod: &str, name: &str, state: &str) -> Found {
        let container = Container {
            id: id.to_owned(),
            name: name.to_owned(),
            pod_name: pod.to_owned(),
            pod_namespace: if pod.is_empty() { "" } else { "shop" }.to_owned(),
            state: state.to_owned(),
            depth: if state == "asleep" { "light" } else { "" }.to_owned(),
            ..Default::default()
        };
        let group = if pod.is_empty() { id } else { pod };
        Found::new(Path::new(&format!("/run/{group}.sock")), container)
    }

    /// The pod's own container has the pod's id.
    fn all() -> Vec<Found> {
        vec![
            found("cart", "cart", "cart", "running"),
            found("abc1", "cart", "web", "asleep"),
            found("abc2", "cart", "db", "running"),
            found("old", "cart", "db", "stopped"),
            found("abc", "", "abc", "running"),
            found("mail1", "mail", "smtp", "running"),
        ]
    }

    #[test]
    fn names_stand_for_one_container() {
        let all = all();
        let cases = [
            ("abc", "abc"),
            ("abc1", "abc1"),
            ("mai", "mail1"),
            ("shop/cart/web", "abc1"),
            // The one that has ended does not count beside it.
            ("shop/cart/db", "abc2"),
            ("shop/mail", "mail1"),
        ];
        for (name, id) in cases {
            assert_eq!(one(&all, name, true).unwrap().container.id, id, "{name}");
        }
    }

    #[test]
    fn a_name_of_none_or_several_is_an_error_that_says_what_is_accepted() {
        let all = all();
        for name in ["", "x", "shop", "shop/", "/", "shop/cart/nginx", "a/b/c/d"] {
            let error = one(&all, name, true).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
            assert!(error.contains("NAMESPACE/POD/CONTAINER"), "{error}");
        }
        let error = one(&all, "ab", true).unwrap_err().to_string();
        assert_eq!(error, r#""ab" is more than one container: abc1, abc2, abc"#);
        let error = one(&all, "shop/cart", true).unwrap_err().to_string();
        assert_eq!(
            error,
            r#""shop/cart" is more than one container: shop/cart/web, shop/cart/db"#
        );
        let error = one(&all, "x", false).unwrap_err().to_string();
        assert!(error.ends_with("not all shims have answered"), "{error}");
    }

    fn shown(filter: &Filter) -> Vec<String> {
        let all = all();
        let shown = all.iter().filter(|one| filter.shows(one));
        shown.map(|one| one.container.id.clone()).collect()
    }

    #[test]
    fn the_pods_own_and_ended_containers_are_shown_when_asked_for() {
        assert_eq!(shown(&Filter::default()), ["abc1", "abc2", "abc", "mail1"]);
        let all = Filter {
            all: true,
            ..Default::default()
        };
        assert_eq!(shown(&all).len(), 6);
        let stopped = Filter {
            state: vec![StateName::Stopped],
            ..Default::default()
        };
        assert_eq!(shown(&stopped), ["old"]);
    }

    #[test]
    fn filters_go_together() {
        let filter = Filter {
            namespace: Some("shop".into()),
            pod: Some("cart".into()),
            state: vec![StateName::Asleep, StateName::Waking],
            ..Default::default()
        };
        assert_eq!(shown(&filter), ["abc1"]);
        let deep = Filter {
            state: vec![StateName::Deep],
            ..Default::default()
        };
        assert!(shown(&deep).is_empty());
    }
}
