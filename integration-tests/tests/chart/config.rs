//! `config` in the values is the node's `config.toml`: what the schema of the values accepts is what the configuration knows.
//!
//! The schema of each key comes from the accepted form that `config.toml.example` tells people.

use anyhow::{Context, Result, bail, ensure};
use podmotion_model::config::NodeConfig;
use serde_json::{Map, Value, json};

use crate::helm::{chart, helm, is_current, read, template};

/// A key of the example file.
struct Key {
    section: String,
    name: String,
    accepted: String,
    default: toml::Value,
}

/// All keys of the example file.
fn keys() -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    let (mut section, mut accepted) = (String::new(), String::new());
    for line in NodeConfig::example().lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some(text) = line.strip_prefix("# Expected: ") {
            accepted = text.trim_end_matches('.').to_owned();
        } else if let Some(assignment) = line.strip_prefix('#')
            && !assignment.starts_with(' ')
            && let Some((name, _)) = assignment.split_once(" = ")
        {
            let table: toml::Table = assignment.parse()?;
            keys.push(Key {
                section: section.clone(),
                name: name.to_owned(),
                accepted: accepted.clone(),
                default: table[name].clone(),
            });
        }
    }
    ensure!(keys.len() > 20, "only {} keys", keys.len());
    Ok(keys)
}

/// What JSON may stand for a value whose accepted form is this.
fn schema(key: &Key) -> Result<Value> {
    const DURATION: &str = r"([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+";
    const SIZE: &str = r"[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)";
    let accepted = key.accepted.as_str();
    let text = |pattern: String| json!({"type": "string", "pattern": format!("^({pattern})$")});
    let or_zero = |pattern: String| json!({"anyOf": [text(pattern), {"const": 0}]});
    Ok(if accepted == "true or false" {
        json!({"type": "boolean"})
    } else if accepted.starts_with("a Go duration") {
        match accepted.split_once(", ").context("a duration alone")?.1 {
            "longer than 0" => text(DURATION.to_owned()),
            "0 for never" => or_zero(format!("0|{DURATION}")),
            rest if rest.contains("never to stay") => or_zero(format!("0|never|{DURATION}")),
            rest => bail!("what are durations with {rest:?}?"),
        }
    } else if accepted.starts_with("a whole percentage") {
        or_zero(format!("0|100%|[1-9][0-9]?%|{SIZE}"))
    } else if accepted.starts_with("a size") {
        or_zero(format!("0|{SIZE}"))
    } else if accepted.starts_with("a number of CPU cores") {
        // `helm --set` makes a text of what has a fraction.
        json!({"anyOf": [{"type": "number", "minimum": 0}, text(r"[0-9]+\.[0-9]+".to_owned())]})
    } else if let Some(range) = accepted.strip_prefix("a whole number from ") {
        let (least, most) = range.split_once(" to ").context("a range")?;
        let (least, most): (u64, u64) = (least.parse()?, most.parse()?);
        json!({"type": "integer", "minimum": least, "maximum": most})
    } else if let Some(list) = accepted.strip_prefix("a list of at most ") {
        let most: u64 = list.split(' ').next().context("a number")?.parse()?;
        json!({"type": "array", "maxItems": most, "items": {"type": "string", "minLength": 1}})
    } else if accepted.starts_with("an absolute path, or the name") {
        json!({"type": "string", "minLength": 1})
    } else if accepted == "an absolute path" {
        json!({"type": "string", "pattern": "^/"})
    } else if accepted.contains(" or ") && accepted.split(' ').count() < 9 {
        let words: Vec<_> = accepted
            .split([' ', ','])
            .filter(|word| !word.is_empty() && *word != "or")
            .collect();
        json!({"enum": words})
    } else {
        bail!(
            "{}: the chart does not know values that are {accepted:?}",
            key.name
        )
    })
}

/// The schema of all of `config`.
fn config_schema() -> Result<Value> {
    let mut sections: Map<String, Value> = Map::new();
    for key in keys()? {
        let section = sections.entry(key.section.clone()).or_insert_with(
            || json!({"type": "object", "additionalProperties": false, "properties": {}}),
        );
        section["properties"][&key.name] = schema(&key)?;
    }
    Ok(json!({"type": "object", "additionalProperties": false, "properties": sections}))
}

/// Renders the chart with this `config` and reads what a node would get.
fn through_the_chart(config: &Value) -> Result<NodeConfig> {
    let values = tempfile::Builder::new().suffix(".json").tempfile()?;
    serde_json::to_writer(&values, &json!({"config": config}))?;
    let path = values.path().to_str().context("a path that is not UTF-8")?;
    let text = template(
        "default",
        &["--values", path, "--show-only", "templates/configmap.yaml"],
    )?;
    let object: Value = serde_saphyr::from_str(&text)?;
    let file = object["data"]["config.toml"]
        .as_str()
        .context("no config.toml")?;
    NodeConfig::from_toml(file).with_context(|| format!("a node refuses\n{file}"))
}

#[test]
fn the_schema_of_config_is_current() -> Result<()> {
    let path = chart().join("values.schema.json");
    let mut schema: Value = serde_json::from_str(&read(&path)?)?;
    schema["properties"]["config"] = config_schema()?;
    is_current(&path, &(serde_json::to_string_pretty(&schema)? + "\n"))
}

#[test]
fn defaults_written_down_change_nothing_on_a_node() -> Result<()> {
    let mut config = json!({});
    for key in keys()? {
        config[&key.section][&key.name] = serde_json::to_value(&key.default)?;
    }
    ensure!(through_the_chart(&config)? == NodeConfig::default());
    Ok(())
}

#[test]
fn values_reach_a_node_as_they_are() -> Result<()> {
    let config = json!({
        "sleep": {"scaledown_duration": "1m30s", "deep_sleep_after": 0, "busy_cpu": 2, "dry_run": true},
        "gate": {"hold_packets": 123_456_789, "hold_bytes": "32MiB"},
        "traffic": {"ignore_user_agents": ["a \"quoted\" <agent> & more"]},
    });
    let wanted = NodeConfig::from_toml(
        "[sleep]\nscaledown_duration = \"1m30s\"\ndeep_sleep_after = \"0\"\nbusy_cpu = 2\ndry_run = true\n\
         [gate]\nhold_packets = 123456789\nhold_bytes = \"32MiB\"\n\
         [traffic]\nignore_user_agents = ['a \"quoted\" <agent> & more']\n",
    )?;
    ensure!(through_the_chart(&config)? == wanted);
    Ok(())
}

#[test]
fn a_fraction_can_be_set_on_the_command_line() -> Result<()> {
    let set = ["--set", "config.sleep.busy_cpu=0.7"];
    let text = template(
        "default",
        &[&set[..], &["--show-only", "templates/configmap.yaml"]].concat(),
    )?;
    ensure!(text.contains("\n    busy_cpu = 0.7\n"), "{text}");
    Ok(())
}

#[test]
fn a_key_that_does_not_exist_and_a_value_that_is_none_are_refused() -> Result<()> {
    for (setting, said) in [
        ("config.sleep.scale_down_duration=5m", "scale_down_duration"),
        ("config.slep.dry_run=true", "slep"),
        (
            "config.sleep.scaledown_duration=5 minutes",
            "scaledown_duration",
        ),
        ("config.sleep.dry_run=maybe", "dry_run"),
        ("config.sleep.busy_cpu=-0.5", "busy_cpu"),
        ("config.sleep.busy_cpu=0.5.1", "busy_cpu"),
        ("config.checkpoint.quota=101%", "quota"),
        (
            "config.checkpoint.on_restore_failure=ignore",
            "on_restore_failure",
        ),
        ("config.gate.hold_packets=0", "hold_packets"),
        ("config.checkpoint.dump_timeout=0", "dump_timeout"),
    ] {
        let output = helm(&["template", "x", "chart", "--set", setting])?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{setting} is accepted");
        ensure!(error.contains(said), "{setting}: {error}");
    }
    Ok(())
}
