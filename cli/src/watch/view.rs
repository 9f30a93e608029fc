//! What `podmotion watch` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use jiff::Timestamp;
use podmotion_cli::human::bytes;
use podmotion_proto::client::title;
use podmotion_proto::record::{Record, moment};
use podmotion_proto::shim::v1::Container;
use serde::Serialize;

use crate::args::{Filter, Output};
use crate::ps;
use crate::shims::Found;

/// What happened to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Event {
    /// It was there at first.
    Present,
    /// It is new, or in another state, or awake for another reason.
    Changed,
    /// It was removed.
    Gone,
}

#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    event: Event,
    container: Record,
}

/// What was printed last.
pub struct View {
    output: Output,
    filter: Filter,
    /// Sockets that were there at first and have not told anything yet.
    first: BTreeSet<PathBuf>,
    /// The same, and what they tell first is not printed.
    quiet: BTreeSet<PathBuf>,
    known: BTreeMap<PathBuf, BTreeMap<String, Found>>,
}

impl View {
    /// Of the shims that have a socket at first. Without `present` what they tell first is not printed.
    pub fn new(output: Output, filter: Filter, first: &BTreeSet<PathBuf>, present: bool) -> Self {
        let (first, quiet) = match present {
            true => (first.clone(), BTreeSet::new()),
            false => (BTreeSet::new(), first.clone()),
        };
        Self {
            output,
            filter,
            first,
            quiet,
            known: BTreeMap::new(),
        }
    }

    /// Prints what is new about the containers of a shim, which are all there.
    ///
    /// # Errors
    /// When nothing can be printed.
    pub fn now(&mut self, socket: &Path, containers: Vec<Container>) -> Result<()> {
        let event = if self.first.remove(socket) {
            Event::Present
        } else {
            Event::Changed
        };
        let print = !self.quiet.remove(socket);
        let now: BTreeMap<String, Found> = containers
            .into_iter()
            .map(|container| (container.id.clone(), Found::new(socket, container)))
            .collect();
        let before = self.known.remove(socket).unwrap_or_default();
        if print {
            for (id, found) in &now {
                if before.get(id).map(aspect) != Some(aspect(found)) {
                    self.print(event, found)?;
                }
            }
            for (_, found) in before.iter().filter(|(id, _)| !now.contains_key(*id)) {
                self.print(Event::Gone, found)?;
            }
        }
        if !now.is_empty() {
            self.known.insert(socket.to_owned(), now);
        }
        Ok(())
    }

    fn print(&self, event: Event, found: &Found) -> Result<()> {
        // One that ends is told of although it is not listed afterwards.
        let filter = Filter {
            all: self.filter.all || !found.sandbox,
            ..self.filter.clone()
        };
        if !filter.shows(found) {
            return Ok(());
        }
        let time = moment(Timestamp::now().as_millisecond());
        let mut out = anstream::stdout();
        match self.output {
            Output::Json => {
                let (time, container) = (time.as_str(), Record::new(found));
                let line = Line {
                    time,
                    event,
                    container,
                };
                writeln!(out, "{}", serde_json::to_string(&line)?)?;
            }
            Output::Table => {
                let title = title(&found.container);
                writeln!(
                    out,
                    "{time}  {title}  {}",
                    describe(event, &found.container)
                )?;
            }
        }
        Ok(out.flush()?)
    }
}

/// What of a container makes a line when it changes.
fn aspect(found: &Found) -> (&str, &str, Option<&str>) {
    let container = &found.container;
    let reason = container
        .awake_reason
        .as_ref()
        .map(|reason| reason.name.as_str());
    (&container.state, &container.depth, reason)
}

fn describe(event: Event, container: &Container) -> String {
    if event == Event::Gone {
        return "gone".to_owned();
    }
    let state = ps::state(container);
    if container.memory_freed_bytes != 0 && container.state == "asleep" {
        return format!("{state}: {} freed", bytes(container.memory_freed_bytes));
    }
    match container.awake_reason.as_ref() {
        Some(reason) => format!("{state}: {} ({})", reason.detail, reason.name),
        None => state,
    }
}

#[cfg(test)]
mod tests {
    use podmotion_proto::shim::v1::AwakeReason;

    use super::*;

    fn container(state: &str, reason: Option<(&str, &str)>) -> Container {
        Container {
            id: "web".into(),
            state: state.into(),
            awake_reason: reason
                .map(|(name, detail)| AwakeReason {
                    name: name.into(),
                    detail: detail.into(),
                    ..Default::default()
                })
                .into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_new_detail_of_the_same_reason_is_no_change() {
        let socket = Path::new("/run/web.sock");
        let found = |state, reason| Found::new(socket, container(state, reason));
        let first = found("running", Some(("unanswered", "a request of 1s ago")));
        let later = found("running", Some(("unanswered", "a request of 2s ago")));
        let other = found("running", Some(("traffic", "it was used")));
        assert_eq!(aspect(&first), aspect(&later));
        assert_ne!(aspect(&first), aspect(&other));
        assert_ne!(aspect(&other), aspect(&found("waking", None)));
    }

    #[test]
    fn lines_say_state_and_reason() {
        let awake = container("running", Some(("traffic", "it was used only just now")));
        assert_eq!(
            describe(Event::Changed, &awake),
            "running: it was used only just now (traffic)"
        );
        assert_eq!(describe(Event::Gone, &awake), "gone");
        let mut asleep = container("asleep", None);
        asleep.depth = "light".into();
        asleep.memory_freed_bytes = 1 << 20;
        assert_eq!(
            describe(Event::Changed, &asleep),
            "asleep (light): 1.0 MiB freed"
        );
    }
}
