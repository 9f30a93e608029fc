//! The picture: panels on the dashboard's grid, with their titles, as Grafana lays them out.

mod series;
mod stat;
mod table;
mod text;

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use plotters::prelude::*;
use serde_json::Value;

use self::series::Series;
use self::text::{Text, write, write_within};
use super::dashboard::may_be_empty;
use super::units::Unit;
use crate::plot::picture::{Area, COLOURS, paint};

/// A cell of the grid, in pixels. The grid has 24 columns.
const CELL: (u32, u32) = (64, 40);
const COLUMNS: u32 = 24;
/// Between two panels.
const GAP: i32 = 5;
/// Between a panel's edge and what is in it.
const PAD: i32 = 14;
/// Height of a title.
const TITLE: i32 = 34;

const GROUND: RGBColor = RGBColor(244, 245, 246);
const EDGE: RGBColor = RGBColor(215, 217, 220);
const GRID: RGBColor = RGBColor(228, 229, 231);
const INK: RGBColor = RGBColor(36, 41, 46);
const GREY: RGBColor = RGBColor(95, 100, 106);
/// What series have once all of [`COLOURS`] are taken.
const MORE: [RGBColor; 4] = [
    RGBColor(128, 0, 64),
    RGBColor(0, 70, 70),
    RGBColor(160, 130, 220),
    RGBColor(140, 90, 40),
];

/// The times that are shown, in seconds since 1970.
#[derive(Clone, Copy)]
struct Times {
    start: f64,
    end: f64,
    step: f64,
}

/// One panel: where it is, and what was answered for it.
struct Panel<'a> {
    said: &'a Value,
    title: &'a str,
    kind: &'a str,
    unit: Unit,
    place: [u32; 4],
    series: Vec<Series>,
    /// By query, as Prometheus has answered.
    answers: &'a [Value],
}

/// What was recorded.
pub(super) struct Picture<'a> {
    times: Times,
    panels: Vec<Panel<'a>>,
}

impl<'a> Picture<'a> {
    /// Reads a recording.
    pub(super) fn of(recorded: &'a Value) -> Result<Self> {
        let number = |name: &str| {
            recorded[name]
                .as_f64()
                .with_context(|| format!("no {name}"))
        };
        let panels = recorded["panels"].as_array().context("no panels")?;
        Ok(Self {
            times: Times {
                start: number("start")?,
                end: number("end")?,
                step: number("step")?,
            },
            panels: panels.iter().map(Panel::of).collect::<Result<_>>()?,
        })
    }

    /// Writes it as PNG.
    pub(super) fn draw(&self, to: impl Write) -> Result<()> {
        let bottoms = self
            .panels
            .iter()
            .map(|panel| panel.place[1] + panel.place[3]);
        let rows = bottoms.max().context("no panels")?;
        let size = (COLUMNS * CELL.0, rows * CELL.1);
        paint(size, to, |area| {
            area.fill(&GROUND)?;
            for panel in &self.panels {
                panel
                    .draw(area, self.times)
                    .with_context(|| format!("panel {:?}", panel.title))?;
            }
            Ok(())
        })
    }
}

/// Colours of series, in their order.
fn colours() -> impl Iterator<Item = RGBColor> {
    COLOURS.into_iter().chain(MORE).cycle()
}

impl<'a> Panel<'a> {
    fn of(recorded: &'a Value) -> Result<Self> {
        let said = &recorded["panel"];
        let title = said["title"].as_str().context("a panel without a title")?;
        let of_panel = || format!("panel {title:?}");
        let cell = |name: &str| {
            let cell = said["gridPos"][name].as_u64();
            let cell = cell.and_then(|cell| u32::try_from(cell).ok());
            cell.with_context(|| format!("{}: no {name}", of_panel()))
        };
        let unit = said["fieldConfig"]["defaults"]["unit"].as_str();
        let answers = recorded["answers"].as_array().with_context(of_panel)?;
        let targets = said["targets"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(targets.len() == answers.len(), "{}: answers", of_panel());
        let mut series = Vec::new();
        for (target, answer) in targets.iter().zip(answers) {
            for one in answer.as_array().with_context(of_panel)? {
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                series.push(Series::of(one, legend).with_context(of_panel)?);
            }
        }
        Ok(Self {
            said,
            title,
            kind: said["type"].as_str().with_context(of_panel)?,
            unit: Unit::of(unit).with_context(|| format!("{}: unit {unit:?}", of_panel()))?,
            place: [cell("x")?, cell("y")?, cell("w")?, cell("h")?],
            series,
            answers,
        })
    }

    fn draw(&self, area: &Area<'_>, times: Times) -> Result<()> {
        let [x, y, width, height] = self.place;
        let (left, top) = (x * CELL.0, y * CELL.1);
        let area = area
            .clone()
            .shrink((left, top), (width * CELL.0, height * CELL.1));
        let (width, height) = area.dim_in_pixel();
        let (right, bottom) = (width.cast_signed() - GAP, height.cast_signed() - GAP);
        if self.kind == "row" {
            return write(&area, self.title, (GAP + 4, 14), Text::HEAD);
        }
        let edges = [(GAP, GAP), (right, bottom)];
        area.draw(&Rectangle::new(edges, WHITE.filled()))?;
        area.draw(&Rectangle::new(edges, EDGE))?;
        let (place, room) = ((GAP + PAD, GAP + 9), right - GAP - 2 * PAD);
        write_within(&area, self.title, place, room, Text::TITLE)?;
        let inner = Inner {
            area: &area,
            left: GAP + PAD,
            top: GAP + TITLE + 12,
            right: right - PAD,
            bottom: bottom - PAD / 2,
        };
        if self.series.is_empty() {
            let why = may_be_empty(self.said).context("nothing to show")?;
            return inner.nothing(why);
        }
        match self.kind {
            "stat" => stat::draw(self, &inner),
            "timeseries" => series::draw(self, &inner, times),
            "table" => table::draw(self, &inner),
            kind => bail!("panels of type {kind:?} cannot be drawn"),
        }
    }
}

/// The part of a panel below its title, in pixels of the panel.
struct Inner<'a, 'b> {
    area: &'a Area<'b>,
    left: i32,
    top: i32,
    right: i32,
    bottom: i32,
}

impl Inner<'_, '_> {
    fn nothing(&self, why: &str) -> Result<()> {
        let middle = i32::midpoint(self.top, self.bottom);
        text::centred(self, "no data", middle - 26, Text::TITLE)?;
        text::centred(self, why, middle + 4, Text::SMALL)
    }
}
