//! The chart's README: its tables come from the values' comments, their schema and the rendered roles.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::helm::{chart, is_current, read, template};

/// One value of the chart.
struct Parameter {
    section: String,
    path: String,
    about: String,
    default: Value,
}

/// All values, from the comments in `values.yaml`: `## section`, and `# about` above the value.
fn parameters() -> Result<Vec<Parameter>> {
    let text = read(&chart().join("values.yaml"))?;
    let values: Value = serde_saphyr::from_str(&text)?;
    let mut found = Vec::new();
    let (mut section, mut about) = (String::new(), String::new());
    let mut place: Vec<(usize, String)> = Vec::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        } else if let Some(words) = line.strip_prefix("# ") {
            ensure!(about.is_empty(), "two lines about one value: {words}");
            about = words.to_owned();
        } else if let Some((name, _)) = line.split_once(':').filter(|_| !line.starts_with('-')) {
            place.retain(|(outer, _)| *outer < indent);
            place.push((indent, name.to_owned()));
            if about.is_empty() {
                continue;
            }
            let names: Vec<&str> = place.iter().map(|(_, name)| name.as_str()).collect();
            let default = names.iter().fold(&values, |value, name| &value[*name]);
            found.push(Parameter {
                section: section.clone(),
                path: names.join("."),
                about: std::mem::take(&mut about),
                default: default.clone(),
            });
        }
    }
    Ok(found)
}

/// Paths of the values that the schema knows, less those inside a value that is one thing to people.
fn known(path: &str, schema: &Value, into: &mut BTreeSet<String>) {
    match schema["properties"].as_object() {
        Some(properties) if !["config", "manager.resources"].contains(&path) => {
            for (name, schema) in properties {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                known(&path, schema, into);
            }
        }
        _ => {
            into.insert(path.to_owned());
        }
    }
}

fn parameter_tables() -> Result<String> {
    let mut out = String::new();
    let mut section = String::new();
    for parameter in parameters()? {
        if parameter.section != section {
            section.clone_from(&parameter.section);
            out.push_str(&format!(
                "\n### {section}\n\n| parameter | what it is | default |\n|---|---|---|\n"
            ));
        }
        out.push_str(&format!(
            "| `{}` | {} | `{}` |\n",
            parameter.path, parameter.about, parameter.default
        ));
    }
    Ok(out)
}

/// A table for each role: what it may do, and the comment that says what for.
fn role_tables() -> Result<String> {
    let mut out = String::new();
    for file in ["rbac", "rbac-users"] {
        let text = template(
            "komodor-podmotion-system",
            &["--show-only", &format!("templates/{file}.yaml")],
        )?;
        for document in text.split("---\n").filter(|text| text.contains("\nrules:")) {
            out.push_str(&role_table(document)?);
        }
    }
    Ok(out)
}

fn role_table(document: &str) -> Result<String> {
    let role: Value = serde_saphyr::from_str(document)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&role["kind"]);
    let mut out = format!(
        "\n### {kind} `{}`\n\n| what | verbs | what for |\n|---|---|---|\n",
        text(&role["metadata"]["name"])
    );
    let rules = role["rules"].as_array().context("no rules")?;
    let reasons: Vec<&str> = document
        .split("\nrules:\n")
        .nth(1)
        .context("no rules")?
        .lines()
        .filter_map(|line| line.trim().strip_prefix("# "))
        .collect();
    ensure!(
        rules.len() == reasons.len(),
        "{kind} {}: {} rules and {} comments",
        role["metadata"]["name"],
        rules.len(),
        reasons.len()
    );
    for (rule, reason) in rules.iter().zip(reasons) {
        let list = |name: &str| -> Vec<String> {
            let values = rule[name].as_array().into_iter().flatten();
            values.map(text).collect()
        };
        let groups = list("apiGroups");
        let named = list("resourceNames");
        let resources = list("resources").join(", ");
        let groups: Vec<_> = groups.iter().filter(|group| !group.is_empty()).collect();
        let of_group = match groups.as_slice() {
            [] => String::new(),
            [group, ..] => format!(" of `{group}`"),
        };
        let only = if named.is_empty() {
            String::new()
        } else {
            format!(", only `{}`", named.join("`, `"))
        };
        out.push_str(&format!(
            "| `{resources}`{of_group}{only} | {} | {reason} |\n",
            list("verbs").join(", ")
        ));
    }
    Ok(out)
}

/// Puts `content` between the marks of that name.
fn put(text: &str, name: &str, content: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let missing = || format!("the README has no marks of {name}");
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    Ok(format!("{before}{begin}{content}\n{end}{after}"))
}

#[test]
fn the_tables_of_the_readme_are_current() -> Result<()> {
    let path = chart().join("README.md");
    let text = read(&path)?;
    let text = put(&text, "parameters", &parameter_tables()?)?;
    let text = put(&text, "roles", &role_tables()?)?;
    is_current(&path, &text)
}

#[test]
fn every_value_of_the_schema_is_documented_and_has_a_default() -> Result<()> {
    let schema: Value = serde_json::from_str(&read(&chart().join("values.schema.json"))?)?;
    let mut known_paths = BTreeSet::new();
    known("", &schema, &mut known_paths);
    let documented: BTreeSet<String> = parameters()?
        .into_iter()
        .map(|parameter| parameter.path)
        .collect();
    ensure!(
        documented == known_paths,
        "only documented: {:?}, only in the schema: {:?}",
        documented.difference(&known_paths),
        known_paths.difference(&documented)
    );
    Ok(())
}
