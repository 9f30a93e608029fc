//! One line of the result: a figure, what it is compared with and what it should be.

use serde_json::{Value, json};

use crate::numbers::{Samples, plain};
use crate::report;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At most this, in the figure's unit.
    AtMost(f64),
    /// Of the middle one and of 99 of 100, at most this, in the figure's unit.
    Both(f64, f64),
    /// At most this share of what it is compared with.
    Share(f64),
    /// At least this share of what it is compared with: the larger the better.
    Keeps(f64),
}

/// A figure. The smaller the better, unless it has no target.
#[derive(Clone, Debug)]
pub struct Figure {
    name: String,
    unit: &'static str,
    samples: Samples,
    beside: Option<(&'static str, Samples)>,
    target: Option<Target>,
    /// The best existing peer on a machine of this kind.
    peer: Option<f64>,
}

impl Figure {
    pub fn new(name: impl Into<String>, unit: &'static str, samples: impl Into<Samples>) -> Self {
        Self {
            name: name.into(),
            unit,
            samples: samples.into(),
            beside: None,
            target: None,
            peer: None,
        }
    }

    /// What it is compared with, measured in the same run.
    pub fn beside(mut self, what: &'static str, samples: Samples) -> Self {
        self.beside = Some((what, samples));
        self
    }

    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    pub fn peer(mut self, value: Option<f64>) -> Self {
        self.peer = value;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Share of what it is compared with, of the middle ones.
    fn share(&self) -> Option<f64> {
        let (_, beside) = self.beside.as_ref()?;
        Some(self.samples.p50() / beside.p50())
    }

    /// Whether the target is met, where there is one.
    pub fn met(&self) -> Option<bool> {
        match self.target? {
            Target::AtMost(limit) => Some(self.samples.p50() <= limit),
            Target::Both(middle, most) => {
                Some(self.samples.p50() <= middle && self.samples.p99() <= most)
            }
            Target::Share(limit) => Some(self.share()? <= limit),
            Target::Keeps(limit) => Some(self.share()? >= limit),
        }
    }

    fn target_text(&self) -> String {
        match self.target {
            None => String::new(),
            Some(Target::AtMost(limit)) => format!("≤ {}", plain(limit)),
            Some(Target::Both(middle, most)) => {
                format!("≤ {} / {}", plain(middle), plain(most))
            }
            Some(Target::Share(limit)) => format!("≤ {:.0} %", limit * 100.0),
            Some(Target::Keeps(limit)) => format!("≥ {:.0} %", limit * 100.0),
        }
    }

    fn row(&self) -> Vec<String> {
        let (what, beside) = match &self.beside {
            Some((what, samples)) => ((*what).to_owned(), both(samples)),
            None => Default::default(),
        };
        // Near the same, a tenth of a percent matters.
        let decimals = usize::from(matches!(self.target, Some(Target::Keeps(_))));
        let share = self
            .share()
            .map(|share| format!("{:.decimals$} %", share * 100.0));
        let met = match self.met() {
            None => "",
            Some(true) => "met",
            Some(false) => "NOT MET",
        };
        vec![
            self.name.clone(),
            self.unit.to_owned(),
            both(&self.samples),
            beside,
            share.unwrap_or_default(),
            self.target_text(),
            met.to_owned(),
            self.peer.map(plain).unwrap_or_default(),
            what,
        ]
    }

    /// The same for programs.
    pub fn to_json(&self) -> Value {
        let samples = |samples: &Samples| {
            json!({
                "p50": samples.p50(),
                "p99": samples.p99(),
                "max": samples.max(),
                "count": samples.count(),
            })
        };
        json!({
            "name": self.name,
            "unit": self.unit,
            "ours": samples(&self.samples),
            "beside": self.beside.as_ref().map(|(what, beside)| json!({
                "what": what,
                "figures": samples(beside),
            })),
            "share": self.share(),
            "target": self.target_text(),
            "met": self.met(),
            "peer": self.peer,
        })
    }
}

fn both(samples: &Samples) -> String {
    if samples.count() == 1 {
        return plain(samples.p50());
    }
    format!("{} / {}", plain(samples.p50()), plain(samples.p99()))
}

/// All of them.
pub fn table(figures: &[Figure]) -> String {
    let header = [
        "figure",
        "unit",
        "p50 / p99",
        "beside it",
        "share",
        "target",
        "",
        "peer",
        "what is beside it",
    ];
    report::table(&header, &[2, 3, 4, 5, 7], figures.iter().map(Figure::row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        let mut samples = Samples::default();
        values.iter().for_each(|&value| samples.add(value));
        samples
    }

    #[test]
    fn a_share_is_of_the_middle_ones() {
        let figure = Figure::new("a", "ms", samples(&[20.0, 25.0, 900.0]))
            .beside("b", samples(&[100.0]))
            .target(Target::Share(0.25));
        assert_eq!(figure.met(), Some(true));
        let stricter = figure.target(Target::Share(0.24));
        assert_eq!(stricter.met(), Some(false));
    }

    #[test]
    fn what_keeps_its_share_is_not_below_it() {
        let figure = Figure::new("a", "1/s", 99.5).beside("b", samples(&[100.0]));
        assert_eq!(figure.clone().target(Target::Keeps(0.99)).met(), Some(true));
        assert_eq!(figure.target(Target::Keeps(0.996)).met(), Some(false));
    }

    #[test]
    fn a_limit_of_both_is_of_the_last_one_too() {
        let figure = Figure::new("a", "ms", samples(&[3.0, 4.0, 12.0]));
        let met = |middle, most| figure.clone().target(Target::Both(middle, most)).met();
        assert_eq!(met(4.0, 12.0), Some(true));
        assert_eq!(met(4.0, 11.0), Some(false));
        assert_eq!(met(3.0, 12.0), Some(false));
    }

    #[test]
    fn a_limit_is_of_the_middle_one() {
        let figure = Figure::new("a", "ns", 200.0);
        assert_eq!(figure.met(), None);
        assert_eq!(
            figure.clone().target(Target::AtMost(200.0)).met(),
            Some(true)
        );
        assert_eq!(figure.target(Target::AtMost(199.0)).met(), Some(false));
    }
}
