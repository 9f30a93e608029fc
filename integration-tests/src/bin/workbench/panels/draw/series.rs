//! A panel of values over time: lines, or bars, beside or on top of each other.

use anyhow::{Context, Result, bail};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use serde_json::Value;

use super::text::{Text, width, write};
use super::{GRID, Inner, Panel, Times, colours};

/// Height of a line of the legend.
const LINE: i32 = 24;
/// What is left of the axis for its values, and below it for its times.
const VALUES: i32 = 84;
const TIMES: i32 = 34;
/// Most lines of an axis.
const LINES: u32 = 4;
/// Between two times below an axis, in seconds.
const TICK: f64 = 30.0;
/// A legend's sign.
const SIGN: i32 = 14;

/// One series of an answer.
pub(super) struct Series {
    name: String,
    /// Seconds since 1970 and values; where there is none, none.
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    pub(super) fn of(answer: &Value, legend: &str) -> Result<Self> {
        let mut name = legend.to_owned();
        for (label, value) in answer["metric"].as_object().into_iter().flatten() {
            let value = value.as_str().context("a label that is no text")?;
            name = name.replace(&format!("{{{{{label}}}}}"), value);
        }
        let single = [answer["value"].clone()];
        let values = answer["values"]
            .as_array()
            .map_or(&single[..], Vec::as_slice);
        let mut points = Vec::new();
        for point in values {
            let (time, value) = (point[0].as_f64(), point[1].as_str());
            let value = value.context("no value")?;
            let value: f64 = value.parse().with_context(|| format!("value {value:?}"))?;
            // A quantile of nothing is no number.
            if value.is_finite() {
                points.push((time.context("no time")?, value));
            }
        }
        Ok(Self { name, points })
    }
}

/// What part of a panel values are drawn in, and what they are measured by.
struct Plane<'a, 'b, 'c> {
    inner: &'a Inner<'b, 'c>,
    times: Times,
    left: i32,
    bottom: i32,
    highest: f64,
}

impl Plane<'_, '_, '_> {
    fn x(&self, time: f64) -> i32 {
        let part = (time - self.times.start) / (self.times.end - self.times.start);
        self.left + (part * f64::from(self.inner.right - self.left)).round() as i32
    }

    fn y(&self, value: f64) -> i32 {
        let part = value / self.highest;
        self.bottom - (part * f64::from(self.bottom - self.inner.top)).round() as i32
    }
}

/// Where a value begins and ends: on top of those of the series before it, or at nought.
struct Stretch {
    time: f64,
    from: f64,
    to: f64,
}

pub(super) fn draw(panel: &Panel<'_>, inner: &Inner<'_, '_>, times: Times) -> Result<()> {
    let custom = &panel.said["fieldConfig"]["defaults"]["custom"];
    let stacked = custom["stacking"]["mode"] == "normal";
    let stretches = stack(&panel.series, stacked);
    let all = stretches.iter().flatten();
    let highest = all.map(|one| one.to).fold(0.0, f64::max);
    // An axis of nothing but nought still has a line at one.
    let highest = if highest > 0.0 { highest } else { 1.0 };
    let step = panel.unit.step(highest, LINES);
    let plane = Plane {
        inner,
        times,
        left: inner.left + VALUES,
        bottom: inner.bottom - TIMES - legend(panel, inner)?,
        highest: (highest / step).ceil() * step,
    };
    axes(panel, &plane, step)?;
    let opacity = custom["fillOpacity"].as_f64().unwrap_or_default() / 100.0;
    for (stretches, colour) in stretches.iter().zip(colours()) {
        match custom["drawStyle"].as_str() {
            Some("line") => lines(&plane, stretches, colour, opacity, stacked)?,
            Some("bars") => bars(&plane, stretches, colour, opacity)?,
            style => bail!("the style {style:?} cannot be drawn"),
        }
    }
    Ok(())
}

fn stack(series: &[Series], stacked: bool) -> Vec<Vec<Stretch>> {
    let mut tops: Vec<(f64, f64)> = Vec::new();
    let mut stretch = |&(time, value): &(f64, f64)| {
        let known = tops.iter_mut().find(|(at, _)| (at - time).abs() < 1e-3);
        let from = match &known {
            Some((_, top)) if stacked => *top,
            _ => 0.0,
        };
        let to = from + value;
        match known {
            Some((_, top)) => *top = to,
            None => tops.push((time, to)),
        }
        Stretch { time, from, to }
    };
    let of_one = |one: &Series| one.points.iter().map(&mut stretch).collect();
    series.iter().map(of_one).collect()
}

fn axes(panel: &Panel<'_>, plane: &Plane<'_, '_, '_>, step: f64) -> Result<()> {
    let area = plane.inner.area;
    let count = (plane.highest / step).round() as u32;
    for line in 0..=count {
        let value = step * f64::from(line);
        let y = plane.y(value);
        let edge = [(plane.left, y), (plane.inner.right, y)];
        area.draw(&PathElement::new(edge, GRID))?;
        let text = Text::SMALL.at(HPos::Right);
        write(
            area,
            &panel.unit.write(value),
            (plane.left - 8, y - 9),
            text,
        )?;
    }
    let length = plane.times.end - plane.times.start;
    let ticks = (length / TICK).floor() as u32;
    for tick in 0..=ticks {
        let seconds = TICK * f64::from(tick);
        let x = plane.x(plane.times.start + seconds);
        let edge = [(x, plane.inner.top), (x, plane.bottom)];
        area.draw(&PathElement::new(edge, GRID))?;
        let words = format!("{}:{:02}", seconds as u32 / 60, seconds as u32 % 60);
        let text = Text::SMALL.at(HPos::Center);
        write(area, &words, (x, plane.bottom + 12), text)?;
    }
    Ok(())
}

/// Names of the series, below everything. Returns the height.
fn legend(panel: &Panel<'_>, inner: &Inner<'_, '_>) -> Result<i32> {
    let mut lines = vec![Vec::new()];
    let mut x = inner.left;
    for (series, colour) in panel.series.iter().zip(colours()) {
        let taken = SIGN + 7 + width(inner.area, &series.name, Text::SMALL)? + 18;
        if x + taken > inner.right && x > inner.left {
            lines.push(Vec::new());
            x = inner.left;
        }
        if let Some(line) = lines.last_mut() {
            line.push((x, &series.name, colour));
        }
        x += taken;
    }
    let height = LINE * i32::try_from(lines.len()).context("lines of a legend")?;
    let mut top = inner.bottom - height + 4;
    for line in lines {
        for (x, name, colour) in line {
            let sign = [(x, top + 2), (x + SIGN, top + 2 + SIGN)];
            inner.area.draw(&Rectangle::new(sign, colour.filled()))?;
            write(inner.area, name, (x + SIGN + 7, top), Text::SMALL)?;
        }
        top += LINE;
    }
    Ok(height)
}

/// A line for each run of values that follow one another.
fn lines(
    plane: &Plane<'_, '_, '_>,
    stretches: &[Stretch],
    colour: RGBColor,
    opacity: f64,
    stacked: bool,
) -> Result<()> {
    let gap = plane.times.step * 1.5;
    let area = plane.inner.area;
    let style = colour.stroke_width(3);
    for run in stretches.chunk_by(|one, next| next.time - one.time < gap) {
        let top = |one: &Stretch| (plane.x(one.time), plane.y(one.to));
        let line: Vec<_> = run.iter().map(top).collect();
        if let [alone] = line[..] {
            // Of one value there is no line.
            area.draw(&Circle::new(alone, 3, colour.filled()))?;
            continue;
        }
        if opacity > 0.0 {
            let bottom = |one: &Stretch| (plane.x(one.time), plane.y(one.from));
            let mut ground = line.clone();
            ground.extend(run.iter().rev().map(bottom));
            area.draw(&Polygon::new(ground, colour.mix(opacity).filled()))?;
        }
        // On top of others, a line of nothing would hide theirs.
        let shown = |one: &Stretch| !stacked || one.to > one.from;
        let mut part = Vec::new();
        for (index, place) in line.iter().enumerate() {
            let near = &run[index.saturating_sub(1)..run.len().min(index + 2)];
            if near.iter().any(shown) {
                part.push(*place);
            } else {
                area.draw(&PathElement::new(std::mem::take(&mut part), style))?;
            }
        }
        area.draw(&PathElement::new(part, style))?;
    }
    Ok(())
}

fn bars(
    plane: &Plane<'_, '_, '_>,
    stretches: &[Stretch],
    colour: RGBColor,
    opacity: f64,
) -> Result<()> {
    for one in stretches.iter().filter(|one| one.to > one.from) {
        // A bar is of the time before its value.
        let (left, right) = (plane.x(one.time - plane.times.step), plane.x(one.time));
        let corners = [(left, plane.y(one.to)), (right - 1, plane.y(one.from))];
        let fill = colour.mix(opacity).filled();
        plane.inner.area.draw(&Rectangle::new(corners, fill))?;
    }
    Ok(())
}
