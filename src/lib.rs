//! x
#![no_std]
#[cfg(any(test, all(feature = "std", not(feature = "initial-exec"))))]
extern crate std;
mod arena;
mod dump;
mod fault;
mod fork;
mod global;
mod heap;
mod lock;
mod metadata;
pub mod page_table;
pub mod runs;
pub mod size_class;
mod spans;
mod stats;
mod sys;
mod thread_cache;
mod tls;
pub mod units;
mod unsized_calls;
pub use global::PageAllocator;
pub use heap::{Heap, HeapError, HeapOptions};
pub use size_class::SizeClasses;
pub use stats::Summary;
