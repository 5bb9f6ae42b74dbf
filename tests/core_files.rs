//! Core files hold what the heap uses, not what it has reserved.

use page_memory_allocator::{HeapOptions, PageAllocator};
use std::hint::black_box;

#[path = "common/mappings.rs"]
mod mappings;

use mappings::bytes_in_core_files;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;

#[test]
#[cfg_attr(miri, ignore = "asks the system")]
fn what_is_used_is_in_core_files_and_what_is_only_reserved_is_not() {
    const MOST: usize = 1 << 30;
    let heap = HeapOptions::new().capacity(4 * MOST).build().expect("the system has address space");
    assert!(HEAP.summary().reserved_bytes + heap.reserved_bytes() > 4 * MOST);
    // More of the heap is committed with each, and more of its tables.
    let blocks = [100, 40_000, 3 * MIB, 100 * MIB].map(|size| black_box(vec![1u8; size]));
    for block in &blocks {
        let (all, is_in) = bytes_in_core_files(block.as_ptr().addr());
        assert!(is_in, "{} bytes are left out", block.len());
        assert!(all < MOST, "{} MiB are in", all / MIB);
    }
}
