//! What the feature `hardened` adds: misuse is seen at the call, freed blocks are wiped and checked, and what is handed
//! out next is hard to guess. Without it, the same programs show that it does: there the misuse goes unnoticed.

use page_memory_allocator::PageAllocator;
use page_memory_allocator::size_class::built;
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::AtomicPtr;
use std::{process, thread};

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const HARDENED: bool = cfg!(feature = "hardened");

/// A class that nothing else of a child uses.
const BLOCK: Layout = Layout::new::<[u8; 768]>();
const TWICE: &str = "freed a block twice";
const MIDDLE: &str = "freed a pointer into the middle of a block";
const TWICE_OR_WRITTEN: &str = "freed a block twice, or wrote to a freed block";

fn alloc(layout: Layout) -> *mut u8 {
    // SAFETY: the size is not zero.
    let block = unsafe { HEAP.alloc(layout) };
    assert!(!block.is_null());
    block
}

/// # Safety
/// None need hold: the allocator is to find out.
unsafe fn free(block: *mut u8, layout: Layout) {
    // SAFETY: as above.
    unsafe { HEAP.dealloc(block, layout) };
}

/// Runs `misuse` in a child, which must die of it by `signal` and say what `says`; without the feature, it goes on.
fn dies<F: FnOnce()>(signal: libc::c_int, says: &str, misuse: F) {
    let output = in_child(|_| (), misuse);
    if !HARDENED {
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(2), "the misuse went unnoticed"),
            "{}",
            output.status
        );
        return;
    }
    assert_eq!(output.status.signal(), Some(signal), "{}: {}", output.status, text(&output.stderr));
    assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
}

/// Ends a child that ought not to live any more. What it needed for that was allocated before the misuse.
fn survived() -> ! {
    let _ = io::stderr().write_all(b"the misuse went unnoticed");
    process::exit(2);
}

#[test]
fn a_block_freed_twice_is_seen_at_the_call() {
    dies(libc::SIGABRT, TWICE, || {
        let block = alloc(BLOCK);
        // SAFETY: none for the second call.
        unsafe {
            free(block, BLOCK);
            free(block, BLOCK);
        }
        survived();
    });
}

#[test]
fn a_block_freed_again_by_another_thread_is_seen_at_the_call() {
    dies(libc::SIGABRT, TWICE, || {
        let block = alloc(BLOCK);
        // SAFETY: the block is live.
        unsafe { free(block, BLOCK) };
        let block = AtomicPtr::new(block);
        let _ = thread::spawn(|| {
            // SAFETY: none.
            unsafe { free(block.into_inner(), BLOCK) };
            survived();
        })
        .join();
    });
}

#[test]
fn the_middle_of_a_block_is_seen_at_the_call() {
    dies(libc::SIGABRT, MIDDLE, || {
        // SAFETY: none.
        unsafe { free(alloc(BLOCK).wrapping_add(16), BLOCK) };
        survived();
    });
}

#[test]
fn a_pointer_that_is_not_aligned_is_seen_at_the_call() {
    dies(libc::SIGABRT, MIDDLE, || {
        // SAFETY: none.
        unsafe { free(alloc(BLOCK).wrapping_add(1), BLOCK) };
        survived();
    });
}

#[test]
fn a_block_resized_after_it_was_freed_is_seen_at_the_call() {
    dies(libc::SIGABRT, TWICE, || {
        let block = alloc(BLOCK);
        // SAFETY: none for the second call.
        unsafe {
            free(block, BLOCK);
            black_box(HEAP.realloc(block, BLOCK, 767));
        }
        survived();
    });
}

#[test]
fn a_write_anywhere_in_a_freed_block_is_found_when_it_is_handed_out() {
    dies(libc::SIGABRT, TWICE_OR_WRITTEN, || {
        let block = alloc(BLOCK);
        // SAFETY: none for the write.
        unsafe {
            free(block, BLOCK);
            block.add(767).write_volatile(1);
        }
        (0..1_000).for_each(|_| _ = black_box(alloc(BLOCK)));
        survived();
    });
}

#[test]
fn a_freed_block_is_wiped() {
    let block = alloc(BLOCK);
    // SAFETY: none for the reads, which see what others would see that hold a dangling pointer.
    unsafe {
        block.write_bytes(0xAA, BLOCK.size());
        free(block, BLOCK);
        assert_eq!((0..BLOCK.size()).all(|at| block.add(at).read_volatile() != 0xAA), HARDENED);
    }
}

#[test]
fn the_block_that_was_freed_last_is_seldom_the_next() {
    let mut same = 0;
    for _ in 0..1_000 {
        let block = alloc(BLOCK);
        // SAFETY: the blocks are live.
        unsafe {
            free(block, BLOCK);
            let next = alloc(BLOCK);
            same += usize::from(next == block);
            free(next, BLOCK);
        }
    }
    assert_eq!(same < 500, HARDENED, "{same} of 1,000");
}

#[test]
fn blocks_of_a_fresh_page_come_in_no_order() {
    let layout = Layout::new::<[u8; 1_900]>();
    let blocks: Vec<_> = (0..32).map(|_| alloc(layout)).collect();
    let ascending = blocks.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert_eq!((4..28).contains(&ascending), HARDENED, "{ascending} of 31");
}

#[test]
fn what_lies_behind_a_run_cannot_be_touched() {
    let run = Layout::new::<[u8; 3 * built::PAGE_SIZE]>();
    dies(libc::SIGSEGV, "", || {
        // SAFETY: none.
        unsafe { alloc(run).add(run.size()).write_volatile(1) };
        survived();
    });
}

#[test]
fn what_lies_behind_a_run_that_grew_and_shrank_cannot_be_touched() {
    let run = Layout::new::<[u8; 3 * built::PAGE_SIZE]>();
    dies(libc::SIGSEGV, "", || {
        // SAFETY: the run is live; none for the last line.
        unsafe {
            let mut start = alloc(run);
            start = HEAP.realloc(start, run, 40 * built::PAGE_SIZE);
            start.add(40 * built::PAGE_SIZE - 1).write_volatile(1);
            let long = Layout::from_size_align_unchecked(40 * built::PAGE_SIZE, 1);
            start = HEAP.realloc(start, long, run.size());
            start.add(run.size() - 1).write_volatile(1);
            start.add(run.size()).write_volatile(1);
        }
        survived();
    });
}
