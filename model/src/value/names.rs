//! Values that name something: programs, containers and their ports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Setting, ValueError};

/// A program: an absolute path, or a name to be looked up in `PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(String);

impl Program {
    /// Wraps a path or name that is already known to be one.
    pub(crate) fn new(program: &str) -> Self {
        Self(program.to_owned())
    }
}

impl AsRef<Path> for Program {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Setting for Program {
    const ACCEPTED: &'static str = "an absolute path, or the name of a program in PATH";

    fn parse(text: &str) -> Result<Self, ValueError> {
        let name_only = !text.is_empty() && !text.contains('/');
        if text.contains('\0') || !(text.starts_with('/') || name_only) {
            return Err(ValueError::Path {
                text: text.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    fn render(&self) -> String {
        self.0.clone()
    }
}

/// The name of one container of the pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerName(pub String);

impl Setting for ContainerName {
    const ACCEPTED: &'static str = "the name of a container";

    /// Spaces around the name are not part of it. What separates entries of lists and maps
    /// cannot be in a name.
    fn parse(text: &str) -> Result<Self, ValueError> {
        let name = text.trim();
        if name.is_empty() || name.contains([',', ';', '=']) || name.contains(char::is_whitespace) {
            return Err(ValueError::Name {
                text: text.to_owned(),
            });
        }
        Ok(Self(name.to_owned()))
    }

    fn render(&self) -> String {
        self.0.clone()
    }
}

/// Names of containers of the pod.
impl Setting for BTreeSet<ContainerName> {
    const ACCEPTED: &'static str = "names of containers such as web,admin";

    fn parse(text: &str) -> Result<Self, ValueError> {
        text.split(',').map(ContainerName::parse).collect()
    }

    fn render(&self) -> String {
        let names: Vec<_> = self.iter().map(|name| name.0.as_str()).collect();
        names.join(",")
    }
}

/// The ports of each container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortsMap(pub BTreeMap<ContainerName, BTreeSet<u16>>);

impl Setting for PortsMap {
    const ACCEPTED: &'static str = "ports by container such as web=8080,8443;admin=9000";

    fn parse(text: &str) -> Result<Self, ValueError> {
        let mut map = BTreeMap::new();
        for entry in text.split(';') {
            let (name, ports) = entry.split_once('=').ok_or_else(|| ValueError::Entry {
                text: entry.to_owned(),
            })?;
            let name = ContainerName::parse(name)?;
            let ports = ports.split(',').map(parse_port).collect::<Result<_, _>>()?;
            if map.contains_key(&name) {
                return Err(ValueError::Twice { name: name.0 });
            }
            map.insert(name, ports);
        }
        Ok(Self(map))
    }

    fn render(&self) -> String {
        let entry = |(name, ports): (&ContainerName, &BTreeSet<u16>)| {
            let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
            format!("{}={}", name.0, ports.join(","))
        };
        self.0.iter().map(entry).collect::<Vec<_>>().join(";")
    }
}

fn parse_port(text: &str) -> Result<u16, ValueError> {
    let digits = text.trim();
    // `u16::from_str` takes a plus sign, which no port has.
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|port| *port != 0)
        .ok_or_else(|| ValueError::Port {
            text: text.to_owned(),
        })
}
