//! Replays what is kept of the fuzzer's inputs: `fuzz/corpus/operations`.

use std::fs;
use std::path::Path;

#[path = "common/operations.rs"]
mod operations;
#[path = "common/pattern.rs"]
mod pattern;

#[test]
fn the_corpus_is_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/operations");
    let mut inputs: Vec<_> = fs::read_dir(&corpus)
        .expect("the corpus is there")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 8, "{} inputs", inputs.len());
    for input in inputs {
        println!("{}", input.display());
        operations::run(&fs::read(&input).expect("it can be read"));
    }
}
