//! The steps of the demo, as they are done and as a table.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::numbers::{megabytes, ms, plain, time};
use crate::report::{self, Progress};

/// What a step found out.
#[derive(Default)]
pub struct Note {
    /// Processes of the container after it.
    pub processes: Option<usize>,
    /// Their private memory, in bytes.
    pub memory: Option<u64>,
    /// What it took, where that is not the time of the whole step.
    pub took: Option<Duration>,
    said: Vec<String>,
}

impl Note {
    /// Says something about the step.
    pub fn say(&mut self, what: impl Into<String>) {
        self.said.push(what.into());
    }
}

struct Step {
    name: String,
    took: Duration,
    note: Note,
    good: bool,
}

impl Step {
    fn said(&self) -> String {
        self.note.said.join("; ")
    }

    fn line(&self) -> String {
        let verdict = if self.good { "ok" } else { "FAILED" };
        format!(
            "{verdict:<6} {:>8}  {}: {}",
            time(self.took),
            self.name,
            self.said()
        )
    }
}

/// All steps until now.
pub struct Steps {
    progress: Progress,
    started: Instant,
    done: Vec<Step>,
    summary: Vec<String>,
}

impl Steps {
    pub fn new() -> Self {
        Self {
            progress: Progress::new(),
            started: Instant::now(),
            done: Vec::new(),
            summary: Vec::new(),
        }
    }

    /// Does one. An error is its own and the demo's failure.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce(&mut Note) -> Result<T>) -> Result<T> {
        self.progress.begin(name);
        let started = Instant::now();
        let mut note = Note::default();
        let result = work(&mut note);
        if let Err(error) = &result {
            note.say(format!("{error:#}"));
        }
        let step = Step {
            name: name.to_owned(),
            took: note.took.unwrap_or_else(|| started.elapsed()),
            note,
            good: result.is_ok(),
        };
        self.progress.end(&step.line());
        self.done.push(step);
        result.map_err(|error| error.context(name.to_owned()))
    }

    /// Adds a line to what is said in the end.
    pub fn conclude(&mut self, line: String) {
        self.summary.push(line);
    }

    pub fn summary(&self) -> String {
        let mut lines = self.summary.clone();
        let (count, took) = (self.done.len(), time(self.started.elapsed()));
        lines.push(format!("{count} steps in {took}, every check held"));
        lines.join("\n")
    }

    pub fn table(&self) -> String {
        let optional = |value: Option<String>| value.unwrap_or_default();
        let rows = self.done.iter().map(|step| {
            vec![
                step.name.clone(),
                time(step.took),
                optional(step.note.processes.map(|count| count.to_string())),
                optional(step.note.memory.map(megabytes)),
                if step.good { "yes" } else { "NO" }.into(),
                step.said(),
            ]
        });
        let header = ["step", "took", "processes", "memory", "good", "seen"];
        report::table(&header, &[1, 2, 3], rows)
    }

    /// The same for programs.
    pub fn figures(&self) -> Value {
        let steps = self.done.iter().map(|step| {
            json!({
                "step": step.name,
                "took_ms": (ms(step.took) * 1e3).round() / 1e3,
                "processes": step.note.processes,
                "memory_bytes": step.note.memory,
                "good": step.good,
                "seen": step.note.said,
            })
        });
        Value::Array(steps.collect())
    }
}

/// A fraction of a megabyte of which a shim is made, for people.
pub fn kib(value: u64) -> String {
    format!("{} KiB", plain(value as f64))
}
