//! The workloads over the allocator of this repository.

use page_memory_allocator::PageAllocator;

compare::main!(
    PageAllocator = PageAllocator::new(),
    version: None,
    give_back: {
        HEAP.purge();
    }
);
