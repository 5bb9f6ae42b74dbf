//! Threads that the allocator starts, and what they bring about.

use std::time::{Duration, Instant};
use std::{fs, thread};

/// Threads that a test runs beside, and its own.
#[allow(dead_code)] // some tests count none
pub const OF_THE_HARNESS: usize = 2;

/// Threads of this process.
#[allow(dead_code)] // as above
pub fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// Waits until `condition` holds, which the clock alone does not bring about for sure.
pub fn becomes_true(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}
