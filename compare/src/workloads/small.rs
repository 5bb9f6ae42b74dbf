//! Small blocks that live briefly: freed at once, or a burst at a time.

use super::Tally;
use crate::block::Block;

/// Allocates a block and frees it at once, over and over.
pub fn pairs(size: usize) -> Tally {
    const PAIRS: u64 = 24_000_000;
    let mut tally = Tally::default();
    for number in 0..PAIRS {
        tally.add(Block::new(size, number).read());
    }
    tally
}

/// Allocates `length` blocks and then frees them in the order they came, as dropping a `Vec` of
/// boxes does, `count` times. Each burst is of one size, so that it is `length` deep in that size's free blocks.
pub fn bursts(length: usize, count: usize) -> Tally {
    const SIZES: [usize; 3] = [16, 64, 512];
    let mut tally = Tally::default();
    let mut burst = Vec::with_capacity(length);
    for size in SIZES.into_iter().cycle().take(count) {
        burst.extend((0..length as u64).map(|number| Block::new(size, number)));
        for block in burst.drain(..) {
            tally.add(block.read());
        }
    }
    tally
}
