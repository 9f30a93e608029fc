//! A picture as PNG, on any machine the same.

use std::io::Write;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

/// The font that comes with the program: no machine need have one.
pub const FONT: &str = "DejaVu Sans";

/// Colours that the colour-blind can tell apart.
pub const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(110, 110, 110),
    RGBColor(240, 228, 66),
];

/// Where something is drawn.
pub type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Writes what `draw` draws on an area of that many pixels.
pub fn paint(
    size: (u32, u32),
    to: impl Write,
    draw: impl FnOnce(&Area<'_>) -> Result<()>,
) -> Result<()> {
    let (width, height) = size;
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        area.fill(&WHITE)?;
        let fonts = [
            (FontStyle::Normal, dejavu::sans::regular()),
            (FontStyle::Bold, dejavu::sans::bold()),
        ];
        for (style, font) in fonts {
            register_font(FONT, style, font).map_err(|_| anyhow!("{FONT} is no font"))?;
        }
        draw(&area)?;
        area.present()?;
    }
    let mut encoder = png::Encoder::new(to, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(())
}
