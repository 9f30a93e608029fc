//! `podmotion sleep` and `podmotion wake`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use podmotion_cli::human;
use podmotion_proto::client::{Verb, ask, title};
use podmotion_proto::record::Outcome;
use tokio::task::JoinSet;

use crate::args::{Global, Output, RequestArgs};
use crate::exit::Exit;
use crate::shims::{self, Found};
use crate::{node, select};

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
        let title = title(&asked.found.container);
        let outcome = Outcome::new(&asked);
        match &outcome.error {
            None if output == Output::Table => {
                writeln!(out, "{title}: {}", human::outcome(verb, &outcome))?;
            }
            None => {}
            Some(error) => {
                exit = Exit::Failed;
                crate::complain(&format!("{title}: {error}"));
            }
        }
        outcomes.push(outcome);
    }
    if output == Output::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&outcomes)?)?;
    }
    Ok(exit)
}
