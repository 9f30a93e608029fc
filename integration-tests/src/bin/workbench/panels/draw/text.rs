//! Words in a picture.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{GREY, INK, Inner};
use crate::plot::picture::{Area, FONT};

/// The least that can be read.
const SMALLEST: u32 = 13;

/// How words look.
#[derive(Clone, Copy)]
pub(super) struct Text {
    size: u32,
    style: FontStyle,
    colour: RGBColor,
    at: HPos,
}

impl Text {
    /// Of a row of panels.
    pub(super) const HEAD: Self = Self::of(23, FontStyle::Bold, INK);
    /// Of a panel.
    pub(super) const TITLE: Self = Self::of(20, FontStyle::Bold, INK);
    /// Of everything in it.
    pub(super) const SMALL: Self = Self::of(17, FontStyle::Normal, GREY);
    /// Of the one value that a panel shows.
    pub(super) const LARGE: Self = Self::of(52, FontStyle::Bold, INK);

    const fn of(size: u32, style: FontStyle, colour: RGBColor) -> Self {
        Self {
            size,
            style,
            colour,
            at: HPos::Left,
        }
    }

    pub(super) const fn coloured(self, colour: RGBColor) -> Self {
        Self { colour, ..self }
    }

    pub(super) const fn at(self, at: HPos) -> Self {
        Self { at, ..self }
    }

    fn style(self) -> TextStyle<'static> {
        let font = (FONT, f64::from(self.size), self.style);
        TextStyle {
            color: self.colour.to_backend_color(),
            pos: Pos::new(self.at, VPos::Top),
            ..font.into_text_style(&(1, 1))
        }
    }
}

/// Writes a line whose top is at `place`.
pub(super) fn write(area: &Area<'_>, words: &str, place: (i32, i32), text: Text) -> Result<()> {
    area.draw_text(words, &text.style(), place)?;
    Ok(())
}

/// How many pixels a line takes.
pub(super) fn width(area: &Area<'_>, words: &str, text: Text) -> Result<i32> {
    let (width, _) = area.estimate_text_size(words, &text.style())?;
    Ok(width.cast_signed())
}

/// Writes a line no longer than `room`, smaller if it has to be.
pub(super) fn write_within(
    area: &Area<'_>,
    words: &str,
    place: (i32, i32),
    room: i32,
    mut text: Text,
) -> Result<()> {
    while text.size > SMALLEST && width(area, words, text)? > room {
        text.size -= 1;
    }
    write(area, words, place, text)
}

/// Writes a line in the middle of a panel.
pub(super) fn centred(inner: &Inner<'_, '_>, words: &str, top: i32, text: Text) -> Result<()> {
    let middle = i32::midpoint(inner.left, inner.right);
    write(inner.area, words, (middle, top), text.at(HPos::Center))
}
