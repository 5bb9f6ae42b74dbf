//! What thread caches hold, what they leave to others, and what goes back.

#[cfg(not(feature = "hardened"))]
use page_memory_allocator::size_class::built;
use page_memory_allocator::{HeapOptions, PageAllocator};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::sync::Barrier;
use std::thread;

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// Runs a part of a test in a process of its own, where nobody else uses the heap, and nothing goes by the clock.
fn alone<F: FnOnce()>(body: F) {
    let output = in_child(|command| _ = command.env("PMA_PURGE_MS", "never"), body);
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    print!("{}", text(&output.stdout));
}

#[test]
fn a_purge_empties_the_callers_cache_but_for_little() {
    alone(|| {
        let blocks: Vec<Vec<u8>> = (0..1_000).map(|number| vec![1; 1 + number * 7 % 3_000]).collect();
        drop(blocks);
        let (before, live) = (HEAP.summary().cached_bytes, HEAP.summary().live_bytes);
        HEAP.purge();
        let after = HEAP.summary().cached_bytes;
        println!("{before} bytes cached, {after} after a purge");
        assert!(before > 100_000, "{before} bytes cached");
        // The thread of the harness waits, with a cache of its own.
        assert!(after < before / 4, "{after} bytes of {before} are still cached, {live} live");
    });
}

/// Frees more blocks of every size than a cache holds. Returns what all caches hold then.
#[cfg(not(feature = "hardened"))]
fn fill_the_cache() -> usize {
    for &size in built::BLOCK_SIZES[1..].iter() {
        let count = (256 << 10) / size as usize;
        drop((0..count).map(|_| Vec::<u8>::with_capacity(size as usize)).collect::<Vec<_>>());
    }
    HEAP.summary().cached_bytes
}

#[test]
fn blocks_that_move_when_they_grow_are_freed_even_if_the_cache_is_full_of_them() {
    const BLOCKS: usize = 50_000;
    alone(|| {
        let (small, large) = (Layout::new::<[u64; 4]>(), Layout::new::<[u64; 8]>());
        let mut blocks = vec![ptr::null_mut::<u64>(); BLOCKS];
        // With layouts, and by the calls that know none.
        for unsized_too in [false, true] {
            let before = HEAP.summary();
            for (number, block) in blocks.iter_mut().enumerate() {
                // SAFETY: the layout has a size, and the block is as long.
                unsafe {
                    *block =
                        if unsized_too { HEAP.malloc(small.size()).cast() } else { HEAP.alloc(small).cast() };
                    block.cast::<[usize; 4]>().write([number; 4]);
                }
            }
            for block in &mut blocks {
                let old = block.cast();
                // SAFETY: the block is live and has that layout.
                *block = unsafe {
                    if unsized_too { HEAP.realloc_unsized(old, 64) } else { HEAP.realloc(old, small, 64) }
                        .cast()
                };
            }
            for (number, block) in blocks.iter().enumerate() {
                // SAFETY: the block is live and as long.
                assert_eq!(unsafe { block.cast::<[usize; 4]>().read() }, [number; 4]);
            }
            let after = HEAP.summary();
            assert_eq!(after.live_bytes - before.live_bytes, BLOCKS * large.size());
            assert_eq!(after.live_blocks - before.live_blocks, BLOCKS);
            for &block in &blocks {
                // SAFETY: the block is live, and was made one of so many bytes.
                unsafe {
                    if unsized_too { HEAP.free(block.cast()) } else { HEAP.dealloc(block.cast(), large) }
                };
            }
            HEAP.check().expect("the table is sound");
        }
    });
}

// A hardened cache hands out what waits in it at random, and keeps other amounts.
#[cfg(not(feature = "hardened"))]
#[test]
fn a_cache_uses_the_memory_it_may_have_and_no_more() {
    alone(|| {
        let cached = fill_the_cache();
        println!("{cached} bytes cached");
        assert!((1 << 20..3 << 20).contains(&cached), "{cached} bytes cached");
    });
}

#[cfg(not(feature = "hardened"))]
#[test]
fn more_waits_for_a_thread_that_allocates_and_frees_in_turn_than_for_one_that_only_allocates() {
    const SIZE: usize = 512;
    alone(|| {
        let cached = || HEAP.summary().cached_bytes;
        let (other, mut most) = (cached(), 0);
        let block_seen = |_| {
            let block = vec![1u8; SIZE];
            most = most.max(cached());
            block
        };
        drop((0..2_000).map(block_seen).collect::<Vec<_>>());
        for _ in 0..4 {
            drop((0..500).map(|_| vec![1u8; SIZE]).collect::<Vec<_>>());
        }
        let (allocating, in_turn) = (most - other, cached() - other);
        println!("{allocating} bytes cached at most, then {in_turn}");
        assert!(allocating <= 16 << 10, "{allocating} bytes wait for a thread that only allocates");
        assert!(in_turn > 64 << 10, "{in_turn} bytes wait for one that allocates and frees in turn");
    });
}

#[cfg(not(feature = "hardened"))]
#[test]
fn caches_share_what_they_may_have_with_those_that_there_are() {
    const THREADS: usize = 128;
    alone(|| {
        // In a thread of its own each time, whose cache is new, and gone afterwards.
        let filled = || thread::scope(|scope| scope.spawn(fill_the_cache).join().unwrap());
        let before = filled();
        let (begin, end) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
        let beside_others = thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    drop(Box::new(1));
                    begin.wait();
                    end.wait();
                });
            }
            begin.wait();
            let others = HEAP.summary().cached_bytes;
            let filled = filled() - others;
            end.wait();
            filled
        });
        let after = filled();
        println!("{before} bytes cached, {beside_others} beside {THREADS} threads, {after} after they ended");
        assert!(beside_others < before * 2 / 3, "{beside_others} of {before} bytes cached");
        assert!(after > before * 9 / 10, "{after} of {before} bytes cached");
    });
}

#[test]
fn what_a_thread_left_in_its_pages_is_used_up_by_others_before_memory_is() {
    alone(|| {
        const SIZE: usize = 1_000;
        let blocks = |count| (0..count).map(|_| vec![1u8; SIZE]).collect::<Vec<_>>();
        // Three threads, and so three shards, at a time.
        let (begin, end) = (Barrier::new(4), Barrier::new(4));
        thread::scope(|scope| {
            for user in 0..3 {
                let (begin, end) = (&begin, &end);
                scope.spawn(move || {
                    drop(blocks(1));
                    // One after the other.
                    for turn in 0..3 {
                        begin.wait();
                        if turn == user {
                            // More than this thread finds in pages of its own.
                            let before = HEAP.summary().divided_pages;
                            let more = blocks(3_000);
                            let after = HEAP.summary().divided_pages;
                            println!("{} divided pages, {} with 3,000 blocks more", before.0, after.0);
                            assert!(after.0 <= before.0 + 8, "{} pages, then {}", before.0, after.0);
                            drop(more);
                            HEAP.purge();
                        }
                        end.wait();
                    }
                });
            }
            let mut kept = Vec::new();
            for _ in 0..3 {
                // What a thread that ends leaves: pages with most of their blocks free.
                let mut left = thread::spawn(move || blocks(8_000)).join().expect("the thread ends well");
                let mut number = 0;
                left.retain(|_| {
                    number += 1;
                    number % 8 == 0
                });
                kept.push(left);
                HEAP.purge();
                begin.wait();
                end.wait();
                HEAP.check().expect("the table is sound");
            }
        });
        HEAP.check().expect("the table is sound");
    });
}

#[test]
fn the_end_of_a_run_that_nobody_asked_for_goes_back() {
    let heap =
        HeapOptions::new().capacity(1 << 20).page_size(64 << 10).build().expect("the system has 1 MiB");
    let layout = Layout::from_size_align((64 << 10) + 1, 1).unwrap();
    let run = heap.alloc(layout);
    assert!(!run.is_null());
    assert_eq!(heap.purge(), (64 << 10) - (4 << 10));
    // SAFETY: the run is live, and has that layout.
    unsafe { heap.dealloc(run, layout) };
}
