//! The forms that cgroup files come in. What is missing or unlimited reads as such, since which
//! files there are depends on the kernel and its configuration.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// One number; `None` if the file is missing.
pub fn number(folder: &Path, file: &str) -> Option<u64> {
    parse_limit(fs::read_to_string(folder.join(file)).ok()?.trim())
}

/// A number, or `max`, which is the largest one.
pub fn parse_limit(text: &str) -> Option<u64> {
    if text == "max" {
        Some(u64::MAX)
    } else {
        text.parse().ok()
    }
}

/// A file of lines `key value`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keyed(HashMap<String, u64>);

impl Keyed {
    /// Reads the file; without it there are no keys.
    pub fn read(folder: &Path, file: &str) -> Self {
        Self::parse(&fs::read_to_string(folder.join(file)).unwrap_or_default())
    }

    /// Parses the file's text.
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), parse_limit(value.trim())?))
        };
        Self(text.lines().filter_map(pair).collect())
    }

    /// A key's value, 0 if there is none.
    pub fn get(&self, key: &str) -> u64 {
        self.find(key).unwrap_or_default()
    }

    /// A key's value, where there is one.
    pub fn find(&self, key: &str) -> Option<u64> {
        self.0.get(key).copied()
    }
}

/// A line `key name=value name=value`, as in `io.stat` and `rdma.current`.
#[derive(Debug, Default, PartialEq)]
pub struct Nested {
    /// What the line is about.
    pub key: String,
    values: HashMap<String, String>,
}

impl Nested {
    /// Reads a file's lines; without it there are none.
    pub fn read(folder: &Path, file: &str) -> Vec<Self> {
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines().map(Self::parse).collect()
    }

    /// Parses one line.
    pub fn parse(line: &str) -> Self {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default().to_owned();
        let pairs = words.filter_map(|word| word.split_once('='));
        let values = pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self { key, values }
    }

    /// A value as a number, 0 if there is none.
    pub fn get(&self, name: &str) -> u64 {
        self.values
            .get(name)
            .and_then(|value| parse_limit(value))
            .unwrap_or_default()
    }

    /// A value as a fraction, 0 if there is none.
    pub fn fraction(&self, name: &str) -> f64 {
        self.values
            .get(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or_default()
    }
}

/// A device as `major:minor`.
pub fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Sizes of huge pages, as they appear in names of files: `2MB`, `1GB`.
pub fn huge_page_sizes(folder: &Path, suffix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut sizes: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let size = name
                .to_str()?
                .strip_prefix("hugetlb.")?
                .strip_suffix(suffix)?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_lines() {
        let keyed = Keyed::parse("anon 4096\nlimit max\nbroken\nnot number\n");
        assert_eq!(keyed.get("anon"), 4096);
        assert_eq!(keyed.get("limit"), u64::MAX);
        assert_eq!((keyed.get("broken"), keyed.get("not")), (0, 0));
    }

    #[test]
    fn nested_lines() {
        let line = Nested::parse("8:16 rbytes=180224 wbytes=0 rios=3");
        assert_eq!(device(&line.key), Some((8, 16)));
        assert_eq!(
            (line.get("rbytes"), line.get("rios"), line.get("dios")),
            (180_224, 3, 0)
        );
        let pressure = Nested::parse("some avg10=1.25 avg60=0.00 avg300=0.00 total=17");
        assert!((pressure.fraction("avg10") - 1.25).abs() < f64::EPSILON);
    }
}
