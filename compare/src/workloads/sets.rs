//! Working sets of many sizes, of which a random block is replaced at a time.

use fastrand::Rng;

use super::{SizeTable, Tally, random_below};
use crate::block::Block;

/// Fills a set of `length` blocks and replaces `replacements` of them.
pub fn random(length: usize, replacements: u64) -> Tally {
    let mut set = WorkingSet::new(length, SizeTable::of_programs(), 1);
    set.replace(replacements);
    set.finish()
}

/// Blocks of random sizes, replaced at random.
pub struct WorkingSet {
    blocks: Vec<Block>,
    sizes: SizeTable,
    rng: Rng,
    tally: Tally,
}

impl WorkingSet {
    /// A full set of `length` blocks.
    pub fn new(length: usize, sizes: SizeTable, seed: u64) -> WorkingSet {
        let mut rng = Rng::with_seed(seed);
        let blocks = (0..length as u64).map(|number| Block::new(sizes.pick(&mut rng), number)).collect();
        WorkingSet { blocks, sizes, rng, tally: Tally::default() }
    }

    /// Replaces `count` random blocks.
    pub fn replace(&mut self, count: u64) {
        for number in 0..count {
            drop(self.replace_one(number));
        }
    }

    /// Puts a fresh block in the place of a random one, which is read and returned.
    #[inline]
    pub fn replace_one(&mut self, number: u64) -> Block {
        let slot = random_below(&mut self.rng, self.blocks.len());
        let fresh = Block::new(self.sizes.pick(&mut self.rng), number);
        let old = std::mem::replace(&mut self.blocks[slot], fresh);
        self.tally.add(old.read());
        old
    }

    /// Frees what is left and returns the tally.
    pub fn finish(mut self) -> Tally {
        for block in self.blocks.drain(..) {
            self.tally.add(block.read());
        }
        self.tally
    }
}
