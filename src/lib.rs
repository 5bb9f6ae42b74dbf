//! x
#![no_std]
#[cfg(any(test, feature = "std"))]
extern crate std;
mod arena;
mod fault;
mod global;
mod heap;
mod lock;
mod metadata;
pub mod page_table;
pub mod runs;
pub mod size_class;
mod sys;
mod thread_cache;
mod tls;
pub mod units;
pub use global::PageAllocator;
pub use heap::{Heap, HeapError, HeapOptions};
pub use size_class::SizeClasses;
