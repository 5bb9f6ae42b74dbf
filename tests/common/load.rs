//! Blocks and runs of many sizes, and an order of chance to free them in.

#[path = "random.rs"]
pub mod random;
use random::Random;

/// About so many bytes in blocks and runs, written to.
pub fn mixed_blocks(bytes: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(7);
    let (mut blocks, mut sum) = (Vec::new(), 0);
    while sum < bytes {
        let shift = 4 + random.below(15);
        let len = (1 << shift) + random.below(1 << shift);
        blocks.push(vec![1; len]);
        sum += len;
    }
    blocks
}

/// Frees blocks in an order of chance.
pub fn free_shuffled<T>(mut blocks: Vec<T>) {
    let mut random = Random::new(8);
    while !blocks.is_empty() {
        drop(blocks.swap_remove(random.below(blocks.len())));
    }
}
