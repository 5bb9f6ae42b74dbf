//! C ABI.
#![allow(missing_docs, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]
use core::alloc::{GlobalAlloc, Layout};
use core::ffi::c_void;
use page_memory_allocator::PageAllocator;
const HEAP: PageAllocator = PageAllocator::new();
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    HEAP.malloc(size).cast()
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(p: *mut c_void) {
    unsafe { HEAP.free(p.cast()) }
}
#[unsafe(no_mangle)]
pub extern "C" fn calloc(n: usize, size: usize) -> *mut c_void {
    let Some(b) = n.checked_mul(size) else { return core::ptr::null_mut() };
    match Layout::from_size_align(b.max(1), 16) {
        Ok(l) => unsafe { HEAP.alloc_zeroed(l).cast() },
        Err(_) => core::ptr::null_mut(),
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(p: *mut c_void, size: usize) -> *mut c_void {
    if p.is_null() {
        return malloc(size);
    }
    unsafe { HEAP.realloc_unsized(p.cast(), size).cast() }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> i32 {
    let Ok(l) = Layout::from_size_align(size.max(1), align) else { return libc::EINVAL };
    unsafe {
        let p = HEAP.alloc(l);
        if p.is_null() {
            return libc::ENOMEM;
        }
        *out = p.cast();
    }
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    match Layout::from_size_align(size.max(1), align) {
        Ok(l) => unsafe { HEAP.alloc(l).cast() },
        Err(_) => core::ptr::null_mut(),
    }
}
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    memalign(align, size)
}
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    memalign(4096, size)
}
#[unsafe(no_mangle)]
pub extern "C" fn malloc_usable_size(p: *mut c_void) -> usize {
    unsafe { HEAP.usable_size(p.cast()) }
}
