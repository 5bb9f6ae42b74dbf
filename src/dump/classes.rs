//! The size classes, a line for each.

use crate::human::Bytes;
use crate::stats::Stats;
use core::fmt::{self, Write};

pub(super) fn write(stats: &Stats, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "|-------------Size Classes-------------|")?;
    writeln!(
        out,
        "{:>8} {:>8} {:>12} {:>10} {:>13} {:>10} {:>10} {:>10} {:>10}",
        "Block", "Pages", "Live blocks", "Live", "asked", "Cached", "Free", "Resident", "of it live"
    )?;
    for class in stats.classes().iter().filter(|class| class.pages.0 > 0) {
        writeln!(
            out,
            "{:>8} {:>8} {:>12} {:10} >={:11} {:10} {:10} {:10} {:10}",
            class.block,
            class.pages.0,
            class.live_blocks,
            Bytes(class.live_bytes()),
            Bytes(class.least_asked_bytes()),
            Bytes(class.cached_blocks * class.block),
            Bytes(class.free_blocks * class.block),
            Bytes(class.resident_bytes),
            Bytes(class.live_resident_bytes()),
        )?;
    }
    let runs = &stats.runs;
    writeln!(
        out,
        "{:>8} {:>8} {:>12} {:10} {:13} {:10} {:10} {:10} {:10}",
        "runs",
        runs.pages.0,
        runs.runs,
        Bytes(runs.live_bytes),
        Bytes(runs.asked_bytes),
        Bytes(0),
        Bytes(0),
        Bytes(runs.resident_bytes),
        Bytes(runs.resident_bytes),
    )?;
    writeln!(out, "|--------------------------------------|")
}
