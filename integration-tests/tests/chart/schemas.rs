//! All that the chart renders, against what objects look like in each release of Kubernetes that it supports. A field that
//! does not exist there is an error.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::helm::{cached, cases, objects, read, template_case};

/// Releases of Kubernetes.
const MINORS: std::ops::RangeInclusive<u32> = 23..=37;

/// Kinds of others than Kubernetes, whose definitions `kube::chart` gives to a real API server.
const FOREIGN: [&str; 2] = ["PodMonitor", "PrometheusRule"];

#[test]
fn every_object_is_valid_in_every_release() -> Result<()> {
    let mut all = Vec::new();
    for case in cases()? {
        for object in objects(&template_case(&case)?)? {
            all.push((case.clone(), object));
        }
    }
    let mut kinds = BTreeSet::new();
    for minor in MINORS {
        let schemas = Schemas::of(minor)?;
        let mut validators = BTreeMap::new();
        for (case, object) in &all {
            let kind = object["kind"].as_str().context("an object of no kind")?;
            if FOREIGN.contains(&kind) {
                continue;
            }
            kinds.insert(kind.to_owned());
            let validator = match validators.entry(kind.to_owned()) {
                std::collections::btree_map::Entry::Occupied(found) => found.into_mut(),
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert(schemas.validator(object)?)
                }
            };
            let errors: Vec<String> = validator
                .iter_errors(object)
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            ensure!(
                errors.is_empty(),
                "Kubernetes 1.{minor}, case {case}, {kind} {}:\n{}",
                object["metadata"]["name"],
                errors.join("\n")
            );
        }
    }
    ensure!(kinds.len() >= 8, "only {kinds:?} were looked at");
    Ok(())
}

#[test]
fn a_field_that_does_not_exist_is_found() -> Result<()> {
    let mut daemonset = objects(&template_case("default")?)?
        .into_iter()
        .find(|object| object["kind"] == "DaemonSet")
        .context("no DaemonSet")?;
    let validator = Schemas::of(23)?.validator(&daemonset)?;
    ensure!(validator.is_valid(&daemonset));
    daemonset["spec"]["template"]["spec"]["containers"][0]["readOnly"] = json!(true);
    ensure!(!validator.is_valid(&daemonset));
    Ok(())
}

/// The definitions of one release.
struct Schemas(Value);

impl Schemas {
    fn of(minor: u32) -> Result<Self> {
        let path = cached(&format!("tools/schemas/1.{minor}.json"))?;
        Ok(Self(serde_json::from_str(&read(&path)?)?))
    }

    /// A validator for objects of this one's kind.
    fn validator(&self, object: &Value) -> Result<Validator> {
        let (group, version) = match object["apiVersion"].as_str() {
            Some(text) => text.split_once('/').unwrap_or(("", text)),
            None => bail!("an object without apiVersion: {object}"),
        };
        let wanted = json!({"group": group, "version": version, "kind": object["kind"]});
        let (name, _) = self.0["$defs"]
            .as_object()
            .context("no definitions")?
            .iter()
            .find(|(_, definition)| {
                definition["x-kubernetes-group-version-kind"]
                    .as_array()
                    .is_some_and(|kinds| kinds.contains(&wanted))
            })
            .with_context(|| format!("there is no {wanted}"))?;
        let mut schema = self.0.clone();
        schema["$ref"] = json!(format!("#/$defs/{name}"));
        jsonschema::validator_for(&schema).context("read the schema")
    }
}
