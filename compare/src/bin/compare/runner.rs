//! Builds, finds and runs the allocators' binaries.

use std::collections::BTreeMap;
use std::env;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use compare::Measurement;
use compare::allocators::Allocator;
use compare::workloads::Workload;
use serde::Serialize;
use wait_timeout::ChildExt;

/// The command that builds what the driver runs.
const BUILD: &str = "cargo build --release --bins";

/// Builds the siblings, or `cargo run --bin compare` would build the driver alone and measure
/// whatever allocators were built last. Started by hand, the driver cannot know by which cargo.
pub fn build() -> Result<()> {
    let (Some(cargo), Some(package)) = (env::var_os("CARGO"), env::var_os("CARGO_MANIFEST_DIR")) else {
        return Ok(());
    };
    let status = Command::new(cargo)
        .args(BUILD.split(' ').skip(1))
        .current_dir(package)
        .status()
        .context("cargo started the driver and cannot be started by it")?;
    ensure!(status.success(), "`{BUILD}` failed");
    Ok(())
}

/// The allocators' binaries, next to the driver's own.
pub struct Binaries(BTreeMap<&'static str, PathBuf>);

/// One run of one workload over one allocator.
#[derive(Serialize)]
pub struct Run {
    /// Name of the allocator.
    pub allocator: &'static str,
    /// Name of the workload.
    pub workload: &'static str,
    /// Which of the runs, from 1.
    pub number: u32,
    /// What it cost, or why there is no figure.
    #[serde(flatten)]
    pub result: Result<Measurement, String>,
}

impl Binaries {
    /// Finds the binaries of `allocators`.
    pub fn find(allocators: &[&'static Allocator]) -> Result<Binaries> {
        let driver = env::current_exe().context("cannot tell where the driver is")?;
        let paths: BTreeMap<_, _> = allocators
            .iter()
            .map(|allocator| (allocator.name, driver.with_file_name(allocator.name)))
            .collect();
        let missing: Vec<_> =
            paths.iter().filter(|(_, path)| !path.is_file()).map(|(name, _)| *name).collect();
        ensure!(missing.is_empty(), "no binary for {}; build all of them with `{BUILD}`", missing.join(", "));
        Ok(Binaries(paths))
    }

    /// Runs `workload` over `allocator`. Failures of the allocator are part of the result.
    pub fn run(
        &self,
        allocator: &Allocator,
        workload: &Workload,
        number: u32,
        timeout: Duration,
    ) -> Result<Run> {
        let result = self.output(allocator, workload.name, timeout)?.and_then(|line| {
            serde_json::from_str(&line).map_err(|error| format!("printed no result: {error}"))
        });
        Ok(Run { allocator: allocator.name, workload: workload.name, number, result })
    }

    /// The allocator's own account of its version; empty if it has none.
    pub fn version(&self, allocator: &Allocator) -> String {
        let output = self.output(allocator, "version", Duration::from_secs(10));
        output.ok().and_then(Result::ok).unwrap_or_default().trim().to_owned()
    }

    /// What the binary prints, or how it failed. What fits into a pipe is enough for either
    /// stream; a binary that prints more blocks, and fails by the timeout.
    fn output(
        &self,
        allocator: &Allocator,
        argument: &str,
        timeout: Duration,
    ) -> Result<Result<String, String>> {
        let path = &self.0[allocator.name];
        let mut child = Command::new(path)
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let Some(status) = child.wait_timeout(timeout)? else {
            child.kill()?;
            child.wait()?;
            return Ok(Err(format!("still running after {} s", timeout.as_secs())));
        };
        let mut stdout = String::new();
        let mut stderr = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut stdout)?;
        child.stderr.take().expect("piped").read_to_string(&mut stderr)?;
        if status.success() {
            Ok(Ok(stdout))
        } else {
            let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
            Ok(Err(format!("{status}: {last}")))
        }
    }
}
