//! Typed handles of the pinned maps.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use thiserror::Error;

use crate::layout::{
    Counters, FlowKey, FlowValue, NetnsValue, PortKey, PortValue, ProbeKey, ProbeValue,
};

/// A map could not be opened, read or changed.
#[derive(Debug, Error)]
pub enum MapError {
    /// The pin is missing, unreadable or of another type.
    #[error("cannot open the pinned BPF map {}", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: aya::maps::MapError,
    },
    /// The pinned map has entries of another size: it was made for another version.
    #[error(
        "the pinned BPF map {} has keys of {found_key} and values of {found_value} bytes, not {key} and {value}",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// Size of its keys, bytes.
        found_key: u32,
        /// Size of its values, bytes.
        found_value: u32,
        /// Size of the keys expected, bytes.
        key: usize,
        /// Size of the values expected, bytes.
        value: usize,
    },
    /// An entry could not be read.
    #[error("cannot read the BPF map {map}")]
    Read {
        /// Name of the map.
        map: &'static str,
        /// Why.
        #[source]
        source: aya::maps::MapError,
    },
    /// An entry could not be written: above all, the map is full.
    #[error("cannot write to the BPF map {map}")]
    Write {
        /// Name of the map.
        map: &'static str,
        /// Why.
        #[source]
        source: aya::maps::MapError,
    },
}

pub(crate) fn open<M: TryFrom<Map, Error = aya::maps::MapError>>(
    dir: &Path,
    name: &str,
    key: usize,
    value: usize,
) -> Result<M, MapError> {
    let path = dir.join(name);
    let data = match MapData::from_pin(&path) {
        Ok(data) => data,
        Err(source) => return Err(MapError::Open { path, source }),
    };
    check_layout(&data, &path, key, value)?;
    Map::from_map_data(data)
        .and_then(M::try_from)
        .map_err(|source| MapError::Open { path, source })
}

/// One of the gate's hash maps.
pub struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    _entry: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    pub(crate) fn open(dir: &Path, name: &'static str) -> Result<Self, MapError> {
        Ok(Self {
            name,
            map: open(dir, name, size_of::<K>(), size_of::<V>())?,
            _entry: PhantomData,
        })
    }

    /// The value of `key`, if it has one.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(MapError::Read {
                map: self.name,
                source,
            }),
        }
    }

    /// Creates or replaces the entry of `key`.
    pub fn insert(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.map
            .insert(key, value, 0)
            .map_err(|source| MapError::Write {
                map: self.name,
                source,
            })
    }

    /// Removes the entry of `key`; one that is not there is no error.
    pub fn remove(&mut self, key: &K) -> Result<(), MapError> {
        match self.map.remove(key) {
            Ok(()) => Ok(()),
            Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(source) => Err(MapError::Write {
                map: self.name,
                source,
            }),
        }
    }

    /// All keys. Entries that others add or remove meanwhile may be missed or seen twice.
    pub fn keys(&self) -> Result<Vec<K>, MapError> {
        self.map
            .keys()
            .collect::<Result<_, _>>()
            .map_err(|source| MapError::Read {
                map: self.name,
                source,
            })
    }
}

fn check_layout(data: &MapData, path: &Path, key: usize, value: usize) -> Result<(), MapError> {
    let info = data.info().map_err(|source| MapError::Open {
        path: path.into(),
        source,
    })?;
    if info.key_size() as usize != key || info.value_size() as usize != value {
        return Err(MapError::Layout {
            path: path.into(),
            found_key: info.key_size(),
            found_value: info.value_size(),
            key,
            value,
        });
    }
    Ok(())
}

/// Names of the gate's maps, which are also the names of their pins.
#[cfg(feature = "loader")]
pub(crate) const NAMES: [&str; 8] = [
    "netns",
    "ports",
    "flows",
    "counters",
    "probes",
    "ignored",
    "ignored_networks",
    "heads",
];
/// Names of those that only tell and steer probes.
#[cfg(feature = "loader")]
pub(crate) const NAMES_OF_PROBES: [&str; 2] = ["kubelets", "responders"];

/// All maps of a pin directory. They are shared by the node's shims: touch only the entries of your
/// own network namespace.
pub struct Maps {
    /// Cookie of a registered network namespace to its interfaces.
    pub netns: Table<u64, NetnsValue>,
    /// Managed ports and when they were last used.
    pub ports: Table<PortKey, PortValue>,
    /// Connections of sleeping containers.
    pub flows: Table<FlowKey, FlowValue>,
    /// Cookie to what the programs counted.
    pub counters: Table<u64, Counters>,
    /// Connections that are probes. The only table that the programs fill and clear themselves, with
    /// the node's oldest entries making room for new ones; see
    /// [`note_own_probe`](crate::note_own_probe).
    pub probes: Table<ProbeKey, ProbeValue>,
}

impl Maps {
    /// Opens the maps pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        Ok(Self {
            netns: Table::open(dir, "netns")?,
            ports: Table::open(dir, "ports")?,
            flows: Table::open(dir, "flows")?,
            counters: Table::open(dir, "counters")?,
            probes: Table::open(dir, "probes")?,
        })
    }

    /// Removes every entry of the network namespace with the cookie `netns`: what a shim that was
    /// killed has left. Reads all keys of all maps; the owner of a namespace that knows its entries
    /// has no need of it.
    ///
    /// # Errors
    ///
    /// The first failure, after everything was tried.
    pub fn purge(&mut self, netns: u64) -> Result<(), MapError> {
        let mut result = self.netns.remove(&netns);
        let own_port = |key: &PortKey| key.netns() == netns;
        result = result.and(remove_where(&mut self.ports, own_port));
        result = result.and(remove_where(&mut self.flows, |key| key.netns() == netns));
        result.and(self.counters.remove(&netns))
    }
}

fn remove_where<K: Pod, V: Pod>(
    table: &mut Table<K, V>,
    condition: impl Fn(&K) -> bool,
) -> Result<(), MapError> {
    let mut result = Ok(());
    for key in table.keys()?.iter().filter(|key| condition(key)) {
        result = result.and(table.remove(key));
    }
    result
}
