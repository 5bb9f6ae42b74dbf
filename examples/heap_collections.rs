//! Collections in a heap of their own, which is dropped whole: the ten thousand entries of a request are gone in one
//! step, and the heap of the rest of the program never saw them.
//!
//! ```text
//! cargo run --release --features allocator-api2 --example heap_collections
//! ```
//!
//! With a nightly compiler and the feature `nightly` instead, the standard `Vec` and `Box` take the same `&heap`: see
//! `tests/standard_collections.rs`. There is no second example of that, which a stable compiler could not build.

use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use hashbrown::{DefaultHashBuilder, HashMap};
use page_memory_allocator::{HeapOptions, PageAllocator};
use std::mem;

#[global_allocator]
static GLOBAL: PageAllocator = PageAllocator::new();

fn main() {
    let live = || GLOBAL.summary().live_bytes;
    let before = live();
    for request in 1..=3u64 {
        let heap = HeapOptions::new().capacity(64 << 20).build().expect("the system has addresses");

        let mut words = Vec::new_in(&heap);
        words.extend((0..10_000u64).map(|n| n.wrapping_mul(request) % 1009));
        let mut counts = HashMap::with_hasher_in(DefaultHashBuilder::default(), &heap);
        for &word in &words {
            **counts.entry(word).or_insert_with(|| Box::new_in(0u64, &heap)) += 1;
        }

        let summary = heap.summary();
        println!(
            "request {request}: {} words, {} different, {} blocks, {} bytes in the request's heap, {} more elsewhere",
            words.len(),
            counts.len(),
            summary.live_blocks + summary.live_runs,
            summary.live_bytes,
            live().saturating_sub(before)
        );
        // Nobody need take them apart entry by entry: what is forgotten is gone with its heap.
        mem::forget((words, counts));
    }
}
