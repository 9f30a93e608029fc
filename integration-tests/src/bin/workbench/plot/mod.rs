//! The project's pages with the figures of a run: a chart, and the tables between marks such as
//! `<!-- bench: wake -->` and `<!-- bench end -->`.

mod chart;
pub mod picture;
mod tables;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The chart, below the project's root.
const CHART: &str = "docs/sleep-depths.png";
/// Pages with tables.
const PAGES: &[&str] = &["README.md", "docs/sleep-depths.md"];

/// What will show the figures.
pub struct Pages {
    chart: (PathBuf, File),
    pages: Vec<(PathBuf, File)>,
}

impl Pages {
    /// Opens them and changes nothing. Before anything else: later the process has a view of the file
    /// system of its own.
    pub fn open() -> Result<Self> {
        Ok(Self {
            chart: open(CHART)?,
            pages: PAGES.iter().map(|page| open(page)).collect::<Result<_>>()?,
        })
    }

    /// Puts the figures of a run in.
    pub fn show(self, run: &Value) -> Result<()> {
        let figures = Figures::of(run)?;
        let (path, file) = self.chart;
        replace(&file)
            .and_then(|()| chart::draw(&figures, BufWriter::new(&file)))
            .with_context(|| format!("cannot draw {}", path.display()))?;
        println!("{}", path.display());
        for (path, mut file) in self.pages {
            let name = path.display();
            let mut text = String::new();
            file.read_to_string(&mut text)
                .with_context(|| format!("cannot read {name}"))?;
            let text = tables::put(&text, &figures).with_context(|| name.to_string())?;
            replace(&file)
                .and_then(|()| Ok(file.write_all(text.as_bytes())?))
                .with_context(|| format!("cannot write {name}"))?;
            println!("{name}");
        }
        Ok(())
    }
}

/// A file of the project.
pub fn in_project(name: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the project's root")?;
    Ok(root.join(name))
}

/// Opens a file of the project to write to it later, see [`replace`].
pub fn open(name: &str) -> Result<(PathBuf, File)> {
    let path = in_project(name)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok((path, file))
}

/// Empties a file.
pub fn replace(mut file: &File) -> Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(())
}

/// The figures of one run, by name.
struct Figures<'a> {
    all: &'a [Value],
    machine: &'a Value,
}

impl<'a> Figures<'a> {
    fn of(run: &'a Value) -> Result<Self> {
        let all = run["figures"]
            .as_array()
            .context("no figures: this is no run's")?;
        Ok(Self {
            all,
            machine: &run["machine"],
        })
    }

    /// One by its name, without the blanks in front of it.
    fn get(&self, name: &str) -> Option<&'a Value> {
        let named = |figure: &&Value| figure["name"].as_str().map(str::trim_start) == Some(name);
        self.all.iter().find(named)
    }

    /// Sizes of applications that were measured, in MB.
    fn sizes(&self) -> Vec<u32> {
        let size = |figure: &Value| {
            figure["name"]
                .as_str()?
                .strip_suffix(" MB, light wake, SYN to first byte")?
                .parse()
                .ok()
        };
        self.all.iter().filter_map(size).collect()
    }
}

/// One way to sleep or wake.
struct Way {
    /// What it is called.
    name: &'static str,
    /// The name of its figures, without the size.
    figure: &'static str,
    /// It is what the figure is compared with.
    beside: bool,
}

const WAKES: &[Way] = &[
    Way {
        name: "light",
        figure: "light wake, SYN to first byte",
        beside: false,
    },
    Way {
        name: "light, from disk",
        figure: "light wake from disk",
        beside: false,
    },
    Way {
        name: "deep",
        figure: "deep wake, SYN to first byte",
        beside: false,
    },
    Way {
        name: "runc restore",
        figure: "deep wake, SYN to first byte",
        beside: true,
    },
];

const SLEEPS: &[Way] = &[
    Way {
        name: "light",
        figure: "light sleep by itself, decision to memory free",
        beside: false,
    },
    Way {
        name: "light, asked for",
        figure: "light sleep, decision to memory free",
        beside: false,
    },
    Way {
        name: "light, the first",
        figure: "the first light sleep",
        beside: false,
    },
    Way {
        name: "deep",
        figure: "deep sleep, decision to memory free",
        beside: false,
    },
    Way {
        name: "runc checkpoint",
        figure: "deep sleep, decision to memory free",
        beside: true,
    },
];

impl Way {
    /// Its times with an application of that size.
    fn times<'a>(&self, figures: &Figures<'a>, mb: u32) -> Option<&'a Value> {
        let figure = figures.get(&format!("{mb} MB, {}", self.figure))?;
        Some(if self.beside {
            &figure["beside"]["figures"]
        } else {
            &figure["ours"]
        })
    }
}
