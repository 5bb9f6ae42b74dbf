//! Plays every scene over every allocator, in turn, and prints what stays resident.

#[path = "compare/warmth.rs"]
mod warmth;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use compare::allocators;
use compare::footprint::{self, Footprint, Scene};

/// Compares what page_memory_allocator and its peers leave resident. Build all binaries first:
/// `cargo build --release --bins`.
#[derive(Parser)]
struct Options {
    /// Runs of each scene over each allocator; the report shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only these scenes, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The report.
    #[arg(long, default_value = "results/footprint.md")]
    out: std::path::PathBuf,
}

/// An allocator in one of its settings: the name of the column, that of the binary, and the environment.
type Column = (String, &'static str, &'static [(&'static str, &'static str)]);

fn columns() -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for allocator in allocators::ALL {
        columns.push((allocator.name.to_owned(), allocator.name, &[]));
        if allocator.name == allocators::OURS {
            let background: &[_] = &[("PMA_BACKGROUND_PURGE", "1")];
            columns.push((format!("{}, background purge", allocator.name), allocator.name, background));
        }
    }
    columns
}

fn play(scene: &Scene, column: &Column) -> Result<Footprint> {
    let path = env::current_exe()?.with_file_name(column.1);
    let output = Command::new(&path)
        .args(["footprint", scene.name])
        .envs(column.2.iter().copied())
        .output()
        .with_context(|| format!("cannot start {}", path.display()))?;
    ensure!(output.status.success(), "{} on {}: {}", column.0, scene.name, output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = String::from(
        "# What stays resident\n\nMedians; MiB beyond what the process had before. *Idle*: a second after the scene, in \
         which nothing was\nallocated. *Given back*: after the allocator was asked to give back what it can \
         (`purge`, `mi_collect`,\n`arena.purge`, `malloc_trim`; the others have no such call).\n",
    );
    for scene in footprint::ALL {
        if !options.only.is_empty() && !options.only.iter().any(|name| name == scene.name) {
            continue;
        }
        let columns = columns();
        let mut footprints: BTreeMap<usize, Vec<Footprint>> = BTreeMap::new();
        for _ in 0..options.runs {
            for (number, column) in columns.iter().enumerate() {
                warmth::touch(2 << 30)?;
                match play(scene, column) {
                    Ok(footprint) => footprints.entry(number).or_default().push(footprint),
                    Err(error) => eprintln!("error: {error:#}"),
                }
            }
        }
        report += &format!("\n## {}\n\n{}\n\n", scene.name, scene.about);
        report += "| allocator | seconds | page faults | peak | held | idle | given back |\n|---|--:|--:|--:|--:|--:|--:|\n";
        for (number, played) in &footprints {
            let of = |value: fn(&Footprint) -> f64| median(played.iter().map(value).collect());
            const MIB: f64 = (1 << 20) as f64;
            report += &format!(
                "| {} | {:.3} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
                columns[*number].0,
                of(|footprint| footprint.seconds),
                of(|footprint| footprint.faults as f64),
                of(|footprint| footprint.peak as f64 / MIB),
                of(|footprint| footprint.live as f64 / MIB),
                of(|footprint| footprint.idle as f64 / MIB),
                of(|footprint| footprint.given_back as f64 / MIB),
            );
        }
    }
    println!("{report}");
    fs::write(&options.out, report).with_context(|| format!("cannot write {}", options.out.display()))
}
