//! Medians of the runs and ratios between allocators: pure arithmetic.

use compare::Measurement;
use compare::allocators::{self, Allocator};
use compare::workloads::Workload;

use crate::runner::Run;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// Elapsed time.
    Time,
    /// Processor time of all threads.
    Cpu,
    /// Peak resident set size.
    Rss,
}

impl Metric {
    /// All of them, in the order of the report.
    pub const ALL: [Metric; 3] = [Metric::Time, Metric::Cpu, Metric::Rss];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Time => "Time",
            Metric::Cpu => "CPU time",
            Metric::Rss => "Peak RSS",
        }
    }

    fn of(self, measurement: &Measurement) -> f64 {
        // Never zero, or ratios would be lost: the clocks count microseconds.
        match self {
            Metric::Time => measurement.wall_seconds.max(1e-6),
            Metric::Cpu => measurement.cpu_seconds.max(1e-6),
            Metric::Rss => (measurement.peak_rss_bytes as f64).max(1.0),
        }
    }
}

/// One allocator's runs of one workload.
struct Cell {
    /// The measurements; empty if any run failed.
    measurements: Vec<Measurement>,
}

impl Cell {
    fn median(&self, metric: Metric) -> Option<f64> {
        median(self.measurements.iter().map(|measurement| metric.of(measurement)).collect())
    }

    /// Width of the range of times, relative to their median.
    fn spread(&self) -> Option<f64> {
        let times = || self.measurements.iter().map(|measurement| Metric::Time.of(measurement));
        let width = times().fold(f64::MIN, f64::max) - times().fold(f64::MAX, f64::min);
        Some(width / self.median(Metric::Time)?)
    }
}

/// One workload over all allocators.
pub struct Row {
    /// The workload.
    pub workload: &'static Workload,
    /// What it counted as its operations; `None` if every allocator failed.
    pub operations: Option<u64>,
    cells: Vec<Cell>,
}

/// All medians. Allocators and workloads are named by their index.
pub struct Comparison {
    /// The columns.
    pub allocators: Vec<&'static Allocator>,
    /// The workloads.
    pub rows: Vec<Row>,
    /// Index of the allocator that ratios are formed against.
    pub baseline: usize,
    /// Index of the allocator under test, if it took part.
    pub ours: Option<usize>,
    /// Failed runs, and checksums that differ.
    pub errors: Vec<String>,
}

impl Comparison {
    /// Sorts the runs into rows and columns.
    pub fn new(
        workloads: &[&'static Workload],
        allocators: &[&'static Allocator],
        runs: &[Run],
    ) -> Comparison {
        let mut errors = Vec::new();
        let rows = workloads
            .iter()
            .map(|workload| {
                let runs_of = |allocator: &Allocator| {
                    let name = allocator.name;
                    runs.iter().filter(move |run| run.workload == workload.name && run.allocator == name)
                };
                errors.extend(disagreement(workload, allocators.iter().flat_map(|a| runs_of(a))));
                let cells: Vec<Cell> = allocators
                    .iter()
                    .map(|allocator| {
                        let measurements: Result<Vec<_>, _> =
                            runs_of(allocator).map(|run| run.result.clone()).collect();
                        let measurements = measurements.unwrap_or_else(|failure| {
                            errors.push(format!("{} over {}: {failure}", workload.name, allocator.name));
                            Vec::new()
                        });
                        Cell { measurements }
                    })
                    .collect();
                let operations = cells.iter().find_map(|cell| Some(cell.measurements.first()?.operations));
                Row { workload, operations, cells }
            })
            .collect();
        let index_of = |name| allocators.iter().position(|allocator| allocator.name == name);
        Comparison {
            allocators: allocators.to_vec(),
            rows,
            baseline: index_of(allocators::BASELINE).unwrap_or(0),
            ours: index_of(allocators::OURS),
            errors,
        }
    }

    /// The median of one cell; `None` where the allocator failed.
    pub fn median(&self, metric: Metric, row: usize, allocator: usize) -> Option<f64> {
        self.rows[row].cells[allocator].median(metric)
    }

    /// One cell relative to the baseline's.
    pub fn ratio(&self, metric: Metric, row: usize, allocator: usize) -> Option<f64> {
        Some(self.median(metric, row, allocator)? / self.median(metric, row, self.baseline)?)
    }

    /// The peer with the lowest median of the row, ours not being a peer.
    pub fn best_peer(&self, metric: Metric, row: usize) -> Option<usize> {
        let medians = (0..self.allocators.len())
            .filter(|&peer| Some(peer) != self.ours)
            .filter_map(|peer| Some((peer, self.median(metric, row, peer)?)));
        medians.min_by(|left, right| left.1.total_cmp(&right.1)).map(|(peer, _)| peer)
    }

    /// One cell relative to that of the best peer.
    pub fn against_best(&self, metric: Metric, row: usize, allocator: usize) -> Option<f64> {
        let best = self.best_peer(metric, row)?;
        Some(self.median(metric, row, allocator)? / self.median(metric, row, best)?)
    }

    /// Geometric mean of [`Comparison::ratio`] over the workloads that have one.
    pub fn mean_ratio(&self, metric: Metric, allocator: usize) -> Option<f64> {
        geometric_mean((0..self.rows.len()).filter_map(|row| self.ratio(metric, row, allocator)))
    }

    /// Geometric mean of [`Comparison::against_best`] over the workloads that have one.
    pub fn mean_against_best(&self, metric: Metric, allocator: usize) -> Option<f64> {
        geometric_mean((0..self.rows.len()).filter_map(|row| self.against_best(metric, row, allocator)))
    }

    /// Whether the allocator has a figure for every workload: only then do its means compare.
    pub fn is_complete(&self, allocator: usize) -> bool {
        self.rows.iter().all(|row| !row.cells[allocator].measurements.is_empty())
    }

    /// How far runs of the same work are apart: median over all cells of the range of times,
    /// relative to their median.
    pub fn noise(&self) -> Option<f64> {
        median(self.rows.iter().flat_map(|row| &row.cells).filter_map(Cell::spread).collect())
    }
}

/// Runs of one workload must agree on what they did.
fn disagreement<'a>(workload: &Workload, runs: impl Iterator<Item = &'a Run>) -> Option<String> {
    let mut seen: Vec<((u64, u64), Vec<&str>)> = Vec::new();
    for run in runs {
        let Ok(measurement) = &run.result else { continue };
        let work = (measurement.checksum, measurement.operations);
        match seen.iter_mut().find(|(other, _)| *other == work) {
            Some((_, names)) if names.contains(&run.allocator) => {}
            Some((_, names)) => names.push(run.allocator),
            None => seen.push((work, vec![run.allocator])),
        }
    }
    if seen.len() < 2 {
        return None;
    }
    let parts: Vec<_> = seen
        .iter()
        .map(|((checksum, operations), names)| {
            format!("{checksum:#x} after {operations} operations ({})", names.join(", "))
        })
        .collect();
    Some(format!("{}: checksums differ: {}", workload.name, parts.join("; ")))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let logarithms: Vec<f64> = values.map(f64::ln).collect();
    let count = logarithms.len();
    (count > 0).then(|| (logarithms.into_iter().sum::<f64>() / count as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use compare::workloads;

    /// A run that took `seconds`, or failed.
    fn run(allocator: &'static str, workload: usize, seconds: Option<f64>) -> Run {
        let workload = workloads::ALL[workload].name;
        let measurement = |seconds| Measurement {
            workload: workload.to_owned(),
            wall_seconds: seconds,
            cpu_seconds: seconds,
            peak_rss_bytes: 1,
            minor_faults: 0,
            operations: 5,
            checksum: 7,
        };
        Run { allocator, workload, number: 1, result: seconds.map(measurement).ok_or("crashed".to_owned()) }
    }

    fn compare(runs: &[Run]) -> Comparison {
        let workloads: Vec<_> = workloads::ALL[..2].iter().collect();
        let names = [allocators::OURS, allocators::BASELINE, "system"];
        let chosen: Vec<_> = allocators::ALL.iter().filter(|a| names.contains(&a.name)).collect();
        Comparison::new(&workloads, &chosen, runs)
    }

    fn close(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < 1e-9)
    }

    #[test]
    fn ratios_are_of_medians_and_means_are_geometric() {
        let runs = [
            run(allocators::OURS, 0, Some(1.0)),
            run(allocators::OURS, 0, Some(9.0)),
            run(allocators::OURS, 0, Some(2.0)),
            run(allocators::BASELINE, 0, Some(4.0)),
            run("system", 0, Some(1.0)),
            run(allocators::OURS, 1, Some(2.0)),
            run(allocators::BASELINE, 1, Some(1.0)),
            run("system", 1, Some(3.0)),
        ];
        let comparison = compare(&runs);
        assert!(close(comparison.ratio(Metric::Time, 0, 0), 0.5));
        assert!(close(comparison.ratio(Metric::Time, 1, 0), 2.0));
        assert!(close(comparison.mean_ratio(Metric::Time, 0), 1.0));
        assert!(comparison.errors.is_empty());
    }

    #[test]
    fn the_best_peer_is_never_ours() {
        let runs = [
            run(allocators::OURS, 0, Some(1.0)),
            run(allocators::BASELINE, 0, Some(4.0)),
            run("system", 0, Some(2.0)),
        ];
        let comparison = compare(&runs);
        assert_eq!(comparison.best_peer(Metric::Time, 0), Some(2));
        assert!(close(comparison.against_best(Metric::Time, 0, 0), 0.5));
        assert!(close(comparison.against_best(Metric::Time, 0, 1), 2.0));
    }

    #[test]
    fn a_failed_run_leaves_a_gap_and_an_error() {
        let runs = [
            run(allocators::OURS, 0, Some(1.0)),
            run(allocators::OURS, 0, None),
            run(allocators::BASELINE, 0, Some(1.0)),
            run("system", 0, Some(1.0)),
        ];
        let comparison = compare(&runs);
        assert_eq!(comparison.ratio(Metric::Time, 0, 0), None);
        assert!(!comparison.is_complete(0));
        assert_eq!(comparison.errors.len(), 1);
    }

    #[test]
    fn different_checksums_are_an_error() {
        let mut runs = [run(allocators::OURS, 0, Some(1.0)), run(allocators::BASELINE, 0, Some(1.0))];
        runs[0].result.as_mut().expect("it ran").checksum = 8;
        let comparison = compare(&runs);
        assert_eq!(comparison.errors.len(), 1);
        assert!(comparison.errors[0].contains("checksums differ"), "{}", comparison.errors[0]);
    }
}
