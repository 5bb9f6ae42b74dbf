//! Buffers of many OS pages.

use fastrand::Rng;

use super::{SizeTable, Tally, random_below};
use crate::block::Block;

/// Buffers of 32 to 512 KiB, uninitialised, a byte written to every OS page.
pub fn medium() -> Tally {
    const LENGTH: usize = 256;
    const REPLACEMENTS: u64 = 200_000;
    let mut rng = Rng::with_seed(5);
    let sizes = SizeTable::log_uniform(32 << 10, 512 << 10);
    let mut tally = Tally::default();
    let mut set: Vec<Option<Block>> = (0..LENGTH).map(|_| None).collect();
    for number in 0..REPLACEMENTS {
        let slot = &mut set[random_below(&mut rng, LENGTH)];
        // The old one goes first, as when a program drops a buffer before it makes the next.
        if let Some(old) = slot.take() {
            tally.add(old.read());
        }
        let mut block = Block::new(sizes.pick(&mut rng), number);
        block.touch();
        *slot = Some(block);
    }
    tally
}

/// Zeroed vectors of 64 KiB to 8 MiB, a byte read and written in every OS page.
pub fn large() -> Tally {
    const LENGTH: usize = 32;
    const REPLACEMENTS: u64 = 2_000;
    const OS_PAGE: usize = 4096;
    let mut rng = Rng::with_seed(6);
    let sizes = SizeTable::log_uniform(64 << 10, 8 << 20);
    let mut tally = Tally::default();
    let mut set: Vec<Vec<u8>> = vec![Vec::new(); LENGTH];
    for _ in 0..REPLACEMENTS {
        let slot = &mut set[random_below(&mut rng, LENGTH)];
        *slot = Vec::new();
        let mut buffer = vec![0_u8; sizes.pick(&mut rng)];
        let mut sum = 0;
        for byte in buffer.iter_mut().step_by(OS_PAGE) {
            *byte += 1;
            sum += u64::from(*byte);
        }
        tally.add(sum);
        *slot = buffer;
    }
    tally
}
