//! A component that is entered before the program has allocated anything.

use page_memory_allocator::{Component, PageAllocator};
use std::sync::OnceLock;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

static FIRST: Component = Component::new("first");
static HELD: OnceLock<Vec<u8>> = OnceLock::new();

/// Before the runtime of the standard library begins, which may allocate or not.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    HELD.get_or_init(|| FIRST.enter(|| vec![1; 10_000]));
}

#[test]
fn a_component_may_be_entered_before_anything_was_allocated() {
    let held = HELD.get().expect("it ran before main");
    assert!(FIRST.held_bytes() >= held.len(), "{}", FIRST.stats());
    HEAP.check().unwrap();
}
