//! A run of mixed operations, of which any call to the system may be refused.

use crate::HEAP;
use crate::blocks::{Block, LONG};
use crate::random::Random;
use crate::system::{self, Plan};
use crate::target::Target;
use page_memory_allocator::HeapOptions;
use page_memory_allocator::size_class::{SizeClasses, built};
use std::alloc::Layout;
use std::thread;

/// Sizes of blocks from all classes, and of runs, few of them long.
fn some_layout(random: &mut Random) -> Layout {
    let most_shift = if random.below(8) == 0 { 23 } else { 13 };
    let shift = random.below(most_shift);
    let align = if random.below(8) == 0 { 1 << random.below(17) } else { 1 };
    Layout::from_size_align(1 + random.below(1 << shift), align).unwrap()
}

/// Mixed operations on one source.
fn churn<'s>(source: &'s dyn Target, blocks: &mut Vec<Block<'s>>, random: &mut Random, operations: usize) {
    for _ in 0..operations {
        match random.below(8) {
            0 if !blocks.is_empty() => {
                let at = random.below(blocks.len());
                let size = some_layout(random).size();
                blocks[at].resize(size);
            }
            1..4 if !blocks.is_empty() => {
                let at = random.below(blocks.len());
                drop(blocks.swap_remove(at));
            }
            _ => blocks.extend(Block::new(source, some_layout(random), random.below(1 << 20))),
        }
    }
}

/// Runs that are made longer where that is not possible, so that their memory is moved; memory given back; many zeros.
fn moves_and_purges(blocks: &mut Vec<Block>, random: &mut Random) {
    let layout = |size| Layout::from_size_align(size, 1).unwrap();
    for round in 0..30 {
        let size = (1 + random.below(4)) << 20;
        let mut run = Block::new(&HEAP, layout(size), 1 + round);
        // In the way.
        let others: Vec<_> = (0..3).map(|_| Block::new(&HEAP, layout(size), 1)).collect();
        if let Some(run) = &mut run {
            run.resize(size + (1 + random.below(4)) * (1 << 20));
        }
        if round % 4 == 0 {
            blocks.extend(run);
        }
        drop(others);
        // The first words of a seed that is a multiple of four are to be zero.
        if round % 4 == 0 {
            drop(Block::new(&HEAP, layout(16 << 20), 4));
        }
        if round % 2 == 0 {
            system::counted(|| HEAP.purge());
        }
    }
}

/// Everything that makes the allocator call the system: the first use, small and large blocks, caches of threads,
/// heaps of one's own, memory given back.
pub fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut blocks = Vec::new();
    churn(&HEAP, &mut blocks, &mut random, 300);
    moves_and_purges(&mut blocks, &mut random);
    thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let mut random = Random::new(seed + thread + 1);
                churn(&HEAP, &mut Vec::new(), &mut random, 200);
            });
        }
    });
    blocks.extend((0..20).filter_map(|_| Block::new(&HEAP, LONG, 1)));
    blocks.truncate(random.below(blocks.len() + 1));
    churn(&HEAP, &mut blocks, &mut random, 300);
    for _ in 0..400 {
        let options =
            HeapOptions::new().capacity(16 << 20).page_size(4096).classes(SizeClasses::POWERS_OF_TWO);
        let before = system::refused();
        let Ok(heap) = system::counted(|| options.build()) else {
            assert!(system::refused() > before, "no heap, although nothing was refused");
            continue;
        };
        let mut own = Vec::new();
        churn(&heap, &mut own, &mut random, 20);
        churn(&HEAP, &mut blocks, &mut random, 5);
        own.truncate(own.len() / 2);
        system::counted(|| heap.purge());
        drop(own);
        heap.check().unwrap();
    }
    blocks.iter().for_each(Block::verify);
    if let Err(violation) = system::counted(|| HEAP.check()) {
        panic!("{violation:?}");
    }
    // The system has come round.
    system::set(Plan::NONE);
    for &size in &built::BLOCK_SIZES[1..] {
        let layout = Layout::from_size_align(size as usize, 1).unwrap();
        blocks.extend(Block::new(&HEAP, layout, 1));
    }
    blocks.extend(Block::new(&HEAP, LONG, 1));
    drop(blocks);
    if let Err(violation) = system::counted(|| HEAP.check()) {
        panic!("{violation:?}");
    }
}
