//! How the node is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use podmotion_proto::client;
use podmotion_proto::report::{NodeReport, Shims};

use super::access::Access;
use super::api::{Caller, Node};
use super::refusal::Refusal;

/// The last self-test, and whether all shims answer.
pub async fn check(
    State(node): State<Arc<Node>>,
    caller: Caller,
) -> Result<Json<NodeReport>, Refusal> {
    let access = Access::Check {
        node: node.name.clone(),
    };
    caller.may(access).await?;
    let survey = client::survey(&node.shims).await?;
    let self_test = podmotion_self_test::read_report(&node.self_test);
    Ok(Json(NodeReport {
        node: node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        self_test: self_test.map_err(|error| Refusal::Node(error.to_string()))?,
        shims: Shims {
            answered: survey.answered.len(),
            silent: survey.silent.iter().map(ToString::to_string).collect(),
        },
    }))
}
