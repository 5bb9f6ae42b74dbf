//! What waits in thread caches goes back to the pages: when asked for, and when it was not used for a while.

#[path = "common/background.rs"]
mod background;
#[path = "common/child.rs"]
mod child;
#[path = "common/load.rs"]
mod load;

use background::becomes_true;
use child::{assert_ended_well, in_child};
use load::{free_shuffled, mixed_blocks};
use page_memory_allocator::PageAllocator;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use std::{hint, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;

/// What waits in the cache of another thread is called for, and is back when that has done `work`, which takes a slow path.
fn gives_its_blocks_up_when_it_does(work: fn()) {
    let (ask, asked) = std::sync::mpsc::channel();
    let (answer, answered) = std::sync::mpsc::channel();
    let other = thread::spawn(move || {
        free_shuffled(mixed_blocks(8 * MIB));
        answer.send(()).unwrap();
        asked.recv().unwrap();
        work();
        answer.send(()).unwrap();
        asked.recv().unwrap();
    });
    answered.recv().unwrap();
    let cached = HEAP.summary().cached_bytes;
    assert!(cached > MIB / 2, "{cached}");
    HEAP.purge();
    ask.send(()).unwrap();
    answered.recv().unwrap();
    let left = HEAP.summary().cached_bytes;
    assert!(left < cached / 4, "{left} of {cached}");
    ask.send(()).unwrap();
    other.join().unwrap();
}

#[test]
fn other_threads_give_their_blocks_up_on_their_next_slow_path() {
    let output = in_child(
        |_| (),
        || {
            // More than the cache has of that size.
            gives_its_blocks_up_when_it_does(|| {
                drop((0..20).map(|_| Box::new([0u8; 30_000])).collect::<Vec<_>>())
            });
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_cache_gives_up_what_it_did_not_use_for_a_while() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "400"),
        || {
            // Before the first period is over.
            free_shuffled(mixed_blocks(8 * MIB));
            assert!(HEAP.summary().cached_bytes > MIB / 2);
            let shrinks = becomes_true(|| {
                hint::black_box(vec![0u8; 100_000]);
                drop((0..100).map(|_| Box::new([0u8; 20_000])).collect::<Vec<_>>());
                HEAP.summary().cached_bytes < MIB / 4
            });
            assert!(shrinks, "{}", HEAP.summary().cached_bytes);
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_cache_gives_up_the_blocks_for_others_that_it_did_not_add_to_for_a_while() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "20"),
        || {
            // Blocks of this thread's shard, of many sizes.
            let blocks: Vec<Vec<u8>> = (0..20_000).map(|number| vec![1; 16 + number % 500]).collect();
            let purged = Arc::new(AtomicBool::new(false));
            let asked = Arc::clone(&purged);
            let other = thread::spawn(move || {
                // It joins a shard of its own, as it begins by allocating.
                hint::black_box(vec![1u8; 100]);
                while !asked.load(SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
                // What is in the cache of the first thread, which from here on allocates nothing.
                let before = HEAP.summary().cached_bytes;
                drop(blocks);
                let cached = HEAP.summary().cached_bytes.saturating_sub(before);
                // At most 8 KiB of each of 31 sizes; half of that on average, as they go home all at once.
                assert!((MIB / 32..MIB / 4).contains(&cached), "{cached}");
                let shrinks = becomes_true(|| {
                    hint::black_box(vec![0u8; 100_000]);
                    HEAP.summary().cached_bytes < before + cached / 4
                });
                assert!(shrinks, "{} of {cached} are left", HEAP.summary().cached_bytes - before);
            });
            HEAP.purge();
            purged.store(true, SeqCst);
            other.join().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_thread_that_only_uses_runs_gives_its_blocks_up_when_asked() {
    let output = in_child(
        |_| (),
        || gives_its_blocks_up_when_it_does(|| drop(hint::black_box(Vec::<u8>::with_capacity(100_000)))),
    );
    assert_ended_well(&output);
}
