//! A panel with one line for each node: the last values of several queries side by side.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use plotters::prelude::*;
use serde_json::Value;

use super::stat::colour;
use super::text::{Text, width, write};
use super::{GRID, INK, Inner, Panel};

const HEIGHT: i32 = 38;
/// Between two columns.
const APART: i32 = 44;

pub(super) fn draw(panel: &Panel<'_>, inner: &Inner<'_, '_>) -> Result<()> {
    let (names, lines) = table(panel)?;
    let heads = names.iter().map(|name| Cell {
        words: name.clone(),
        colour: INK,
    });
    let mut left = inner.left;
    for (index, head) in heads.enumerate() {
        let column = lines.iter().map(|line| line.get(&names[index]));
        let cells = [Some(&head)].into_iter().chain(column);
        let mut widest = 0;
        for (cell, top) in cells.zip((inner.top..).step_by(HEIGHT as usize)) {
            // A node need not have all of it.
            let Some(cell) = cell else { continue };
            let text = Text::SMALL.coloured(cell.colour);
            write(inner.area, &cell.words, (left, top + 8), text)?;
            widest = widest.max(width(inner.area, &cell.words, text)?);
        }
        left += widest + APART;
    }
    for edge in (inner.top + HEIGHT..=inner.bottom)
        .step_by(HEIGHT as usize)
        .take(lines.len() + 1)
    {
        let line = [(inner.left, edge), (inner.right, edge)];
        inner.area.draw(&PathElement::new(line, GRID))?;
    }
    Ok(())
}

/// Cells by their columns' names.
type Line = BTreeMap<String, Cell>;

struct Cell {
    words: String,
    colour: RGBColor,
}

/// The columns' names, and the lines, as the panel's transformations have them: answers with the same node are
/// one line, and columns get other names or are left out.
fn table(panel: &Panel<'_>) -> Result<(Vec<String>, Vec<Line>)> {
    let transformations = panel.said["transformations"].as_array();
    let organize = transformations
        .into_iter()
        .flatten()
        .find(|one| one["id"] == "organize")
        .context("a table that is not organized")?;
    let options = &organize["options"];
    let mut columns = Vec::new();
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    let targets = panel.said["targets"].as_array().context("no queries")?;
    for (target, answer) in targets.iter().zip(panel.answers) {
        let query = target["refId"].as_str().context("a query without a name")?;
        for series in answer.as_array().into_iter().flatten() {
            let labels = series["metric"].as_object().context("no labels")?;
            let node = labels.get("node").and_then(Value::as_str);
            let line = lines
                .entry(node.context("no node")?.to_owned())
                .or_default();
            let value = &series["value"][1];
            let value = [(format!("Value #{query}"), value)];
            let cells = labels.iter().map(|(name, value)| (name.clone(), value));
            for (column, value) in cells.chain(value) {
                if options["excludeByName"][&column] == true {
                    continue;
                }
                let renamed = options["renameByName"][&column].as_str();
                let name = renamed.map_or(column.clone(), str::to_owned);
                let value = value.as_str().context("a value that is no text")?;
                let cell = cell(panel, &name, value)?;
                if !columns.contains(&name) {
                    columns.push(name.clone());
                }
                line.insert(name, cell);
            }
        }
    }
    ensure!(!lines.is_empty(), "no node");
    Ok((columns, lines.into_values().collect()))
}

/// A value as the panel's overrides have it.
fn cell(panel: &Panel<'_>, column: &str, value: &str) -> Result<Cell> {
    let mut cell = Cell {
        words: value.to_owned(),
        colour: INK,
    };
    let overrides = panel.said["fieldConfig"]["overrides"].as_array();
    let of_column = overrides
        .into_iter()
        .flatten()
        .filter(|one| one["matcher"]["options"] == column);
    let properties = of_column.flat_map(|one| one["properties"].as_array().into_iter().flatten());
    for property in properties {
        let set = &property["value"];
        match property["id"].as_str() {
            Some("unit") if *set == "dateTimeAsIso" => {
                let millis: f64 = value.parse().with_context(|| format!("time {value:?}"))?;
                let time = Timestamp::from_millisecond(millis as i64).context("a time")?;
                cell.words = time.strftime("%Y-%m-%d %H:%M:%S").to_string();
            }
            Some("mappings") => {
                let mapped = &set[0]["options"][value];
                cell.words = mapped["text"].as_str().unwrap_or(value).to_owned();
                cell.colour = colour(mapped["color"].as_str()).unwrap_or(INK);
            }
            other => anyhow::bail!("column {column:?}: {other:?} cannot be drawn"),
        }
    }
    Ok(cell)
}
