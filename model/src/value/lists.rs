//! Values that are lists.

use std::net::IpAddr;

use super::{Setting, TomlForm, ValueError};

/// What a list can have for entries.
pub trait Entry: Setting {
    /// The accepted form of the list.
    const LIST: &'static str;
    /// The most entries.
    const MOST: usize;
}

/// A list, which can be empty. As one text its entries have commas between them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct List<T>(pub Vec<T>);

impl<T: Entry> Setting for List<T> {
    const ACCEPTED: &'static str = T::LIST;
    const TOML: TomlForm = TomlForm::List;

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let entries: Vec<T> = text.split(',').map(T::parse).collect::<Result<_, _>>()?;
        match entries.len() > T::MOST {
            true => Err(ValueError::TooMany {
                found: entries.len(),
                most: T::MOST,
            }),
            false => Ok(Self(entries)),
        }
    }

    fn render(&self) -> String {
        let entries: Vec<_> = self.0.iter().map(T::render).collect();
        entries.join(",")
    }
}

/// The name of a process, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessName(pub String);

impl ProcessName {
    /// What the kernel keeps of a name, bytes.
    const LONGEST: usize = 15;
}

impl Setting for ProcessName {
    const ACCEPTED: &'static str = "the name of a process, at most 15 bytes";

    fn parse(text: &str) -> Result<Self, ValueError> {
        plain(text, Self::LONGEST).map(Self)
    }

    fn render(&self) -> String {
        self.0.clone()
    }
}

impl Entry for ProcessName {
    const LIST: &'static str =
        "a list of at most 8 names of processes such as [\"kubelet\"], 15 bytes each";
    const MOST: usize = 8;
}

/// The beginning of a user agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserAgent(pub String);

impl UserAgent {
    /// How much of one is compared, bytes.
    const LONGEST: usize = 32;
}

impl Setting for UserAgent {
    const ACCEPTED: &'static str = "the beginning of a user agent, at most 32 bytes";

    fn parse(text: &str) -> Result<Self, ValueError> {
        plain(text, Self::LONGEST).map(Self)
    }

    fn render(&self) -> String {
        self.0.clone()
    }
}

impl Entry for UserAgent {
    const LIST: &'static str =
        "a list of at most 8 beginnings of user agents such as [\"Prometheus/\"], 32 bytes each";
    const MOST: usize = 8;
}

/// Neither empty nor longer than `longest` bytes, without what separates entries or cannot be seen.
fn plain(text: &str, longest: usize) -> Result<String, ValueError> {
    let fits = (1..=longest).contains(&text.len());
    if !fits || text.trim() != text || text.contains(',') || text.contains(char::is_control) {
        return Err(ValueError::Text {
            text: text.to_owned(),
            longest,
        });
    }
    Ok(text.to_owned())
}

/// A network: all addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its first address.
    pub address: IpAddr,
    /// How many bits its addresses share.
    pub prefix: u8,
}

impl Setting for Network {
    const ACCEPTED: &'static str = "a network such as 10.0.0.0/8, or an address";

    fn parse(text: &str) -> Result<Self, ValueError> {
        let not_one = || ValueError::Network {
            text: text.to_owned(),
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| not_one())?;
        // The first of the bits is the highest.
        let (bits, length) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let prefix = match prefix {
            None => length,
            // `u8::from_str` takes a plus sign.
            Some(digits) if digits.starts_with('+') => return Err(not_one()),
            Some(digits) => digits.parse().map_err(|_| not_one())?,
        };
        let behind = bits.checked_shl(u32::from(prefix)).unwrap_or(0);
        match prefix > length || behind != 0 {
            true => Err(not_one()),
            false => Ok(Self { address, prefix }),
        }
    }

    fn render(&self) -> String {
        format!("{}/{}", self.address, self.prefix)
    }
}

impl Entry for Network {
    const LIST: &'static str =
        "a list of at most 128 networks such as [\"10.0.0.0/8\", \"fd00::/8\"]";
    const MOST: usize = 128;
}
