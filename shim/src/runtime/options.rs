//! What containerd's configuration says about the OCI runtime.
//!
//! It comes as one of two messages: `containerd.runc.v1.Options` (`ctr`, or a CRI configuration
//! that names runc), or `runtimeoptions.v1.Options`, which the CRI plugin sends for a runtime
//! type it does not know: the path of a TOML file, or the TOML text itself (containerd 1.7 and
//! later). The TOML has the same keys as the runc options.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream, Message};
use containerd_shim_protos::shim::oci;
use serde::{Deserialize, Serialize};

/// File in the bundle that keeps the options for the shim's `delete` action.
const OPTIONS_FILE: &str = "options.json";
/// File in the bundle with the name of the runtime binary, as containerd's own shim leaves it.
const RUNTIME_FILE: &str = "runtime";
/// Where runc keeps its state unless told otherwise; below it, one folder per namespace.
const DEFAULT_ROOT: &str = "/run/containerd/runc";

/// Why the options could not be used.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The message does not decode.
    #[error("decode runtime options {type_url}")]
    Decode {
        /// Type that the message claims to be.
        type_url: String,
        /// The decoder's error.
        #[source]
        source: protobuf::Error,
    },
    /// Neither of the two known messages.
    #[error("runtime options of unknown type {type_url}")]
    UnknownType {
        /// Type that the message claims to be.
        type_url: String,
    },
    /// The options' TOML is not what it should be.
    #[error("parse runtime options from {origin}: {source}")]
    Toml {
        /// The file, or `config_body`.
        origin: String,
        /// The parser's error.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A file could not be read or written.
    #[error("{operation} {}", path.display())]
    File {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// `options.json` in a bundle is not what the shim wrote.
    #[error("parse {}", path.display())]
    Stored {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

/// The options that matter to the shim. Keys of `options.json` are in snake case, those of TOML
/// are in containerd's spelling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `--no-pivot` at create.
    #[serde(alias = "NoPivotRoot", skip_serializing_if = "is_default")]
    pub no_pivot_root: bool,
    /// `--no-new-keyring` at create.
    #[serde(alias = "NoNewKeyring", skip_serializing_if = "is_default")]
    pub no_new_keyring: bool,
    /// Cgroup that the shim itself joins.
    #[serde(alias = "ShimCgroup", skip_serializing_if = "is_default")]
    pub shim_cgroup: String,
    /// Owner of the pipes given to the container.
    #[serde(alias = "IoUid", skip_serializing_if = "is_default")]
    pub io_uid: u32,
    /// Group of the pipes given to the container.
    #[serde(alias = "IoGid", skip_serializing_if = "is_default")]
    pub io_gid: u32,
    /// The runtime binary, `runc` on the search path when empty.
    #[serde(alias = "BinaryName", skip_serializing_if = "is_default")]
    pub binary_name: String,
    /// The runtime's state folder.
    #[serde(alias = "Root", skip_serializing_if = "is_default")]
    pub root: String,
    /// Whether cgroups are made by systemd.
    #[serde(alias = "SystemdCgroup", skip_serializing_if = "is_default")]
    pub systemd_cgroup: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Options {
    /// Reads the options of a create request or of the shim's standard input.
    ///
    /// # Errors
    /// See [`OptionsError`].
    pub fn from_any(any: &Any) -> Result<Self, OptionsError> {
        let decode = |source| OptionsError::Decode {
            type_url: any.type_url.clone(),
            source,
        };
        // typeurl of some versions puts a host in front of the name, others do not.
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        match name {
            _ if any.value.is_empty() => Ok(Self::default()),
            "containerd.runc.v1.Options" | "containerd.linux.runc.RuncOptions" => {
                Ok(oci::Options::parse_from_bytes(&any.value)
                    .map_err(decode)?
                    .into())
            }
            "runtimeoptions.v1.Options" | "cri.runtimeoptions.v1.Options" => {
                GenericOptions::parse(&any.value).map_err(decode)?.read()
            }
            _ => Err(OptionsError::UnknownType {
                type_url: any.type_url.clone(),
            }),
        }
    }

    fn from_toml(origin: &str, text: &str) -> Result<Self, OptionsError> {
        toml::from_str(text).map_err(|source| OptionsError::Toml {
            origin: origin.to_owned(),
            source: Box::new(source),
        })
    }

    /// Leaves the options in the bundle for a later `delete`.
    ///
    /// # Errors
    /// Fails when the bundle cannot be written.
    pub fn store(&self, bundle: &Path) -> Result<(), OptionsError> {
        let path = bundle.join(OPTIONS_FILE);
        let json = serde_json::to_vec(self).map_err(|source| OptionsError::Stored {
            path: path.clone(),
            source,
        })?;
        write(&path, &json)?;
        write(&bundle.join(RUNTIME_FILE), self.binary_name.as_bytes())
    }

    /// The options left in a bundle; defaults when there are none.
    ///
    /// # Errors
    /// Fails when the file cannot be read or parsed.
    pub fn load(bundle: &Path) -> Result<Self, OptionsError> {
        let path = bundle.join(OPTIONS_FILE);
        match std::fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|source| OptionsError::Stored { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(OptionsError::File {
                operation: "read",
                path,
                source,
            }),
        }
    }

    /// The runtime's state folder for a containerd namespace.
    #[must_use]
    pub fn state_root(&self, namespace: &str) -> PathBuf {
        let root = if self.root.is_empty() {
            DEFAULT_ROOT
        } else {
            &self.root
        };
        Path::new(root).join(namespace)
    }

    /// The runtime binary, a path or a name to search for.
    #[must_use]
    pub fn binary(&self) -> &str {
        if self.binary_name.is_empty() {
            "runc"
        } else {
            &self.binary_name
        }
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), OptionsError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(|source| OptionsError::File {
            operation: "write",
            path: path.into(),
            source,
        })
}

impl From<oci::Options> for Options {
    fn from(options: oci::Options) -> Self {
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
        }
    }
}

/// `runtimeoptions.v1.Options`, for which there is no generated code in the protocol crate.
#[derive(Debug, Default)]
struct GenericOptions {
    config_path: String,
    config_body: Vec<u8>,
}

impl GenericOptions {
    fn parse(bytes: &[u8]) -> protobuf::Result<Self> {
        const LENGTH_DELIMITED: u32 = 2;
        const CONFIG_PATH: u32 = 2 << 3 | LENGTH_DELIMITED;
        const CONFIG_BODY: u32 = 3 << 3 | LENGTH_DELIMITED;
        let mut options = Self::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                CONFIG_PATH => options.config_path = input.read_string()?,
                CONFIG_BODY => options.config_body = input.read_bytes()?,
                _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(options)
    }

    fn read(self) -> Result<Options, OptionsError> {
        if self.config_path.is_empty() {
            return Options::from_toml("config_body", &String::from_utf8_lossy(&self.config_body));
        }
        let text =
            std::fs::read_to_string(&self.config_path).map_err(|source| OptionsError::File {
                operation: "read",
                path: self.config_path.clone().into(),
                source,
            })?;
        Options::from_toml(&self.config_path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        }
    }

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        bytes.extend_from_slice(content);
        bytes
    }

    #[test]
    fn runc_message() {
        let message = oci::Options {
            binary_name: "/opt/runc".into(),
            systemd_cgroup: true,
            io_uid: 5,
            ..Default::default()
        };
        let options = Options::from_any(&any(
            "containerd.runc.v1.Options",
            message.write_to_bytes().unwrap(),
        ))
        .unwrap();
        assert_eq!(options.binary(), "/opt/runc");
        assert!(options.systemd_cgroup);
        assert_eq!(options.io_uid, 5);
    }

    #[test]
    fn generic_message_with_body() {
        let mut bytes = field(1, b"io.containerd.podmotion.v1.options");
        bytes.extend(field(
            3,
            b"SystemdCgroup = true\nBinaryName = \"crun\"\nUnknown = 1\n",
        ));
        let options = Options::from_any(&any("runtimeoptions.v1.Options", bytes)).unwrap();
        assert!(options.systemd_cgroup);
        assert_eq!(options.binary(), "crun");
        assert_eq!(
            options.shim_cgroup, "",
            "the body is not mistaken for field 3 of runc's message"
        );
    }

    #[test]
    fn generic_message_with_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("options.toml");
        std::fs::write(&path, "Root = \"/srv/runc\"\nNoPivotRoot = true\n").unwrap();
        let bytes = field(2, path.to_str().unwrap().as_bytes());
        let options = Options::from_any(&any("runtimeoptions.v1.Options", bytes)).unwrap();
        assert_eq!(options.state_root("k8s.io"), Path::new("/srv/runc/k8s.io"));
        assert!(options.no_pivot_root);
    }

    #[test]
    fn wrong_toml_names_its_origin() {
        let bytes = field(3, b"SystemdCgroup = 3");
        let error = Options::from_any(&any("runtimeoptions.v1.Options", bytes)).unwrap_err();
        assert!(error.to_string().contains("config_body"), "{error}");
    }

    #[test]
    fn unknown_type_is_refused() {
        let error = Options::from_any(&any("example.Options", vec![1])).unwrap_err();
        assert!(error.to_string().contains("example.Options"), "{error}");
        assert_eq!(
            Options::from_any(&any("", vec![])).unwrap(),
            Options::default()
        );
    }

    #[test]
    fn stored_options_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            root: "/srv/runc".into(),
            io_gid: 4,
            ..Options::default()
        };
        options.store(dir.path()).unwrap();
        assert_eq!(Options::load(dir.path()).unwrap(), options);
        let json = std::fs::read_to_string(dir.path().join(OPTIONS_FILE)).unwrap();
        assert_eq!(json, r#"{"io_gid":4,"root":"/srv/runc"}"#);
    }
}
