//! What fifty components cost in memory: the program of the example `components`, measured in processes of their own.

#[path = "../examples/components/blocks.rs"]
mod blocks;
#[path = "common/child.rs"]
mod child;
use blocks::{BLOCKS, COMPONENTS, hold_blocks, resident_bytes};
use child::{in_child, text};
use page_memory_allocator::PageAllocator;
use std::env;
use std::process::Command;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// The most that a program may be larger for its components.
const MOST: f64 = 1.15;

/// Tells a child how many components to use.
const CHILD_COMPONENTS: &str = "PMA_TEST_COMPONENTS";

/// The resident size that `body` prints in a child that is to use so many components.
fn measured<F: FnOnce()>(components: usize, body: F) -> f64 {
    let prepare = |command: &mut Command| {
        command.env(CHILD_COMPONENTS, components.to_string());
    };
    let output = in_child(prepare, body);
    let said = text(&output.stdout);
    let bytes = said.split_once(&format!("{components} components: ")).map(|(_, rest)| rest);
    let bytes = bytes.and_then(|rest| rest.split_whitespace().next());
    bytes.unwrap_or_else(|| panic!("{said}{}", text(&output.stderr))).parse().expect("a number")
}

fn print_resident(most: usize, replaced: usize) {
    let components = env::var(CHILD_COMPONENTS).expect("the parent says so").parse().expect("a number");
    let blocks = hold_blocks(most, replaced, components);
    println!("{components} components: {} ", resident_bytes());
    assert_eq!(blocks.len(), BLOCKS);
}

#[test]
fn blocks_of_fifty_components_are_little_larger_than_blocks_of_none() {
    let measure = || print_resident(512, 0);
    let (apart, together) = (measured(COMPONENTS, measure), measured(0, measure));
    assert!(apart <= MOST * together, "{apart} bytes instead of {together}");
}

#[test]
fn so_they_are_after_each_block_was_replaced() {
    let measure = || print_resident(1024, BLOCKS);
    let (apart, together) = (measured(COMPONENTS, measure), measured(0, measure));
    assert!(apart <= MOST * together, "{apart} bytes instead of {together}");
}
