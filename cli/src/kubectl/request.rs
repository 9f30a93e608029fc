//! `kubectl podmotion sleep` and `wake`.

use std::io::Write;

use anyhow::Result;
use http::Method;
use podmotion_cli::human;
use podmotion_proto::client::Verb;
use podmotion_proto::record::{Outcome, Record};
use tokio::task::JoinSet;

use crate::args::{Form, RequestArgs};
use crate::ask::{Answer, ask};
use crate::cluster::Cluster;
use crate::exit::Exit;
use crate::output::{self, OutcomeOnNode};
use crate::pods;
use crate::token::Role;

/// Asks for sleep or for a wake of each pod, all at the same time.
///
/// # Errors
/// When one of the names is no pod's: then nothing was asked for.
pub async fn run(cluster: &Cluster, args: &RequestArgs, verb: Verb) -> Result<Exit> {
    let managers = cluster.managers().await?;
    let mut chosen = Vec::new();
    for pod in &args.pods {
        if !chosen.iter().any(|(name, _)| name == pod) {
            let manager = pods::manager_of(cluster, &managers, pod).await?;
            chosen.push((pod.clone(), manager));
        }
    }
    let token = cluster.token(Role::Operator).await?;
    let mut asking = JoinSet::new();
    for (pod, manager) in chosen {
        let (cluster, token) = (cluster.clone(), token.clone());
        let path = path(&cluster.namespace, &pod, args, verb);
        // The manager's limit comes first, and says more.
        let within = args.timeout + cluster.patience;
        asking.spawn(async move {
            let request = (Method::POST, path.as_str());
            let answer = ask(&cluster, &manager, &token, request, within).await;
            (pod, manager.node, answer)
        });
    }
    let (mut outcomes, mut exit) = (Vec::new(), Exit::Done);
    while let Some(asked) = asking.join_next().await {
        let (pod, node, answer): (_, _, Result<Answer<Vec<Outcome>>, _>) = asked?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let error = pods::unknown(error);
                crate::complain(&format!("pod {pod}: {error:#}"));
                exit = exit.and(Exit::of(&error));
                continue;
            }
        };
        if !output::complain(&node, answer.silent) {
            exit = exit.and(Exit::Incomplete);
        }
        for outcome in answer.content {
            if !tell(verb, &outcome, args.output)? {
                exit = exit.and(Exit::Failed);
            }
            let node = node.clone();
            outcomes.push(OutcomeOnNode { node, outcome });
        }
    }
    match args.output {
        Form::Text => {}
        Form::Json => output::json(&outcomes)?,
        Form::Yaml => output::yaml(&outcomes)?,
    }
    Ok(exit)
}

fn path(namespace: &str, pod: &str, args: &RequestArgs, verb: Verb) -> String {
    let container = args.container.iter().map(|name| format!("/{name}"));
    let container: String = container.collect();
    let seconds = args.timeout.as_secs();
    format!(
        "/v1/containers/{namespace}/{pod}{container}/{}?timeout={seconds}",
        verb.as_str()
    )
}

/// Says what became of one; whether it went well.
fn tell(verb: Verb, outcome: &Outcome, output: Form) -> Result<bool> {
    let title = title(&outcome.container);
    match &outcome.error {
        Some(error) => crate::complain(&format!("{title}: {error}")),
        None if output == Form::Text => {
            let said = human::outcome(verb, outcome);
            writeln!(anstream::stdout(), "{title}: {said}")?;
        }
        None => {}
    }
    Ok(outcome.error.is_none())
}

/// `NAMESPACE/POD/CONTAINER`.
pub fn title(record: &Record) -> String {
    let pod = record.pod.clone().unwrap_or_default();
    format!("{}/{}/{}", pod.namespace, pod.name, record.name)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_is_for_a_pod_or_for_a_container_of_it() {
        let mut args = RequestArgs {
            pods: vec!["cart".into()],
            container: None,
            timeout: Duration::from_secs(90),
            output: Form::Text,
        };
        assert_eq!(
            path("shop", "cart", &args, Verb::Sleep),
            "/v1/containers/shop/cart/sleep?timeout=90"
        );
        args.container = Some("web".into());
        assert_eq!(
            path("shop", "cart", &args, Verb::Wake),
            "/v1/containers/shop/cart/web/wake?timeout=90"
        );
    }
}
