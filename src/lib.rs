//! A memory allocator whose whole heap is one page table that can be printed.
//!
//! ```
//! use page_memory_allocator::PageAllocator;
//!
//! #[global_allocator]
//! static HEAP: PageAllocator = PageAllocator::new();
//!
//! fn main() {
//!     println!("{} words", "set it, and forget about it".split(' ').count());
//!     HEAP.dump();
//! }
//! ```
//!
//! [`PageAllocator`] is the allocator of a program; [`Heap`] is a heap of one's own beside it, over an arena of a
//! chosen size. Both keep one rule: **the page table is the whole truth about the heap, and it lies outside user
//! memory**. An overflow or a write after free cannot corrupt the allocator; a bad pointer is found by looking it
//! up; and to see the heap is to read the table.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | OS page | what the kernel maps: 4, 16 or 64 KiB |
//! | page | ours: 64 KiB in the process heap, 512 bytes to 1 MiB in others |
//! | arena | one reserved range of addresses, in pages |
//! | run | pages that lie side by side |
//! | block | one slot of a Divided page |
//! | size class | a block size |
//! | page table | for every page a header, a tag and a bitmap; over all pages an index of the free runs |
//! | thread cache | for every thread and class a stack of block addresses |
//! | shard | a group of Divided pages; threads are spread over 16 |
//! | bin | the Divided pages of one class and shard that have free blocks |
//!
//! # Structures
//!
//! ```text
//! global.rs         PageAllocator: GlobalAlloc, and nothing but dispatch     unsized_calls.rs  the same for C
//! thread_cache.rs   stacks of addresses, one cache a thread                  tls.rs            the pointer to it
//! heap.rs           Heap: the locks; blocks in batches, runs of pages        spans.rs          a walk for readers
//! page_table.rs     what each page is; its blocks, the bins, check()         size_class.rs     layout -> class
//! runs.rs           which pages are free; the lowest run of n                (tables from build.rs)
//! decay.rs          when memory goes back; options.rs                        heap/purge.rs     what goes back
//! arena.rs          the reservation, committed upward                        metadata.rs       caches' own memory
//! stats.rs          the resident size in parts; residency.rs, summary.rs     dump, json, html  the heap in words and pictures
//! report.rs         what a process is asked for from outside                 profile/          who allocated what is live
//! sys/              the operating system: the only libc                      lock.rs, fork.rs, fault.rs
//! ```
//!
//! A page is Free, Divided (into blocks of one class) or part of a Multi run (one allocation). The layers know only
//! those below them; [`page_table`] and [`runs`] are plain data without locks or system calls.
//!
//! # How a block is allocated
//!
//! 1. The layout's size, rounded up to its alignment, looks its class up in a table.
//! 2. The thread's stack of that class is popped. That is all, nearly always: no lock, and the block is not touched.
//! 3. If the stack is empty it grows, and is refilled to the half in one batch: under the lock of the bin, free bits
//!    become addresses, a word of the bitmap at a time; from the fullest pages first, lowest address first.
//! 4. If the bin has no free block, it adopts a page that another shard can spare; else, under the page lock, the
//!    lowest free page becomes Divided; else the arena commits more memory.
//!
//! A layout beyond the largest class (32 KiB) is a Multi run: page lock, the lowest run that fits, one header. It grows into
//! the free pages behind it; if it has to move, its memory is remapped.
//!
//! # How a block is freed
//!
//! 1. The layout yields the class; the address yields the page, whose *tag* holds class and shard in one integer.
//! 2. One compare of the tag with the one that the thread's cache expects proves that the address is in a Divided page
//!    of that class and of the thread's own shard. The address is pushed.
//! 3. A block of another shard waits in a stack of its own, and goes home in a batch.
//! 4. A stack that is full grows; if it may not, its older half goes back: by shard, then page by page, a bit is set
//!    for every block. A page without live blocks becomes Free.
//! 5. Everything else is a Multi run or a misuse, which ends the process with one line that names it.
//!
//! # How memory goes back
//!
//! The index of the runs remembers which pages are *dirty*: may have memory. A free page that stays dirty from one period to
//! the next goes back to the system, and is clean. So do the parts of Divided pages that hold no live block. Passes are
//! made on slow paths, a little at a time, or by a thread of its own (`decay.rs`); [`PageAllocator::purge`] does all at once.
//!
//! # Locks
//!
//! A bin (the class locks), then the runs (the page lock); the pool of metadata and the registry of thread caches stand
//! apart. A second bin is only tried for. [`Heap::check`] and `fork` take them all, in order. Readers of the table
//! hold one lock at a time and none while they write.
//!
//! # What is never done
//!
//! No allocator data in user memory. No allocation, panic, unwinding or std I/O inside the allocator. No walk over
//! all pages to serve a request. No free that the page table contradicts.
//!
//! # Features
//!
//! `std` (default): thread caches through `thread_local!`. `initial-exec`: thread caches through a thread-local symbol
//! of the crate's own, for shared libraries, without std. With neither, every call goes to the locked heap.
//! `profile`: a sampled profile of what is live.

#![no_std]
#[cfg(any(test, feature = "profile", all(feature = "std", not(feature = "initial-exec"))))]
extern crate std;
mod arena;
mod decay;
mod dump;
mod fault;
mod fork;
mod global;
mod heap;
mod html;
mod human;
mod json;
mod line;
mod lock;
mod metadata;
mod options;
mod out;
pub mod page_table;
#[cfg(feature = "profile")]
mod profile;
#[cfg(not(feature = "profile"))]
#[path = "profile/off.rs"]
mod profile;
mod report;
mod residency;
pub mod runs;
pub mod size_class;
mod snapshot;
mod spans;
mod stats;
mod summary;
mod sys;
mod thread_cache;
mod tls;
pub mod units;
mod unsized_calls;
pub use dump::{DumpOptions, View};
pub use global::{OutOfMemory, PageAllocator};
pub use heap::{Heap, HeapError, HeapOptions};
#[cfg(feature = "profile")]
pub use profile::Profile;
pub use size_class::SizeClasses;
pub use snapshot::{ClassChange, Difference, Snapshot};
pub use stats::{ClassStats, FreeStats, Resident, RunStats, Stats};
pub use summary::Summary;
