//! `--plots`: pictures of what was measured, as SVG.

mod data;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use plotters::{coord::Shift, element::DashedPathElement, prelude::*};

use crate::report::Report;
use data::{Bars, Curve, Kind};

const SIZE: (u32, u32) = (860, 480);
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(51, 51, 51);
const GRID: RGBColor = RGBColor(225, 225, 225);
/// Blue, light blue, red, orange: told apart by the colour-blind, too.
const COLORS: [RGBColor; 4] =
    [RGBColor(0, 90, 181), RGBColor(86, 180, 233), RGBColor(200, 30, 60), RGBColor(230, 140, 0)];
const OTHER: RGBColor = RGBColor(150, 150, 150);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws `packets.svg` and `requests.svg`, as far as their parts were measured.
pub fn write(report: &Report, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let curves = data::packet_cost(report);
    if !curves.is_empty() {
        save(&dir.join("packets.svg"), |area| packet_cost(area, &curves))?;
    }
    if let Some(bars) = data::request_cost(report) {
        save(&dir.join("requests.svg"), |area| request_cost(area, &bars))?;
    }
    Ok(())
}

fn save(file: &Path, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<()> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    draw(&area)?;
    area.present().with_context(|| format!("write {}", file.display()))
}

/// A line a curve over the number of flows.
fn packet_cost(area: &Area<'_>, curves: &[Curve]) -> Result<()> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let most = points().map(|(_, ns)| *ns).fold(0.0, f64::max);
    let least = points().map(|(flows, _)| *flows).fold(f64::MAX, f64::min);
    let largest = points().map(|(flows, _)| *flows).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("What a packet costs", (FONT, 22, &INK))
        .margin(14)
        .margin_right(44)
        .x_label_area_size(48)
        .y_label_area_size(62)
        // The legend stands above all curves.
        .build_cartesian_2d((least..largest * 1.05).log_scale(), 0.0..most * 1.6)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .label_style((FONT, 15, &INK))
        .axis_desc_style((FONT, 16, &INK))
        .x_desc("flows (connections that packets are of)")
        .y_desc("ns a packet, beyond a stub")
        .x_label_formatter(&|flows| grouped(*flows))
        .y_label_formatter(&|ns| format!("{ns:.0}"))
        .draw()?;
    let mut colors = COLORS.iter().cycle();
    let sample = |(x, y): (i32, i32)| vec![(x, y), (x + 24, y)];
    for curve in curves {
        if curve.kind == Kind::Floor {
            let color = if curve.name.starts_with("IPv4") { COLORS[0] } else { COLORS[2] };
            chart
                .draw_series(DashedLineSeries::new(curve.points.clone(), 6, 4, color.stroke_width(1)))?
                .label(&curve.name)
                .legend(move |at| DashedPathElement::new(sample(at), 6, 4, color.stroke_width(1)));
        } else {
            let style = colors.next().unwrap_or(&OTHER).stroke_width(2);
            chart
                .draw_series(LineSeries::new(curve.points.clone(), style).point_size(3))?
                .label(&curve.name)
                .legend(move |at| PathElement::new(sample(at), style));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .legend_area_size(32)
        .margin(8)
        .background_style(WHITE)
        .border_style(GRID)
        .label_font((FONT, 15, &INK))
        .draw()?;
    Ok(())
}

/// A horizontal bar a balancer, xlb's coloured; the line through it is from quartile to quartile.
fn request_cost(area: &Area<'_>, bars: &Bars) -> Result<()> {
    let count = bars.bars.len() as f64;
    let ends = bars.bars.iter().map(|bar| bar.to);
    let most = ends.fold(0.0, f64::max);
    // Noise may put what costs nothing below zero.
    let least = bars.bars.iter().map(|bar| bar.from.min(bar.value)).fold(0.0, f64::min);
    let mut chart = ChartBuilder::on(area)
        .caption("CPU time that the balancer adds to a request", (FONT, 22, &INK))
        .margin(14)
        .x_label_area_size(48)
        .y_label_area_size(150)
        .build_cartesian_2d(least * 1.1..most * 1.1, 0.0..count)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .label_style((FONT, 15, &INK))
        .axis_desc_style((FONT, 16, &INK))
        .x_desc(format!("\u{b5}s a request ({})", bars.title))
        .x_label_formatter(&|us| format!("{us:.0}"))
        .draw()?;
    let height = 0.34;
    let text = (FONT, 15, &INK).into_text_style(area);
    for (number, bar) in bars.bars.iter().enumerate() {
        // The first row on top.
        let middle = count - 0.5 - number as f64;
        let color = if bar.name.starts_with("xlb") { COLORS[0] } else { OTHER };
        let corners = [(0.0, middle - height), (bar.value, middle + height)];
        chart.draw_series([Rectangle::new(corners, color.filled())])?;
        chart.draw_series([PathElement::new([(bar.from, middle), (bar.to, middle)], INK.stroke_width(2))])?;
        let (end, y) = chart.backend_coord(&(bar.to.max(0.0), middle));
        area.draw_text(&bar.name, &text, (24, y - 6))?;
        area.draw_text(&format!("{:.1}", bar.value), &text, (end + 6, y - 6))?;
    }
    Ok(())
}

/// With commas between thousands.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Section;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([1.0, 100.0, 1e3, 1e6].map(grouped), ["1", "100", "1,000", "1,000,000"]);
    }

    #[test]
    fn pictures_have_all_names_and_units() {
        let mut report = Report::new(true);
        let mut settled = Section::new("Settled slots; 1 service", &["", "ns", "x floor", "spread ns"]);
        for (case, ns) in [("IPv4 l2, 1 flow", 20.0), ("IPv4 l2, 1,000,000 flows", 30.0)] {
            settled.row(case, [Some(ns), None, None]);
        }
        let mut requests = Section::new("Requests: many", &["through", "added", "from", "to"]);
        requests.row("xlb l2", [Some(2.0), Some(-1.0), Some(3.0)]);
        requests.row("HAProxy", [Some(30.0), Some(28.0), Some(33.0)]);
        report.sections = vec![settled, requests];
        let dir = std::env::temp_dir().join(format!("lb-bench-plots-{}", std::process::id()));
        write(&report, &dir).expect("it draws");
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect("it was drawn");
        let (packets, requests) = (read("packets.svg"), read("requests.svg"));
        fs::remove_dir_all(&dir).expect("it is there");
        for text in ["IPv4 l2", "1,000,000", "ns a packet", "flows"] {
            assert!(packets.contains(text), "{text}: {packets}");
        }
        for text in ["xlb l2", "HAProxy", "s a request (many)", "30.0"] {
            assert!(requests.contains(text), "{text}: {requests}");
        }
    }
}
