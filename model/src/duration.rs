//! Go's duration syntax (`1m30s`, `100ms`, `1.5h`), which is what Kubernetes users write.
//!
//! The accepted language is that of Go's `time.ParseDuration`, except that a value below zero
//! is an error: nothing here lasts a negative time.

use std::time::Duration;

/// Go's longest duration: a signed 64-bit count of nanoseconds, about 292 years.
pub const MAX: Duration = Duration::from_nanos(i64::MAX as u64);

/// Units, longest first, with their length in nanoseconds. Both spellings of micro that Go
/// takes are here: U+00B5 (micro sign) and U+03BC (Greek mu).
const UNITS: [(&str, u64); 8] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ns", 1),
];

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// The text is empty, or only a sign.
    #[error("the duration is empty")]
    Empty,
    /// The value is below zero.
    #[error("a duration cannot be negative")]
    Negative,
    /// A number was expected where `found` stands.
    #[error("expected a number, found {found:?}")]
    Number {
        /// The text from the offending place on.
        found: String,
    },
    /// The last number has no unit.
    #[error("the number {number} has no unit")]
    MissingUnit {
        /// The number as written.
        number: String,
    },
    /// A unit that does not exist.
    #[error("unknown unit {unit:?}, expected one of h, m, s, ms, us, ns")]
    UnknownUnit {
        /// The unit as written.
        unit: String,
    },
    /// The value is longer than [`MAX`].
    #[error("the duration is too long, at most 2562047h47m16.854775807s")]
    TooLong,
}

/// Reads a duration in Go's syntax. `0` needs no unit.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if unsigned.is_empty() {
        return Err(DurationError::Empty);
    }
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total: u64 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let (nanos, after) = parse_component(rest)?;
        total = total
            .checked_add(nanos)
            .filter(|sum| *sum <= i64::MAX as u64)
            .ok_or(DurationError::TooLong)?;
        rest = after;
    }
    if negative && total != 0 {
        return Err(DurationError::Negative);
    }
    Ok(Duration::from_nanos(total))
}

/// Reads one number with its unit, returns its nanoseconds and the text behind it.
fn parse_component(text: &str) -> Result<(u64, &str), DurationError> {
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, after) = text.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(DurationError::Number {
            found: text.to_owned(),
        });
    }
    let unit_end = after
        .find(|c: char| c.is_ascii_digit() || c == '.')
        .unwrap_or(after.len());
    let (unit, rest) = after.split_at(unit_end);
    if unit.is_empty() {
        return Err(DurationError::MissingUnit {
            number: number.to_owned(),
        });
    }
    let (_, scale) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| DurationError::UnknownUnit {
            unit: unit.to_owned(),
        })?;
    let whole_nanos = decimal(whole)
        .and_then(|value| value.checked_mul(*scale))
        .ok_or(DurationError::TooLong)?;
    let nanos = whole_nanos
        .checked_add(fraction_nanos(fraction, *scale))
        .ok_or(DurationError::TooLong)?;
    Ok((nanos, rest))
}

/// The value of ASCII digits, `None` when it does not fit. No digits are zero.
fn decimal(digits: &str) -> Option<u64> {
    digits.bytes().try_fold(0_u64, |value, digit| {
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

/// Nanoseconds in the digits behind the point of a number whose unit has `scale` nanoseconds.
fn fraction_nanos(digits: &str, scale: u64) -> u64 {
    // Go goes through f64 here and ignores digits that no longer fit an i64; doing the same
    // gives the same last nanosecond.
    let mut value: u64 = 0;
    let mut divisor: f64 = 1.0;
    for digit in digits.bytes() {
        let Some(next) = value
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(u64::from(digit - b'0')))
            .filter(|next| *next <= i64::MAX as u64)
        else {
            break;
        };
        value = next;
        divisor *= 10.0;
    }
    (value as f64 * (scale as f64 / divisor)) as u64
}

/// Writes a duration so that [`parse`] and Go read it back exactly. Shorter than Go's own
/// `String`: components that are zero are left out (`1m`, not `1m0s`; zero is `0`).
pub fn format(duration: Duration) -> String {
    let mut out = String::new();
    let mut rest = duration.as_nanos();
    if rest == 0 {
        return "0".to_owned();
    }
    for (unit, scale) in [("h", 3_600_000_000_000_u128), ("m", 60_000_000_000)] {
        if rest >= scale {
            out.push_str(&(rest / scale).to_string());
            out.push_str(unit);
            rest %= scale;
        }
    }
    if rest > 0 {
        // Below a second the largest unit that leaves a whole part, as Go chooses it.
        let (unit, scale) = match rest {
            _ if rest >= 1_000_000_000 || !out.is_empty() => ("s", 1_000_000_000_u128),
            _ if rest >= 1_000_000 => ("ms", 1_000_000),
            _ if rest >= 1_000 => ("us", 1_000),
            _ => ("ns", 1),
        };
        out.push_str(&(rest / scale).to_string());
        let below = rest % scale;
        if below > 0 {
            let width = scale.ilog10() as usize;
            let digits = format!("{below:0width$}");
            out.push('.');
            out.push_str(digits.trim_end_matches('0'));
        }
        out.push_str(unit);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("+0", 0),
            ("-0s", 0),
            ("5s", 5_000_000_000),
            ("30s", 30_000_000_000),
            ("1m30s", 90_000_000_000),
            ("+5s", 5_000_000_000),
            ("5.0s", 5_000_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.5h", 5_400_000_000_000),
            ("100ms", 100_000_000),
            ("12us", 12_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("7ns", 7),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("39h9m14.425s", 140_954_425_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.830103483285477580700h", 2_988_372_539_827),
            ("9223372036854775807ns", i64::MAX as u64),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        use DurationError::*;
        let number = |found: &str| Number {
            found: found.to_owned(),
        };
        let unit = |unit: &str| UnknownUnit {
            unit: unit.to_owned(),
        };
        for (text, error) in [
            ("", Empty),
            ("-", Empty),
            ("+", Empty),
            ("-1s", Negative),
            ("s", number("s")),
            (".", number(".")),
            (".s", number(".s")),
            ("1.2.3s", number("1.2.3s")),
            (" 1s", number(" 1s")),
            ("+-1s", number("-1s")),
            (
                "10",
                MissingUnit {
                    number: "10".to_owned(),
                },
            ),
            (
                "1m30",
                MissingUnit {
                    number: "30".to_owned(),
                },
            ),
            ("10 s", unit(" s")),
            ("10s ", unit("s ")),
            ("1d", unit("d")),
            ("1S", unit("S")),
            ("1e3s", unit("e")),
            ("9223372036854775808ns", TooLong),
            ("2562048h", TooLong),
            ("99999999999999999999999s", TooLong),
            ("2562047h47m16.854775808s", TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn writes_the_short_form() {
        for text in [
            "0", "1m", "10m", "30s", "1m30s", "100ms", "1.5s", "1h", "1h5s", "1m0.5s", "1.25us",
            "1ns",
        ] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        assert_eq!(format(MAX), "2562047h47m16.854775807s");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in 0..=i64::MAX as u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "[-+.0-9hmsnu\u{b5} ]{0,30}") {
            if let Ok(duration) = parse(&text) {
                prop_assert_eq!(parse(&format(duration)), Ok(duration));
            }
        }
    }
}
