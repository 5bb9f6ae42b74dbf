//! The report as Markdown.

use std::fmt::Write;

use crate::comparison::{Comparison, Metric};
use crate::environment::Environment;

/// What a cell without a figure shows.
const GAP: &str = "–";

/// The whole report.
pub fn report(environment: &Environment, comparison: &Comparison, runs: u32) -> String {
    let mut text = String::new();
    write_report(&mut text, environment, comparison, runs).expect("writing to a string succeeds");
    text
}

fn write_report(
    text: &mut String,
    environment: &Environment,
    comparison: &Comparison,
    runs: u32,
) -> std::fmt::Result {
    let baseline = comparison.allocators[comparison.baseline].name;
    writeln!(text, "# page_memory_allocator and its peers\n")?;
    writeln!(text, "| | |\n|---|---|")?;
    writeln!(text, "| date | {} |", environment.date)?;
    writeln!(
        text,
        "| machine | {}, {} cores, {:.0} GiB |",
        environment.cpu,
        environment.cores,
        environment.memory_mib as f64 / 1024.0
    )?;
    writeln!(
        text,
        "| kernel | Linux {}, transparent huge pages {} |",
        environment.kernel, environment.huge_pages
    )?;
    writeln!(text, "| compiler | {} |", environment.rustc)?;
    for (name, versions) in &environment.allocators {
        writeln!(text, "| {name} | {versions} |")?;
    }
    let noise = match comparison.noise() {
        Some(noise) if runs > 1 => {
            format!(" Runs of the same work are {:.0} % apart (median).", noise * 100.0)
        }
        _ => String::new(),
    };
    writeln!(
        text,
        "\nEach figure is the median of {runs} interleaved runs. Ratios are to {baseline}: below 1 is \
         faster or smaller.{noise}\n\n![Geometric means and times of the workloads](latest.svg)\n"
    )?;
    write_errors(text, comparison)?;
    write_means(text, comparison)?;
    for metric in Metric::ALL {
        write_metric(text, comparison, metric)?;
    }
    write_workloads(text, comparison)
}

fn write_errors(text: &mut String, comparison: &Comparison) -> std::fmt::Result {
    if comparison.errors.is_empty() {
        return Ok(());
    }
    writeln!(text, "## Errors\n")?;
    for error in &comparison.errors {
        writeln!(text, "- {error}")?;
    }
    writeln!(text)
}

fn write_means(text: &mut String, comparison: &Comparison) -> std::fmt::Result {
    writeln!(text, "## Geometric means of {} workloads\n", comparison.rows.len())?;
    let columns = 0..comparison.allocators.len();
    let complete = |allocator| if comparison.is_complete(allocator) { "" } else { "\\*" };
    write!(text, "|")?;
    for allocator in columns.clone() {
        write!(text, " | {}{}", comparison.allocators[allocator].name, complete(allocator))?;
    }
    writeln!(text, " |\n|---|{}", "--:|".repeat(columns.len()))?;
    for metric in Metric::ALL {
        let means: Vec<_> = columns.clone().map(|a| comparison.mean_ratio(metric, a)).collect();
        writeln!(text, "| {} {} |", metric.title(), with_best_in_bold(&means))?;
    }
    for metric in Metric::ALL {
        let means: Vec<_> = columns.clone().map(|a| comparison.mean_against_best(metric, a)).collect();
        let title = metric.title();
        writeln!(text, "| {title} against the best peer of each workload {} |", with_best_in_bold(&means))?;
    }
    if columns.clone().any(|allocator| !comparison.is_complete(allocator)) {
        writeln!(text, "\n\\* Failed in some workloads; its means are over the others.")?;
    }
    writeln!(text)
}

/// One metric of every workload.
fn write_metric(text: &mut String, comparison: &Comparison, metric: Metric) -> std::fmt::Result {
    let columns = 0..comparison.allocators.len();
    let baseline = comparison.allocators[comparison.baseline].name;
    let unit = if metric == Metric::Rss { "MiB" } else { "s" };
    writeln!(text, "## {}\n", metric.title())?;
    write!(text, "| workload | {baseline}, {unit}")?;
    for allocator in &comparison.allocators {
        write!(text, " | {}", allocator.name)?;
    }
    writeln!(text, " | best peer | ours to it |\n|---|{}---|--:|", "--:|".repeat(1 + columns.len()))?;
    for row in 0..comparison.rows.len() {
        let name = comparison.rows[row].workload.name;
        let ratios: Vec<_> = columns.clone().map(|a| comparison.ratio(metric, row, a)).collect();
        let absolute =
            comparison.median(metric, row, comparison.baseline).map_or(
                GAP.to_owned(),
                |value| match metric {
                    Metric::Rss => format!("{:.1}", value / f64::from(1 << 20)),
                    _ => format!("{value:.3}"),
                },
            );
        let best = comparison.best_peer(metric, row).map_or(GAP, |peer| comparison.allocators[peer].name);
        let ours = comparison.ours.and_then(|ours| comparison.against_best(metric, row, ours));
        writeln!(text, "| {name} | {absolute} {} | {best} | {} |", with_best_in_bold(&ratios), ratio(ours))?;
    }
    writeln!(text)
}

fn write_workloads(text: &mut String, comparison: &Comparison) -> std::fmt::Result {
    writeln!(text, "## Workloads\n\n| name | what it does | operations |\n|---|---|--:|")?;
    for row in &comparison.rows {
        let operations = row.operations.map_or(GAP.to_owned(), |count| count.to_string());
        writeln!(text, "| {} | {} | {operations} |", row.workload.name, row.workload.about)?;
    }
    Ok(())
}

/// The cells of a row, each after its bar.
fn with_best_in_bold(values: &[Option<f64>]) -> String {
    let best = values.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    values
        .iter()
        .map(|&value| match value {
            Some(number) if number == best => format!("| **{}**", ratio(value)),
            _ => format!("| {}", ratio(value)),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn ratio(value: Option<f64>) -> String {
    value.map_or(GAP.to_owned(), |value| format!("{value:.2}"))
}
