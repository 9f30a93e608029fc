//! Who may do what: Kubernetes' own rules decide, on the resource `containers` of the group
//! `podmotion.komodor.com`, which stands for the containers of a pod.
//!
//! | request | what is asked of the API server |
//! |---|---|
//! | list of containers | `list containers`, of the namespace or of all |
//! | containers of a pod | `get containers`, named as the pod |
//! | sleep, wake | `sleep containers`, `wake containers`, named as the pod |
//! | the node's check | `get nodes/podmotion`, named as the node |

mod cache;
mod review;

use std::fmt;

use k8s_openapi::api::authorization::v1::ResourceAttributes;
use podmotion_proto::client::Verb;

pub use self::review::{ReviewError, Reviewer, User};

/// The audience that a token must be made for.
pub const AUDIENCE: &str = "podmotion.komodor.com";

/// The group of the resource `containers`.
const GROUP: &str = "podmotion.komodor.com";

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// See the containers of a namespace, or of all.
    List {
        /// The namespace.
        namespace: Option<String>,
    },
    /// See the containers of a pod.
    Get {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// Put containers of a pod to sleep, or wake them.
    Ask {
        /// Which of both.
        verb: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// See how a node is.
    Check {
        /// Its name.
        node: String,
    },
}

impl Access {
    /// To put containers of a pod to sleep, or to wake them.
    pub fn ask(verb: Verb, namespace: String, pod: String) -> Self {
        Self::Ask {
            verb: verb.as_str(),
            namespace,
            pod,
        }
    }

    /// As the API server is asked.
    pub fn attributes(&self) -> ResourceAttributes {
        let containers =
            |verb: &str, namespace: Option<&String>, pod: Option<&String>| ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some("containers".to_owned()),
                verb: Some(verb.to_owned()),
                namespace: namespace.cloned(),
                name: pod.cloned(),
                ..ResourceAttributes::default()
            };
        match self {
            Self::List { namespace } => containers("list", namespace.as_ref(), None),
            Self::Get { namespace, pod } => containers("get", Some(namespace), Some(pod)),
            Self::Ask {
                verb,
                namespace,
                pod,
            } => containers(verb, Some(namespace), Some(pod)),
            Self::Check { node } => ResourceAttributes {
                resource: Some("nodes".to_owned()),
                subresource: Some("podmotion".to_owned()),
                verb: Some("get".to_owned()),
                name: Some(node.clone()),
                ..ResourceAttributes::default()
            },
        }
    }
}

/// In words close to those of rules.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List { namespace: None } => {
                write!(f, "list containers.{GROUP} in all namespaces")
            }
            Self::List {
                namespace: Some(namespace),
            } => write!(f, "list containers.{GROUP} in namespace {namespace:?}"),
            Self::Get { namespace, pod } => {
                write!(
                    f,
                    "get containers.{GROUP} {pod:?} in namespace {namespace:?}"
                )
            }
            Self::Ask {
                verb,
                namespace,
                pod,
            } => write!(
                f,
                "{verb} containers.{GROUP} {pod:?} in namespace {namespace:?}"
            ),
            Self::Check { node } => write!(f, "get nodes/podmotion {node:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_is_asked_for_by_the_names_that_rules_are_written_with() {
        let access = Access::ask(Verb::Sleep, "shop".into(), "cart".into());
        let asked = access.attributes();
        let is = |field: &Option<String>, value: &str| field.as_deref() == Some(value);
        assert!(is(&asked.group, "podmotion.komodor.com"));
        assert!(is(&asked.resource, "containers") && is(&asked.verb, "sleep"));
        assert!(is(&asked.namespace, "shop") && is(&asked.name, "cart"));
        assert_eq!(
            access.to_string(),
            r#"sleep containers.podmotion.komodor.com "cart" in namespace "shop""#
        );
    }

    #[test]
    fn all_namespaces_are_more_than_one() {
        let all = Access::List { namespace: None }.attributes();
        assert_eq!(all.namespace, None);
        let one = Access::List {
            namespace: Some("shop".into()),
        };
        assert_eq!(one.attributes().namespace.as_deref(), Some("shop"));
    }

    #[test]
    fn a_node_is_asked_for_by_its_name() {
        let check = Access::Check {
            node: "node-1".into(),
        };
        let asked = check.attributes();
        assert_eq!(asked.group, None);
        assert_eq!(asked.subresource.as_deref(), Some("podmotion"));
        assert_eq!(asked.name.as_deref(), Some("node-1"));
    }
}
