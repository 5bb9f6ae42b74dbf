//! Many random operations by several threads, beside a model of what they hold. Blocks carry stamps, by which one that
//! was given to two owners, moved wrongly or taken back too early is known.
//!
//! `PMA_TEST_OPERATIONS` says how many operations, `PMA_TEST_SEED` where the random numbers begin. Both are printed. A
//! seed replays what each thread does, not how the threads interleave.

use page_memory_allocator::PageAllocator;
use page_memory_allocator::size_class::built;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::Mutex;
use std::{env, thread};

#[path = "common/random.rs"]
mod random;
use random::Random;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const THREADS: u64 = 4;
/// A thread ends after so many operations, and another takes over what it holds.
const SHIFT: usize = 500_000;
/// Blocks that a thread holds at most.
const MOST_HELD: usize = 2_000;
/// Blocks on their way from thread to thread.
const SHELVES: usize = 64;
/// Stamps are so many bytes apart, and one more is at the end.
const STAMPS_APART: usize = 1_024;

/// A live block.
struct Block {
    start: *mut u8,
    layout: Layout,
    stamp: u64,
}

// SAFETY: the block belongs to whoever has this.
unsafe impl Send for Block {}

impl Block {
    /// Where stamps stand, and how long they are: eight bytes, unless the block is shorter.
    fn stamps(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let len = self.layout.size();
        let width = len.min(8);
        (0..len - width).step_by(STAMPS_APART).chain([len - width]).map(move |at| (at, width))
    }

    /// What stands at offset `at`. Stamps may overlap.
    fn stamp_at(&self, at: usize) -> u64 {
        self.stamp.rotate_right(at as u32 % 8 * 8)
    }

    fn write_stamps(&self) {
        for (at, width) in self.stamps() {
            let stamp = self.stamp_at(at).to_le_bytes();
            // SAFETY: the stamp is within the block, which is this one's.
            unsafe { self.start.add(at).copy_from_nonoverlapping(stamp.as_ptr(), width) };
        }
    }

    fn expect_stamps(&self) {
        self.stamps().for_each(|(at, width)| self.expect(at, width, self.stamp_at(at)));
    }

    fn expect(&self, at: usize, width: usize, stamp: u64) {
        let mut found = stamp.to_le_bytes();
        // SAFETY: the bytes are within the block, which is this one's.
        unsafe { self.start.add(at).copy_to_nonoverlapping(found.as_mut_ptr(), width) };
        assert_eq!(found, stamp.to_le_bytes(), "byte {at} of {:?} at {:p}", self.layout, self.start);
    }

    fn new(random: &mut Random) -> Block {
        let size = match random.below(1_000) {
            0 => random.below(8 * built::PAGE_SIZE),
            1..20 => random.below(built::LARGEST_CLASS),
            20..200 => random.below(1_000),
            _ => random.below(128),
        };
        let align = if random.below(16) == 0 { 1 << random.below(13) } else { 1 };
        let layout = Layout::from_size_align(size + 1, align).expect("a small layout");
        let stamp = random.next();
        let zeroed = stamp.is_multiple_of(8);
        // SAFETY: the size is not zero.
        let start = unsafe { if zeroed { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) } };
        assert!(!start.is_null() && start.addr().is_multiple_of(align));
        let block = Block { start, layout, stamp };
        if zeroed {
            block.stamps().for_each(|(at, width)| block.expect(at, width, 0));
        }
        block.write_stamps();
        block
    }

    fn resize(&mut self, random: &mut Random) {
        let most = if random.below(50) == 0 { 4 * built::PAGE_SIZE } else { 2 * self.layout.size() };
        let size = 1 + random.below(most);
        let kept = size.min(self.layout.size());
        self.expect_stamps();
        // SAFETY: the block is live and has that layout.
        self.start = unsafe { HEAP.realloc(self.start, self.layout, size) };
        assert!(!self.start.is_null());
        if kept >= 8 {
            (0..kept - 8).step_by(STAMPS_APART).for_each(|at| self.expect(at, 8, self.stamp_at(at)));
        }
        self.layout = Layout::from_size_align(size, self.layout.align()).expect("a small layout");
        self.write_stamps();
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.expect_stamps();
        // SAFETY: the block is live, has that layout, and is given up.
        unsafe { HEAP.dealloc(self.start, self.layout) };
    }
}

type Shelves = Vec<Mutex<Option<Block>>>;

/// What one thread does with what it took over; returns what it leaves.
fn work(mut held: Vec<Block>, shelves: &Shelves, operations: usize, seed: u64) -> Vec<Block> {
    let mut random = Random::new(seed);
    // Now many blocks are wanted, now few.
    let mut wanted = MOST_HELD;
    for _ in 0..operations {
        match random.below(64) {
            0..4 if !held.is_empty() => {
                let at = random.below(held.len());
                held[at].resize(&mut random);
            }
            4..8 => {
                let block = Block::new(&mut random);
                let shelf = &shelves[random.below(shelves.len())];
                let found = shelf.lock().expect("no thread panicked").replace(block);
                held.extend(found);
            }
            8 if random.below(50) == 0 => wanted = random.below(MOST_HELD),
            9 if random.below(10_000) == 0 => {
                HEAP.purge();
            }
            _ if held.len() > wanted || (random.below(2) == 0 && !held.is_empty()) => {
                drop(held.swap_remove(random.below(held.len())));
            }
            _ => held.push(Block::new(&mut random)),
        }
    }
    held
}

#[test]
fn blocks_belong_to_one_owner_however_long_it_goes_on() {
    let number = |variable, usual| match env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a number")),
        Err(_) => usual,
    };
    let operations = number("PMA_TEST_OPERATIONS", 8_000_000usize);
    let seed = number("PMA_TEST_SEED", 1) as u64;
    println!("{operations} operations, seed {seed}");
    let shelves: Shelves = (0..SHELVES).map(|_| Mutex::new(None)).collect();
    let shifts = operations.div_ceil(SHIFT * THREADS as usize) as u64;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let shelves = &shelves;
            scope.spawn(move || {
                let mut held = Vec::new();
                for shift in 0..shifts {
                    let seed = seed.wrapping_mul(1_000_003) + shift * THREADS + thread;
                    held = thread::scope(|scope| {
                        scope.spawn(|| work(held, shelves, SHIFT, seed)).join().expect("the thread ends well")
                    });
                    if shift % 16 == 0 {
                        HEAP.check().expect("the table is sound");
                    }
                }
            });
        }
    });
    drop(shelves);
    HEAP.check().expect("the table is sound");
}
