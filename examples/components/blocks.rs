//! The blocks that fifty components, or none, hold.

use page_memory_allocator::Component;
use std::fs;

/// Components in the comparison.
pub const COMPONENTS: usize = 50;
/// Blocks that they hold together.
pub const BLOCKS: usize = 200_000;

/// Allocates blocks of up to `most` bytes, from so many components at random or, if these are none, from the heap of
/// all; then replaces some of them, at random.
pub fn hold_blocks(most: usize, replaced: usize, components: usize) -> Vec<Vec<u8>> {
    let components: Vec<Component> =
        (0..components).map(|number| Component::new(format!("component {number}").leak())).collect();
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut below = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % bound
    };
    let mut blocks = Vec::with_capacity(BLOCKS);
    for number in 0..BLOCKS + replaced {
        let size = 1 + below(most);
        let block = || vec![number as u8; size];
        let block = match components.len() {
            0 => block(),
            count => components[below(count)].enter(block),
        };
        if blocks.len() < BLOCKS {
            blocks.push(block);
        } else {
            let place = below(BLOCKS);
            blocks[place] = block;
        }
    }
    blocks
}

/// Bytes of memory that this process has from the system.
pub fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").expect("Linux shows it");
    // SAFETY: sysconf has no preconditions.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * page_size
}
