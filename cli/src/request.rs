//! `podmotion sleep` and `podmotion wake`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use podmotion_proto::client::{Verb, ask, title};
use podmotion_proto::record::Outcome;
use podmotion_proto::shim::v1::Container;
use tokio::task::JoinSet;

use crate::args::{Global, Output, RequestArgs};
use crate::exit::Exit;
use crate::human::{bytes, took};
use crate::shims::{self, Found};
use crate::{node, ps, select};

/// Asks for sleep or for a wake of each container, all at the same time.
///
/// # Errors
/// When one of the names stands for no container: then nothing was asked for.
pub fn run(global: &Global, args: &RequestArgs, verb: Verb) -> Result<Exit> {
    let folder = node::sockets(global)?;
    shims::runtime()?.block_on(async {
        let survey = shims::survey(&folder).await?;
        let complete = shims::complain(&survey);
        let mut chosen: Vec<&Found> = Vec::new();
        for name in &args.containers {
            let found = select::one(&survey.found, name, complete)?;
            if !chosen
                .iter()
                .any(|one| one.container.id == found.container.id)
            {
                chosen.push(found);
            }
        }
        ask_all(global.output, chosen, verb, args.timeout).await
    })
}

async fn ask_all(
    output: Output,
    chosen: Vec<&Found>,
    verb: Verb,
    within: Duration,
) -> Result<Exit> {
    let mut asking = JoinSet::new();
    for found in chosen.into_iter().cloned() {
        asking.spawn(ask(found, verb, within));
    }
    let mut out = anstream::stdout();
    let (mut outcomes, mut exit) = (Vec::new(), Exit::Done);
    while let Some(asked) = asking.join_next().await {
        let asked = asked?;
        let container = &asked.found.container;
        let title = title(container);
        match &asked.error {
            None if output == Output::Table => {
                writeln!(out, "{title}: {}", describe(verb, container, asked.changed))?;
            }
            None => {}
            Some(error) => {
                exit = Exit::Failed;
                crate::complain(&format!("{title}: {error}"));
            }
        }
        outcomes.push(Outcome::new(&asked));
    }
    if output == Output::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&outcomes)?)?;
    }
    Ok(exit)
}

fn describe(verb: Verb, after: &Container, changed: bool) -> String {
    let state = ps::state(after);
    match (verb, after.last_sleep.as_ref(), after.last_wake.as_ref()) {
        (Verb::Sleep, Some(last), _) if changed => format!(
            "{state} after {}, {} freed, image {}",
            took(last.took_us),
            bytes(last.memory_bytes),
            bytes(last.image_bytes)
        ),
        (Verb::Wake, _, Some(last)) if changed => {
            format!(
                "{state} after {}, from {} sleep",
                took(last.took_us),
                last.depth
            )
        }
        _ => format!("{state} already"),
    }
}

#[cfg(test)]
mod tests {
    use podmotion_proto::shim::v1::{LastSleep, LastWake};

    use super::*;

    #[test]
    fn what_happened_is_told_and_what_was_so_already_too() {
        let container = Container {
            state: "asleep".into(),
            depth: "deep".into(),
            last_sleep: Some(LastSleep {
                took_us: 75_000,
                memory_bytes: 3 << 20,
                image_bytes: 4 << 20,
                ..Default::default()
            })
            .into(),
            last_wake: Some(LastWake {
                took_us: 4_200,
                depth: "light".into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        assert_eq!(
            describe(Verb::Sleep, &container, true),
            "asleep (deep) after 75 ms, 3.0 MiB freed, image 4.0 MiB"
        );
        assert_eq!(
            describe(Verb::Sleep, &container, false),
            "asleep (deep) already"
        );
        let awake = Container {
            state: "running".into(),
            depth: String::new(),
            ..container
        };
        assert_eq!(
            describe(Verb::Wake, &awake, true),
            "running after 4.2 ms, from light sleep"
        );
    }
}
