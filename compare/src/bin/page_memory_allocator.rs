//! The workloads over the allocator of this repository.

compare::main!(page_memory_allocator::PageAllocator = page_memory_allocator::PageAllocator::new());
