//! A heap of eight pages, shown after every step of a short session: how pages are divided, joined to runs, and
//! freed again.
//!
//! ```text
//! cargo run --example eight_pages
//! ```

use page_memory_allocator::{Heap, HeapOptions, SizeClasses};
use std::alloc::Layout;

/// Runs the session and prints the page table after each step.
pub fn main() {
    let heap = HeapOptions::new()
        .capacity(32768)
        .page_size(4096)
        .classes(SizeClasses::POWERS_OF_TWO)
        .build()
        .expect("the system has 32 KiB of addresses");
    show("Initialised", &heap);

    // One byte more than two pages: a run of three.
    let large = allocate(&heap, 8193);
    show("Allocated 8193 bytes", &heap);

    // Sizes are rounded up to powers of two; each of them has a page of its own, which it divides.
    let small = allocate(&heap, 64);
    let other = allocate(&heap, 65);
    show("Allocated 64 and 65 bytes", &heap);

    // The block moves to one of 256 bytes in a new page, and its old page is free again.
    let small = reallocate(&heap, small, 64, 200);
    show("Reallocated the block of 64 bytes to 200", &heap);

    // The run shrinks to a block, in the page that has such blocks.
    let large = reallocate(&heap, large, 8193, 200);
    show("Reallocated the block of 8193 bytes to 200", &heap);

    free(&heap, small, 200);
    show("Freed a block of 200 bytes", &heap);

    free(&heap, large, 200);
    free(&heap, other, 65);
}

fn show(step: &str, heap: &Heap) {
    println!("{step}:");
    heap.dump();
    println!();
}

fn bytes(size: usize) -> Layout {
    Layout::array::<u8>(size).expect("the sizes of the session are small")
}

fn allocate(heap: &Heap, size: usize) -> *mut u8 {
    let block = heap.alloc(bytes(size));
    assert!(!block.is_null(), "the heap has room for the session");
    block
}

fn reallocate(heap: &Heap, block: *mut u8, old_size: usize, new_size: usize) -> *mut u8 {
    // SAFETY: the session reallocates live blocks only, with the size that they were allocated with.
    let block = unsafe { heap.realloc(block, bytes(old_size), new_size) };
    assert!(!block.is_null(), "the heap has room for the session");
    block
}

fn free(heap: &Heap, block: *mut u8, size: usize) {
    // SAFETY: the session frees each block once, with the size that it was allocated with.
    unsafe { heap.dealloc(block, bytes(size)) };
}
