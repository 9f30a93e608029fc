//! How the node is.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use podmotion_proto::client;
use podmotion_proto::report::{NodeReport, SelfTest, Shims};

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
    Ok(Json(NodeReport {
        node: node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        self_test: self_test(&node.self_test)?,
        shims: Shims {
            answered: survey.answered.len(),
            silent: survey.silent.iter().map(ToString::to_string).collect(),
        },
    }))
}

/// What the last self-test has written down; nothing where there was none since the node has started.
fn self_test(path: &Path) -> Result<Option<SelfTest>, Refusal> {
    let failed = |cause: String| Refusal::Node(format!("read {}: {cause}", path.display()));
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let report = serde_json::from_slice(&text);
    report.map(Some).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_self_test_has_written_is_read() {
        let folder = std::env::temp_dir().join(format!("podmotion-check-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("self-test.json");
        assert_eq!(self_test(&path).unwrap(), None);
        fs::write(
            &path,
            r#"{"passed":false,"error":"step wake: no answer","kernel":"6.12","containerd":"2.1",
            "podmotion":"0.1.0","finished":"2026-01-02T03:04:05Z",
            "steps":[{"name":"sleep","ok":true,"millis":12,"detail":"light"}]}"#,
        )
        .unwrap();
        let report = self_test(&path).unwrap().unwrap();
        assert!(!report.passed && report.steps[0].ok);
        fs::write(&path, "{").unwrap();
        let error = self_test(&path).unwrap_err().to_string();
        assert!(error.contains("self-test.json"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
