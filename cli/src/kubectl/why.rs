//! `kubectl podmotion why`.

use std::io::Write;

use anyhow::Result;
use http::Method;
use jiff::Timestamp;
use podmotion_cli::human::{self, bytes, seconds};
use podmotion_model::docs;
use podmotion_proto::record::{LastSleep, LastWake, Record};

use crate::args::WhyArgs;
use crate::ask::{Answer, ask};
use crate::cluster::Cluster;
use crate::exit::Exit;
use crate::list::since;
use crate::request::title;
use crate::token::Role;
use crate::{output, pods};

/// Explains the containers of a pod.
///
/// # Errors
/// When they cannot be asked about, or nothing be printed.
pub async fn run(cluster: &Cluster, args: &WhyArgs) -> Result<Exit> {
    let managers = cluster.managers().await?;
    let manager = pods::manager_of(cluster, &managers, &args.pod).await?;
    let token = cluster.token(Role::Viewer).await?;
    let container = args.container.iter().map(|name| format!("/{name}"));
    let path = format!(
        "/v1/containers/{}/{}{}",
        cluster.namespace,
        args.pod,
        container.collect::<String>()
    );
    let request = (Method::GET, path.as_str());
    let answer = ask(cluster, &manager, &token, request, cluster.patience).await;
    let answer: Answer<Vec<Record>> = answer.map_err(pods::unknown)?;
    let mut out = anstream::stdout();
    for (number, record) in answer.content.iter().enumerate() {
        if number != 0 {
            writeln!(out)?;
        }
        for line in words(record, &manager.node, Timestamp::now()) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(match output::complain(&manager.node, answer.silent) {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}

/// All that there is to say about one.
fn words(record: &Record, node: &str, now: Timestamp) -> Vec<String> {
    let depth = record.depth.as_deref().unwrap_or_default();
    let state = human::state(&record.state, depth, record.memory_wait.is_some());
    let mut lines = vec![
        format!("{} on node {node}", title(record)),
        format!("  It is {state} since {}.", since(&record.since, now)),
    ];
    let mut say = |line: String| lines.push(format!("  {line}"));
    if let Some(wait) = &record.memory_wait {
        let waits = since(&wait.since, now);
        say(format!(
            "Its wake waits for memory since {waits}: {}.",
            wait.detail
        ));
    }
    if let Some(reason) = &record.awake_reason {
        let (name, detail) = (&reason.name, &reason.detail);
        say(format!(
            "It is awake because {detail} ({name}), since {}.",
            since(&reason.since, now)
        ));
        match docs::advice(name) {
            Some(advice) => say(format!("To have it sleep: {advice}")),
            // A newer manager's.
            None => say(format!(
                "This program does not know the reason {name:?}: it is older than the node."
            )),
        }
    } else if record.state == "running" {
        say(
            "Why it is awake is not known yet: it has not been looked at since it runs.".to_owned(),
        );
    }
    if record.state == "asleep" {
        say(asleep(record));
    }
    if let Some(last) = &record.last_sleep {
        say(last_sleep(last, now));
    }
    if let Some(last) = &record.last_wake {
        say(last_wake(last, now));
    }
    if let Some(last) = &record.rehearsal {
        let ago = since(&last.at, now);
        say(match &last.error {
            None => format!(
                "Dry run, {ago} ago: a checkpoint is possible, {} would be free.",
                bytes(last.memory_bytes)
            ),
            Some(error) => format!("Dry run, {ago} ago: no checkpoint is possible: {error}"),
        });
    }
    if let Some(error) = &record.last_error {
        say(format!("Last failure: {error}"));
    }
    lines
}

fn asleep(record: &Record) -> String {
    let freed = bytes(record.memory_freed_bytes);
    let ports: Vec<_> = record.ports.iter().map(u32::to_string).collect();
    let wakes = match ports.join(", ") {
        ports if ports.is_empty() => "nothing but an exec, a signal or a request".to_owned(),
        ports => format!("the first packet to port {ports}"),
    };
    format!("{freed} of memory are free for it; {wakes} wakes it.")
}

fn last_sleep(last: &LastSleep, now: Timestamp) -> String {
    let deepened = match &last.deepened {
        Some(cause) => format!(", deep because of {cause}"),
        None => String::new(),
    };
    format!(
        "Last sleep: {} ago, {}, took {}{deepened}, {} freed.",
        since(&last.at, now),
        last.depth,
        seconds(last.took_seconds),
        bytes(last.memory_bytes)
    )
}

fn last_wake(last: &LastWake, now: Timestamp) -> String {
    let held = match last.first_packet_held_seconds {
        Some(held) => format!(", its first packet held for {}", seconds(held)),
        None => String::new(),
    };
    format!(
        "Last wake: {} ago, by {}, took {}{held}.",
        since(&last.at, now),
        last.cause,
        seconds(last.took_seconds)
    )
}

#[cfg(test)]
mod tests {
    use podmotion_proto::record::{AwakeReason, Pod};

    use super::*;

    fn record(state: &str) -> Record {
        Record {
            name: "web".into(),
            pod: Some(Pod {
                namespace: "shop".into(),
                name: "cart".into(),
                uid: String::new(),
            }),
            state: state.into(),
            since: "1970-01-01T00:00:01.000Z".into(),
            ..Record::default()
        }
    }

    fn said(record: &Record) -> String {
        words(record, "n1", Timestamp::from_second(201).unwrap()).join("\n")
    }

    #[test]
    fn who_is_awake_is_explained_with_what_to_do() {
        let mut awake = record("running");
        awake.awake_reason = Some(AwakeReason {
            name: "terminal".into(),
            detail: "it has a terminal".into(),
            since: "1970-01-01T00:03:00.000Z".into(),
        });
        awake.last_error = Some("dump: no room".into());
        assert_eq!(
            said(&awake),
            "shop/cart/web on node n1\n  \
             It is running since 3m20s.\n  \
             It is awake because it has a terminal (terminal), since 21s.\n  \
             To have it sleep: Run it without `tty`.\n  \
             Last failure: dump: no room"
        );
        let reason = awake.awake_reason.as_mut().unwrap();
        reason.name = "mood".into();
        assert!(said(&awake).contains("older than the node"));
    }

    #[test]
    fn who_sleeps_is_told_by_what_it_is_worth_and_what_wakes_it() {
        let mut asleep = record("asleep");
        asleep.depth = Some("light".into());
        asleep.memory_freed_bytes = 62 << 20;
        asleep.ports = vec![80, 443];
        asleep.last_wake = Some(LastWake {
            at: "1970-01-01T00:00:01.000Z".into(),
            cause: "traffic".into(),
            took_seconds: 0.0042,
            first_packet_held_seconds: Some(0.0055),
            ..LastWake::default()
        });
        let said = said(&asleep);
        for words in [
            "It is asleep (light) since 3m20s.",
            "62.0 MiB of memory are free for it; the first packet to port 80, 443 wakes it.",
            "Last wake: 3m20s ago, by traffic, took 4.2 ms, its first packet held for 5.5 ms.",
        ] {
            assert!(said.contains(words), "{said}");
        }
    }
}
