//! Replays what is kept of the fuzzer's inputs: `fuzz/corpus/operations`.

use page_memory_allocator::PageAllocator;
use std::path::Path;
use std::{fs, iter};

#[path = "common/operations.rs"]
mod operations;
#[path = "common/pattern.rs"]
mod pattern;
#[path = "common/target.rs"]
mod target;

/// The process heap, which only the inputs use.
static HEAP: PageAllocator = PageAllocator::new();

/// The inputs, by name.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/operations");
    let mut inputs: Vec<_> = fs::read_dir(&corpus)
        .expect("the corpus is there")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 8, "{} inputs", inputs.len());
    let read = |path: std::path::PathBuf| {
        let bytes = fs::read(&path).expect("it can be read");
        (path.display().to_string(), bytes)
    };
    inputs.into_iter().map(read).collect()
}

#[test]
fn the_corpus_is_replayed() {
    for (name, bytes) in corpus() {
        println!("{name}");
        operations::run(&bytes);
    }
}

#[test]
fn the_corpus_is_replayed_by_threads_on_the_process_heap() {
    let random = iter::successors(Some(1u32), |number| {
        Some(number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
    });
    let more = ("random".to_owned(), random.map(|number| (number >> 24) as u8).take(100_001).collect());
    for (name, bytes) in corpus().into_iter().chain([more]) {
        println!("{name}");
        operations::run_in_threads(&HEAP, &bytes);
    }
    HEAP.purge();
    let census = HEAP.check().expect("the table is sound");
    assert_eq!((census.live_block_bytes, census.multi_pages), (0, 0), "all was freed");
}
