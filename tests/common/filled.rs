//! Heaps whose pages are in a known mixture of states.

use page_memory_allocator::{Heap, HeapOptions, SizeClasses};
use std::alloc::Layout;

/// A heap of `pages` pages of `page_size` bytes, all of which have been in use. Most hold blocks of several sizes, more
/// of them free in every seventh page; others are runs, free, or free and written to.
pub fn filled(pages: usize, page_size: usize) -> Heap {
    let classes = SizeClasses::POWERS_OF_TWO;
    let options = HeapOptions::new().capacity(pages * page_size).page_size(page_size).classes(classes);
    let heap = options.build().expect("the system has the addresses");
    let layout = |size: usize| Layout::from_size_align(size, 8).unwrap();
    let mut freed = Vec::new();
    for round in 0.. {
        let size = match round % 4 {
            0 => page_size / 2,
            1 => page_size / 4,
            2 => page_size / 8,
            _ => (1 + round % 5) * page_size,
        };
        let count = if size < page_size { 7 * page_size / size } else { 1 };
        for number in 0..count {
            let block = heap.alloc(layout(size));
            if block.is_null() {
                // SAFETY: what is in the list was allocated with these layouts, and is freed once.
                freed.into_iter().for_each(|(block, size)| unsafe { heap.dealloc(block, layout(size)) });
                return heap;
            }
            if (round + number) % 3 == 0 {
                // SAFETY: the block is live.
                unsafe { block.write(1) };
            }
            if number * size / page_size == 3 && number % 2 == 0 || size >= page_size && round % 3 == 0 {
                freed.push((block, size));
            }
        }
    }
    unreachable!("an arena is filled at some time")
}
