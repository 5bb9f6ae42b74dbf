//! One set of workloads, one binary per allocator, one driver that sets the figures side by side.
//!
//! 1. [`workloads`] holds the work. It knows nothing of allocators: it allocates through the
//!    standard library, and whatever `#[global_allocator]` its binary has serves it.
//! 2. `src/bin/<allocator>.rs` sets that allocator by [`main!`]. Called as `<allocator> <workload>`
//!    it does the work once, in a fresh process, and prints one [`Measurement`] as a line of JSON.
//! 3. `src/bin/compare` runs those binaries in turn and writes the report.
//! 4. [`footprint`] holds scenes after which is looked at what stays resident; `src/bin/footprint.rs`
//!    plays them.
//! 5. [`counts`] holds loops that `scripts/instructions.sh` runs under a simulator which counts
//!    instructions.
//!
//! Every workload is deterministic and returns a checksum of what it read back from its blocks.
//! The checksum cannot depend on addresses or on how threads interleave, so two allocators that
//! print different ones did not do the same work.

pub mod allocators;
pub mod block;
pub mod counts;
pub mod footprint;
pub mod measure;
pub mod workloads;

pub use measure::Measurement;

use std::process::ExitCode;

/// The whole of an allocator's binary: sets the global allocator and answers the command line.
///
/// `version` is an expression of the library's own account of its version, for those whose crate
/// and library are numbered apart; `give_back` one that has it give memory back to the system.
#[macro_export]
macro_rules! main {
    ($allocator:ty = $value:expr) => {
        $crate::main!($allocator = $value, version: None);
    };
    ($allocator:ty = $value:expr, version: $version:expr) => {
        $crate::main!($allocator = $value, version: $version, give_back: ());
    };
    ($allocator:ty = $value:expr, version: $version:expr, give_back: $give_back:expr) => {
        #[global_allocator]
        static HEAP: $allocator = $value;

        fn main() -> std::process::ExitCode {
            $crate::run(|| $version, || $give_back)
        }
    };
}

/// Answers the command line of an allocator's binary; see [`main!`].
///
/// Besides the names of the workloads these are understood: `version`, `first-steps` (what the
/// workload `process-start` starts), the loops of [`counts`], and `footprint` with one of its
/// scenes.
pub fn run(version: fn() -> Option<String>, give_back: footprint::GiveBack) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["version"] => println!("{}", version().unwrap_or_default()),
        [workloads::FIRST_STEPS] => workloads::first_steps(),
        ["footprint", name] if footprint::find(name).is_some() => {
            let scene = footprint::find(name).expect("found a line above");
            let footprint = footprint::measure(scene, give_back);
            println!("{}", serde_json::to_string(&footprint).expect("plain numbers and text"));
        }
        [name, count] if counts::is_loop(name) => return counts::run(name, count),
        [name] if workloads::find(name).is_some() => {
            let workload = workloads::find(name).expect("found a line above");
            println!("{}", measure::measure(workload).to_json());
        }
        _ => {
            eprintln!("usage: <allocator> <workload>, where <workload> is one of");
            for workload in workloads::ALL {
                eprintln!("  {:16} {}", workload.name, workload.about);
            }
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
