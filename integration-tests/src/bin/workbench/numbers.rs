//! Figures for people, and what several measurements of one thing come to.

use std::time::Duration;

/// Several measurements of one thing, all in the same unit.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a time, in milliseconds.
    pub fn add_time(&mut self, time: Duration) {
        self.add(ms(time));
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle one; the mean of the middle two where there is none. 0 without any.
    pub fn p50(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        let lower = sorted.get(sorted.len().saturating_sub(1) / 2);
        (upper + lower.copied().unwrap_or_default()) / 2.0
    }

    /// The one that 99 of 100 do not exceed; of less than a hundred, the largest. 0 without any.
    pub fn p99(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * 99).div_ceil(100);
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }

    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

impl From<f64> for Samples {
    fn from(value: f64) -> Self {
        Self(vec![value])
    }
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Whole units from ten on, with decimals below.
pub fn plain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        10.0.. => thousands(value),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time with the unit that suits it.
pub fn time(time: Duration) -> String {
    match ms(time) {
        0.0 => "0".into(),
        1000.0.. => format!("{:.1} s", time.as_secs_f64()),
        milliseconds => format!("{} ms", plain(milliseconds)),
    }
}

/// An amount of memory, in units of 1,000,000 bytes.
pub fn megabytes(bytes: u64) -> String {
    format!("{} MB", plain(bytes as f64 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn the_middle_of_odd_even_and_none() {
        assert_eq!(samples(&[3.0, 1.0, 2.0]).p50(), 2.0);
        assert_eq!(samples(&[4.0, 1.0, 2.0, 3.0]).p50(), 2.5);
        assert_eq!(samples(&[]).p50(), 0.0);
    }

    #[test]
    fn all_but_one_of_a_hundred() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(samples(&hundred).p99(), 99.0);
        assert_eq!(samples(&[3.0, 7.5, 2.0]).p99(), 7.5);
        assert_eq!(samples(&[]).p99(), 0.0);
    }

    #[test]
    fn the_largest() {
        assert_eq!(samples(&[3.0, 7.5, 2.0]).max(), 7.5);
    }

    #[test]
    fn figures_have_as_many_digits_as_they_are_worth() {
        assert_eq!(plain(0.123), "0.12");
        assert_eq!(plain(9.87), "9.9");
        assert_eq!(plain(1234567.8), "1,234,568");
        assert_eq!(plain(123.4), "123");
    }
}
