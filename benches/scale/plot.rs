//! A picture of what was measured along one axis (SVG): panels above one another. Sizes are logarithmic, heights where that shows more.

use std::error::Error;
use std::path::Path;

use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;

const WIDTH: u32 = 720;
const HEIGHT_OF_PANEL: u32 = 200;
const COLOURS: [RGBColor; 2] = [RGBColor(0x1f, 0x77, 0xb4), RGBColor(0xe6, 0x7e, 0x22)];

/// One diagram.
pub struct Panel {
    pub title: &'static str,
    /// Each with its name.
    pub lines: Vec<(&'static str, Vec<(f64, f64)>)>,
    /// Whether heights are logarithmic; else they begin at 0.
    pub is_log: bool,
}

/// Draws them all.
///
/// # Errors
/// What drawing says.
pub fn draw(path: &Path, axis: &str, panels: &[Panel]) -> Result<(), Box<dyn Error>> {
    let height = HEIGHT_OF_PANEL * u32::try_from(panels.len())?;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
        let points = || panel.lines.iter().flat_map(|(_, points)| points);
        let across = points().map(|point| point.0).fold(1.0, f64::max) * 1.1;
        let most = points().map(|point| point.1).fold(0.0, f64::max);
        let least = points().map(|point| point.1).fold(most, f64::min);
        let mut chart = ChartBuilder::on(area);
        chart.caption(panel.title, ("sans-serif", 15)).margin(8).x_label_area_size(32).y_label_area_size(60);
        let xs = (0.9..across).log_scale();
        if panel.is_log {
            let mut chart = chart.build_cartesian_2d(xs, (least * 0.7..most * 1.4).log_scale())?;
            fill(&mut chart, axis, panel)?;
        } else {
            let mut chart = chart.build_cartesian_2d(xs, 0.0..most * 1.15)?;
            fill(&mut chart, axis, panel)?;
        }
    }
    root.present()?;
    Ok(())
}

type Drawn<'a, 'b, X, Y> = &'a mut ChartContext<'b, SVGBackend<'b>, Cartesian2d<X, Y>>;

fn fill<'b, X, Y>(chart: Drawn<'_, 'b, X, Y>, axis: &str, panel: &Panel) -> Result<(), Box<dyn Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(axis)
        .x_label_formatter(&|size| format!("{size:.0}"))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for ((name, points), colour) in panel.lines.iter().zip(COLOURS) {
        let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        if panel.lines.len() > 1 {
            let key = move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour);
            drawn.label(*name).legend(key);
        }
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
    }
    if panel.lines.len() > 1 {
        let white = WHITE.mix(0.8);
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(white)
            .draw()?;
    }
    Ok(())
}

/// A number without more figures than it needs.
fn short(value: f64) -> String {
    let text = if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}
