//! `kubectl podmotion ps`.

use std::sync::Arc;

use anyhow::Result;
use comfy_table::{Cell, Color, Table};
use http::Method;
use jiff::Timestamp;
use podmotion_cli::{human, table};
use podmotion_proto::record::Record;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::args::{Output, PsArgs};
use crate::ask::{Answer, AskError, ask};
use crate::cluster::Cluster;
use crate::exit::Exit;
use crate::output::{self, OnNode};
use crate::token::Role;

/// Nodes that are asked at a time.
const AT_ONCE: usize = 32;

/// Lists containers.
///
/// # Errors
/// When the managers cannot be found, or nothing be printed.
pub async fn run(cluster: &Cluster, args: &PsArgs) -> Result<Exit> {
    let (mut found, exit) = gather(cluster, args).await?;
    if !args.pods.is_empty() {
        let is_meant = |one: &OnNode| {
            let pod = one.record.pod.as_ref().map(|pod| &pod.name);
            pod.is_some_and(|name| args.pods.contains(name))
        };
        found.retain(is_meant);
    }
    found.sort_by(|one, other| order(&one.record).cmp(&order(&other.record)));
    match args.output {
        Output::Json => output::json(&found)?,
        Output::Yaml => output::yaml(&found)?,
        Output::Table | Output::Wide if found.is_empty() => {
            if exit == Exit::Done {
                crate::complain(&nothing(args, &cluster.namespace));
            }
        }
        Output::Table | Output::Wide => {
            let columns = Columns {
                namespace: args.all_namespaces,
                wide: args.output == Output::Wide,
            };
            let table = columns.table(&found, Timestamp::now());
            table::print(&mut anstream::stdout(), table)?;
        }
    }
    Ok(exit)
}

/// A node and what came back from it.
type Asked = (String, Result<Answer<Vec<Record>>, AskError>);

/// Asks all managers. One that does not answer is complained about.
async fn gather(cluster: &Cluster, args: &PsArgs) -> Result<(Vec<OnNode>, Exit)> {
    let path = match args.all_namespaces {
        true => "/v1/containers".to_owned(),
        false => format!("/v1/containers?namespace={}", cluster.namespace),
    };
    let managers = cluster.managers().await?;
    let token = cluster.token(Role::Viewer).await?;
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut asking = JoinSet::new();
    for manager in managers {
        let (cluster, token, path) = (cluster.clone(), token.clone(), path.clone());
        let turns = Arc::clone(&turns);
        asking.spawn(async move {
            let _turn = turns.acquire().await.ok();
            let request = (Method::GET, path.as_str());
            let answer = ask(&cluster, &manager, &token, request, cluster.patience).await;
            (manager.node, answer)
        });
    }
    let mut answers: Vec<Asked> = asking.join_all().await;
    answers.sort_by(|(one, _), (other, _)| one.cmp(other));
    let (mut all, mut exit) = (Vec::new(), Exit::Done);
    let mut said = Vec::new();
    for (node, answer) in answers {
        match answer {
            Ok(answer) => {
                if !output::complain(&node, answer.silent) {
                    exit = exit.and(Exit::Incomplete);
                }
                let here = |record| OnNode {
                    node: node.clone(),
                    record,
                };
                all.extend(answer.content.into_iter().map(here));
            }
            Err(error) => {
                exit = exit.and(match error {
                    AskError::NoAnswer { .. } | AskError::Unreadable { .. } => Exit::Incomplete,
                    AskError::Refused { .. } | AskError::NotFound { .. } => Exit::Failed,
                });
                said.push(error);
            }
        }
    }
    for error in said {
        crate::complain(&error.to_string());
    }
    Ok((all, exit))
}

fn nothing(args: &PsArgs, namespace: &str) -> String {
    if args.all_namespaces {
        return "no containers are run by Podmotion".to_owned();
    }
    match args.pods.join(", ") {
        pods if pods.is_empty() => {
            format!("no containers in namespace {namespace} are run by Podmotion")
        }
        pods => format!("no containers of {pods} in namespace {namespace} are run by Podmotion"),
    }
}

fn order(record: &Record) -> (&str, &str, &str, &str) {
    let pod = record.pod.as_ref();
    let (namespace, name) = pod.map_or(("", ""), |pod| (&pod.namespace, &pod.name));
    (namespace, name, &record.name, &record.id)
}

/// Which columns there are.
struct Columns {
    namespace: bool,
    wide: bool,
}

impl Columns {
    fn header(&self) -> Vec<&'static str> {
        let first = ["NAMESPACE"].into_iter().filter(|_| self.namespace);
        let wide = ["LAST SLEEP", "LAST WAKE", "IMAGE SIZE", "PORTS", "ID"];
        first
            .chain([
                "POD",
                "CONTAINER",
                "STATE",
                "SINCE",
                "WHY",
                "WOKE BY",
                "FREED",
                "NODE",
            ])
            .chain(wide.into_iter().filter(|_| self.wide))
            .collect()
    }

    fn table(&self, found: &[OnNode], now: Timestamp) -> Table {
        let mut table = table::new(&self.header());
        for one in found {
            table.add_row(self.row(one, now));
        }
        table::pad(&mut table);
        table
    }

    fn row(&self, one: &OnNode, now: Timestamp) -> Vec<Cell> {
        let record = &one.record;
        let pod = record.pod.clone().unwrap_or_default();
        let depth = record.depth.as_deref().unwrap_or_default();
        let state = human::state(&record.state, depth, record.memory_wait.is_some());
        let mut cells: Vec<Cell> = Some(Cell::new(pod.namespace))
            .filter(|_| self.namespace)
            .into_iter()
            .collect();
        cells.extend([
            Cell::new(pod.name),
            Cell::new(&record.name),
            Cell::new(state).fg(color(record)),
            Cell::new(since(&record.since, now)),
            text(
                record
                    .awake_reason
                    .as_ref()
                    .map(|reason| reason.name.clone()),
            ),
            text(record.last_wake.as_ref().map(|last| last.cause.clone())),
            size(record.memory_freed_bytes),
            Cell::new(&one.node),
        ]);
        if self.wide {
            let sleep = record.last_sleep.as_ref().map(|last| last.took_seconds);
            let wake = record.last_wake.as_ref().map(|last| last.took_seconds);
            let ports: Vec<_> = record.ports.iter().map(u32::to_string).collect();
            cells.extend([
                text(sleep.map(human::seconds)),
                text(wake.map(human::seconds)),
                size(record.image_bytes),
                text(Some(ports.join(",")).filter(|ports| !ports.is_empty())),
                Cell::new(&record.id),
            ]);
        }
        cells
    }
}

/// The time since a moment of a record.
pub fn since(moment: &str, now: Timestamp) -> String {
    moment.parse::<Timestamp>().map_or_else(
        |_| "-".to_owned(),
        |moment| human::since(moment.as_millisecond(), now),
    )
}

fn text(text: Option<String>) -> Cell {
    Cell::new(text.unwrap_or_else(|| "-".to_owned()))
}

fn size(bytes: u64) -> Cell {
    text(Some(bytes).filter(|bytes| *bytes != 0).map(human::bytes))
}

fn color(record: &Record) -> Color {
    match record.state.as_str() {
        "asleep" => Color::Blue,
        "running" if record.last_error.is_none() => Color::Green,
        "restore-failed" => Color::Red,
        "running" => Color::Yellow,
        _ => Color::Reset,
    }
}

#[cfg(test)]
mod tests {
    use podmotion_proto::record::{AwakeReason, LastWake, Pod};

    use super::*;

    fn on_node(name: &str, state: &str) -> OnNode {
        OnNode {
            node: "n1".into(),
            record: Record {
                id: "abc".into(),
                name: name.into(),
                pod: Some(Pod {
                    namespace: "shop".into(),
                    name: "cart".into(),
                    uid: String::new(),
                }),
                state: state.into(),
                since: "1970-01-01T00:00:01.000Z".into(),
                ..Record::default()
            },
        }
    }

    fn lines(columns: &Columns, found: &[OnNode]) -> Vec<Vec<String>> {
        let mut table = columns.table(found, Timestamp::from_second(201).unwrap());
        table.force_no_tty();
        let words = |line: String| {
            let cells = line.split("   ").map(str::trim);
            let cells = cells.filter(|cell| !cell.is_empty());
            cells.map(str::to_owned).collect()
        };
        table.lines().map(words).collect()
    }

    #[test]
    fn a_line_says_why_it_is_awake_or_what_its_sleep_is_worth() {
        let mut asleep = on_node("web", "asleep");
        asleep.record.depth = Some("light".into());
        asleep.record.memory_freed_bytes = 62 << 20;
        let mut awake = on_node("db", "running");
        awake.record.awake_reason = Some(AwakeReason {
            name: "traffic".into(),
            ..AwakeReason::default()
        });
        awake.record.last_wake = Some(LastWake {
            cause: "signal".into(),
            ..LastWake::default()
        });
        let columns = Columns {
            namespace: true,
            wide: false,
        };
        let lines = lines(&columns, &[asleep, awake]);
        assert_eq!(lines[0], columns.header());
        assert_eq!(
            lines[1],
            [
                "shop",
                "cart",
                "web",
                "asleep (light)",
                "3m20s",
                "-",
                "-",
                "62.0 MiB",
                "n1"
            ]
        );
        assert_eq!(
            lines[2],
            [
                "shop", "cart", "db", "running", "3m20s", "traffic", "signal", "-", "n1"
            ]
        );
    }

    #[test]
    fn only_what_is_asked_for_has_columns() {
        let header = |namespace, wide| Columns { namespace, wide }.header();
        assert_eq!(header(false, false)[0], "POD");
        assert_eq!(header(true, true)[0], "NAMESPACE");
        assert_eq!(header(false, true).last(), Some(&"ID"));
        let columns = Columns {
            namespace: false,
            wide: true,
        };
        let lines = lines(&columns, &[on_node("web", "running")]);
        assert_eq!(lines[1].len(), columns.header().len());
    }

    #[test]
    fn what_a_newer_manager_says_more_is_no_error() {
        let mut record = serde_json::to_value(on_node("web", "asleep").record).unwrap();
        record["mood"] = "fine".into();
        serde_json::from_value::<Record>(record).unwrap();
    }
}
