//! How often the system gave this process memory.

use std::mem;

/// Page faults so far that took no reading from a disk.
pub fn page_faults() -> i64 {
    // SAFETY: zeros are a valid value, which getrusage overwrites.
    unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage.ru_minflt
    }
}
