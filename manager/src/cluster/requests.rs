//! Requests of sleeping containers, lowered in place and put back.
//!
//! ```text
//!             annotation with the originals        requests lowered
//!   awake ------------------------------> (noted) ------------------> asleep
//!     ^                                                                 |
//!     +---- annotation removed <---- (restored) <---- requests put back-+
//! ```
//!
//! The annotation is there before anything is lowered and goes after all of it is back: whoever comes next,
//! a manager that starts anew or one without the flag, finds what to restore. Limits are never touched, and
//! neither is a pod whose QoS class would change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container as Spec, ContainerResizePolicy, Pod};
use podmotion_proto::shim::v1::Container;

/// The annotation: JSON, from containers to resources to quantities.
pub const ORIGINALS: &str = "podmotion.komodor.com/original-requests";

/// What a sleeping container still asks for: a weight, and what its frozen processes keep.
const LOWERED: [(&str, &str); 2] = [("cpu", "1m"), ("memory", "16Mi")];

/// Requests by container and resource.
pub type Requests = BTreeMap<String, BTreeMap<String, String>>;

/// The annotation does not say what it should.
#[derive(Debug, thiserror::Error)]
#[error("annotation {ORIGINALS}: {value:?} is not valid: {source}")]
pub struct OriginalsError {
    value: String,
    #[source]
    source: serde_json::Error,
}

/// What there is to do about a pod's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To put back.
    pub restore: Requests,
    /// The annotation as it must be before anything is lowered.
    pub originals: Requests,
    /// To lower.
    pub lower: Requests,
}

/// What the pod's annotation says; nothing where there is none.
pub fn originals(pod: &Pod) -> Result<Requests, OriginalsError> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(value) = annotations.and_then(|all| all.get(ORIGINALS)) else {
        return Ok(Requests::new());
    };
    serde_json::from_str(value).map_err(|source| OriginalsError {
        value: value.clone(),
        source,
    })
}

/// Requests that are lowered, as they are `noted`. What somebody else has set meanwhile is not among them.
pub fn lowered(pod: &Pod, noted: &Requests) -> Requests {
    let mut lowered = Requests::new();
    for spec in pod.spec.iter().flat_map(|spec| &spec.containers) {
        for (resource, floor) in LOWERED {
            if let Some(original) = original(spec, noted.get(&spec.name), resource, floor) {
                let of_container = lowered.entry(spec.name.clone()).or_default();
                of_container.insert(resource.to_owned(), original.to_owned());
            }
        }
    }
    lowered
}

/// What a request was before it was lowered to `floor`, if it is, as it is `noted` of its container.
fn original<'a>(
    spec: &Spec,
    noted: Option<&'a BTreeMap<String, String>>,
    resource: &str,
    floor: &str,
) -> Option<&'a str> {
    let original = noted?.get(resource)?;
    (request(spec, resource) == Some(floor)).then_some(original)
}

/// Why nothing of this pod can be lowered.
pub fn left_alone(pod: &Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    let class = pod
        .status
        .as_ref()
        .and_then(|status| status.qos_class.as_deref());
    match class {
        Some("Guaranteed") => return Some("its QoS class Guaranteed would change"),
        Some("BestEffort") => return Some("it has no requests"),
        _ => {}
    }
    if spec.resources.is_some() {
        return Some("it has resources of its own beside its containers'");
    }
    let lowerable = |one: &Spec| LOWERED.iter().any(|(resource, _)| resizable(one, resource));
    if !spec.containers.iter().any(lowerable) {
        return Some("its resize policy has containers restart");
    }
    None
}

/// What to do. `lower`: whether sleeping containers' requests are to be lowered at all.
pub fn plan(pod: &Pod, containers: &[&Container], lower: bool) -> Result<Plan, OriginalsError> {
    let noted = originals(pod)?;
    let lower = lower && left_alone(pod).is_none();
    let mut plan = Plan::default();
    for spec in pod.spec.iter().flat_map(|spec| &spec.containers) {
        let known = noted.get(&spec.name);
        let told = containers.iter().find(|one| one.name == spec.name);
        let Some(told) = told else {
            // Not known whether it sleeps: as it is.
            if let Some(known) = known {
                plan.originals.insert(spec.name.clone(), known.clone());
            }
            continue;
        };
        let asleep = lower && told.state == "asleep";
        for (resource, floor) in LOWERED {
            let Some(current) = request(spec, resource) else {
                continue;
            };
            let (to, value) = match original(spec, known, resource, floor) {
                Some(original) if asleep => {
                    // Lowered already.
                    plan.note(&spec.name, resource, original);
                    continue;
                }
                Some(original) => {
                    plan.note(&spec.name, resource, original);
                    (&mut plan.restore, original)
                }
                None if asleep && resizable(spec, resource) && exceeds(current, floor) => {
                    plan.note(&spec.name, resource, current);
                    (&mut plan.lower, floor)
                }
                // Awake, or somebody else has set it.
                None => continue,
            };
            let of_container = to.entry(spec.name.clone()).or_default();
            of_container.insert(resource.to_owned(), value.to_owned());
        }
    }
    Ok(plan)
}

impl Plan {
    fn note(&mut self, container: &str, resource: &str, original: &str) {
        let of_container = self.originals.entry(container.to_owned()).or_default();
        of_container.insert(resource.to_owned(), original.to_owned());
    }
}

fn request<'a>(spec: &'a Spec, resource: &str) -> Option<&'a str> {
    let requests = spec.resources.as_ref()?.requests.as_ref()?;
    requests.get(resource).map(|quantity| quantity.0.as_str())
}

/// Whether the container goes on running when this resource changes.
fn resizable(spec: &Spec, resource: &str) -> bool {
    let restarts = |policy: &ContainerResizePolicy| {
        policy.resource_name == resource && policy.restart_policy == "RestartContainer"
    };
    !spec.resize_policy.iter().flatten().any(restarts)
}

/// Whether one quantity is more than another. What is no quantity is not.
fn exceeds(one: &str, other: &str) -> bool {
    matches!((quantity(one), quantity(other)), (Some(one), Some(other)) if one > other)
}

/// A quantity's value, as the API server writes them.
fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let with_suffix = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)));
    match with_suffix {
        Some((number, factor)) => Some(number.parse::<f64>().ok()? * factor),
        // Also in the form 1e3.
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
