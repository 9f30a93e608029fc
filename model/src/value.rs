//! How one setting is written: the same forms serve the configuration file and the
//! annotations, so a value means the same in both.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};

use crate::duration::{self, DurationError};

/// Why a text is not a value of its setting.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ValueError {
    /// Not a duration.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// A time that has to be longer than nothing.
    #[error("zero is not possible here")]
    Zero,
    /// Not a number, or not one in the accepted range.
    #[error("{text:?} is not a number in range")]
    Number {
        /// The text as written.
        text: String,
    },
    /// None of the words that are possible.
    #[error("{text:?} is none of the accepted words")]
    Word {
        /// The text as written.
        text: String,
    },
    /// Not an absolute path.
    #[error("{text:?} is not an absolute path")]
    Path {
        /// The text as written.
        text: String,
    },
    /// Not a container's name.
    #[error("{text:?} is not a container name")]
    Name {
        /// The text as written.
        text: String,
    },
    /// Not a TCP or UDP port.
    #[error("{text:?} is not a port between 1 and 65535")]
    Port {
        /// The text as written.
        text: String,
    },
    /// An entry of a map of ports without `=`.
    #[error("{text:?} has no =")]
    Entry {
        /// The text as written.
        text: String,
    },
    /// The same container named twice in a map.
    #[error("{name:?} is there twice")]
    Twice {
        /// The container's name.
        name: String,
    },
}

/// A type that can be set.
pub trait Setting: Sized {
    /// The accepted form, to be read behind "expected".
    const ACCEPTED: &'static str;
    /// Which TOML values may stand for it in the file.
    const TOML: TomlForm = TomlForm::String;

    /// Reads the value; `text` is an annotation's value or the text of the TOML value.
    fn parse(text: &str) -> Result<Self, ValueError>;

    /// Writes the value so that [`Setting::parse`] reads it back.
    fn render(&self) -> String;
}

/// Which TOML values may stand for a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TomlForm {
    /// A string.
    String,
    /// A bare `true` or `false`, or a number.
    Bare,
    /// A string, or a bare number (only `0` ever parses).
    StringOrZero,
}

/// Writes a setting as a TOML value.
pub fn to_toml<T: Setting>(value: &T) -> String {
    match T::TOML {
        TomlForm::Bare => value.render(),
        TomlForm::String | TomlForm::StringOrZero => {
            toml::Value::String(value.render()).to_string()
        }
    }
}

/// Reads a setting from TOML; for `#[serde(deserialize_with)]`.
pub fn deserialize<'de, T: Setting, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    struct Text<T>(PhantomData<T>);

    impl<T: Setting> Text<T> {
        fn bare<E: de::Error>(&self, text: &str, unexpected: de::Unexpected<'_>) -> Result<T, E> {
            match T::TOML {
                TomlForm::String => Err(E::invalid_type(unexpected, self)),
                TomlForm::Bare | TomlForm::StringOrZero => T::parse(text).map_err(E::custom),
            }
        }
    }

    impl<T: Setting> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::ACCEPTED)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            match T::TOML {
                TomlForm::Bare => Err(E::invalid_type(de::Unexpected::Str(text), &self)),
                TomlForm::String | TomlForm::StringOrZero => T::parse(text).map_err(E::custom),
            }
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
            self.bare(&value.to_string(), de::Unexpected::Bool(value))
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
            self.bare(&value.to_string(), de::Unexpected::Signed(value))
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
            self.bare(&value.to_string(), de::Unexpected::Float(value))
        }
    }

    from.deserialize_any(Text(PhantomData))
}

impl Setting for bool {
    const ACCEPTED: &'static str = "true or false";
    const TOML: TomlForm = TomlForm::Bare;

    fn parse(text: &str) -> Result<Self, ValueError> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(ValueError::Word {
                text: text.to_owned(),
            }),
        }
    }

    fn render(&self) -> String {
        self.to_string()
    }
}

/// A time that something takes at most, or waits: never zero.
impl Setting for Duration {
    const ACCEPTED: &'static str = "a Go duration such as 30s or 1m30s, longer than 0";

    fn parse(text: &str) -> Result<Self, ValueError> {
        match duration::parse(text)? {
            Duration::ZERO => Err(ValueError::Zero),
            time => Ok(time),
        }
    }

    fn render(&self) -> String {
        duration::format(*self)
    }
}

/// A time after which something happens; `None`, written `0`, is never.
impl Setting for Option<Duration> {
    const ACCEPTED: &'static str = "a Go duration such as 30s or 1m30s, 0 for never";
    const TOML: TomlForm = TomlForm::StringOrZero;

    fn parse(text: &str) -> Result<Self, ValueError> {
        let time = duration::parse(text)?;
        Ok((!time.is_zero()).then_some(time))
    }

    fn render(&self) -> String {
        duration::format(self.unwrap_or_default())
    }
}

/// A limit in CPU cores; `None`, written `0`, is no limit.
impl Setting for Option<f64> {
    const ACCEPTED: &'static str = "a number of CPU cores such as 0.5, 0 to ignore";
    const TOML: TomlForm = TomlForm::Bare;

    fn parse(text: &str) -> Result<Self, ValueError> {
        let out_of_range = || ValueError::Number {
            text: text.to_owned(),
        };
        let cores: f64 = text.parse().map_err(|_| out_of_range())?;
        if !cores.is_finite() || cores < 0.0 {
            return Err(out_of_range());
        }
        Ok((cores > 0.0).then_some(cores))
    }

    fn render(&self) -> String {
        self.unwrap_or_default().to_string()
    }
}

impl Setting for u32 {
    const ACCEPTED: &'static str = "a whole number from 1 to 4294967295";
    const TOML: TomlForm = TomlForm::Bare;

    fn parse(text: &str) -> Result<Self, ValueError> {
        text.parse()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| ValueError::Number {
                text: text.to_owned(),
            })
    }

    fn render(&self) -> String {
        self.to_string()
    }
}

/// A file or directory, by absolute path.
impl Setting for PathBuf {
    const ACCEPTED: &'static str = "an absolute path";

    fn parse(text: &str) -> Result<Self, ValueError> {
        if !text.starts_with('/') || text.contains('\0') {
            return Err(ValueError::Path {
                text: text.to_owned(),
            });
        }
        Ok(Self::from(text))
    }

    fn render(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

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

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    const UNITS: [(&str, u64); 5] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("B", 1),
    ];

    /// `count` times 2^20 bytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }
}

impl Setting for ByteSize {
    const ACCEPTED: &'static str = "a size such as 64MiB (B, KiB, MiB, GiB, TiB), 0 for none";
    const TOML: TomlForm = TomlForm::StringOrZero;

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text == "0" {
            return Ok(Self(0));
        }
        let not_a_size = || ValueError::Number {
            text: text.to_owned(),
        };
        // "B" ends every unit, so it comes last.
        let (number, scale) = Self::UNITS
            .iter()
            .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))
            .ok_or_else(not_a_size)?;
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(not_a_size());
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(scale))
            .map(Self)
            .ok_or_else(not_a_size)
    }

    fn render(&self) -> String {
        if self.0 == 0 {
            return "0".to_owned();
        }
        let (unit, scale) = Self::UNITS
            .iter()
            .find(|(_, scale)| self.0.is_multiple_of(*scale))
            .unwrap_or(&("B", 1));
        format!("{}{unit}", self.0 / scale)
    }
}

/// One of a few words, with the words as the only list of them.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $accepted:literal { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// The word that stands for it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Setting for $name {
            const ACCEPTED: &'static str = $accepted;

            fn parse(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ValueError::Word { text: text.to_owned() }),
                }
            }

            fn render(&self) -> String {
                self.as_str().to_owned()
            }
        }
    };
}

words! {
    /// What a TERM on a sleeping container does.
    TerminateAsleep, "wake or discard" {
        /// The container is woken and the signal delivered.
        Wake = "wake",
        /// The checkpoint is thrown away and the container is gone.
        Discard = "discard",
    }
}

words! {
    /// What becomes of established TCP connections on a change of node.
    NodeChangeTcp, "keep or close" {
        /// They are restored.
        Keep = "keep",
        /// They are closed.
        Close = "close",
    }
}

words! {
    /// What follows when a container cannot be restored, not even without lazy pages.
    OnRestoreFailure, "exit or cold-start" {
        /// The container exits with an error.
        Exit = "exit",
        /// The container's process is started anew, marked as such everywhere.
        ColdStart = "cold-start",
    }
}

words! {
    /// How much the shim logs.
    LogLevel, "error, warn, info, debug or trace" {
        /// Failures only.
        Error = "error",
        /// And what looks wrong.
        Warn = "warn",
        /// And each sleep and wake.
        Info = "info",
        /// And each step of them.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

/// How much CRIU logs: 0 (only messages) to 4 (everything).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CriuLogLevel(u8);

impl CriuLogLevel {
    /// Errors and warnings: what a failure's report needs.
    pub const WARNINGS: Self = Self(2);

    /// The number for CRIU's `log_level`.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Setting for CriuLogLevel {
    const ACCEPTED: &'static str = "a whole number from 0 to 4";
    const TOML: TomlForm = TomlForm::Bare;

    fn parse(text: &str) -> Result<Self, ValueError> {
        text.parse()
            .ok()
            .filter(|level| *level <= 4)
            .map(Self)
            .ok_or_else(|| ValueError::Number {
                text: text.to_owned(),
            })
    }

    fn render(&self) -> String {
        self.0.to_string()
    }
}

/// When a container in light sleep is checkpointed to deep sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeepSleepAfter {
    /// Deep from the start.
    Immediately,
    /// After this time in light sleep; more than zero.
    After(Duration),
    /// It stays light.
    Never,
}

impl Setting for DeepSleepAfter {
    const ACCEPTED: &'static str =
        "a Go duration such as 30s or 1m30s, 0 for straight to deep sleep, never to stay light";
    const TOML: TomlForm = TomlForm::StringOrZero;

    fn parse(text: &str) -> Result<Self, ValueError> {
        if text == "never" {
            return Ok(Self::Never);
        }
        Ok(match duration::parse(text)? {
            Duration::ZERO => Self::Immediately,
            time => Self::After(time),
        })
    }

    fn render(&self) -> String {
        match self {
            Self::Immediately => "0".to_owned(),
            Self::After(time) => duration::format(*time),
            Self::Never => "never".to_owned(),
        }
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
pub struct PortsMap(pub std::collections::BTreeMap<ContainerName, BTreeSet<u16>>);

impl Setting for PortsMap {
    const ACCEPTED: &'static str = "ports by container such as web=8080,8443;admin=9000";

    fn parse(text: &str) -> Result<Self, ValueError> {
        let mut map = std::collections::BTreeMap::new();
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

#[cfg(test)]
mod tests;
