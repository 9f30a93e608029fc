//! Values that are an amount of something.

use std::time::Duration;

use super::{Setting, TomlForm, ValueError};
use crate::duration;

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
    const ACCEPTED: &'static str = "a size such as 64MiB (B, KiB, MiB, GiB, TiB), or 0";
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

/// A part of something that can run short: so many bytes, or so many hundredths of all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Bytes; 0 is nothing.
    Bytes(ByteSize),
    /// Hundredths, from 1 to 100.
    Percent(u8),
}

impl Share {
    /// The part in bytes, where there are `total` in all.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(ByteSize(bytes)) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

impl Setting for Share {
    const ACCEPTED: &'static str =
        "a whole percentage from 1% to 100%, a size such as 100MiB, or 0 for none";
    const TOML: TomlForm = TomlForm::StringOrZero;

    fn parse(text: &str) -> Result<Self, ValueError> {
        let Some(number) = text.strip_suffix('%') else {
            return ByteSize::parse(text).map(Self::Bytes);
        };
        Some(number)
            .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|number| number.parse().ok())
            .filter(|percent| (1..=100).contains(percent))
            .map(Self::Percent)
            .ok_or_else(|| ValueError::Number {
                text: text.to_owned(),
            })
    }

    fn render(&self) -> String {
        match self {
            Self::Bytes(bytes) => bytes.render(),
            Self::Percent(percent) => format!("{percent}%"),
        }
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
