//! Whether containerd has the runtime.

use std::path::Path;

use super::Verdict;
use crate::containerd::{Configuration, ContainerdError, RUNTIME, example};

/// A CRI runtime of the shim's type, to which the pods' annotations are passed on.
pub fn runtime(path: &Path) -> Verdict {
    let configuration = match Configuration::read(path) {
        Ok(configuration) => configuration,
        Err(error) => {
            let advice = match &error {
                ContainerdError::Read { .. } => format!(
                    "say where the configuration is, with --containerd-config, or make it:\nversion = 3\n{}",
                    example(3)
                ),
                _ => "correct the file".to_owned(),
            };
            return Verdict::failed(error.to_string(), advice);
        }
    };
    let handlers = configuration.handlers();
    if handlers.is_empty() {
        return Verdict::failed(
            format!(
                "{} and what it imports has no runtime of type {RUNTIME}",
                path.display()
            ),
            format!("add this:\n{}", configuration.example()),
        );
    }
    let all: Vec<String> = handlers
        .iter()
        .map(|handler| format!("{} in {}", handler.name, handler.file.display()))
        .collect();
    if let Some(deaf) = handlers.iter().find(|handler| !handler.annotations) {
        return Verdict::warning(
            format!(
                "{}, but annotations of pods do not reach the shim",
                all.join(", ")
            ),
            format!(
                "add pod_annotations = [\"komodor.com/*\"] to runtime {}",
                deaf.name
            ),
        );
    }
    Verdict::ok(all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_is_the_section_of_the_files_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let advice = |text: &str| {
            std::fs::write(&path, text).unwrap();
            match runtime(&path) {
                Verdict::Failed(found) => found.advice,
                other => panic!("{other:?}"),
            }
        };
        assert!(advice("version = 2").contains("io.containerd.grpc.v1.cri"));
        assert!(advice("version = 3").contains("io.containerd.cri.v1.runtime"));
        assert_eq!(advice("version = "), "correct the file");
        std::fs::remove_file(&path).unwrap();
        let Verdict::Failed(found) = runtime(&path) else {
            panic!("a missing file is accepted");
        };
        assert!(found.advice.contains("--containerd-config"), "{found:?}");
    }
}
