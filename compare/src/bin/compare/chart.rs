//! The report as a picture: geometric means as bars, the workloads' times as dots.

use anyhow::Result;
use compare::allocators;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::comparison::{Comparison, Metric};
use crate::environment::Environment;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: i32 = 1120;
const MARGIN: i32 = 24;
/// Where names end and figures begin.
const LABELS: i32 = 190;
const BAR_ROW: i32 = 24;
const DOT_ROW: i32 = 21;
/// Height of the title, and of the headings of the two parts.
const TITLE: i32 = 84;
const HEADING: i32 = 34;
const LEGEND: i32 = 52;
const AXIS: i32 = 26;

const INK: RGBColor = RGBColor(34, 34, 34);
const FADED: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(214, 214, 214);
const STRIPE: RGBColor = RGBColor(246, 246, 246);

/// Colours that stay apart for colour-blind readers (Okabe and Ito), the allocator under test in
/// the strongest.
const COLOURS: [RGBColor; 7] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
];

/// Draws the comparison and returns the text of an SVG file.
pub fn draw(environment: &Environment, comparison: &Comparison, runs: u32) -> Result<String> {
    let bars = BAR_ROW * comparison.allocators.len() as i32;
    let dots = DOT_ROW * comparison.rows.len() as i32;
    let height = TITLE + HEADING + bars + HEADING + LEGEND + AXIS + dots + AXIS + MARGIN;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        draw_title(&area, environment, comparison, runs)?;
        draw_means(&area, comparison, TITLE)?;
        draw_times(&area, comparison, TITLE + HEADING + bars + HEADING)?;
        area.present()?;
    }
    Ok(svg)
}

fn draw_title(area: &Area, environment: &Environment, comparison: &Comparison, runs: u32) -> Result<()> {
    let baseline = comparison.allocators[comparison.baseline].name;
    text(area, "page_memory_allocator and its peers", (MARGIN, 30), 22, INK, HPos::Left)?;
    let about = format!(
        "Ratios to {baseline}; less is better. {} workloads, medians of {runs} interleaved runs. {}, {} cores, {}.",
        comparison.rows.len(),
        environment.cpu,
        environment.cores,
        environment.date
    );
    text(area, &about, (MARGIN, 56), 13, FADED, HPos::Left)
}

/// One panel of bars for each metric, side by side, with the names at the left of the first.
fn draw_means(area: &Area, comparison: &Comparison, top: i32) -> Result<()> {
    const GUTTER: i32 = 36;
    /// Room for the figures at the right.
    const FIGURE: i32 = 44;
    let width = (WIDTH - MARGIN - LABELS) / Metric::ALL.len() as i32 - GUTTER;
    let bottom = top + HEADING + BAR_ROW * comparison.allocators.len() as i32;
    let row_middle = |index: usize| top + HEADING + BAR_ROW * index as i32 + BAR_ROW / 2;
    for (index, allocator) in comparison.allocators.iter().enumerate() {
        let ink = if Some(index) == comparison.ours { colour(comparison, index) } else { INK };
        text(area, allocator.name, (LABELS - 10, row_middle(index)), 13, ink, HPos::Right)?;
    }
    for (panel, metric) in (0..).zip(Metric::ALL) {
        let left = LABELS + panel * (width + GUTTER);
        let means: Vec<_> =
            (0..comparison.allocators.len()).map(|index| comparison.mean_ratio(metric, index)).collect();
        let longest = means.iter().flatten().copied().fold(1.0, f64::max);
        let x = |ratio: f64| left + (ratio / longest * f64::from(width - FIGURE)) as i32;
        let heading = format!("{} (geometric mean)", metric.title());
        text(area, &heading, (left, top + HEADING / 2 - 2), 14, INK, HPos::Left)?;
        for (index, mean) in means.iter().enumerate() {
            let middle = row_middle(index);
            let Some(mean) = *mean else {
                text(area, "–", (left + 6, middle), 13, FADED, HPos::Left)?;
                continue;
            };
            let bar = [(left, middle - 8), (x(mean), middle + 8)];
            area.draw(&Rectangle::new(bar, colour(comparison, index).filled()))?;
            text(area, &format!("{mean:.2}"), (left + width, middle), 13, INK, HPos::Right)?;
        }
        line(area, (left, top + HEADING), (left, bottom), FADED)?;
        line(area, (x(1.0), top + HEADING - 4), (x(1.0), bottom + 4), INK)?;
    }
    Ok(())
}

/// A row of dots for each workload, on a logarithmic axis.
fn draw_times(area: &Area, comparison: &Comparison, top: i32) -> Result<()> {
    let allocators = comparison.allocators.len();
    let ratios = |row| (0..allocators).map(move |index| comparison.ratio(Metric::Time, row, index));
    let all = || (0..comparison.rows.len()).flat_map(ratios).flatten();
    // The axis ends at the next half step of a doubling on either side.
    let step_below = |ratio: f64| ((ratio.log2() * 2.0).floor() / 2.0).min(-0.5);
    let step_above = |ratio: f64| ((ratio.log2() * 2.0).ceil() / 2.0).max(0.5);
    let low = step_below(all().fold(1.0, f64::min));
    let high = step_above(all().fold(1.0, f64::max));
    let width = f64::from(WIDTH - MARGIN - LABELS);
    let x = |ratio: f64| LABELS + ((ratio.log2() - low) / (high - low) * width) as i32;

    text(area, "Time of each workload", (MARGIN, top + 8), 16, INK, HPos::Left)?;
    draw_legend(area, comparison, top + 36)?;
    let first = top + LEGEND + AXIS;
    let bottom = first + DOT_ROW * comparison.rows.len() as i32;
    for row in (0..comparison.rows.len()).step_by(2) {
        let y = first + DOT_ROW * row as i32;
        area.draw(&Rectangle::new([(MARGIN, y), (WIDTH - MARGIN, y + DOT_ROW)], STRIPE.filled()))?;
    }
    for power in low.ceil() as i32..=high.floor() as i32 {
        let ratio = f64::from(power).exp2();
        let (ink, from) = if power == 0 { (INK, first - 4) } else { (GRID, first) };
        line(area, (x(ratio), from), (x(ratio), bottom), ink)?;
        for y in [first - 14, bottom + 14] {
            text(area, &ratio.to_string(), (x(ratio), y), 12, FADED, HPos::Center)?;
        }
    }
    for (row, y) in (first + DOT_ROW / 2..).step_by(DOT_ROW as usize).take(comparison.rows.len()).enumerate()
    {
        let name = comparison.rows[row].workload.name;
        text(area, name, (LABELS - 10, y), 12, INK, HPos::Right)?;
        // Ours comes first among the allocators and is drawn last, on top.
        for index in (0..allocators).rev() {
            let Some(ratio) = comparison.ratio(Metric::Time, row, index) else { continue };
            draw_dot(area, comparison, index, (x(ratio), y))?;
        }
    }
    Ok(())
}

fn draw_legend(area: &Area, comparison: &Comparison, y: i32) -> Result<()> {
    let mut x = LABELS;
    for (index, allocator) in comparison.allocators.iter().enumerate() {
        draw_dot(area, comparison, index, (x, y))?;
        text(area, allocator.name, (x + 10, y), 13, INK, HPos::Left)?;
        // An estimate: an SVG does not know the fonts of its reader.
        x += 36 + 8 * allocator.name.len() as i32;
    }
    Ok(())
}

fn draw_dot(area: &Area, comparison: &Comparison, index: usize, at: (i32, i32)) -> Result<()> {
    let radius = if Some(index) == comparison.ours { 6 } else { 4 };
    area.draw(&Circle::new(at, radius, colour(comparison, index).filled()))?;
    area.draw(&Circle::new(at, radius, WHITE))?;
    Ok(())
}

/// The same for an allocator in every chart, whichever of them take part.
fn colour(comparison: &Comparison, index: usize) -> RGBColor {
    let name = comparison.allocators[index].name;
    let place = allocators::ALL.iter().position(|allocator| allocator.name == name).unwrap_or(0);
    COLOURS[place % COLOURS.len()]
}

fn line(area: &Area, from: (i32, i32), to: (i32, i32), ink: RGBColor) -> Result<()> {
    Ok(area.draw(&PathElement::new([from, to], ink))?)
}

/// Text whose middle is at the height of `at`.
fn text(area: &Area, what: &str, at: (i32, i32), size: u32, ink: RGBColor, side: HPos) -> Result<()> {
    let style =
        TextStyle::from(("sans-serif", size).into_font()).color(&ink).pos(Pos::new(side, VPos::Center));
    Ok(area.draw(&Text::new(what.to_owned(), at, style))?)
}
