//! What fifty components cost in memory: the program of the example `components`, measured in processes of their own.

#[path = "../examples/components/blocks.rs"]
mod blocks;
#[path = "common/child.rs"]
mod child;
use blocks::{BLOCKS, COMPONENTS, hold_blocks, resident_bytes};
use child::{in_child, text};
use page_memory_allocator::PageAllocator;
use std::env;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// The most that a program may be larger for its components. In a hardened heap each group of pages has guards, too.
const MOST: f64 = if cfg!(feature = "hardened") { 1.3 } else { 1.15 };
/// The sizes of the table in `docs/components.md`, but for the last, whose ratios are the least of all.
const SIZES: [usize; 5] = [64, 128, 256, 512, 1024];

/// Tells a child the largest size, how many blocks to replace, and how many components to use.
const CHILD_PART: &str = "PMA_TEST_PART";

/// The resident size that `body` prints in a child that is told of these.
fn measured<F: FnOnce()>(part: [usize; 3], body: F) -> f64 {
    let output = in_child(
        |command| {
            command.env(CHILD_PART, part.map(|number| number.to_string()).join(" "));
        },
        body,
    );
    let said = text(&output.stdout);
    let bytes = said.split_once("resident: ").and_then(|(_, rest)| rest.split_whitespace().next());
    bytes.unwrap_or_else(|| panic!("{said}{}", text(&output.stderr))).parse().expect("a number")
}

fn print_resident(variable: &str) {
    let part = env::var(variable).expect("the parent says so");
    let part: Vec<usize> = part.split(' ').map(|number| number.parse().expect("a number")).collect();
    let blocks = hold_blocks(part[0], part[1], part[2]);
    println!("resident: {} ", resident_bytes());
    assert_eq!(blocks.len(), BLOCKS);
}

#[test]
fn blocks_of_fifty_components_are_little_larger_than_blocks_of_none() {
    let mut cells = Vec::new();
    for most in SIZES {
        for replaced in [0, BLOCKS] {
            let measure = || print_resident(CHILD_PART);
            let apart = measured([most, replaced, COMPONENTS], measure);
            let together = measured([most, replaced, 0], measure);
            cells.push((apart / together, most, replaced));
        }
    }
    assert!(
        cells.iter().all(|&(ratio, ..)| ratio <= MOST),
        "ratio, largest size, blocks replaced: {cells:?}"
    );
}
