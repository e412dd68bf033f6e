//! Charts as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::weights::Histogram;

/// A line of a chart.
pub struct Line {
    pub label: &'static str,
    pub points: Vec<(f64, f64)>,
    pub color: RGBColor,
}

pub const BLUE: RGBColor = RGBColor(31, 119, 180);
pub const ORANGE: RGBColor = RGBColor(230, 126, 34);

const FONT: &str = "sans-serif";

/// Lines over a common axis. Points that are not finite are left out.
pub fn lines(title: &str, x: &str, lines: Vec<Line>) -> Result<String> {
    let finite = |&(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let points = || lines.iter().flat_map(|line| line.points.iter().copied().filter(finite));
    let ends = |of: fn((f64, f64)) -> f64| {
        let (low, high) = points()
            .map(of)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
        if low < high {
            (low, high)
        } else if low == high {
            (low - 0.5, high + 0.5)
        } else {
            (0.0, 1.0)
        }
    };
    let ((left, right), (low, high)) = (ends(|p| p.0), ends(|p| p.1));
    let room = 0.05 * (high - low);
    let mut svg = String::new();
    let draw = |svg: &mut String| -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, (560, 300)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 16))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(54)
            .build_cartesian_2d(left..right, low - room..high + room)?;
        chart.configure_mesh().x_desc(x).light_line_style(WHITE.mix(0.0)).draw()?;
        for line in &lines {
            let (color, label) = (line.color, line.label);
            let points = line.points.iter().copied().filter(finite);
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?.label(label).legend(
                move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)),
            );
        }
        if lines.len() > 1 {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }
        root.present()?;
        Ok(())
    };
    draw(&mut svg).map_err(|error| anyhow!("cannot draw `{title}`: {error}"))?;
    Ok(svg)
}

/// A histogram, small.
pub fn histogram(histogram: &Histogram) -> Result<String> {
    let most = histogram.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let width = (histogram.high - histogram.low) / histogram.counts.len().max(1) as f64;
    let mut svg = String::new();
    let draw = |svg: &mut String| -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, (270, 150)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .caption(&histogram.name, (FONT, 12))
            .margin(4)
            .x_label_area_size(20)
            .build_cartesian_2d(histogram.low..histogram.high, 0.0..most * 1.05)?;
        chart.configure_mesh().disable_mesh().disable_y_axis().x_labels(5).draw()?;
        chart.draw_series(histogram.counts.iter().enumerate().filter(|(_, n)| **n > 0).map(
            |(i, &count)| {
                let left = histogram.low + i as f64 * width;
                Rectangle::new([(left, 0.0), (left + width, count as f64)], BLUE.filled())
            },
        ))?;
        root.present()?;
        Ok(())
    };
    draw(&mut svg).map_err(|error| anyhow!("cannot draw `{}`: {error}", histogram.name))?;
    Ok(svg)
}
