//! A heap in a static array, as on a machine without an operating system: nothing is asked of one here but to print.
//!
//! ```text
//! cargo run --example static_array
//! cargo run --example static_array --no-default-features
//! ```

use page_memory_allocator::{Heap, HeapOptions, SizeClasses};
use spin::mutex::{SpinMutex, SpinMutexGuard};
use std::alloc::Layout;

const PAGE_SIZE: usize = 4096;
const PAGES: usize = 8;

/// An array that begins where a page may begin, so that nothing of it is lost.
#[repr(align(4096))]
struct Memory([u8; PAGES * PAGE_SIZE]);

static MEMORY: SpinMutex<Memory> = SpinMutex::new(Memory([0; PAGES * PAGE_SIZE]));
/// The tables of so few pages are small. They could lie in `MEMORY`, too, and would take a page of it.
static TABLES: SpinMutex<[u8; 4096]> = SpinMutex::new([0; 4096]);

/// Makes the heap, uses it, and prints its page table.
pub fn main() {
    // The arrays are lent out for good. On a board, these would be regions that the linker script names.
    let memory = &mut SpinMutexGuard::leak(MEMORY.lock()).0;
    let tables = SpinMutexGuard::leak(TABLES.lock());
    let heap = HeapOptions::new()
        .page_size(PAGE_SIZE)
        .classes(SizeClasses::POWERS_OF_TWO)
        .build_apart(memory, tables)
        .expect("the arrays have room for pages and tables");

    let message = Layout::new::<[u8; 100]>();
    let picture = Layout::new::<[u8; 10_000]>();
    let (first, second) = (heap.alloc(message), heap.alloc(picture));
    assert!(!first.is_null() && !second.is_null());
    show(&heap);

    // SAFETY: both blocks are live, and were allocated with these layouts.
    unsafe {
        heap.dealloc(first, message);
        heap.dealloc(second, picture);
    }
    let census = heap.check().expect("the page table is in order");
    assert_eq!(census.free_pages, PAGES);
    println!("All {} pages are free again.", census.free_pages);
}

/// Prints the page table; `dump_to` takes any writer, such as a serial port.
fn show(heap: &Heap) {
    let mut text = String::new();
    heap.dump_to(&mut text).expect("a String takes all");
    print!("{text}");
}
