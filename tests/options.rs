//! The options of the process heap, from the type and from the environment. Those about purging and huge pages are
//! tested where their effects are.

#[path = "common/child.rs"]
mod child;

use child::{cases, in_child, text};
use page_memory_allocator::PageAllocator;
use page_memory_allocator::size_class::built::PAGE_SIZE;
use std::alloc::{GlobalAlloc, Layout};
use std::os::unix::process::ExitStatusExt as _;
use std::panic;
use std::process::{Output, exit};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};
use std::{ptr, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new().limit(64 * MIB).on_out_of_memory(free_the_reserve);

const MIB: usize = 1 << 20;

/// Freed when memory runs out.
static RESERVE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 8).unwrap()
}

fn free_the_reserve(_: Layout) -> bool {
    CALLS.fetch_add(1, Relaxed);
    let reserve = RESERVE.swap(ptr::null_mut(), Relaxed);
    if reserve.is_null() {
        return false;
    }
    // SAFETY: the reserve was allocated with this layout, and is nobody else's.
    unsafe { HEAP.dealloc(reserve, layout(16 * MIB)) };
    true
}

/// Allocates blocks of so many bytes until there are no more, and prints how many MiB that was.
fn allocate_all(bytes: usize) {
    let mut sum = 0;
    // SAFETY: the layout is not empty.
    while sum < 512 * MIB && !unsafe { HEAP.alloc(layout(bytes)) }.is_null() {
        sum += bytes;
    }
    HEAP.check().unwrap();
    println!("allocated: {}", sum / MIB);
}

/// The MiB that a child printed.
fn allocated(output: &Output) -> usize {
    assert!(output.status.success(), "{output:?}");
    let line = text(&output.stdout).lines().find_map(|line| line.split_once("allocated: "));
    line.unwrap().1.parse().unwrap()
}

#[test]
fn no_more_pages_are_in_use_than_the_limit_allows() {
    for bytes in [100, 5_000, 100_000, 3 * MIB] {
        let output = in_child(
            |command| {
                command.env("BYTES", bytes.to_string());
            },
            || allocate_all(std::env::var("BYTES").unwrap().parse().unwrap()),
        );
        let mebibytes = allocated(&output);
        assert!((40..=64).contains(&mebibytes), "{mebibytes} in blocks of {bytes}");
    }
}

#[test]
fn a_run_that_moves_counts_once() {
    let output = in_child(
        |_| {},
        || {
            // SAFETY: each block is freed once at most, with its layout, and used before that.
            unsafe {
                let run = HEAP.alloc(layout(30 * MIB));
                // It cannot grow where it is, and there is no room for both of them.
                let behind = (0..8).map(|_| HEAP.alloc(layout(MIB))).find(|&next| next > run);
                // In a hardened heap a page lies between them.
                let guard = if cfg!(feature = "hardened") { PAGE_SIZE } else { 0 };
                assert_eq!(behind, Some(run.add(30 * MIB + guard)));
                run.write(1);
                run.add(30 * MIB - 1).write(2);
                let moved = HEAP.realloc(run, layout(30 * MIB), 50 * MIB);
                assert!(!moved.is_null() && moved != run);
                assert_eq!((moved.read(), moved.add(30 * MIB - 1).read()), (1, 2));
                HEAP.check().unwrap();
                // The limit is what it was.
                assert!(HEAP.alloc(layout(20 * MIB)).is_null());
                HEAP.dealloc(moved, layout(50 * MIB));
                let next = HEAP.alloc(layout(50 * MIB));
                assert!(!next.is_null());
                HEAP.dealloc(next, layout(50 * MIB));
            }
            println!("allocated: 0");
        },
    );
    assert_eq!(allocated(&output), 0);
}

#[test]
fn the_environment_outranks_the_type() {
    for (limit, mebibytes) in [("16M", 8..=16), ("16384K", 8..=16), ("16777216", 8..=16), ("1G", 512..=513)] {
        let output = in_child(
            |command| {
                command.env("PMA_LIMIT", limit);
            },
            || allocate_all(100_000),
        );
        assert!(mebibytes.contains(&allocated(&output)), "{limit}");
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn values_that_cannot_be_read_are_reported_once_and_ignored() {
    let output = in_child(
        |command| {
            command.env("PMA_LIMIT", "much").env("PMA_PURGE_MS", "5s").env("PMA_HUGE_PAGES", "on");
            command.env("PMA_ZERO_ON_FREE", "yes").env("PMA_PROFILE_BYTES", "1M");
        },
        || {
            thread::spawn(|| drop(vec![1; 100])).join().unwrap();
            allocate_all(100_000);
        },
    );
    assert!((40..=64).contains(&allocated(&output)));
    let said: Vec<&str> = text(&output.stderr).lines().collect();
    assert_eq!(
        said[..4],
        [
            "page_memory_allocator: PMA_PURGE_MS=5s is ignored: it takes milliseconds below 2^32, or never",
            "page_memory_allocator: PMA_HUGE_PAGES=on is ignored: it takes 1 or 0",
            "page_memory_allocator: PMA_LIMIT=much is ignored: it takes bytes, or so many K, M or G, \
             of a page at least",
            if cfg!(feature = "hardened") {
                "page_memory_allocator: PMA_ZERO_ON_FREE=yes is ignored: it takes 1 or 0"
            } else {
                "page_memory_allocator: PMA_ZERO_ON_FREE=yes is ignored: \
                 only a build with the feature `hardened` can do it"
            },
        ]
    );
    let no_samples = "page_memory_allocator: PMA_PROFILE_BYTES=1M is ignored: only a build with the feature `profile` takes samples";
    assert_eq!(said[4..], if cfg!(feature = "profile") { vec![] } else { vec![no_samples] });
}

#[test]
fn long_values_that_cannot_be_read_are_reported_in_part_with_the_reason() {
    let output = in_child(|command| _ = command.env("PMA_PURGE_MS", "9".repeat(1000)), || ());
    let shown = "9".repeat(80);
    let said = format!(
        "page_memory_allocator: PMA_PURGE_MS={shown} is ignored: it takes milliseconds below 2^32, or never\n"
    );
    assert_eq!(text(&output.stderr), said);
}

#[test]
fn a_hook_that_frees_something_has_the_allocation_tried_again() {
    let output = in_child(
        |_| (),
        || {
            // SAFETY: blocks are freed once, with their layouts.
            unsafe {
                RESERVE.store(HEAP.alloc(layout(16 * MIB)), Relaxed);
                let large = HEAP.alloc(layout(40 * MIB));
                assert!(!large.is_null());
                assert_eq!(CALLS.load(Relaxed), 0);
                let more = HEAP.alloc_zeroed(layout(12 * MIB));
                assert!(!more.is_null());
                assert_eq!(CALLS.load(Relaxed), 1);
                // There is no reserve any more.
                assert!(HEAP.alloc(layout(40 * MIB)).is_null());
                assert_eq!(CALLS.load(Relaxed), 2);
                assert!(HEAP.realloc(more, layout(12 * MIB), 60 * MIB).is_null());
                assert_eq!(CALLS.load(Relaxed), 3);
                HEAP.dealloc(more, layout(12 * MIB));
                HEAP.dealloc(large, layout(40 * MIB));
            }
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_a_hook_frees_may_be_room_for_a_run_to_grow_where_it_is() {
    for without_layout in cases(&[false, true]) {
        let output = in_child(
            |command| {
                if without_layout {
                    command.env("WITHOUT_LAYOUT", "1");
                }
            },
            || {
                let without_layout = std::env::var_os("WITHOUT_LAYOUT").is_some();
                let (run, reserve) = (layout(30 * MIB), layout(16 * MIB));
                // SAFETY: blocks are freed once, as they were allocated.
                unsafe {
                    let start = if without_layout { HEAP.malloc(run.size()) } else { HEAP.alloc(run) };
                    RESERVE.store(HEAP.alloc(reserve), Relaxed);
                    // Beside the run, the limit never allows for one so long.
                    let grown = if without_layout {
                        HEAP.realloc_unsized(start, 52 * MIB)
                    } else {
                        HEAP.realloc(start, run, 52 * MIB)
                    };
                    assert!(!grown.is_null());
                    assert_eq!(CALLS.load(Relaxed), 1, "the hook frees all at once");
                }
                HEAP.check().unwrap();
            },
        );
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn the_hook_is_called_for_those_who_know_no_layouts_too() {
    let output = in_child(
        |_| (),
        || {
            let refill = || RESERVE.store(HEAP.malloc(16 * MIB), Relaxed);
            let large = HEAP.malloc(40 * MIB);
            assert!(!large.is_null() && CALLS.load(Relaxed) == 0);
            let mut calls = 0;
            // SAFETY: blocks are live until they are freed, once; alignments are powers of two.
            unsafe {
                for allocate in [
                    || HEAP.malloc(12 * MIB),
                    || HEAP.malloc_zeroed(12 * MIB),
                    || HEAP.malloc_aligned(12 * MIB, 4096),
                    || HEAP.realloc_unsized(HEAP.malloc(100), 12 * MIB),
                ] {
                    refill();
                    let block = allocate();
                    calls += 1;
                    assert!(!block.is_null() && CALLS.load(Relaxed) == calls);
                    // Nothing is left to be freed: it is refused.
                    assert!(HEAP.malloc(40 * MIB).is_null());
                    assert!(HEAP.realloc_unsized(block, 60 * MIB).is_null());
                    calls += 2;
                    assert_eq!(CALLS.load(Relaxed), calls);
                    HEAP.free(block);
                }
                HEAP.free(large);
            }
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_hook_that_unwinds_ends_the_process() {
    static RUDE: PageAllocator = PageAllocator::new().on_out_of_memory(|_| panic!("too much"));
    let output = in_child(
        |_| (),
        || {
            panic::set_hook(Box::new(|_| ()));
            // SAFETY: the layout is not empty.
            let unwound = panic::catch_unwind(|| unsafe { RUDE.alloc(layout(128 * MIB)) });
            exit(if unwound.is_err() { 3 } else { 4 });
        },
    );
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", output.status);
}
