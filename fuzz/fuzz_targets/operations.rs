//! Operations on a heap, decoded from the fuzzer's bytes: see the decoder.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/common/operations.rs"]
mod operations;
#[path = "../../tests/common/pattern.rs"]
mod pattern;
#[path = "../../tests/common/target.rs"]
mod target;

fuzz_target!(|bytes: &[u8]| operations::run(bytes));
