//! Memory that the machine has at hand.
//!
//! A virtual machine may give free memory back to its host within seconds. The next program to
//! touch that memory then waits for the host, up to ten times as long as for the work itself, and
//! most of all one that uses huge pages. To which allocator this happens is chance. So the same
//! amount is touched and freed right before each run: the kernel hands out next what was freed
//! last. On a machine of its own this costs a little time and changes nothing.

use anyhow::Result;
use memmap2::{Advice, MmapMut};

/// Touched before every run, whatever is known of the workload.
const LEAST: u64 = 256 << 20;

/// Touches and frees a little more than `largest`, the largest peak of the workload's runs so far.
pub fn touch(largest: u64) -> Result<()> {
    const OS_PAGE: usize = 4096;
    let length = LEAST.max(largest + largest / 4) as usize;
    let mut memory = MmapMut::map_anon(length)?;
    // Whole huge pages stay whole when they are freed. A kernel without them refuses the advice,
    // and the memory is touched all the same.
    let _ = memory.advise(Advice::HugePage);
    for byte in memory.iter_mut().step_by(OS_PAGE) {
        *byte = 1;
    }
    Ok(())
}
