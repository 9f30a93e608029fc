//! A panel that shows one value, and how it came to it.

use anyhow::{Context, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::text::{Text, centred};
use super::{Inner, Panel};

const LINE: i32 = 64;

pub(super) fn draw(panel: &Panel<'_>, inner: &Inner<'_, '_>) -> Result<()> {
    let series = panel.series.first().context("no series")?;
    let last = series.points.last().context("no value")?.1;
    let defaults = &panel.said["fieldConfig"]["defaults"];
    let steps = defaults["thresholds"]["steps"].as_array();
    let reached = steps
        .into_iter()
        .flatten()
        .rfind(|step| step["value"].as_f64().is_none_or(|from| last >= from));
    let name = reached.and_then(|step| step["color"].as_str());
    let colour = colour(name).with_context(|| format!("a threshold's colour {name:?}"))?;
    if panel.said["options"]["graphMode"] == "area" {
        spark(inner, &series.points, colour)?;
    }
    let text = Text::LARGE.coloured(colour).at(HPos::Center);
    centred(inner, &panel.unit.write(last), inner.top + 4, text)
}

/// The values before, without axes.
fn spark(inner: &Inner<'_, '_>, points: &[(f64, f64)], colour: RGBColor) -> Result<()> {
    let bounds = points.first().zip(points.last());
    let ((start, _), (end, _)) = bounds.context("no values")?;
    let highest = points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let (width, height) = (
        f64::from(inner.right - inner.left),
        f64::from(inner.bottom - inner.top - LINE),
    );
    let place = |(time, value): &(f64, f64)| {
        let x = (time - start) / (end - start).max(1.0) * width;
        let y = value / highest.max(f64::MIN_POSITIVE) * height;
        (
            inner.left + x.round() as i32,
            inner.bottom - y.round() as i32,
        )
    };
    let line: Vec<_> = points.iter().map(place).collect();
    let mut ground = line.clone();
    ground.extend([(inner.right, inner.bottom), (inner.left, inner.bottom)]);
    inner
        .area
        .draw(&Polygon::new(ground, colour.mix(0.15).filled()))?;
    inner
        .area
        .draw(&PathElement::new(line, colour.stroke_width(2)))?;
    Ok(())
}

/// Grafana's colours by their names, dark enough for white ground.
pub(super) fn colour(name: Option<&str>) -> Option<RGBColor> {
    match name? {
        "green" => Some(RGBColor(27, 133, 94)),
        "blue" => Some(RGBColor(0, 114, 178)),
        "red" => Some(RGBColor(207, 34, 46)),
        _ => None,
    }
}
