//! Where and with what the figures were taken.

use std::fs;
use std::str::FromStr;
use std::thread;

use cargo_lock::Lockfile;
use compare::allocators::Allocator;
use serde::Serialize;

use crate::runner::Binaries;

/// What a reader must know before comparing figures of two reports.
#[derive(Serialize)]
pub struct Environment {
    /// When the runs started, in UTC.
    pub date: String,
    /// Model of the processor.
    pub cpu: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Main memory in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// The kernel's policy for transparent huge pages, which moves both speed and memory.
    pub huge_pages: String,
    /// The compiler that built the binaries.
    pub rustc: String,
    /// Each allocator with its versions.
    pub allocators: Vec<(&'static str, String)>,
}

impl Environment {
    /// Looks around.
    pub fn look(allocators: &[&'static Allocator], binaries: &Binaries) -> Environment {
        Environment {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_mib: field("/proc/meminfo", "MemTotal")
                .and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            kernel: line("/proc/sys/kernel/osrelease"),
            huge_pages: line("/sys/kernel/mm/transparent_hugepage/enabled"),
            rustc: env!("COMPARE_RUSTC").to_owned(),
            allocators: versions(allocators, binaries),
        }
    }
}

/// The versions of the packages as locked when the driver was built, and what the library says of
/// itself where that differs.
fn versions(allocators: &[&'static Allocator], binaries: &Binaries) -> Vec<(&'static str, String)> {
    let lock = Lockfile::from_str(include_str!("../../../Cargo.lock")).expect("cargo wrote it");
    let locked = |name: &&str| {
        let package = lock.packages.iter().find(|package| package.name.as_str() == *name)?;
        Some(format!("{name} {}", package.version))
    };
    allocators
        .iter()
        .map(|allocator| {
            let mut parts: Vec<String> = allocator.packages.iter().filter_map(locked).collect();
            let own = binaries.version(allocator);
            if !own.is_empty() {
                parts.insert(0, own);
            }
            (allocator.name, parts.join(", "))
        })
        .collect()
}

/// The value of the first `name : value` line of a file of the kernel.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, value) =
        text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
    Some(value.trim().to_owned())
}

/// A file of one line.
fn line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
