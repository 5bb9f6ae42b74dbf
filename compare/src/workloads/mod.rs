//! The workloads: what programs do with an allocator, made repeatable.
//!
//! A [`Workload`] prepares its input outside the measurement and hands back a [`Job`], which does
//! the work once. Seeds are fixed. Amounts are chosen so that a job takes 0.2 to 0.6 s with the
//! system's allocator on a common machine.

mod buffers;
mod collections;
mod documents;
mod growth;
mod sets;
mod small;
mod threads;
mod trees;

use std::process::{Command, Stdio};

use fastrand::Rng;

/// One kind of work.
pub struct Workload {
    /// What the command line and the report call it.
    pub name: &'static str,
    /// What it does, in a few words.
    pub about: &'static str,
    /// Makes its input and returns the job to be measured.
    pub prepare: fn() -> Job,
}

/// The part of a workload that is measured.
pub type Job = Box<dyn FnOnce() -> Tally>;

/// What a job has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Operations: mostly blocks allocated and freed; lookups or entries where that says more.
    pub operations: u64,
    /// Wrapping sum of what was read back. A sum, because threads add to it in any order.
    pub checksum: u64,
}

impl Tally {
    /// Counts one operation, which read `value`.
    #[inline]
    pub fn add(&mut self, value: u64) {
        self.operations += 1;
        self.checksum = self.checksum.wrapping_add(value);
    }

    /// Adds the work of another thread or step.
    pub fn merge(&mut self, other: Tally) {
        self.operations += other.operations;
        self.checksum = self.checksum.wrapping_add(other.checksum);
    }
}

/// A workload whose job needs no input.
macro_rules! workload {
    ($name:literal, $about:literal, $job:expr) => {
        Workload { name: $name, about: $about, prepare: || Box::new(|| $job) }
    };
}

/// All workloads, in the order they run and are reported.
pub const ALL: &[Workload] = &[
    workload!("pair-16", "a block of 16 bytes, freed at once", small::pairs(16)),
    workload!("pair-64", "a block of 64 bytes, freed at once", small::pairs(64)),
    workload!("pair-256", "a block of 256 bytes, freed at once", small::pairs(256)),
    workload!("pair-1024", "a block of 1024 bytes, freed at once", small::pairs(1024)),
    workload!("burst-10", "10 blocks of 16, 64 or 512 bytes, then all freed", small::bursts(10, 1_500_000)),
    workload!("burst-100", "the same with 100", small::bursts(100, 240_000)),
    workload!("burst-400", "the same with 400", small::bursts(400, 40_000)),
    workload!("burst-1000", "the same with 1,000", small::bursts(1000, 9000)),
    workload!("burst-10000", "the same with 10,000", small::bursts(10_000, 700)),
    workload!("random-100", "one of 100 blocks replaced, 8 B to 32 KiB", sets::random(100, 9_000_000)),
    workload!("random-10k", "one of 10,000 blocks replaced", sets::random(10_000, 6_000_000)),
    workload!("random-200k", "one of 200,000 blocks replaced", sets::random(200_000, 1_500_000)),
    workload!("random-1m", "one of 1,000,000 blocks replaced", sets::random(1_000_000, 250_000)),
    workload!("random-threads", "4 threads, each with 10,000 blocks of its own", threads::random_sets()),
    workload!("channel", "2 producers send Box, Vec and String to 2 consumers", threads::channel()),
    workload!("channel-batch", "the same in batches of 128", threads::channel_batches()),
    workload!("thread-churn", "2,000 threads come and go, leaving blocks behind", threads::churn()),
    workload!("larson-16", "16 threads churn sets and hand blocks to a neighbour", threads::neighbours()),
    workload!("vec-push", "many small vectors grow by push", growth::vec_push()),
    workload!("vec-256m", "one Vec<u8> grows to 256 MiB", growth::vec_large()),
    workload!("string-push", "strings grow by push_str", growth::string_push()),
    workload!("realloc", "1,000 buffers grow in turn by small steps", growth::round_robin()),
    workload!("hashmap", "HashMap<String, String>: build, look up, remove, drop", collections::hash_map()),
    workload!(
        "btreemap",
        "BTreeMap<String, Vec<u32>>: build, look up, remove, drop",
        collections::btree_map()
    ),
    Workload {
        name: "words",
        about: "words of a text are lower-cased, counted and sorted",
        prepare: collections::words,
    },
    Workload {
        name: "json",
        about: "8 MiB of JSON parsed into serde_json::Value and dropped",
        prepare: documents::json,
    },
    Workload {
        name: "rust-source",
        about: "1 MiB of Rust source parsed by syn and dropped",
        prepare: documents::rust_source,
    },
    workload!("buffers-medium", "one of 256 buffers replaced, 32 to 512 KiB", buffers::medium()),
    workload!("buffers-large", "one of 32 zeroed buffers replaced, 64 KiB to 8 MiB", buffers::large()),
    workload!("tree", "a tree of Arc built, dropped by another thread", trees::tree()),
    workload!("list", "linked lists built, dropped by another thread", trees::list()),
    workload!("process-start", "200 processes that allocate a little and exit", process_start()),
];

/// The workload called `name`.
pub fn find(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name)
}

/// A random number below `bound`, without the division or the loop of an exactly uniform one.
#[inline]
pub fn random_below(rng: &mut Rng, bound: usize) -> usize {
    ((u64::from(rng.u32(..)) * bound as u64) >> 32) as usize
}

/// A distribution of sizes, as a table of its quantiles: drawing from it costs one load.
pub struct SizeTable(Vec<u32>);

impl SizeTable {
    const QUANTILES: usize = 4096;

    /// Every doubling between `min` and `max` equally likely.
    pub fn log_uniform(min: usize, max: usize) -> SizeTable {
        SizeTable(Self::quantiles(min, max, Self::QUANTILES).collect())
    }

    /// What programs ask for: log-uniform from 8 bytes to 4 KiB, and 1 in 64 up to 32 KiB.
    pub fn of_programs() -> SizeTable {
        const KIB: usize = 1024;
        const LARGE: usize = SizeTable::QUANTILES / 64;
        let small = Self::quantiles(8, 4 * KIB, Self::QUANTILES - LARGE);
        let large = Self::quantiles(4 * KIB, 32 * KIB, LARGE);
        SizeTable(small.chain(large).collect())
    }

    /// Draws a size.
    #[inline]
    pub fn pick(&self, rng: &mut Rng) -> usize {
        self.0[random_below(rng, self.0.len())] as usize
    }

    fn quantiles(min: usize, max: usize, count: usize) -> impl Iterator<Item = u32> {
        let doublings = (max as f64 / min as f64).log2();
        (0..count).map(move |index| {
            let share = (index as f64 + 0.5) / count as f64;
            (min as f64 * (doublings * share).exp2()) as u32
        })
    }
}

/// The argument that makes an allocator's binary do [`first_steps`].
pub const FIRST_STEPS: &str = "first-steps";

/// Starts this very binary many times: what an allocator's own start and exit cost.
fn process_start() -> Tally {
    const PROCESSES: u64 = 200;
    let binary = std::env::current_exe().expect("Linux knows a process's binary");
    let mut tally = Tally::default();
    for _ in 0..PROCESSES {
        let status = Command::new(&binary)
            .arg(FIRST_STEPS)
            .stdout(Stdio::null())
            .status()
            .expect("a process that runs can be started again");
        assert!(status.success(), "a short process failed: {status}");
        tally.add(1);
    }
    tally
}

/// What a short program does: reads its arguments, builds some small values, prints a line.
pub fn first_steps() {
    let mut tally = Tally::default();
    tally.merge(sets::random(100, 500));
    println!("{tally:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|workload| workload.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn sizes_stay_within_their_bounds() {
        let sizes = SizeTable::of_programs();
        assert!(sizes.0.iter().all(|&size| (8..=32 * 1024).contains(&size)));
        assert!(sizes.0.iter().any(|&size| size > 4096));
    }

    #[test]
    fn every_workload_repeats_itself() {
        for workload in ALL {
            // Its processes are copies of the binary that runs, which is the test's.
            if workload.name == "process-start" {
                continue;
            }
            let runs: Vec<_> = (0..2).map(|_| (workload.prepare)()()).collect();
            assert_eq!(runs[0], runs[1], "{}", workload.name);
            assert!(runs[0].operations > 0, "{}", workload.name);
        }
    }
}
