//! Runs every workload over every allocator, in turn, and writes a report of the ratios.
//!
//! Machines are noisy and drift. So for each workload the allocators take turns, run after run,
//! which spreads a slow minute over all of them, and each cell of the report is a median. See
//! [`warmth`] for what happens right before each run.

mod chart;
mod comparison;
mod environment;
mod markdown;
mod runner;
mod warmth;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use compare::allocators::{self, Allocator};
use compare::workloads::{self, Workload};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::comparison::Comparison;
use crate::environment::Environment;
use crate::runner::{Binaries, Run};

/// Compares page_memory_allocator with its peers.
#[derive(Parser)]
struct Options {
    /// Runs of each workload over each allocator; the report shows their median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only workloads whose name contains one of these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these allocators, by name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    allocators: Vec<String>,
    /// Folder for latest.md, latest.json and latest.svg.
    #[arg(long, default_value = "results")]
    out: PathBuf,
    /// Seconds after which a run counts as failed.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Takes the binaries as they are, without building them first.
    #[arg(long)]
    no_build: bool,
}

impl Options {
    fn workloads(&self) -> Result<Vec<&'static Workload>> {
        let chosen = |workload: &&Workload| {
            self.only.is_empty() || self.only.iter().any(|part| workload.name.contains(part.as_str()))
        };
        let workloads: Vec<_> = workloads::ALL.iter().filter(chosen).collect();
        ensure!(!workloads.is_empty(), "no workload's name contains any of {:?}", self.only);
        Ok(workloads)
    }

    fn allocators(&self) -> Result<Vec<&'static Allocator>> {
        for name in &self.allocators {
            ensure!(
                allocators::ALL.iter().any(|allocator| allocator.name == name),
                "{name:?} is none of the allocators: {}",
                allocators::ALL.iter().map(|allocator| allocator.name).collect::<Vec<_>>().join(", ")
            );
        }
        let chosen = |allocator: &&Allocator| {
            self.allocators.is_empty() || self.allocators.iter().any(|name| name == allocator.name)
        };
        Ok(allocators::ALL.iter().filter(chosen).collect())
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line asks for; fails if it cannot be done at all.
fn run() -> Result<ExitCode> {
    ensure!(!cfg!(debug_assertions), "allocators built without optimisation say nothing; add --release");
    let options = Options::parse();
    let workloads = options.workloads()?;
    let allocators = options.allocators()?;
    if !options.no_build {
        runner::build()?;
    }
    let binaries = Binaries::find(&allocators)?;
    let environment = Environment::look(&allocators, &binaries);
    let runs = run_all(&options, &workloads, &allocators, &binaries)?;
    let comparison = Comparison::new(&workloads, &allocators, &runs);

    let report = markdown::report(&environment, &comparison, options.runs);
    println!("{report}");
    save(&options, &environment, &runs, &comparison, &report)?;
    for error in &comparison.errors {
        eprintln!("error: {error}");
    }
    Ok(if comparison.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// For each workload, for each run, each allocator in turn.
fn run_all(
    options: &Options,
    workloads: &[&'static Workload],
    allocators: &[&'static Allocator],
    binaries: &Binaries,
) -> Result<Vec<Run>> {
    let timeout = Duration::from_secs(options.timeout);
    let total = workloads.len() * allocators.len() * options.runs as usize;
    let bar = ProgressBar::new(total as u64).with_style(ProgressStyle::with_template(
        "{elapsed_precise} {wide_bar} {pos}/{len} {msg} (left: {eta})",
    )?);
    let mut runs: Vec<Run> = Vec::with_capacity(total);
    let baseline = allocators.iter().find(|allocator| allocator.name == allocators::BASELINE);
    let trial_allocator = baseline.unwrap_or(&allocators[0]);
    for workload in workloads {
        // Run once for nothing, to learn how much memory the workload takes.
        let trial = binaries.run(trial_allocator, workload, 0, timeout)?;
        let mut largest = trial.result.map_or(0, |measurement| measurement.peak_rss_bytes);
        for number in 1..=options.runs {
            for allocator in allocators {
                bar.set_message(format!("{} {}", workload.name, allocator.name));
                // A workload that crashed or hung once is not tried again, only noted.
                let failed = runs.iter().any(|run| {
                    run.workload == workload.name && run.allocator == allocator.name && run.result.is_err()
                });
                if !failed {
                    warmth::touch(largest)?;
                    let run = binaries.run(allocator, workload, number, timeout)?;
                    if let Ok(measurement) = &run.result {
                        largest = largest.max(measurement.peak_rss_bytes);
                    }
                    runs.push(run);
                }
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    Ok(runs)
}

fn save(
    options: &Options,
    environment: &Environment,
    runs: &[Run],
    comparison: &Comparison,
    report: &str,
) -> Result<()> {
    #[derive(Serialize)]
    struct Raw<'a> {
        environment: &'a Environment,
        runs: &'a [Run],
    }
    let out = &options.out;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("latest.md", report)?;
    write("latest.json", &serde_json::to_string_pretty(&Raw { environment, runs })?)?;
    write("latest.svg", &chart::draw(environment, comparison, options.runs)?)?;
    eprintln!("written: latest.md, latest.json and latest.svg in {}", out.display());
    Ok(())
}
