//! `podmotion inspect`.

use std::io::Write;

use anyhow::Result;
use jiff::Timestamp;
use podmotion_cli::human::{self, bytes, took};
use podmotion_proto::record::{Record, moment};
use podmotion_proto::shim::v1::Container;

use crate::args::{Global, InspectArgs, Output};
use crate::exit::Exit;
use crate::shims::{self, Found};
use crate::{node, ps, select};

/// Shows one container.
///
/// # Errors
/// When it is not there, or nothing can be printed.
pub fn run(global: &Global, args: &InspectArgs) -> Result<Exit> {
    let folder = node::sockets(global)?;
    let survey = shims::runtime()?.block_on(shims::survey(&folder))?;
    let complete = shims::complain(&survey);
    let found = select::one(&survey.found, &args.container, complete)?;
    let mut out = anstream::stdout();
    match global.output {
        Output::Json => writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(&Record::new(found))?
        )?,
        Output::Table => {
            for (name, value) in lines(found, Timestamp::now()) {
                writeln!(out, "{:<18}{value}", format!("{name}:"))?;
            }
        }
    }
    Ok(Exit::Done)
}

type Line = (&'static str, String);

fn lines(found: &Found, now: Timestamp) -> Vec<Line> {
    let container = &found.container;
    let mut lines = vec![
        ("Id", container.id.clone()),
        ("Name", container.name.clone()),
    ];
    if !container.pod_name.is_empty() {
        let (namespace, pod) = (&container.pod_namespace, &container.pod_name);
        lines.push(("Pod", format!("{namespace}/{pod} ({})", container.pod_uid)));
    }
    if found.sandbox {
        lines.push(("Sandbox", "it is the pod's own container".to_owned()));
    }
    lines.extend([
        ("Image", container.image.clone()),
        (
            "Namespace",
            format!("{} (containerd's)", container.namespace),
        ),
        ("Shim", found.socket.display().to_string()),
        ("State", ps::state(container)),
        ("Since", ago(container.since_unix_ms, now)),
    ]);
    if let Some(reason) = container.awake_reason.as_ref() {
        lines.push((
            "Awake because",
            format!("{} ({})", reason.detail, reason.name),
        ));
        lines.push(("  since", ago(reason.since_unix_ms, now)));
    }
    if let Some(wait) = container.memory_wait.as_ref() {
        let since = ago(wait.since_unix_ms, now);
        lines.push((
            "Waits for memory",
            format!("{}, since {since}", wait.detail),
        ));
    }
    lines.push(("Ports", ports(container)));
    if container.memory_freed_bytes != 0 || container.image_bytes != 0 {
        lines.push(("Memory freed", bytes(container.memory_freed_bytes)));
        lines.push(("Image size", bytes(container.image_bytes)));
    }
    last_sleep(container, now, &mut lines);
    last_wake(container, now, &mut lines);
    rehearsal(container, now, &mut lines);
    counts(container, &mut lines);
    probes(container, now, &mut lines);
    if !container.last_error.is_empty() {
        lines.push(("Last error", container.last_error.clone()));
    }
    lines
}

fn ago(unix_ms: i64, now: Timestamp) -> String {
    format!("{} ({} ago)", moment(unix_ms), human::since(unix_ms, now))
}

fn ports(container: &Container) -> String {
    if container.ports.is_empty() {
        return "none".to_owned();
    }
    let ports: Vec<String> = container.ports.iter().map(u32::to_string).collect();
    ports.join(", ")
}

fn last_sleep(container: &Container, now: Timestamp, lines: &mut Vec<Line>) {
    let Some(last) = container.last_sleep.as_ref() else {
        return;
    };
    lines.extend([
        ("Last sleep", ago(last.at_unix_ms, now)),
        ("  depth", last.depth.clone()),
        (
            "  took",
            format!(
                "{}, {} of it frozen",
                took(last.took_us),
                took(last.frozen_us)
            ),
        ),
        ("  memory freed", bytes(last.memory_bytes)),
        ("  image", bytes(last.image_bytes)),
    ]);
    if last.working_set_bytes != 0 {
        lines.push(("  working set", bytes(last.working_set_bytes)));
    }
    if last.left_bytes != 0 {
        lines.push(("  left in memory", bytes(last.left_bytes)));
    }
    if last.unread_bytes != 0 {
        lines.push(("  compared before", bytes(last.unread_bytes)));
    }
    if !last.compression.is_empty() {
        lines.push(("  compression", last.compression.clone()));
    }
    if !last.deepened.is_empty() {
        lines.push(("  deep because of", last.deepened.clone()));
    }
}

fn last_wake(container: &Container, now: Timestamp, lines: &mut Vec<Line>) {
    let Some(last) = container.last_wake.as_ref() else {
        return;
    };
    lines.extend([
        ("Last wake", ago(last.at_unix_ms, now)),
        ("  cause", last.cause.clone()),
        ("  depth", last.depth.clone()),
        ("  took", took(last.took_us)),
    ]);
    if last.packets != 0 {
        let held = took(last.first_packet_held_us);
        lines.push((
            "  packets",
            format!("{} given back, the first held for {held}", last.packets),
        ));
    }
    if last.prefetch_us != 0 {
        lines.push(("  prefetch", took(last.prefetch_us)));
    }
    if last.thaw_us != 0 {
        lines.push(("  thaw", took(last.thaw_us)));
    }
    if last.lazy {
        lines.push((
            "  lazy",
            "it ran before all of its memory was back".to_owned(),
        ));
    }
    if let Some(fill) = last.fill.as_ref() {
        lines.push((
            "  memory back",
            format!(
                "{} first, {} pages asked for in {}, {} in the background within {}",
                bytes(fill.prefetch_bytes),
                fill.faults,
                took(fill.faults_us),
                bytes(fill.background_bytes),
                took(fill.took_us)
            ),
        ));
    }
}

fn rehearsal(container: &Container, now: Timestamp, lines: &mut Vec<Line>) {
    let Some(last) = container.rehearsal.as_ref() else {
        return;
    };
    lines.push(("Dry run", ago(last.at_unix_ms, now)));
    if last.error.is_empty() {
        lines.extend([
            ("  checkpoint", "possible".to_owned()),
            ("  took", took(last.took_us)),
            ("  memory", bytes(last.memory_bytes)),
            ("  image", bytes(last.image_bytes)),
        ]);
    } else {
        lines.push(("  checkpoint", format!("not possible: {}", last.error)));
    }
}

fn counts(container: &Container, lines: &mut Vec<Line>) {
    let (counters, packets) = (&container.counters, &container.packets);
    lines.extend([
        (
            "Sleeps",
            format!(
                "{} done, {} given up, {} failed",
                counters.sleeps, counters.sleeps_aborted, counters.sleeps_failed
            ),
        ),
        (
            "Wakes",
            format!(
                "{} done, {} failed, {} cold starts",
                counters.wakes, counters.wakes_failed, counters.cold_starts
            ),
        ),
        (
            "Packets",
            format!(
                "{} held, {} given back, {} keepalives answered, {} acknowledgements dropped",
                packets.held, packets.returned, packets.answered, packets.dropped
            ),
        ),
    ]);
}

fn probes(container: &Container, now: Timestamp, lines: &mut Vec<Line>) {
    let probes = &container.probes;
    let (answered, proxied) = (probes.answered, probes.proxied);
    lines.push((
        "Probes",
        format!("{answered} answered in its place, {proxied} passed on to it"),
    ));
    for last in &probes.last {
        let asked = format!("{} {}", last.kind, last.subject);
        let passed = if last.passed { "passed" } else { "failed" };
        let when = human::since(last.at_unix_ms, now);
        lines.push((
            "  last",
            format!(
                "port {}, {}: {} ({passed}), {when} ago",
                last.port,
                asked.trim_end(),
                last.said
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use podmotion_proto::shim::v1::{AwakeReason, LastProbe, LastWake, Probes};

    use super::*;

    #[test]
    fn reasons_errors_and_times_are_all_there() {
        let container = Container {
            id: "web".into(),
            state: "running".into(),
            since_unix_ms: 1_000,
            ports: vec![80, 443],
            last_error: "dump: no room".into(),
            awake_reason: Some(AwakeReason {
                name: "terminal".into(),
                detail: "it has a terminal".into(),
                since_unix_ms: 31_000,
                ..Default::default()
            })
            .into(),
            last_wake: Some(LastWake {
                cause: "traffic".into(),
                took_us: 5_300,
                packets: 2,
                first_packet_held_us: 5_500,
                ..Default::default()
            })
            .into(),
            probes: Some(Probes {
                answered: 7,
                proxied: 2,
                last: vec![LastProbe {
                    port: 80,
                    at_unix_ms: 58_000,
                    kind: "http".into(),
                    subject: "GET /healthz".into(),
                    said: "503".into(),
                    ..Default::default()
                }],
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let found = Found::new(Path::new("/run/web.sock"), container);
        let lines = lines(&found, Timestamp::from_second(61).unwrap());
        for expected in [
            ("Since", "1970-01-01T00:00:01.000Z (60s ago)"),
            ("Awake because", "it has a terminal (terminal)"),
            ("  since", "1970-01-01T00:00:31.000Z (30s ago)"),
            ("Ports", "80, 443"),
            ("Probes", "7 answered in its place, 2 passed on to it"),
            ("  last", "port 80, http GET /healthz: 503 (failed), 3s ago"),
            ("  cause", "traffic"),
            ("  packets", "2 given back, the first held for 5.5 ms"),
            ("Last error", "dump: no room"),
        ] {
            let (name, value) = expected;
            assert!(
                lines.contains(&(name, value.to_owned())),
                "{name}: {lines:#?}"
            );
        }
    }
}
