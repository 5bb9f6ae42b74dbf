//! What one run of a workload costs its process.

use std::fs;
use std::time::Instant;

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use crate::workloads::Workload;

const KIB: u64 = 1024;

/// One run of one workload, as printed by an allocator's binary.
///
/// Time and faults are those of the work alone, without what prepares it; memory is the peak of
/// the whole process. Child processes count, for the workload that starts some.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Measurement {
    /// Name of the workload.
    pub workload: String,
    /// Elapsed seconds.
    pub wall_seconds: f64,
    /// Seconds on a processor, in user and kernel mode, of all threads.
    pub cpu_seconds: f64,
    /// Peak resident set size of the process, in bytes.
    pub peak_rss_bytes: u64,
    /// Page faults served without reading from disk.
    pub minor_faults: u64,
    /// What the workload counts as its operations.
    pub operations: u64,
    /// Digest of what was read back from the blocks; the same for every allocator.
    pub checksum: u64,
}

impl Measurement {
    /// The measurement as one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain numbers and text always serialise")
    }
}

/// Prepares `workload`, then does it once under measurement.
pub fn measure(workload: &Workload) -> Measurement {
    let job = (workload.prepare)();
    let before = Spent::so_far();
    let start = Instant::now();
    let tally = job();
    let wall = start.elapsed();
    let after = Spent::so_far();
    Measurement {
        workload: workload.name.to_owned(),
        wall_seconds: wall.as_secs_f64(),
        cpu_seconds: (after.cpu_microseconds - before.cpu_microseconds) as f64 / 1e6,
        peak_rss_bytes: peak_rss_bytes(),
        minor_faults: (after.minor_faults - before.minor_faults) as u64,
        operations: tally.operations,
        checksum: tally.checksum,
    }
}

/// The kernel's account of this process and the children it has waited for.
struct Spent {
    cpu_microseconds: i64,
    minor_faults: i64,
}

impl Spent {
    fn so_far() -> Spent {
        let usages = [usage(UsageWho::RUSAGE_SELF), usage(UsageWho::RUSAGE_CHILDREN)];
        Spent {
            cpu_microseconds: usages
                .iter()
                .map(|usage| (usage.user_time() + usage.system_time()).num_microseconds())
                .sum(),
            minor_faults: usages.iter().map(Usage::minor_page_faults).sum(),
        }
    }
}

fn usage(who: UsageWho) -> Usage {
    getrusage(who).expect("a process may always ask for its own usage")
}

/// The larger of this process's peak and that of its largest child.
///
/// For the process itself `VmHWM` is read, because `ru_maxrss` starts at the size of whatever
/// process called `exec`. For a child that is this process, whose only work was to start children.
fn peak_rss_bytes() -> u64 {
    let children = usage(UsageWho::RUSAGE_CHILDREN).max_rss() as u64 * KIB;
    status("VmHWM:").max(children)
}

/// Bytes that the kernel reports of this process as `name`, which ends in a colon.
pub(crate) fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux with /proc mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel reports sizes");
    let kib = line.trim().strip_suffix(" kB").and_then(|number| number.parse::<u64>().ok());
    kib.expect("sizes are in kB") * KIB
}
