//! A value that does not exist or has the wrong type is refused by Helm, wherever it is.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::helm::{chart, helm, read};

/// The schema of the values.
fn schema() -> Result<Value> {
    Ok(serde_json::from_str(&read(
        &chart().join("values.schema.json"),
    )?)?)
}

/// What Helm says about these values: each line that names one, with its path as the values have it.
fn refused(values: &Value) -> Result<Vec<String>> {
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    serde_json::to_writer(&file, values)?;
    let path = file.path().to_str().context("a path that is not UTF-8")?;
    let output = helm(&["template", "x", "chart", "--values", path])?;
    ensure!(!output.status.success(), "accepted: {values}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(said
        .lines()
        .filter_map(|line| {
            let (pointer, problem) = line.trim().strip_prefix("- at '")?.split_once("': ")?;
            let path = pointer.trim_start_matches('/').replace('/', ".");
            Some(format!("{path}: {problem}"))
        })
        .collect())
}

/// Objects of the schema, with the paths of their places, and the properties that are no objects.
fn walk(path: &str, schema: &Value, objects: &mut Vec<String>, leaves: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        leaves.push(path.to_owned());
        return;
    };
    objects.push(path.to_owned());
    for (name, schema) in properties {
        walk(&join(path, name), schema, objects, leaves);
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Values with each of these places set.
fn with(places: &[String], value: impl Fn(&str) -> Value) -> Value {
    let mut values = json!({});
    for place in places {
        let mut at = &mut values;
        for name in place.split('.') {
            at = at
                .as_object_mut()
                .expect("places do not lie in one another")
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()));
        }
        *at = value(place);
    }
    values
}

/// A value that none of the leaves takes: no text, number, list, word or object of texts.
fn nonsense(_: &str) -> Value {
    json!({"nonsense": [null, false]})
}

#[test]
fn a_value_that_does_not_exist_is_refused_everywhere() -> Result<()> {
    let (mut objects, mut leaves) = (Vec::new(), Vec::new());
    walk("", &schema()?, &mut objects, &mut leaves);
    // Other charts' values are there too.
    objects.retain(|path| path != "global");
    ensure!(objects.len() > 20, "only {objects:?}");
    let unknown: Vec<_> = objects
        .iter()
        .map(|path| join(path, "doesNotExist"))
        .collect();
    let said = refused(&with(&unknown, |_| json!("x")))?;
    for path in objects {
        let wanted = format!("{path}: additional properties 'doesNotExist' not allowed");
        ensure!(said.contains(&wanted), "{wanted}: {said:#?}");
    }
    Ok(())
}

#[test]
fn a_value_of_the_wrong_type_is_refused_everywhere() -> Result<()> {
    let (mut objects, mut leaves) = (Vec::new(), Vec::new());
    walk("", &schema()?, &mut objects, &mut leaves);
    ensure!(leaves.len() > 50, "only {leaves:?}");
    let said = refused(&with(&leaves, nonsense))?;
    for path in &leaves {
        // Of an object of texts it is the text that is none.
        ensure!(
            said.iter().any(|line| line.starts_with(&format!("{path}:"))
                || line.starts_with(&format!("{path}.nonsense:"))),
            "{path}: {said:#?}"
        );
    }
    Ok(())
}

#[test]
fn a_value_in_place_of_a_group_of_them_is_refused() -> Result<()> {
    let groups: Vec<String> = schema()?["properties"]
        .as_object()
        .context("no properties")?
        .keys()
        // Helm itself sees to this one.
        .filter(|name| *name != "global")
        .cloned()
        .collect();
    let said = refused(&with(&groups, |_| json!("text")))?;
    for group in groups {
        ensure!(
            said.iter()
                .any(|line| line.starts_with(&format!("{group}:"))),
            "{group}: {said:#?}"
        );
    }
    Ok(())
}

#[test]
fn values_out_of_range_are_refused() -> Result<()> {
    for (place, value) in [
        ("manager.metrics.port", json!(0)),
        ("manager.metrics.port", json!(70_000)),
        ("manager.metrics.port", json!("8080")),
        ("manager.nodeServer.port", json!(8090.5)),
        ("manager.address", json!("localhost")),
        ("manager.address", json!("::")),
        ("manager.containerdSocket", json!("run/containerd.sock")),
        ("manager.resources.requests.memory", json!("32 MB")),
        ("installer.restart", json!("maybe")),
        ("installer.selfTest", json!("true")),
        ("namespace.name", json!("Upper")),
        ("images.manager.tag", json!("a b")),
        ("images.manager.pullPolicy", json!("Sometimes")),
        ("daemonset.dnsPolicy", json!("Cluster")),
        ("daemonset.tolerations", json!([{"operator": "Exist"}])),
        ("daemonset.tolerations", json!([{"opertor": "Exists"}])),
        ("podMonitor.interval", json!("30")),
        ("uninstall.enabled", json!("yes")),
        ("global.imagePullSecrets", json!([{"nam": "x"}])),
    ] {
        let said = refused(&with(&[place.to_owned()], |_| value.clone()))?;
        ensure!(
            said.iter().any(|line| line.starts_with(place)),
            "{place} = {value}: {said:?}"
        );
    }
    Ok(())
}
