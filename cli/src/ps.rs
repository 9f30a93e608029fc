//! `podmotion ps`.

use std::io::Write;

use anyhow::Result;
use comfy_table::{Cell, Color, Table};
use jiff::Timestamp;
use podmotion_cli::{human, table};
use podmotion_proto::record::Record;
use podmotion_proto::shim::v1::{AwakeReason, Container};

use crate::args::{Global, Output, PsArgs};
use crate::exit::Exit;
use crate::node;
use crate::shims::{self, Found};

/// As many characters of an id as crictl shows.
const SHORT_ID: usize = 13;

const HEADER: [&str; 10] = [
    "POD",
    "CONTAINER",
    "ID",
    "STATE",
    "SINCE",
    "AWAKE BECAUSE",
    "LAST WAKE",
    "LAST SLEEP",
    "FREED",
    "IMAGE",
];

/// Lists containers.
///
/// # Errors
/// When the sockets cannot be listed, or nothing be printed.
pub fn run(global: &Global, args: &PsArgs) -> Result<Exit> {
    let folder = node::sockets(global)?;
    let survey = shims::runtime()?.block_on(shims::survey(&folder))?;
    let shown: Vec<&Found> = survey
        .found
        .iter()
        .filter(|one| args.filter.shows(one))
        .collect();
    let mut out = anstream::stdout();
    match global.output {
        Output::Json => {
            let records: Vec<Record> = shown.iter().map(|found| Record::new(found)).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&records)?)?;
        }
        Output::Table => {
            let table = table(&shown, args.no_trunc, Timestamp::now());
            table::print(&mut out, table)?;
        }
    }
    Ok(if shims::complain(&survey) {
        Exit::Done
    } else {
        Exit::Incomplete
    })
}

fn table(shown: &[&Found], whole_ids: bool, now: Timestamp) -> Table {
    let mut table = table::new(&HEADER);
    for found in shown {
        let [pod, name, id, state, rest @ ..] = row(found, whole_ids, now);
        let state = Cell::new(state).fg(color(&found.container));
        let cells = [Cell::new(pod), Cell::new(name), Cell::new(id), state];
        table.add_row(cells.into_iter().chain(rest.map(Cell::new)));
    }
    table::pad(&mut table);
    table
}

fn color(container: &Container) -> Color {
    match container.state.as_str() {
        "asleep" => Color::Blue,
        "running" if container.last_error.is_empty() => Color::Green,
        "restore-failed" => Color::Red,
        "running" => Color::Yellow,
        _ => Color::Reset,
    }
}

fn row(found: &Found, whole_ids: bool, now: Timestamp) -> [String; 10] {
    let container = &found.container;
    let pod = match container.pod_name.as_str() {
        "" => "-".to_owned(),
        pod => format!("{}/{pod}", container.pod_namespace),
    };
    let short = container.id.get(..SHORT_ID).filter(|_| !whole_ids);
    let name = match found.sandbox {
        true => "(pod)",
        false => &container.name,
    };
    [
        pod,
        name.to_owned(),
        short.unwrap_or(&container.id).to_owned(),
        state(container),
        human::since(container.since_unix_ms, now),
        or_dash(
            container
                .awake_reason
                .as_ref()
                .map(|reason| awake(reason, container, now)),
        ),
        or_dash(
            container
                .last_wake
                .as_ref()
                .map(|last| format!("{}, {}", last.cause, human::took(last.took_us))),
        ),
        or_dash(
            container
                .last_sleep
                .as_ref()
                .map(|last| human::took(last.took_us)),
        ),
        or_dash(size(container.memory_freed_bytes)),
        or_dash(size(container.image_bytes)),
    ]
}

/// What keeps it awake; since when, where that is the application's doing; and of a dry run whether a
/// checkpoint was possible.
fn awake(reason: &AwakeReason, container: &Container, now: Timestamp) -> String {
    let name = &reason.name;
    match (name.as_str(), container.rehearsal.as_ref()) {
        ("probe-pending", _) => format!("{name}, {}", human::since(reason.since_unix_ms, now)),
        (_, Some(last)) if last.error.is_empty() => format!("{name} (checkpoint possible)"),
        (_, Some(_)) => format!("{name} (no checkpoint)"),
        _ => name.clone(),
    }
}

/// `running`, `asleep (light)`, or `waking (waits for memory)`.
pub fn state(container: &Container) -> String {
    human::state(
        &container.state,
        &container.depth,
        container.memory_wait.is_some(),
    )
}

fn size(bytes: u64) -> Option<String> {
    Some(bytes).filter(|bytes| *bytes != 0).map(human::bytes)
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use podmotion_proto::shim::v1::{AwakeReason, LastSleep, LastWake};

    use super::*;

    #[test]
    fn a_line_says_what_it_costs_and_why() {
        let asleep = Container {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            pod_name: "cart".into(),
            pod_namespace: "shop".into(),
            state: "asleep".into(),
            depth: "light".into(),
            since_unix_ms: 1_000,
            memory_freed_bytes: 62 << 20,
            image_bytes: 63 << 20,
            last_sleep: Some(LastSleep {
                took_us: 50_400,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let awake = Container {
            id: "web".into(),
            name: "web".into(),
            state: "running".into(),
            awake_reason: Some(AwakeReason {
                name: "traffic".into(),
                ..Default::default()
            })
            .into(),
            last_wake: Some(LastWake {
                cause: "signal".into(),
                took_us: 4_200,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let socket = Path::new("/run/podmotion/shims/x.sock");
        let found = [asleep, awake].map(|container| Found::new(socket, container));
        let mut table = table(
            &found.iter().collect::<Vec<_>>(),
            false,
            Timestamp::from_second(201).unwrap(),
        );
        table.force_no_tty();
        let lines: Vec<String> = table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        let words = |line: &str| {
            let columns = line
                .split("   ")
                .map(str::trim)
                .filter(|word| !word.is_empty());
            columns.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(words(&lines[0]), HEADER);
        assert_eq!(
            words(&lines[1]),
            [
                "shop/cart",
                "web",
                "0123456789abc",
                "asleep (light)",
                "3m20s",
                "-",
                "-",
                "50 ms",
                "62.0 MiB",
                "63.0 MiB"
            ]
        );
        assert_eq!(
            words(&lines[2]),
            [
                "-",
                "web",
                "web",
                "running",
                "3m21s",
                "traffic",
                "signal, 4.2 ms",
                "-",
                "-",
                "-"
            ]
        );
    }
}
