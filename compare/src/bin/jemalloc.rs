//! The workloads over jemalloc.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

compare::main!(
    tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc,
    version: None,
    give_back: give_back()
);

unsafe extern "C" {
    fn _rjem_mallctl(
        name: *const c_char,
        old: *mut c_void,
        old_len: *mut usize,
        new: *mut c_void,
        new_len: usize,
    ) -> c_int;
}

/// Empties the calling thread's cache, then purges all arenas.
fn give_back() {
    for name in [c"thread.tcache.flush", c"arena.4096.purge"] {
        // SAFETY: these take and return no value.
        unsafe { _rjem_mallctl(name.as_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), 0) };
    }
}
