//! Time over memory: to wake, and to sleep.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;

use super::picture::{Area, COLOURS, FONT, paint};
use super::{Figures, SLEEPS, WAKES, Way};
use crate::numbers::plain;

/// Size in pixels: twice what a page shows, for fine screens.
const SIZE: (u32, u32) = (1600, 680);
const TEXT: u32 = 24;
const TITLE: u32 = 30;

/// Writes the picture as PNG.
pub(super) fn draw(figures: &Figures<'_>, to: impl Write) -> Result<()> {
    paint(SIZE, to, |area| {
        let (left, right) = area.split_horizontally(SIZE.0 / 2);
        panel(&left, "to wake: SYN to first byte", figures, WAKES)?;
        panel(&right, "to sleep: decision to memory free", figures, SLEEPS)
    })
}

/// One diagram: a line for each way, of its middle times.
fn panel(area: &Area<'_>, title: &str, figures: &Figures<'_>, ways: &[Way]) -> Result<()> {
    let sizes = figures.sizes();
    let lines: Vec<(&Way, Vec<(f64, f64)>)> = ways
        .iter()
        .map(|way| {
            let point = |&mb: &u32| {
                let time = way.times(figures, mb)?["p50"].as_f64()?;
                Some((f64::from(mb), time))
            };
            (way, sizes.iter().filter_map(point).collect())
        })
        .collect();
    let times = || {
        lines
            .iter()
            .flat_map(|(_, points)| points)
            .map(|(_, time)| *time)
    };
    let lowest = times().fold(f64::INFINITY, f64::min);
    let highest = times().fold(0.0, f64::max);
    ensure!(lowest > 0.0 && lowest <= highest, "no times: {title}");
    let bounds = |range: &[u32]| Some((*range.first()?, *range.last()?));
    let (smallest, largest) = bounds(&sizes).context("no sizes")?;

    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, TITLE))
        .margin(16)
        .x_label_area_size(64)
        .y_label_area_size(110)
        .build_cartesian_2d(
            (f64::from(smallest) * 0.8..f64::from(largest) * 1.25).log_scale(),
            (lowest * 0.6..highest * 1.6).log_scale(),
        )?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(220, 220, 220))
        .x_labels(5)
        .y_labels(5)
        .x_desc("memory of the application, MB")
        .y_desc("ms")
        .x_label_formatter(&|mb| plain(*mb))
        .y_label_formatter(&|time| plain(*time))
        .label_style((FONT, TEXT))
        .draw()?;
    for ((way, points), colour) in lines.into_iter().zip(COLOURS) {
        let style = colour.stroke_width(4);
        chart
            .draw_series(LineSeries::new(points.clone(), style))?
            .label(way.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 36, y)], style));
        let dot = |point| Circle::new(point, 7, colour.filled());
        chart.draw_series(points.into_iter().map(dot))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .legend_area_size(48)
        .label_font((FONT, TEXT))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}
