//! A global allocator that serves everything inside a component.

use page_memory_allocator::{Component, PageAllocator};
use std::alloc::{GlobalAlloc, Layout};

static HEAP: PageAllocator = PageAllocator::new();
static ALL: Component = Component::new("all");

struct Counted;

// SAFETY: all calls are passed on.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        ALL.enter(|| unsafe { HEAP.alloc(layout) })
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { HEAP.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counted = Counted;

#[test]
fn a_global_allocator_may_enter_a_component() {
    let held = vec![1u8; 100_000];
    assert!(ALL.stats().live_bytes >= held.len(), "{}", ALL.stats());
    HEAP.check().unwrap();
}
