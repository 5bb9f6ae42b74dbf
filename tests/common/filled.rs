//! Heaps whose pages are in a known mixture of states.

use page_memory_allocator::{Heap, HeapOptions, SizeClasses};
use std::alloc::Layout;

/// A heap of `pages` pages of `page_size` bytes, all of which have been in use. Most hold blocks of one of three sizes,
/// some of them free, and a third of them written to; others are runs, or free.
pub fn filled(pages: usize, page_size: usize) -> Heap {
    let classes = SizeClasses::POWERS_OF_TWO;
    let options = HeapOptions::new().capacity(pages * page_size).page_size(page_size).classes(classes);
    let heap = options.build().expect("the system has the addresses");
    let layout = |size: usize| Layout::from_size_align(size, 8).unwrap();
    // Pages of one size side by side.
    let side = (pages / 16).clamp(1, 7);
    let mut freed = Vec::new();
    for round in 0.. {
        let size = match round % 4 {
            0 => page_size / 2,
            1 => page_size / 4,
            2 => page_size / 8,
            _ => (1 + round % 5) * page_size,
        };
        let count = if size < page_size { side * page_size / size } else { 1 };
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
            if number % (2 * side) == 1 || size >= page_size && round % 3 == 0 {
                freed.push((block, size));
            }
        }
    }
    unreachable!("an arena is filled at some time")
}
