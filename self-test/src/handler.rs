//! How CRI runs pods of a handler, from what it says of its own configuration.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::Any;
use serde::Deserialize;

use crate::client::runtimeoptions;

/// An annotation that a pod may have, to see whether containerd passes such on to the shim.
const ANNOTATION: &str = "komodor.com/podmotion-scaledown-duration";

/// The type of the options of a runtime that CRI does not know.
const OPTIONS: &str = "runtimeoptions.v1.Options";

/// Why pods of the handler are not run, or not as they should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandlerError {
    /// CRI's answer is not what it was in any version.
    #[error("parse what CRI says of its configuration")]
    Parse(#[source] serde_json::Error),
    /// It says nothing.
    #[error("CRI says nothing of its configuration")]
    Silent,
    /// There is no such handler.
    #[error(
        "containerd has no runtime handler {handler:?}, it has {known}: is its configuration in place, and was containerd restarted?"
    )]
    Missing {
        /// The handler.
        handler: String,
        /// Those that there are.
        known: String,
    },
    /// It is another runtime.
    #[error("containerd's runtime handler {handler:?} is of type {found:?}, not {EXPECTED:?}")]
    Type {
        /// The handler.
        handler: String,
        /// Its type.
        found: String,
    },
    /// What pods say about their sleep would not be heard.
    #[error(
        "containerd's runtime handler {handler:?} passes no annotations komodor.com/podmotion-* on: pod_annotations is {found:?}"
    )]
    Annotations {
        /// The handler.
        handler: String,
        /// What it passes on.
        found: Vec<String>,
    },
    /// The handler's options are in no form that containerd takes.
    #[error("write the options of the runtime handler as TOML")]
    Options(#[source] toml::ser::Error),
    /// It is not known where root file systems come from.
    #[error("CRI names no snapshotter: its images are in {0:?}")]
    Snapshotter(String),
}

/// The runtime type of the shim.
const EXPECTED: &str = "io.containerd.podmotion.v1";

/// The end of an absolute path of the shim, which containerd takes for a type too.
const PROGRAM: &str = "/containerd-shim-podmotion-v1";

/// How pods of the handler are run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Handler {
    /// The runtime's type.
    pub(crate) runtime: String,
    /// The shim, if containerd is not to look for it.
    pub(crate) path: String,
    /// What the shim is told about its runtime.
    pub(crate) options: Option<Any>,
    /// Where its root file systems come from, if from elsewhere than all others'.
    pub(crate) snapshotter: Option<String>,
    /// systemd makes the control groups.
    pub(crate) systemd: bool,
}

#[derive(Deserialize)]
struct Configuration {
    containerd: Containerd,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Containerd {
    #[serde(default)]
    default_runtime_name: String,
    #[serde(default)]
    runtimes: BTreeMap<String, Runtime>,
}

#[derive(Deserialize)]
struct Runtime {
    #[serde(rename = "runtimeType")]
    kind: String,
    #[serde(rename = "runtimePath", default)]
    path: String,
    #[serde(rename = "PodAnnotations", default)]
    pod_annotations: Option<Vec<String>>,
    #[serde(default)]
    options: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    snapshotter: String,
}

impl Handler {
    /// Reads `configuration`, CRI's own in JSON, for the handler called `name`. `containerd` is the daemon's version.
    pub(crate) fn parse(
        name: &str,
        configuration: &str,
        containerd: &str,
    ) -> Result<Self, HandlerError> {
        let Configuration { containerd: all } =
            serde_json::from_str(configuration).map_err(HandlerError::Parse)?;
        let handler = || name.to_owned();
        let Some(runtime) = all.runtimes.get(name) else {
            let known: Vec<_> = all.runtimes.keys().map(String::as_str).collect();
            return Err(HandlerError::Missing {
                handler: handler(),
                known: known.join(", "),
            });
        };
        if runtime.kind != EXPECTED && !runtime.kind.ends_with(PROGRAM) {
            return Err(HandlerError::Type {
                handler: handler(),
                found: runtime.kind.clone(),
            });
        }
        let patterns = runtime.pod_annotations.clone().unwrap_or_default();
        if !patterns.iter().any(|pattern| passes(pattern)) {
            return Err(HandlerError::Annotations {
                handler: handler(),
                found: patterns,
            });
        }
        let driver = all.runtimes.get(&all.default_runtime_name);
        let driver = driver.and_then(|runtime| runtime.options.as_ref()?.get("SystemdCgroup"));
        Ok(Self {
            runtime: runtime.kind.clone(),
            path: runtime.path.clone(),
            options: options(runtime, containerd)?,
            snapshotter: Some(runtime.snapshotter.clone()).filter(|name| !name.is_empty()),
            systemd: driver.and_then(serde_json::Value::as_bool) == Some(true),
        })
    }
}

/// Whether annotations of Podmotion's match `pattern`, which is one of Go's `path.Match`.
fn passes(pattern: &str) -> bool {
    let matching = glob::MatchOptions {
        require_literal_separator: true,
        ..Default::default()
    };
    glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches_with(ANNOTATION, matching))
}

/// The options in the form in which CRI hands them to a runtime that it does not know.
fn options(runtime: &Runtime, containerd: &str) -> Result<Option<Any>, HandlerError> {
    let Some(options) = &runtime.options else {
        return Ok(None);
    };
    let text = |name: &str| {
        let value = options.get(name).and_then(serde_json::Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let mut message = runtimeoptions::Options {
        type_url: text("TypeUrl"),
        config_path: text("ConfigPath"),
        config_body: Vec::new(),
    };
    if message.config_path.is_empty() && has_bodies(containerd) {
        let body = toml::to_string(options).map_err(HandlerError::Options)?;
        message.config_body = body.into_bytes();
    }
    Ok(Some(Any {
        type_url: OPTIONS.to_owned(),
        value: message.encode_to_vec(),
    }))
}

/// containerd before 1.7 passes a path only.
fn has_bodies(containerd: &str) -> bool {
    let mut numbers = containerd.trim_start_matches('v').split('.');
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    (next().unwrap_or(0), next().unwrap_or(0)) >= (1_u32, 7_u32)
}

/// The snapshotter whose folder is `mountpoint`, where CRI has its images.
pub(crate) fn snapshotter_of(mountpoint: &str) -> Result<String, HandlerError> {
    const KIND: &str = "io.containerd.snapshotter.v1.";
    let name = mountpoint.rsplit('/').next().unwrap_or_default();
    match name.strip_prefix(KIND).unwrap_or(name) {
        "" => Err(HandlerError::Snapshotter(mountpoint.to_owned())),
        name => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn configuration(change: impl FnOnce(&mut Value)) -> String {
        let mut value = json!({"containerd": {
            "defaultRuntimeName": "runc",
            "runtimes": {
                "runc": {"runtimeType": "io.containerd.runc.v2", "PodAnnotations": null,
                    "options": {"SystemdCgroup": true}, "snapshotter": ""},
                "podmotion": {"runtimeType": "io.containerd.podmotion.v1", "runtimePath": "",
                    "PodAnnotations": ["komodor.com/*"],
                    "options": {"ConfigPath": "/etc/options.toml", "TypeUrl": "containerd.runc.v1.Options"}},
            },
        }});
        change(&mut value);
        value.to_string()
    }

    fn options_of(handler: &Handler) -> runtimeoptions::Options {
        let any = handler.options.clone().unwrap();
        assert_eq!(any.type_url, "runtimeoptions.v1.Options");
        runtimeoptions::Options::decode(&*any.value).unwrap()
    }

    #[test]
    fn a_handler_is_run_as_cri_runs_it() {
        let handler = Handler::parse("podmotion", &configuration(|_| ()), "v2.1.4").unwrap();
        assert!(handler.systemd);
        assert_eq!(handler.snapshotter, None);
        let options = options_of(&handler);
        assert_eq!(options.config_path, "/etc/options.toml");
        assert_eq!(options.type_url, "containerd.runc.v1.Options");
        assert_eq!(options.config_body, b"");
    }

    #[test]
    fn options_without_a_file_are_passed_from_1_7_on() {
        let text = configuration(|value| {
            let podmotion = &mut value["containerd"]["runtimes"]["podmotion"];
            podmotion["options"] = json!({"BinaryName": "/usr/bin/runc", "SystemdCgroup": true});
            podmotion["snapshotter"] = json!("nydus");
        });
        for (version, passed) in [("v2.1.4", true), ("1.7.0", true), ("v1.6.39", false)] {
            let handler = Handler::parse("podmotion", &text, version).unwrap();
            let body = String::from_utf8(options_of(&handler).config_body).unwrap();
            assert_eq!(body.contains("BinaryName = \"/usr/bin/runc\""), passed);
            assert_eq!(handler.snapshotter.as_deref(), Some("nydus"));
        }
    }

    #[test]
    fn what_is_wrong_with_a_handler_is_named() {
        let error = |change: fn(&mut Value)| {
            let result = Handler::parse("podmotion", &configuration(change), "v2.1.4");
            result.unwrap_err().to_string()
        };
        let runtimes = |value: &mut Value| {
            value["containerd"]["runtimes"]
                .as_object_mut()
                .unwrap()
                .remove("podmotion");
        };
        assert!(error(runtimes).contains("no runtime handler \"podmotion\", it has runc"));
        let other = error(|value| {
            value["containerd"]["runtimes"]["podmotion"]["runtimeType"] =
                json!("io.containerd.runc.v2");
        });
        assert!(other.contains("io.containerd.runc.v2"), "{other}");
        for patterns in ["null", "[]", "[\"komodor.com\", \"*\"]"] {
            let text = configuration(|value| {
                value["containerd"]["runtimes"]["podmotion"]["PodAnnotations"] =
                    serde_json::from_str(patterns).unwrap();
            });
            let error = Handler::parse("podmotion", &text, "v2.1.4").unwrap_err();
            assert!(error.to_string().contains("pod_annotations"), "{error}");
        }
        assert!(Handler::parse("podmotion", "{", "v2").is_err());
    }

    #[test]
    fn the_shims_path_is_a_type_too() {
        let text = configuration(|value| {
            value["containerd"]["runtimes"]["podmotion"]["runtimeType"] =
                json!("/opt/podmotion/bin/containerd-shim-podmotion-v1");
        });
        assert!(Handler::parse("podmotion", &text, "v2.1.4").is_ok());
    }

    #[test]
    fn a_snapshotter_is_the_end_of_its_folder() {
        let folder = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";
        assert_eq!(snapshotter_of(folder).unwrap(), "overlayfs");
        assert_eq!(snapshotter_of("/var/lib/stargz").unwrap(), "stargz");
        assert!(snapshotter_of("").is_err());
    }
}
