//! How one setting is written: the same forms serve the configuration file and the
//! annotations, so a value means the same in both.

mod lists;
mod names;
mod quantities;
mod words;

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};

pub use lists::{Entry, List, Network, ProcessName, UserAgent};
pub use names::{ContainerName, PortsMap, Program};
pub use quantities::{ByteSize, CriuLogLevel, DeepSleepAfter, Share};
pub use words::{Compression, LogLevel, NodeChangeTcp, OnRestoreFailure, TerminateAsleep};

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
    /// A text that is empty, too long, or has characters that it cannot have.
    #[error("{text:?} is not a text of 1 to {longest} bytes without commas and control characters")]
    Text {
        /// The text as written.
        text: String,
        /// How many bytes it can have.
        longest: usize,
    },
    /// Not a network.
    #[error("{text:?} is not a network: an address, /, and no bit of it set behind so many")]
    Network {
        /// The text as written.
        text: String,
    },
    /// A list with more entries than there can be.
    #[error("there are {found} entries, {most} are possible")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there can be.
        most: usize,
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
    /// An array of strings, the entries.
    List,
}

/// Writes a setting as a TOML value.
pub fn to_toml<T: Setting>(value: &T) -> String {
    match T::TOML {
        TomlForm::Bare => value.render(),
        TomlForm::String | TomlForm::StringOrZero => {
            toml::Value::String(value.render()).to_string()
        }
        TomlForm::List => {
            let text = value.render();
            let entries = text.split(',').filter(|entry| !entry.is_empty());
            toml::Value::Array(entries.map(toml::Value::from).collect()).to_string()
        }
    }
}

/// Reads a setting from TOML; for `#[serde(deserialize_with)]`.
pub fn deserialize<'de, T: Setting, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    struct Text<T>(PhantomData<T>);

    impl<T: Setting> Text<T> {
        fn bare<E: de::Error>(&self, text: &str, unexpected: de::Unexpected<'_>) -> Result<T, E> {
            match T::TOML {
                TomlForm::String | TomlForm::List => Err(E::invalid_type(unexpected, self)),
                TomlForm::Bare | TomlForm::StringOrZero => T::parse(text).map_err(E::custom),
            }
        }
    }

    impl<'de, T: Setting> Visitor<'de> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::ACCEPTED)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            match T::TOML {
                TomlForm::Bare | TomlForm::List => {
                    Err(E::invalid_type(de::Unexpected::Str(text), &self))
                }
                TomlForm::String | TomlForm::StringOrZero => T::parse(text).map_err(E::custom),
            }
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut entries: A) -> Result<T, A::Error> {
            if T::TOML != TomlForm::List {
                return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
            }
            let mut texts = Vec::new();
            while let Some(text) = entries.next_element::<String>()? {
                if text.is_empty() || text.contains(',') {
                    return Err(de::Error::invalid_value(de::Unexpected::Str(&text), &self));
                }
                texts.push(text);
            }
            T::parse(&texts.join(",")).map_err(de::Error::custom)
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

#[cfg(test)]
mod tests;
