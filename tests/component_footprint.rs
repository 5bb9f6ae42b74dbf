//! What fifty components cost in memory: the program of the example `components`, measured in processes of their own.

#[path = "../examples/components/blocks.rs"]
mod blocks;
#[path = "common/child.rs"]
mod child;
use blocks::{BLOCKS, COMPONENTS, hold_blocks, resident_bytes};
use child::{in_child, text};
use page_memory_allocator::PageAllocator;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// The most that a program may be larger for its components.
const MOST: f64 = 1.15;

/// The resident size that `body` measures in a child.
fn measured<F: FnOnce()>(body: F) -> f64 {
    let output = in_child(|_| (), body);
    let said = text(&output.stdout);
    let bytes = said.split_once("resident: ").and_then(|(_, rest)| rest.split_whitespace().next());
    bytes.unwrap_or_else(|| panic!("{said}{}", text(&output.stderr))).parse().expect("a number")
}

fn print_resident(most: usize, replaced: usize, components: usize) {
    let blocks = hold_blocks(most, replaced, components);
    println!("resident: {} ", resident_bytes());
    assert_eq!(blocks.len(), BLOCKS);
}

#[test]
fn blocks_of_fifty_components_are_little_larger_than_blocks_of_none() {
    let apart = measured(|| print_resident(512, 0, COMPONENTS));
    let together = measured(|| print_resident(512, 0, 0));
    assert!(apart <= MOST * together, "{apart} bytes instead of {together}");
}

#[test]
fn so_they_are_after_each_block_was_replaced() {
    let apart = measured(|| print_resident(1024, BLOCKS, COMPONENTS));
    let together = measured(|| print_resident(1024, BLOCKS, 0));
    assert!(apart <= MOST * together, "{apart} bytes instead of {together}");
}
