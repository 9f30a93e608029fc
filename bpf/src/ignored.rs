//! Traffic that is not use: of which networks, and of which user agents.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, MapData};

use crate::layout::{self, MAX_AGENT, MAX_AGENTS, network};
use crate::maps::{MapError, open};

const NETWORKS: &str = "ignored_networks";
const IGNORED: &str = "ignored";

/// What is ignored on this node. One list for all its shims: the last one that was set.
pub struct IgnoredTraffic {
    networks: LpmTrie<MapData, [u8; 16], u8>,
    ignored: Array<MapData, layout::Ignored>,
}

impl IgnoredTraffic {
    /// Opens the maps pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        Ok(Self {
            networks: open(dir, NETWORKS, size_of::<Key<[u8; 16]>>(), size_of::<u8>())?,
            ignored: open(dir, IGNORED, size_of::<u32>(), size_of::<layout::Ignored>())?,
        })
    }

    /// Ignores these networks (an address and the length of its prefix) and HTTP/1 requests of user
    /// agents that begin so, in place of those before. At most [`MAX_AGENTS`](crate::MAX_AGENTS) of
    /// at most [`MAX_AGENT`](crate::MAX_AGENT) bytes.
    ///
    /// # Panics
    ///
    /// With more or longer user agents.
    pub fn set(&mut self, networks: &[(IpAddr, u8)], agents: &[&str]) -> Result<(), MapError> {
        let wanted: BTreeSet<_> = networks
            .iter()
            .map(|(address, prefix)| network(*address, *prefix))
            .collect();
        for (prefix, address) in &wanted {
            let key = Key::new(*prefix, *address);
            self.networks
                .insert(&key, 1, 0)
                .map_err(write_error(NETWORKS))?;
        }
        let value = value(wanted.len(), agents);
        self.ignored
            .set(0, value, 0)
            .map_err(write_error(IGNORED))?;
        let keys: Result<Vec<_>, _> = self.networks.keys().collect();
        let keys = keys.map_err(|source| MapError::Read {
            map: NETWORKS,
            source,
        })?;
        for key in keys {
            if !wanted.contains(&(key.prefix_len(), key.data())) {
                match self.networks.remove(&key) {
                    // Another shim, which sets the same, was faster.
                    Err(aya::maps::MapError::SyscallError(error))
                        if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
                    result => result.map_err(write_error(NETWORKS))?,
                }
            }
        }
        Ok(())
    }
}

fn write_error(map: &'static str) -> impl FnOnce(aya::maps::MapError) -> MapError {
    move |source| MapError::Write { map, source }
}

fn value(networks: usize, agents: &[&str]) -> layout::Ignored {
    assert!(agents.len() <= MAX_AGENTS, "{agents:?}");
    let mut value = layout::Ignored {
        networks: u32::try_from(networks).unwrap_or(u32::MAX),
        agents: agents.len() as u32,
        agent_lengths: [0; MAX_AGENTS],
        agent: [[0; MAX_AGENT]; MAX_AGENTS],
    };
    let places = value.agent.iter_mut().zip(&mut value.agent_lengths);
    for (agent, (place, length)) in agents.iter().zip(places) {
        place[..agent.len()].copy_from_slice(agent.as_bytes());
        *length = agent.len() as u8;
    }
    value
}
