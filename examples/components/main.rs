//! Parts of a program with memory of their own: what each holds, a limit, and what so many of them cost.
//!
//! ```text
//! cargo run --release --example components
//! ```

mod blocks;

use blocks::{BLOCKS, COMPONENTS, hold_blocks, resident_bytes};
use page_memory_allocator::{Component, PageAllocator};
use std::env;
use std::process::Command;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

static CACHE: Component = Component::new("cache").limit(4 << 20).soft_limit(2 << 20, |exceeded| {
    println!("{} holds {} bytes, more than {}", exceeded.name, exceeded.held_bytes, exceeded.soft_limit);
});
static INDEX: Component = Component::new("index");

/// Asks this program, run again, for the resident size of one of the two.
const PART: &str = "PMA_EXAMPLE_PART";

/// Uses two components; then measures fifty.
fn main() {
    if let Ok(part) = env::var(PART) {
        let numbers: Vec<usize> = part.split(' ').map(|word| word.parse().expect("a number")).collect();
        let blocks = hold_blocks(numbers[0], numbers[1], numbers[2]);
        print!("{} {}", resident_bytes(), blocks.len());
        return;
    }
    two_parts();

    println!("\n{BLOCKS} blocks: resident size with {COMPONENTS} components, without, and the ratio");
    for most in [64, 128, 256, 512, 1024, 4096] {
        print!("sizes up to {most:>4}:");
        // Twice what the blocks have.
        if BLOCKS * most > most_addresses() {
            println!(" more than this process may have");
            continue;
        }
        for replaced in [0, BLOCKS] {
            let (apart, together) = (resident(most, replaced, COMPONENTS), resident(most, replaced, 0));
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            print!(" {:>6.1} MiB, {:>6.1} MiB, {:.3};", mib(apart), mib(together), apart / together);
        }
        println!();
    }
    println!("(first as allocated; then after as many were replaced, at random, by others of other sizes)");
}

/// The resident size of this program after [`hold_blocks`].
fn resident(most: usize, replaced: usize, components: usize) -> f64 {
    let program = env::current_exe().expect("a program knows where it is");
    let output = Command::new(program).env(PART, format!("{most} {replaced} {components}")).output();
    let printed = String::from_utf8(output.expect("it runs again").stdout).expect("numbers");
    printed.split(' ').next().and_then(|bytes| bytes.parse().ok()).expect("a number")
}

/// The most bytes of addresses that this process, and those that it starts, may have.
fn most_addresses() -> usize {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is written.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// A cache that is limited, an index that is not.
fn two_parts() {
    let mut pages = Vec::new();
    let refused = loop {
        let mut page = Vec::<u8>::new();
        match CACHE.enter(|| page.try_reserve_exact(10_000)) {
            Ok(()) => pages.push(page),
            Err(refused) => break refused,
        }
    };
    println!("After {} pages of 10000 bytes: {refused}", pages.len());
    let words = INDEX.enter(|| (0..50_000).map(|word| format!("word {word}")).collect::<Vec<_>>());
    pages.truncate(100);
    HEAP.components(|stats| println!("{stats}"));
    assert_eq!(words.len(), 50_000);
}
