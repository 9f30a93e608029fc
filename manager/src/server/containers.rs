//! Containers of this node's pods, as the shims tell of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue};
use podmotion_proto::client::{self, Found, Survey, Verb};
use podmotion_proto::record::{Outcome, Record};
use serde::Deserialize;
use tokio::task::JoinSet;
use tracing::info;

use super::access::{Access, User};
use super::api::{Caller, Node};
use super::refusal::Refusal;

/// How many shims have not answered, where there are any: the list is not complete then.
const SILENT: &str = "x-podmotion-silent-shims";

/// Seconds for a request for sleep or for a wake, unless it says another number.
const TIMEOUT: u64 = 120;
/// And at most.
const LONGEST: u64 = 300;

type Answer<T> = Result<(HeaderMap, Json<Vec<T>>), Refusal>;

/// Which of them.
#[derive(Debug, Deserialize)]
pub struct Which {
    namespace: Option<String>,
}

/// How long to wait.
#[derive(Debug, Deserialize)]
pub struct Patience {
    timeout: Option<u64>,
}

impl Patience {
    fn limit(&self) -> Result<Duration, Refusal> {
        match self.timeout.unwrap_or(TIMEOUT) {
            seconds @ 1..=LONGEST => Ok(Duration::from_secs(seconds)),
            value => Err(Refusal::Timeout {
                value,
                most: LONGEST,
            }),
        }
    }
}

/// All, or those of a namespace.
pub async fn list(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Answer<Record> {
    let namespace = which.namespace.filter(|namespace| !namespace.is_empty());
    if let Some(namespace) = &namespace {
        named("namespace", namespace)?;
    }
    let access = Access::List {
        namespace: namespace.clone(),
    };
    caller.may(access).await?;
    let survey = client::survey(&node.shims).await?;
    let of_pods = in_use(&survey, |found| {
        let own = &found.container.pod_namespace;
        namespace.as_ref().is_none_or(|wanted| wanted == own)
    });
    let records = of_pods.into_iter().map(Record::new).collect();
    Ok((silent(&survey), Json(records)))
}

/// Those of a pod.
pub async fn pod(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Path((namespace, pod)): Path<(String, String)>,
) -> Answer<Record> {
    let place = Place::new(namespace, pod, None)?;
    show(&node, caller, &place).await
}

/// One of a pod.
pub async fn container(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Path((namespace, pod, container)): Path<(String, String, String)>,
) -> Answer<Record> {
    let place = Place::new(namespace, pod, Some(container))?;
    show(&node, caller, &place).await
}

/// Has those of a pod sleep or wake.
pub async fn ask_pod(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Path((namespace, pod, verb)): Path<(String, String, String)>,
    Query(patience): Query<Patience>,
) -> Answer<Outcome> {
    let place = Place::new(namespace, pod, None)?;
    ask(&node, caller, &place, &verb, &patience).await
}

/// Has one of a pod sleep or wake.
pub async fn ask_container(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Path((namespace, pod, container, verb)): Path<(String, String, String, String)>,
    Query(patience): Query<Patience>,
) -> Answer<Outcome> {
    let place = Place::new(namespace, pod, Some(container))?;
    ask(&node, caller, &place, &verb, &patience).await
}

/// What a request names.
#[derive(Debug)]
struct Place {
    namespace: String,
    pod: String,
    container: Option<String>,
}

impl Place {
    fn new(namespace: String, pod: String, container: Option<String>) -> Result<Self, Refusal> {
        named("namespace", &namespace)?;
        named("pod", &pod)?;
        if let Some(container) = &container {
            named("container", container)?;
        }
        Ok(Self {
            namespace,
            pod,
            container,
        })
    }

    fn has(&self, found: &Found) -> bool {
        let container = &found.container;
        container.pod_namespace == self.namespace
            && container.pod_name == self.pod
            && self
                .container
                .as_ref()
                .is_none_or(|name| *name == container.name)
    }

    /// Its containers, of which there is one at least.
    fn find<'a>(&self, survey: &'a Survey, node: &str) -> Result<Vec<&'a Found>, Refusal> {
        let found = in_use(survey, |found| self.has(found));
        if !found.is_empty() {
            return Ok(found);
        }
        let (namespace, pod) = (&self.namespace, &self.pod);
        let what = match &self.container {
            Some(container) => format!("container {container:?} of pod {namespace}/{pod}"),
            None => format!("container of pod {namespace}/{pod}"),
        };
        let silent = match survey.silent.len() {
            0 => String::new(),
            silent => format!("; {silent} shims have not answered"),
        };
        Err(Refusal::NoSuchContainer(format!(
            "no {what} is run by Podmotion on node {node}{silent}"
        )))
    }
}

async fn show(node: &Node, caller: Caller, place: &Place) -> Answer<Record> {
    let access = Access::Get {
        namespace: place.namespace.clone(),
        pod: place.pod.clone(),
    };
    caller.may(access).await?;
    let survey = client::survey(&node.shims).await?;
    let found = place.find(&survey, &node.name)?;
    let records = found.into_iter().map(Record::new).collect();
    Ok((silent(&survey), Json(records)))
}

async fn ask(
    node: &Node,
    caller: Caller,
    place: &Place,
    verb: &str,
    patience: &Patience,
) -> Answer<Outcome> {
    let verb = match verb {
        "sleep" => Verb::Sleep,
        "wake" => Verb::Wake,
        _ => return Err(Refusal::NotFound),
    };
    let access = Access::ask(verb, place.namespace.clone(), place.pod.clone());
    let user = caller.may(access).await?;
    let limit = patience.limit()?;
    let survey = client::survey(&node.shims).await?;
    let mut asking = JoinSet::new();
    for found in place.find(&survey, &node.name)? {
        asking.spawn(client::ask(found.clone(), verb, limit));
    }
    let mut all = asking.join_all().await;
    all.sort_by(|one, other| one.found.container.name.cmp(&other.found.container.name));
    let outcomes: Vec<Outcome> = all.iter().map(Outcome::new).collect();
    write_down(&user, verb, place, &outcomes);
    Ok((silent(&survey), Json(outcomes)))
}

/// For who wants to know later whose doing it was.
fn write_down(user: &User, verb: Verb, place: &Place, outcomes: &[Outcome]) {
    for outcome in outcomes {
        info!(
            user = user.name,
            credential = user.credential().unwrap_or_default(),
            verb = verb.as_str(),
            namespace = place.namespace,
            pod = place.pod,
            container = outcome.container.name,
            changed = outcome.changed,
            error = outcome.error.as_deref().unwrap_or_default(),
            "asked"
        );
    }
}

/// Containers of pods that have not ended, without the pods' own.
fn in_use(survey: &Survey, is_meant: impl Fn(&Found) -> bool) -> Vec<&Found> {
    let of_pods = survey.found.iter().filter(|found| {
        let container = &found.container;
        !found.sandbox && !container.pod_name.is_empty() && container.state != "stopped"
    });
    of_pods.filter(|found| is_meant(found)).collect()
}

fn silent(survey: &Survey) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if !survey.silent.is_empty() {
        headers.insert(SILENT, HeaderValue::from(survey.silent.len()));
    }
    headers
}

/// Whether it can be the name of an object: what is not is neither asked about nor shown.
fn named(what: &'static str, value: &str) -> Result<(), Refusal> {
    const LONGEST: usize = 253;
    let is_sign =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if (1..=LONGEST).contains(&value.len()) && value.bytes().all(is_sign) {
        return Ok(());
    }
    let value = value.chars().take(LONGEST).collect();
    Err(Refusal::Name { what, value })
}

#[cfg(test)]
mod tests {
    use podmotion_proto::shim::v1::Container;

    use super::*;

    fn found(pod: &str, name: &str, state: &str) -> Found {
        let container = Container {
            id: format!("{pod}-{name}"),
            name: name.into(),
            pod_name: pod.into(),
            pod_namespace: if pod.is_empty() { "" } else { "shop" }.into(),
            state: state.into(),
            ..Container::default()
        };
        let socket = format!("/run/{pod}-pod.sock");
        Found::new(std::path::Path::new(&socket), container)
    }

    fn survey() -> Survey {
        Survey {
            found: vec![
                found("cart", "pod", "running"),
                found("cart", "web", "asleep"),
                found("cart", "db", "running"),
                found("cart", "db", "stopped"),
                found("", "alone", "running"),
                found("mail", "smtp", "running"),
            ],
            ..Survey::default()
        }
    }

    fn names(place: &Place) -> Vec<String> {
        let survey = survey();
        let found = place.find(&survey, "n1").unwrap();
        found.iter().map(|one| one.container.name.clone()).collect()
    }

    #[test]
    fn a_pods_containers_are_those_that_have_not_ended() {
        let place = |container: Option<&str>| {
            let container = container.map(str::to_owned);
            Place::new("shop".into(), "cart".into(), container).unwrap()
        };
        assert_eq!(names(&place(None)), ["web", "db"]);
        assert_eq!(names(&place(Some("db"))), ["db"]);
        let error = place(Some("nginx")).find(&survey(), "n1").unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"no container "nginx" of pod shop/cart is run by Podmotion on node n1"#
        );
    }

    #[test]
    fn only_names_of_objects_are_names() {
        for bad in ["", "*", "a/b", "../x", "A", "a b", &"a".repeat(254)] {
            let error = named("pod", bad).unwrap_err().to_string();
            assert!(error.contains("expected small letters"), "{error}");
        }
        named("pod", "web-0.example").unwrap();
    }

    #[test]
    fn nobody_waits_for_ever() {
        let limit = |timeout| Patience { timeout }.limit();
        assert_eq!(limit(None).unwrap(), Duration::from_secs(120));
        assert_eq!(limit(Some(300)).unwrap(), Duration::from_secs(300));
        assert!(limit(Some(0)).is_err() && limit(Some(301)).is_err());
    }
}
