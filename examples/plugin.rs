//! A plug-in: a shared library with a heap of its own, opened by `dlopen`. What it allocates it frees itself, as the program that
//! opens it has another allocator, or another copy of this one.
//!
//!     cargo build --example plugin
//!
//! makes `target/debug/examples/libplugin.so`. Once it was used it stays loaded when it is closed, as threads that used it
//! call the allocator when they end.

use page_memory_allocator::PageAllocator;
use std::ffi::{CStr, CString, c_char};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// The text with its words in reverse order; null if it is not valid UTF-8. To be freed by [`plugin_free`].
///
/// # Safety
/// `text` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_reverse(text: *const c_char) -> *mut c_char {
    // SAFETY: as the caller says.
    let Ok(text) = unsafe { CStr::from_ptr(text) }.to_str() else { return std::ptr::null_mut() };
    let mut words: Vec<&str> = text.split(' ').collect();
    words.reverse();
    CString::new(words.join(" ")).map_or(std::ptr::null_mut(), CString::into_raw)
}

/// Frees what [`plugin_reverse`] has returned.
///
/// # Safety
/// It was not freed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: as the caller says.
        drop(unsafe { CString::from_raw(text) });
    }
}
