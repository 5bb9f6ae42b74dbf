//! `errno`, which system calls set even where a failure is made good.

use core::ffi::{c_int, c_void};

fn errno() -> *mut c_int {
    // SAFETY: every thread has an errno.
    unsafe { libc::__errno_location() }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: the calling thread's errno can be written.
    unsafe { errno().write(value) };
}

/// Does `call`, and leaves `errno` as it was.
pub(crate) fn keeping_errno<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: the calling thread's errno can be read.
    let before = unsafe { errno().read() };
    let result = call();
    set_errno(before);
    result
}

/// Does `call`, and leaves `errno` as it was, or at `ENOMEM` if there is no block.
pub(crate) fn failing_with_enomem(call: impl FnOnce() -> *mut u8) -> *mut c_void {
    let block = keeping_errno(call);
    if block.is_null() {
        set_errno(libc::ENOMEM);
    }
    block.cast()
}
