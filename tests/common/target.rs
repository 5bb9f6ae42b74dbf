//! The heaps that tests do the same things to.

use page_memory_allocator::{Heap, PageAllocator};
use std::alloc::{GlobalAlloc, Layout};

/// Where blocks come from: the process heap, or a heap of one's own.
pub trait Target {
    fn alloc(&self, layout: Layout, zeroed: bool) -> *mut u8;
    /// # Safety
    /// As for [`GlobalAlloc::realloc`].
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8;
    /// # Safety
    /// As for [`GlobalAlloc::dealloc`].
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout);
    #[allow(dead_code)] // some tests purge and check themselves
    fn purge(&self);
    /// Panics unless the table is sound.
    #[allow(dead_code)]
    fn check(&self);
}

impl Target for Heap {
    fn alloc(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        if zeroed { self.alloc_zeroed(layout) } else { self.alloc(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        unsafe { self.realloc(block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { self.dealloc(block, layout) }
    }
    fn purge(&self) {
        self.purge();
    }
    fn check(&self) {
        self.check().expect("the table is sound");
    }
}

impl Target for PageAllocator {
    fn alloc(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        // SAFETY: a size of zero is served as one byte.
        unsafe {
            if zeroed { GlobalAlloc::alloc_zeroed(self, layout) } else { GlobalAlloc::alloc(self, layout) }
        }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        unsafe { GlobalAlloc::realloc(self, block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { GlobalAlloc::dealloc(self, block, layout) }
    }
    fn purge(&self) {
        self.purge();
    }
    fn check(&self) {
        self.check().expect("the table is sound");
    }
}
