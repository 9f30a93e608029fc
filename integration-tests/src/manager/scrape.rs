//! The OpenMetrics text, read strictly.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// All samples of one scrape.
#[derive(Debug)]
pub struct Scrape {
    samples: Vec<Sample>,
    text: String,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    /// Reads it. Each sample belongs to a family that was described before it, none comes twice, and the text
    /// ends as it must.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.strip_suffix("# EOF\n").context("no end")?.lines();
        let mut families: BTreeMap<&str, &str> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut samples = Vec::new();
        for line in lines {
            if let Some(comment) = line.strip_prefix("# ") {
                let words: Vec<_> = comment.splitn(3, ' ').collect();
                match words[..] {
                    ["TYPE", name, kind] => {
                        ensure!(families.insert(name, kind).is_none(), "{name} twice");
                    }
                    ["HELP", _, _] => {}
                    _ => bail!("{line:?}"),
                }
                continue;
            }
            let sample = Sample::parse(line).with_context(|| format!("read {line:?}"))?;
            ensure!(sample.is_of(&families), "{line:?} belongs to no family");
            let key = (sample.name.clone(), sample.labels.clone());
            ensure!(seen.insert(key), "{line:?} comes twice");
            samples.push(sample);
        }
        let text = text.to_owned();
        Ok(Self { samples, text })
    }

    /// Whether a word is anywhere in it.
    pub fn mentions(&self, word: &str) -> bool {
        self.text.contains(word)
    }

    /// The values of all samples with these labels among theirs.
    pub fn samples(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let has = |sample: &&Sample| {
            let mut labels = labels.iter();
            sample.name == name
                && labels.all(|(key, value)| sample.labels.get(*key).is_some_and(|is| is == value))
        };
        let found = self.samples.iter().filter(has);
        found.map(|sample| sample.value).collect()
    }

    /// The value of the only one.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        match self.samples(name, labels)[..] {
            [value] => Ok(value),
            ref all => bail!("{name}{labels:?}: {all:?}"),
        }
    }
}

impl Sample {
    fn parse(line: &str) -> Result<Self> {
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        let value = value.parse().context("the value")?;
        let Some((name, rest)) = series.split_once('{') else {
            let (name, labels) = (series.to_owned(), BTreeMap::new());
            return Ok(Self {
                name,
                labels,
                value,
            });
        };
        let mut labels = BTreeMap::new();
        let mut rest = rest.strip_suffix('}').context("no end of the labels")?;
        while !rest.is_empty() {
            let (key, value) = rest.split_once("=\"").context("no value of a label")?;
            // None of the tests' names has a quote in it.
            let (value, after) = value.split_once('"').context("no end of a value")?;
            ensure!(
                labels.insert(key.to_owned(), value.to_owned()).is_none(),
                "{key} twice"
            );
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        let name = name.to_owned();
        Ok(Self {
            name,
            labels,
            value,
        })
    }

    fn is_of(&self, families: &BTreeMap<&str, &str>) -> bool {
        let suffixes = |kind: &str| match kind {
            "counter" => &["_total"][..],
            "histogram" => &["_bucket", "_count", "_sum"],
            "info" => &["_info"],
            _ => &[""],
        };
        families.iter().any(|(name, kind)| {
            let suffix = self.name.strip_prefix(name);
            suffix.is_some_and(|suffix| suffixes(kind).contains(&suffix))
        })
    }
}
