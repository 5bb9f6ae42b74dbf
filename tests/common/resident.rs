//! How much memory this process has from the system.

use std::fs;

/// Bytes of this process that are backed by memory.
pub fn resident() -> usize {
    let figures = fs::read_to_string("/proc/self/statm").expect("Linux shows it");
    let pages: Option<usize> = figures.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    // SAFETY: sysconf has no preconditions.
    pages.expect("the second figure") * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}
