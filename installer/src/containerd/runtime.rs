//! The runtime as containerd is to know it: as much like the node's default runtime as it can be.

use serde_json::Value;
use toml_edit::{InlineTable, Value as Toml};

/// The CRI runtime's name, which a RuntimeClass calls its handler.
pub const NAME: &str = "podmotion";
/// The shim's runtime type.
pub const TYPE: &str = "io.containerd.podmotion.v1";
/// The shim. Where containerd looks for shims depends on how it was started; this does not.
pub const SHIM: &str = "/opt/podmotion/bin/containerd-shim-podmotion-v1";
/// What containerd has the shim read: the OCI runtime and its options.
pub const OPTIONS: &str = "/etc/podmotion/runtime.toml";

/// Annotations of ours, which reach the shim.
const ANNOTATIONS: &str = "komodor.com/podmotion-*";

/// containerd's own runtime.
const RUNC: &str = "io.containerd.runc.v2";

/// The plugin that has the runtimes, in a file of version 2.
pub const CRI_V2: &str = "io.containerd.grpc.v1.cri";
/// The same in a file of version 3.
pub const CRI_V3: &str = "io.containerd.cri.v1.runtime";

/// Keys of a runtime that are the default runtime's, by their names in containerd's answer and in its file.
const INHERITED: [(&str, &str); 7] = [
    ("baseRuntimeSpec", "base_runtime_spec"),
    (
        "privileged_without_host_devices",
        "privileged_without_host_devices",
    ),
    (
        "privileged_without_host_devices_all_devices_allowed",
        "privileged_without_host_devices_all_devices_allowed",
    ),
    ("cgroupWritable", "cgroup_writable"),
    ("cniConfDir", "cni_conf_dir"),
    ("cniMaxConfNum", "cni_max_conf_num"),
    ("snapshotter", "snapshotter"),
];

/// Options of the OCI runtime that the shim knows.
const OPTION_KEYS: [&str; 8] = [
    "BinaryName",
    "Root",
    "SystemdCgroup",
    "NoPivotRoot",
    "NoNewKeyring",
    "ShimCgroup",
    "IoUid",
    "IoGid",
];

/// What containerd says that it runs with: the JSON of the CRI plugin's effective configuration.
#[derive(Clone, Debug, Default)]
pub struct Effective {
    containerd: Value,
}

impl Effective {
    /// Of the answer's text.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let mut all: Value = serde_json::from_str(text)?;
        let containerd = all["containerd"].take();
        Ok(Self { containerd })
    }

    /// The name of the default runtime.
    pub fn default_name(&self) -> &str {
        match self.containerd["defaultRuntimeName"].as_str() {
            Some(name) if !name.is_empty() => name,
            _ => "runc",
        }
    }

    /// The runtime that ours takes after: the default one if it is runc's, or the one called runc.
    fn model(&self) -> &Value {
        let runtimes = &self.containerd["runtimes"];
        let default = &runtimes[self.default_name()];
        if default["runtimeType"] == RUNC {
            default
        } else {
            &runtimes["runc"]
        }
    }

    /// Whether it has a runtime of our name.
    pub fn has_ours(&self) -> bool {
        self.containerd["runtimes"][NAME].is_object()
    }

    /// Whether it runs with `runtime` as it is to be.
    pub fn runs(&self, runtime: &Runtime) -> bool {
        let ours = &self.containerd["runtimes"][NAME];
        let lists = ["PodAnnotations", "ContainerAnnotations"];
        ours["runtimeType"] == TYPE
            && ours["runtimePath"] == SHIM
            && lists.iter().all(|list| ours[list][0] == ANNOTATIONS)
            && ours["options"]["ConfigPath"] == OPTIONS
            && INHERITED
                .iter()
                .all(|(name, _)| json(&ours[name]) == runtime.inherited(name))
    }
}

/// What ours is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Keys of containerd's, with values as TOML, that are not their defaults.
    inherited: Vec<(&'static str, &'static str, String)>,
    /// The text of [`OPTIONS`].
    pub options: String,
}

impl Runtime {
    /// Like the default runtime of a containerd that runs with `effective`.
    pub fn like_the_default(effective: &Effective) -> Self {
        let model = effective.model();
        let inherited = INHERITED
            .into_iter()
            .filter_map(|(name, key)| Some((name, key, json(&model[name])?)))
            .collect();
        let mut options = String::from(
            "# Written and removed by podmotion-installer: options of the node's default runtime.\n",
        );
        for key in OPTION_KEYS {
            if let Some(value) = json(&model["options"][key]) {
                options += &format!("{key} = {value}\n");
            }
        }
        Self { inherited, options }
    }

    fn inherited(&self, name: &str) -> Option<String> {
        let found = self.inherited.iter().find(|(own, ..)| *own == name)?;
        Some(found.2.clone())
    }

    /// Its section, below `plugin`.
    pub fn section(&self, plugin: &str) -> String {
        let mut text = format!(
            "[plugins.\"{plugin}\".containerd.runtimes.{NAME}]\n\
             runtime_type = \"{TYPE}\"\n\
             runtime_path = \"{SHIM}\"\n\
             pod_annotations = [\"{ANNOTATIONS}\"]\n\
             container_annotations = [\"{ANNOTATIONS}\"]\n"
        );
        for (_, key, value) in &self.inherited {
            text += &format!("{key} = {value}\n");
        }
        text += &format!(
            "[plugins.\"{plugin}\".containerd.runtimes.{NAME}.options]\n\
             TypeUrl = \"runtimeoptions.v1.Options\"\n\
             ConfigPath = \"{OPTIONS}\"\n"
        );
        text
    }
}

/// containerd's own runtime, for a section that has lost the one that is there by default: to 1.6 and 1.7
/// a section that has any runtime has no others.
pub fn runc_section(plugin: &str) -> String {
    format!("[plugins.\"{plugin}\".containerd.runtimes.runc]\nruntime_type = \"{RUNC}\"\n")
}

/// A value as TOML; `None` for what is the same as not being there.
fn json(value: &Value) -> Option<String> {
    let toml: Toml = match value {
        Value::Bool(true) => true.into(),
        Value::Number(number) => match number.as_i64()? {
            0 => return None,
            number => number.into(),
        },
        Value::String(text) if !text.is_empty() => text.as_str().into(),
        _ => return None,
    };
    // As in a document: without the spaces of a value that stands alone.
    let mut table = InlineTable::new();
    table.insert("value", toml);
    let value = table.get("value")?.clone().decorated("", "");
    Some(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective(text: &str) -> Effective {
        Effective::parse(text).unwrap()
    }

    const GPU: &str = r#"{"containerd": {"defaultRuntimeName": "nvidia", "runtimes": {
        "nvidia": {"runtimeType": "io.containerd.runc.v2", "baseRuntimeSpec": "/etc/containerd/cri-base.json",
            "cniMaxConfNum": 0, "snapshotter": "", "privileged_without_host_devices": true,
            "options": {"BinaryName": "/usr/bin/nvidia-container-runtime", "SystemdCgroup": true, "Root": "", "CriuPath": "x"}},
        "runc": {"runtimeType": "io.containerd.runc.v2", "options": {"IoUid": 7}}}}}"#;

    #[test]
    fn it_takes_after_the_default_runtime() {
        let runtime = Runtime::like_the_default(&effective(GPU));
        assert!(
            runtime.options.ends_with(
                "\nBinaryName = \"/usr/bin/nvidia-container-runtime\"\nSystemdCgroup = true\n"
            ),
            "{}",
            runtime.options
        );
        let section = runtime.section(CRI_V3);
        assert!(section.contains("\nbase_runtime_spec = \"/etc/containerd/cri-base.json\"\nprivileged_without_host_devices = true\n[plugins"), "{section}");
        let toml: toml::Table = toml::from_str(&section).unwrap();
        let ours = &toml["plugins"][CRI_V3]["containerd"]["runtimes"][NAME];
        assert_eq!(ours["options"]["ConfigPath"].as_str(), Some(OPTIONS));
    }

    #[test]
    fn a_default_runtime_that_is_not_runc_is_not_what_it_takes_after() {
        let text = GPU.replacen("io.containerd.runc.v2", "io.containerd.kata.v2", 1);
        let runtime = Runtime::like_the_default(&effective(&text));
        assert!(
            runtime.options.ends_with("\nIoUid = 7\n"),
            "{}",
            runtime.options
        );
        assert_eq!(effective("{}").default_name(), "runc");
        assert_eq!(Runtime::like_the_default(&effective("{}")).inherited, []);
    }

    #[test]
    fn containerd_runs_with_it_once_all_of_it_is_there() {
        let before = effective(GPU);
        let runtime = Runtime::like_the_default(&before);
        assert!(!before.has_ours() && !before.runs(&runtime));
        let ours = r#""podmotion": {"runtimeType": "io.containerd.podmotion.v1",
            "runtimePath": "/opt/podmotion/bin/containerd-shim-podmotion-v1",
            "PodAnnotations": ["komodor.com/podmotion-*"], "ContainerAnnotations": ["komodor.com/podmotion-*"],
            "baseRuntimeSpec": "/etc/containerd/cri-base.json", "privileged_without_host_devices": true,
            "options": {"ConfigPath": "/etc/podmotion/runtime.toml", "TypeUrl": "runtimeoptions.v1.Options"}}, "runc""#;
        let with = GPU.replacen("\"runc\"", ours, 1);
        assert!(effective(&with).runs(&runtime));
        for (one, other) in [
            ("/opt/podmotion/bin/", "/usr/bin/"),
            ("/etc/podmotion/runtime.toml", "/etc/runtime.toml"),
            ("podmotion.v1", "runc.v2"),
        ] {
            let without = effective(&with.replacen(one, other, 1));
            assert!(without.has_ours() && !without.runs(&runtime), "{one}");
        }
    }
}
