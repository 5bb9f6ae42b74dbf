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
//! | frontier | pages from here on were never committed |
//! | run | pages that lie side by side |
//! | dirty, clean | a dirty page may hold something; a clean one reads as zeros |
//! | sparse, dense | sparse pages are kept from huge pages; all others are dense |
//! | block | one slot of a Divided page |
//! | size class | a block size |
//! | page table | for every page a header, a tag and a bitmap; over all pages an index of the free runs |
//! | thread cache | for every thread and class a stack of block addresses |
//! | shard | a group of Divided pages; threads are spread over two a processor, 16 at most; each component has one, and so have blocks that the profile samples |
//! | component | a part of the program with pages of its own |
//! | bin | the Divided pages of one class and shard that have free blocks |
//! | tag | class and shard of a Divided page in one integer |
//! | gate | what a thread goes through on its slow paths, and whoever empties its cache from outside closes |
//! | pass | a round of giving memory back |
//! | watched | a page in use that the next pass has to look at: it was used since the last one, or could not give all back |
//!
//! # Structures
//!
//! ```text
//! global.rs         PageAllocator: GlobalAlloc, and nothing but dispatch     unsized_calls.rs  the same for C
//! thread_cache/     stacks of addresses, one cache a thread                  tls.rs            the pointer to it
//! heap.rs           Heap: the locks                                          spans.rs          a walk for readers
//! heap/blocks.rs    blocks in batches                                        heap/large.rs     runs of pages
//! heap/resize.rs    runs that grow, shrink and move                          heap/mapping.rs   how runs are mapped
//! page_table.rs     what each page is; its blocks, the bins, check()         size_class.rs     layout -> class
//! runs.rs           which pages are free; the lowest run of n                (tables from build.rs)
//! heap/find.rs      which of them are taken, dense or sparse                 runs/tree.rs      how they are found in O(log pages)
//! expectation.rs    what tells which of the two                              page_table/state.rs  a page's state, atomic
//! decay.rs          when memory goes back                                    heap/purge.rs     what goes back
//! page_table/watched.rs  which pages are looked at for that                  heap/progress.rs  how much at a time
//! arena.rs          the reservation, committed upward                        metadata.rs       caches' own memory
//! guarded.rs        a few blocks that trap when they are misused             shards.rs         which shard is whose
//! component.rs      parts of the program: another cache for a thread         ledger.rs         what they hold, and may
//! allocator.rs      heaps for collections                                    global_heap.rs    over given memory
//! stats.rs          the resident size in parts; residency.rs, summary.rs     dump, json, html  the heap in words and pictures
//! snapshot.rs       two moments compared                                     usage.rs          jemalloc's six figures
//! report.rs         what a process is asked for from outside                 profile/          who allocated what is live
//! options.rs        of the type, and of the environment                      line.rs, out.rs, human.rs  text without allocation
//! units.rs          indices and counts that cannot be mixed up
//! sys/              the operating system: the only libc                      lock.rs, fork.rs, fault.rs, hardened.rs
//! first_use.rs      how the process heap is made, and found                  sync.rs           atomics, or those of models/
//! ```
//!
//! A page is Free, Divided (into blocks of one class) or part of a Multi run (one allocation).
//!
//! [`size_class`], [`runs`] and [`page_table`] are plain data: no locks, no system calls, nothing of the heap above them.
//! Above the page table, layers are not strict: the heap asks `guarded`, `hardened` and `profile`; `thread_cache` and
//! `component` call each other, and so do `thread_cache` and `decay`.
//!
//! # How a block is allocated
//!
//! 1. The class is looked up in a table, by the layout's size rounded up to its alignment.
//! 2. The thread's stack of that class is popped. The block must still begin with the mark that it got when it was
//!    freed, or else somebody has it already; the mark is wiped out. That is all, nearly always: no lock.
//! 3. If the stack is empty it grows, up to 16 KiB, or 62 blocks if these are more, within 64 KiB, and is half filled in one
//!    batch: under the lock of the bin, free bits become addresses, a word of the bitmap at a time; from the fuller pages
//!    first, and within a page lowest address first.
//! 4. If the bin has no free block, it adopts a page that another shard can spare; else, under the page lock, the
//!    lowest free page becomes Divided; else the arena commits more memory; else it adopts any page with a free block;
//!    else pages that stayed Divided without a live block become Free, and one of them Divided. In a heap that is large
//!    enough for huge pages, blocks of which the program touches only the beginning come from the lowest sparse page
//!    (`heap/find.rs`).
//!
//! A layout beyond the largest class (32 KiB) is a Multi run: page lock, the lowest run that fits, one header. It
//! grows into the free pages behind it; if it has to move, its memory is remapped. A thread keeps runs of up
//! to 512 KiB for itself if it frees and allocates that length in turn: they come and go by an atomic exchange of their state
//! in the page table, without a lock (`thread_cache/runs.rs`).
//!
//! # How a block is freed
//!
//! 1. The layout yields the class; the address yields the page, whose *tag* holds class and shard in one integer.
//! 2. One compare of the tag with the one that the thread's cache expects proves that the address is in a Divided page
//!    of that class and of the thread's own shard. The address is pushed, and the block marked as freed.
//! 3. A block of another shard, or of a component, waits in a stack of its own, of up to 8 KiB, and goes home in a batch.
//! 4. A stack that is full grows to 64 KiB; where its thread takes and frees more than that in turn, to 256 KiB, or 1 MiB of
//!    blocks of up to 1 KiB; if it may not, its older half goes back: by shard, then page by page, a bit is set for every
//!    block. A page without live blocks becomes Free.
//! 5. Everything else is a Multi run or a misuse, which ends the process with one line that names it.
//!
//! # How memory goes back
//!
//! The index of the runs remembers which pages are *dirty*: may have memory. A free page that stays dirty from one
//! period to the next goes back to the system, and is clean. So do the parts of Divided pages that hold no live block,
//! and the ends of runs that nobody asked for. Passes are made on slow paths, a little at a time, or by a background
//! thread (`decay.rs`); [`PageAllocator::purge`] does all at once, and gives back what the page table has for free pages.
//!
//! What waits in a thread's cache goes back to its pages on the thread's slow paths, if it was not used for a period. A
//! thread that sleeps comes by none: others take the blocks from its cache, without a word from it
//! (`thread_cache/raise.rs`), all but one of a size, so that an idle thread holds 219 KiB at
//! most, and as much for each component that it has used.
//!
//! # Locks
//!
//! A thread that holds one of these takes only later ones:
//!
//! | lock | what it is for |
//! |---|---|
//! | the C library's list of streams | the streams; `fork` takes it, too, after its handlers |
//! | taker, then registry (`thread_cache/registry.rs`) | to empty the caches of others; the list of all caches |
//! | ledger | the names of the components |
//! | a bin (class lock) | the Divided pages of one class and shard; a second bin is only tried for, or waited for in order |
//! | the runs (page lock) | which pages are free, and what those are that are not Divided |
//! | waiting runs (`heap/quarantine.rs`, in hardened builds) | freed runs that are not used again yet |
//! | metadata pool, samples, guarded blocks | each held alone, but by `fork` |
//!
//! [`Heap::check`] takes the ledger, all bins and the runs; `fork.rs` takes all of the table, but for the waiting runs,
//! which are locked only while the runs are. On its slow paths a thread goes through the gate of its cache before any of
//! these; whoever has the taker's lock closes a gate only if nobody is behind it. Readers of the table hold one lock at a
//! time and none while they write. A thread that waits for a lock that it holds itself, or waits long for one while it
//! holds a later one, was interrupted by a signal handler that allocates: the process ends.
//!
//! # What is never done
//!
//! No address, size or link in user memory: the mark in a freed block tells misuse, and nothing else. No allocation,
//! panic, unwinding or std I/O inside the allocator. No walk over all pages to serve a request. No free that
//! the page table contradicts.
//!
//! # Examples
//!
//! Every public type has an example, and every function and method is used in one: its own, or that of its type or of a
//! neighbour, as builders and getters are. The fields of figures are not all shown; each says what it counts.
//! [`page_table`], [`runs`], [`size_class`] and [`units`] are public for tests, fuzzing and benches: each has one example,
//! at its head. Programs, from a few lines to a service over HTTP, are in `examples/`.
//!
//! ```
//! use page_memory_allocator::PageAllocator;
//!
//! #[global_allocator]
//! static HEAP: PageAllocator = PageAllocator::new();
//!
//! fn main() -> std::fmt::Result {
//!     let mut page = String::new();
//!     HEAP.dump_html(&mut page)?; // to be looked at in a browser
//!     assert!(page.ends_with("</html>\n"));
//!     Ok(())
//! }
//! ```
//!
//! # Features
//!
//! `std` (default): thread caches through `thread_local!`. `initial-exec`: thread caches through a thread-local symbol
//! of the crate's own, for shared libraries, without std. With neither, every call goes to the locked heap. `os`,
//! which both imply: all that needs an operating system; without it there are heaps over given memory only
//! ([`GlobalHeap`], [`HeapOptions::build_in`]). `allocator-api2`, `nightly`: heaps for collections. `hardened`: misuse
//! is seen at the call, freed blocks are wiped and checked, what is handed out is random, pages that cannot be touched
//! lie around every run and between groups of Divided pages, and freed runs wait (`heap/guards.rs`,
//! `heap/quarantine.rs`). `profile`: a sampled profile of what is live.

#![no_std]
#![cfg_attr(feature = "nightly", feature(allocator_api))]
// Without an operating system there are no thread caches, which alone use some of the layers below them.
#![cfg_attr(not(feature = "os"), allow(dead_code))]
// Nor are there all the items that the documentation links to, which speaks of all features.
#![cfg_attr(not(feature = "os"), allow(rustdoc::broken_intra_doc_links))]
#[cfg(any(test, feature = "profile", feature = "std"))]
extern crate std;

#[cfg(all(feature = "os", not(all(target_os = "linux", target_pointer_width = "64"))))]
compile_error!("the feature `os`, which is among the default ones, is for Linux with pointers of 64 bits");

#[cfg(any(feature = "allocator-api2", feature = "nightly"))]
mod allocator;
mod arena;
#[cfg(feature = "os")]
mod component;
#[cfg(feature = "os")]
mod decay;
mod dump;
mod expectation;
mod fault;
#[cfg(feature = "os")]
mod first_use;
#[cfg(feature = "os")]
mod fork;
#[cfg(feature = "os")]
mod global;
mod global_heap;
#[cfg(feature = "os")]
mod guarded;
#[cfg(feature = "hardened")]
mod hardened;
mod heap;
#[cfg(feature = "os")]
mod html;
mod human;
#[cfg(feature = "os")]
mod json;
mod ledger;
mod line;
mod lock;
#[cfg(feature = "os")]
mod metadata;
#[cfg(feature = "os")]
mod options;
#[cfg(feature = "os")]
mod out;
pub mod page_table;
#[cfg(feature = "profile")]
mod profile;
#[cfg(all(feature = "os", not(feature = "profile")))]
#[path = "profile/off.rs"]
mod profile;
#[cfg(feature = "os")]
mod report;
#[cfg(feature = "os")]
mod residency;
pub mod runs;
mod shards;
pub mod size_class;
#[cfg(feature = "os")]
mod snapshot;
mod spans;
#[cfg(feature = "os")]
mod stats;
mod summary;
#[cfg_attr(not(feature = "os"), allow(unused_imports, unused_macros))]
mod sync;
#[cfg_attr(not(feature = "os"), path = "sys/bare.rs")]
mod sys;
#[cfg(feature = "os")]
mod thread_cache;
#[cfg(feature = "os")]
mod tls;
pub mod units;
#[cfg(feature = "os")]
mod unsized_calls;
#[cfg(feature = "os")]
mod usage;

#[cfg(feature = "os")]
pub use component::{Component, ComponentStats, InComponent, Inside};
#[cfg(feature = "os")]
pub use dump::{DumpOptions, View};
pub use fault::set_fault_handler;
#[cfg(feature = "os")]
pub use global::{OutOfMemory, PageAllocator};
pub use global_heap::GlobalHeap;
#[cfg(feature = "os")]
pub use guarded::GuardedStats;
pub use heap::{Heap, HeapError, HeapOptions};
#[cfg(feature = "os")]
pub use ledger::{SoftLimitExceeded, SoftLimitListener};
#[cfg(feature = "profile")]
pub use profile::Profile;
pub use size_class::SizeClasses;
#[cfg(feature = "os")]
pub use snapshot::{ClassChange, Difference, Snapshot};
#[cfg(feature = "os")]
pub use stats::{ClassStats, FreeStats, Resident, RunStats, Stats};
pub use summary::Summary;
#[cfg(feature = "os")]
pub use usage::Usage;

/// For a shared library, while it is relocated: there is one thread, and its thread-local storage has no values yet. Until it
/// has, the thread is served without a cache.
#[cfg(feature = "initial-exec")]
#[doc(hidden)]
pub extern "C" fn serve_before_thread_local_storage() {
    tls::set(&raw const thread_cache::ABSENT.0);
}
