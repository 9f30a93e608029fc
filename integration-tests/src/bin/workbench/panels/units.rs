//! Values as Grafana writes them, by the unit of a panel.

use crate::numbers::plain;

const BYTES: &[(f64, &str)] = &[
    (1_073_741_824.0, "GiB"),
    (1_048_576.0, "MiB"),
    (1024.0, "KiB"),
    (1.0, "B"),
];
const SECONDS: &[(f64, &str)] = &[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")];
/// What steps between two lines of an axis begin with.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];

/// What the values of a panel are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Seconds,
    Number,
}

impl Unit {
    /// By Grafana's name; numbers where there is none.
    pub fn of(name: Option<&str>) -> Option<Self> {
        match name {
            Some("bytes") => Some(Self::Bytes),
            Some("s") => Some(Self::Seconds),
            Some("short") | None => Some(Self::Number),
            Some(_) => None,
        }
    }

    /// A value with its unit.
    pub fn write(self, value: f64) -> String {
        let (size, name) = self.suiting(value);
        let number = value / size;
        let written = plain(number);
        let number = match written.split_once('.') {
            Some((_, decimals)) if decimals.ends_with('0') => {
                written.trim_end_matches('0').trim_end_matches('.')
            }
            _ => &written,
        };
        match (name, value) {
            ("", _) => number.to_owned(),
            (_, 0.0) => format!("0 {}", self.smallest()),
            _ => format!("{number} {name}"),
        }
    }

    /// The step between lines of an axis up to `highest`, so that there are `count` of them at most.
    pub fn step(self, highest: f64, count: u32) -> f64 {
        let least = highest / f64::from(count);
        let (size, _) = self.suiting(least);
        let mut power = match self {
            // A thousand bytes are no round number.
            Self::Bytes => size,
            Self::Seconds | Self::Number => 10_f64.powf(least.log10().floor()),
        };
        loop {
            for first in STEPS {
                if first * power >= least {
                    return first * power;
                }
            }
            power *= 10.0;
        }
    }

    fn suiting(self, value: f64) -> (f64, &'static str) {
        let sizes = match self {
            Self::Bytes => BYTES,
            Self::Seconds => SECONDS,
            Self::Number => return (1.0, ""),
        };
        let fits = sizes.iter().find(|(size, _)| value.abs() >= *size);
        let last = sizes.last().copied().unwrap_or((1.0, ""));
        fits.copied().unwrap_or(last)
    }

    fn smallest(self) -> &'static str {
        match self {
            Self::Bytes => "B",
            Self::Seconds => "s",
            Self::Number => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_unit_that_suits_them() {
        let all = [
            (Unit::Bytes, 0.0, "0 B"),
            (Unit::Bytes, 52_428_800.0, "50 MiB"),
            (Unit::Seconds, 0.0025, "2.5 ms"),
            (Unit::Seconds, 0.0, "0 s"),
            (Unit::Number, 3.0, "3"),
            (Unit::Number, 2.003, "2"),
            (Unit::Number, 0.5, "0.5"),
            (Unit::Number, 1.25, "1.2"),
            (Unit::Number, 1200.0, "1,200"),
        ];
        for (unit, value, text) in all {
            assert_eq!(unit.write(value), text);
        }
    }

    #[test]
    fn lines_of_an_axis_are_at_round_values() {
        assert_eq!(Unit::Number.step(7.0, 4), 2.0);
        assert_eq!(Unit::Number.step(0.9, 4), 0.5);
        assert_eq!(Unit::Seconds.step(0.09, 4), 0.05);
        assert_eq!(
            Unit::Bytes.step(250.0 * 1_048_576.0, 4),
            100.0 * 1_048_576.0
        );
    }

    #[test]
    fn a_unit_that_is_not_known_is_none() {
        assert_eq!(Unit::of(Some("percent")), None);
        assert_eq!(Unit::of(None), Some(Unit::Number));
    }
}
