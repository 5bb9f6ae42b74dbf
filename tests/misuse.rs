//! Misuse ends the process by SIGABRT, with one line on standard error that says what was wrong, and where.

use page_memory_allocator::size_class::{SizeClasses, built};
use page_memory_allocator::{Heap, HeapOptions, PageAllocator};
use std::alloc::{GlobalAlloc, Layout};
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process;

#[path = "common/child.rs"]
mod child;
use child::{cases, in_child, text};

#[global_allocator]
static GLOBAL: PageAllocator = PageAllocator::new();

const FOREIGN: &str = "freed a pointer that is not from this heap";
const FREE_PAGE: &str = "freed a pointer into a page that is not in use";
const MIDDLE: &str = "freed a pointer into the middle of a block";
const TWICE: &str = "freed a block twice";
const TWICE_OR_WRITTEN: &str = "freed a block twice, or wrote to a freed block";
const OTHER_LAYOUT: &str = "freed with a layout that the block or run does not have";

/// Runs `misuse` in a child, which must die of it and say `what` of the address that was [`announce`]d last, and
/// that its page is `page`.
fn dies_of<F: FnOnce()>(what: &str, page: &str, misuse: F) {
    let output = in_child(|_| (), misuse);
    let (said, written) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {said}{written}", output.status);
    let address = written.rsplit_once("address ").expect("the child announced an address").1.trim();
    let page = if page.is_empty() { String::new() } else { format!(" (page: {page})") };
    assert_eq!(said, format!("page_memory_allocator: {what}: {address}{page}\n"));
}

/// Tells the parent the address that is going to be misused.
fn announce(address: *const u8) {
    let mut out = io::stdout();
    writeln!(out, "address {address:p}").and_then(|()| out.flush()).expect("the parent listens");
}

/// Ends a child that ought not to live any more.
fn survived() -> ! {
    eprintln!("the misuse went unnoticed");
    process::exit(2);
}

/// A heap of its own sees every misuse at the call.
mod heap {
    use super::*;

    const PAGE: usize = 4096;
    const BLOCK: Layout = Layout::new::<[u8; 200]>();
    const DIVIDED: &str = "Divided, class size: 256";
    const RUN: Layout = Layout::new::<[u8; 3 * PAGE]>();
    const HEAD: &str = "Multi, of 3 pages";
    const TAIL: &str = "Multi, not the first of its run";

    fn heap() -> Heap {
        HeapOptions::new()
            .capacity(8 * PAGE)
            .page_size(PAGE)
            .classes(SizeClasses::POWERS_OF_TWO)
            .build()
            .expect("so few addresses are to be had")
    }

    /// Frees `block` as `layout`, which is to be the end.
    fn free(heap: &Heap, block: *mut u8, layout: Layout) {
        announce(block);
        // SAFETY: none. The heap is to find that out, and ends the process.
        unsafe { heap.dealloc(block, layout) };
        survived();
    }

    #[test]
    fn a_block_of_another_heap() {
        dies_of(FOREIGN, "", || free(&heap(), heap().alloc(BLOCK), BLOCK));
    }

    #[test]
    fn a_run_of_another_heap() {
        dies_of(FOREIGN, "", || free(&heap(), heap().alloc(RUN), RUN));
    }

    #[test]
    fn null() {
        dies_of(FOREIGN, "", || free(&heap(), std::ptr::null_mut(), BLOCK));
    }

    #[test]
    fn just_below_the_arena() {
        dies_of(FOREIGN, "", || {
            let heap = heap();
            free(&heap, heap.start().wrapping_sub(256), BLOCK);
        });
    }

    #[test]
    fn just_above_the_arena() {
        dies_of(FOREIGN, "", || {
            let heap = heap();
            free(&heap, heap.start().wrapping_add(8 * PAGE), RUN);
        });
    }

    #[test]
    fn a_page_never_used() {
        dies_of(FREE_PAGE, "Free", || {
            let heap = heap();
            free(&heap, heap.start().wrapping_add(7 * PAGE), BLOCK);
        });
    }

    #[test]
    fn a_page_not_used_any_more() {
        dies_of(FREE_PAGE, "Free", || {
            let heap = heap();
            let block = heap.alloc(BLOCK);
            // SAFETY: the block is live.
            unsafe { heap.dealloc(block, BLOCK) };
            free(&heap, block, BLOCK);
        });
    }

    #[test]
    fn the_middle_of_a_block() {
        dies_of(MIDDLE, DIVIDED, || {
            let heap = heap();
            free(&heap, heap.alloc(BLOCK).wrapping_add(8), BLOCK);
        });
    }

    #[test]
    fn a_block_twice() {
        dies_of(TWICE, DIVIDED, || {
            let heap = heap();
            let blocks = [heap.alloc(BLOCK), heap.alloc(BLOCK)];
            // SAFETY: the block is live.
            unsafe { heap.dealloc(blocks[0], BLOCK) };
            free(&heap, blocks[0], BLOCK);
        });
    }

    #[test]
    fn a_block_never_handed_out() {
        dies_of(TWICE, DIVIDED, || {
            let heap = heap();
            free(&heap, heap.alloc(BLOCK).wrapping_add(1024), BLOCK);
        });
    }

    #[test]
    fn a_block_as_one_of_another_size() {
        dies_of(OTHER_LAYOUT, DIVIDED, || {
            let heap = heap();
            free(&heap, heap.alloc(BLOCK), Layout::new::<[u8; 257]>());
        });
    }

    #[test]
    fn a_block_as_one_of_another_alignment() {
        dies_of(OTHER_LAYOUT, DIVIDED, || {
            let heap = heap();
            free(&heap, heap.alloc(BLOCK), Layout::from_size_align(200, 512).unwrap());
        });
    }

    #[test]
    fn a_run_as_a_block() {
        dies_of(OTHER_LAYOUT, HEAD, || {
            let heap = heap();
            free(&heap, heap.alloc(RUN), BLOCK);
        });
    }

    #[test]
    fn the_second_page_of_a_run_as_a_block() {
        dies_of(OTHER_LAYOUT, TAIL, || {
            let heap = heap();
            free(&heap, heap.alloc(RUN).wrapping_add(PAGE), BLOCK);
        });
    }

    #[test]
    fn a_run_of_another_length() {
        dies_of(OTHER_LAYOUT, HEAD, || {
            let heap = heap();
            free(&heap, heap.alloc(RUN), Layout::new::<[u8; 3 * PAGE + 1]>());
        });
    }

    #[test]
    fn a_run_twice() {
        dies_of(FREE_PAGE, "Free", || {
            let heap = heap();
            let run = heap.alloc(RUN);
            // SAFETY: the run is live.
            unsafe { heap.dealloc(run, RUN) };
            free(&heap, run, RUN);
        });
    }

    #[test]
    fn the_second_page_of_a_run() {
        dies_of(MIDDLE, TAIL, || {
            let heap = heap();
            free(&heap, heap.alloc(RUN).wrapping_add(PAGE), RUN);
        });
    }

    #[test]
    fn the_middle_of_the_first_page_of_a_run() {
        dies_of(MIDDLE, HEAD, || {
            let heap = heap();
            free(&heap, heap.alloc(RUN).wrapping_add(64), RUN);
        });
    }

    #[test]
    fn a_block_resized_as_one_of_another_size() {
        dies_of(OTHER_LAYOUT, DIVIDED, || {
            let heap = heap();
            let block = heap.alloc(BLOCK);
            announce(block);
            // SAFETY: none. The heap is to find that out, and ends the process.
            unsafe { heap.realloc(block, Layout::new::<[u8; 100]>(), 101) };
            survived();
        });
    }

    #[test]
    fn a_run_resized_after_it_was_freed() {
        dies_of(FREE_PAGE, "Free", || {
            let heap = heap();
            let run = heap.alloc(RUN);
            announce(run);
            // SAFETY: none for the second call. The heap is to find that out, and ends the process.
            unsafe {
                heap.dealloc(run, RUN);
                heap.realloc(run, RUN, 5 * PAGE);
            }
            survived();
        });
    }
}

/// The process heap sees at the call what the page's tag tells. A block freed twice is seen before it is handed out a
/// second time, or when a thread cache gives back its blocks.
mod global {
    use super::*;
    use std::hint::black_box;
    use std::sync::atomic::{AtomicPtr, Ordering};
    use std::thread;

    const PAGE: usize = built::PAGE_SIZE;
    /// A class that nothing else of a child uses.
    const BLOCK: Layout = Layout::new::<[u8; 768]>();
    const DIVIDED: &str = "Divided, class size: 768";
    const RUN: Layout = Layout::new::<[u8; 3 * PAGE]>();
    const HEAD: &str = "Multi, of 3 pages";
    const TAIL: &str = "Multi, not the first of its run";

    fn alloc(layout: Layout) -> *mut u8 {
        // SAFETY: the size is not zero.
        unsafe { GLOBAL.alloc(layout) }
    }

    /// Frees `block` as `layout`.
    ///
    /// # Safety
    /// None need hold: the allocator is to find that out, and ends the process.
    unsafe fn free(block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { GLOBAL.dealloc(block, layout) };
    }

    /// Frees `block` as `layout`, which is to be the end.
    fn free_at_last(block: *mut u8, layout: Layout) {
        announce(block);
        let other = alloc(layout);
        // SAFETY: none for the second call, as said there. After the first, the thread's cache has room for a block of
        // this layout: there is nothing but the page that speaks against taking it.
        unsafe {
            free(other, layout);
            free(block, layout);
        }
        survived();
    }

    /// Runs `misuse` in a thread of its own, whose end is to be the end.
    fn in_a_thread_that_ends(misuse: impl FnOnce() + Send + 'static) {
        // What the first use of a stream allocates, it allocates here.
        announce(std::ptr::null());
        let _ = thread::spawn(misuse).join();
        survived();
    }

    #[test]
    fn a_block_of_the_c_library() {
        dies_of(FOREIGN, "", || {
            // SAFETY: malloc has no preconditions.
            free_at_last(unsafe { libc::malloc(768) }.cast(), BLOCK);
        });
    }

    #[test]
    fn a_variable() {
        dies_of(FOREIGN, "", || {
            let mut variable = [0u8; 768];
            free_at_last(&raw mut variable as *mut u8, BLOCK);
        });
    }

    #[test]
    fn a_run_of_another_heap() {
        dies_of(FOREIGN, "", || {
            let heap = HeapOptions::new().build().expect("so few addresses are to be had");
            free_at_last(heap.alloc(RUN), RUN);
        });
    }

    #[test]
    fn null() {
        dies_of(FOREIGN, "", || free_at_last(std::ptr::null_mut(), BLOCK));
    }

    #[test]
    fn a_foreign_pointer_of_unknown_size() {
        dies_of(FOREIGN, "", || {
            let mut variable = 0u8;
            announce(&raw const variable);
            // SAFETY: none. The allocator is to find that out, and ends the process.
            unsafe { GLOBAL.free(&raw mut variable) };
            survived();
        });
    }

    #[test]
    fn the_second_page_of_a_run_of_unknown_size() {
        dies_of(MIDDLE, TAIL, || {
            let page = alloc(RUN).wrapping_add(PAGE);
            announce(page);
            // SAFETY: none. The allocator is to find that out, and ends the process.
            unsafe { GLOBAL.free(page) };
            survived();
        });
    }

    #[test]
    fn a_page_not_used_any_more() {
        dies_of(FREE_PAGE, "Free", || {
            let run = alloc(RUN);
            announce(run);
            // SAFETY: none for the second call, as said there.
            unsafe {
                free(run, RUN);
                free(run, BLOCK);
            }
            survived();
        });
    }

    #[test]
    fn a_block_as_one_of_another_size() {
        dies_of(OTHER_LAYOUT, DIVIDED, || free_at_last(alloc(BLOCK), Layout::new::<[u8; 769]>()));
    }

    #[test]
    fn a_block_as_a_run() {
        dies_of(OTHER_LAYOUT, DIVIDED, || free_at_last(alloc(BLOCK), RUN));
    }

    #[test]
    fn a_block_of_another_thread_as_one_of_another_size() {
        dies_of(OTHER_LAYOUT, DIVIDED, || {
            let block = AtomicPtr::new(alloc(BLOCK));
            in_a_thread_that_ends(move || free_at_last(block.into_inner(), Layout::new::<[u8; 64]>()));
        });
    }

    /// It is seen at the call; of a block of the thread's own shard, when its cache gives that back.
    #[test]
    fn the_middle_of_a_block_of_another_thread() {
        dies_of(MIDDLE, DIVIDED, || {
            let blocks = [alloc(BLOCK), alloc(BLOCK)].map(AtomicPtr::new);
            in_a_thread_that_ends(move || {
                let [first, second] = blocks.map(AtomicPtr::into_inner);
                // SAFETY: the block is live. After it the cache has room for more of those that go home.
                unsafe { free(first, BLOCK) };
                free_at_last(second.wrapping_add(16), BLOCK);
            });
        });
    }

    #[test]
    fn a_run_as_a_block() {
        dies_of(OTHER_LAYOUT, HEAD, || free_at_last(alloc(RUN), BLOCK));
    }

    #[test]
    fn a_run_of_another_length() {
        dies_of(OTHER_LAYOUT, HEAD, || free_at_last(alloc(RUN), Layout::new::<[u8; 2 * PAGE]>()));
    }

    /// Has the thread keep the runs of [`RUN`]'s length that it frees.
    fn keep_runs() {
        drop(black_box(Box::new(0)));
        for _ in 0..2 {
            // SAFETY: the run is live.
            unsafe { free(alloc(RUN), RUN) };
        }
    }

    #[test]
    fn a_run_twice_that_its_thread_keeps() {
        dies_of(FREE_PAGE, "Free", || {
            keep_runs();
            let run = alloc(RUN);
            announce(run);
            // SAFETY: none for the second call, as said there.
            unsafe {
                free(run, RUN);
                free(run, RUN);
            }
            survived();
        });
    }

    #[test]
    fn a_run_of_unknown_size_that_another_thread_keeps() {
        dies_of(FREE_PAGE, "Free", || {
            keep_runs();
            let run = alloc(RUN);
            announce(run);
            // SAFETY: the run is live.
            unsafe { free(run, RUN) };
            let run = AtomicPtr::new(run);
            let _ = thread::spawn(move || {
                keep_runs();
                // SAFETY: none, as said there.
                unsafe { GLOBAL.free(run.load(Ordering::Relaxed)) };
            })
            .join();
            survived();
        });
    }

    #[test]
    fn a_run_that_would_be_kept_as_one_of_another_length() {
        dies_of(OTHER_LAYOUT, HEAD, || {
            keep_runs();
            let run = alloc(RUN);
            announce(run);
            // SAFETY: none. The allocator is to find that out, and ends the process.
            unsafe { free(run, Layout::new::<[u8; 2 * PAGE]>()) };
            survived();
        });
    }

    #[test]
    fn a_run_made_longer_that_its_thread_keeps() {
        dies_of(FREE_PAGE, "Free", || {
            keep_runs();
            let run = alloc(RUN);
            announce(run);
            // SAFETY: none for the second call, as said there.
            unsafe {
                free(run, RUN);
                GLOBAL.realloc(run, RUN, 4 * PAGE);
            }
            survived();
        });
    }

    #[test]
    fn a_run_twice() {
        dies_of(FREE_PAGE, "Free", || {
            let run = alloc(RUN);
            announce(run);
            // SAFETY: none for the second call, as said there.
            unsafe {
                free(run, RUN);
                free(run, RUN);
            }
            survived();
        });
    }

    #[test]
    fn the_second_page_of_a_run() {
        dies_of(MIDDLE, TAIL, || free_at_last(alloc(RUN).wrapping_add(PAGE), RUN));
    }

    #[test]
    fn the_middle_of_the_first_page_of_a_run() {
        dies_of(MIDDLE, HEAD, || free_at_last(alloc(RUN).wrapping_add(8), RUN));
    }

    #[test]
    fn a_block_resized_as_one_of_another_size() {
        dies_of(OTHER_LAYOUT, DIVIDED, || {
            let block = alloc(BLOCK);
            announce(block);
            // SAFETY: none. The allocator is to find that out, and ends the process.
            unsafe { GLOBAL.realloc(block, Layout::new::<[u8; 100]>(), 101) };
            survived();
        });
    }

    #[test]
    fn a_foreign_pointer_resized() {
        dies_of(FOREIGN, "", || {
            let mut variable = [0u8; 768];
            announce(&raw const variable as *const u8);
            // SAFETY: none. The allocator is to find that out, and ends the process.
            unsafe { GLOBAL.realloc(&raw mut variable as *mut u8, BLOCK, 767) };
            survived();
        });
    }

    #[test]
    fn a_block_twice_by_the_end_of_the_thread() {
        dies_of(TWICE, DIVIDED, || {
            in_a_thread_that_ends(|| {
                let block = alloc(BLOCK);
                announce(block);
                // SAFETY: none for the second call, as said there.
                unsafe {
                    free(block, BLOCK);
                    free(block, BLOCK);
                }
            });
        });
    }

    #[test]
    fn a_block_twice_by_the_time_that_many_were_freed() {
        dies_of(TWICE, DIVIDED, || {
            let blocks: Vec<_> = (0..4_000).map(|_| alloc(BLOCK)).collect();
            announce(blocks[0]);
            // SAFETY: none for the first block, as said there; the others are live.
            unsafe {
                free(blocks[0], BLOCK);
                blocks.iter().for_each(|&block| free(block, BLOCK));
            }
            survived();
        });
    }

    #[test]
    fn a_block_once_by_each_of_two_threads() {
        dies_of(TWICE, DIVIDED, || {
            let block = alloc(BLOCK);
            announce(block);
            for _ in 0..2 {
                let shared = AtomicPtr::new(block);
                // SAFETY: none for the second thread, as said there.
                let _ = thread::spawn(move || unsafe { free(shared.load(Ordering::Relaxed), BLOCK) }).join();
            }
            survived();
        });
    }

    /// Allocates until the end, as `block` was freed twice: it may not come twice.
    #[cfg(not(feature = "hardened"))]
    fn is_not_handed_out_twice(block: *mut u8) {
        announce(block);
        let mut came = 0;
        for _ in 0..20_000 {
            came += usize::from(alloc(BLOCK) == block);
            assert!(came < 2, "two owners");
        }
        survived();
    }

    #[test]
    #[cfg(not(feature = "hardened"))]
    fn a_block_twice_in_a_row_before_it_is_handed_out_twice() {
        dies_of(TWICE_OR_WRITTEN, DIVIDED, || {
            let block = alloc(BLOCK);
            // SAFETY: none for the second call, as said there.
            unsafe {
                free(block, BLOCK);
                free(block, BLOCK);
            }
            is_not_handed_out_twice(block);
        });
    }

    #[test]
    #[cfg(not(feature = "hardened"))]
    fn a_block_twice_with_others_in_between_before_it_is_handed_out_twice() {
        dies_of(TWICE_OR_WRITTEN, DIVIDED, || {
            let blocks: Vec<_> = (0..5).map(|_| alloc(BLOCK)).collect();
            for number in [0, 1, 2, 3, 0, 4] {
                // SAFETY: none for the second time, as said there.
                unsafe { free(blocks[number], BLOCK) };
            }
            is_not_handed_out_twice(blocks[0]);
        });
    }

    #[test]
    #[cfg(not(feature = "hardened"))]
    fn a_block_that_has_gone_back_to_its_page_twice_before_it_is_handed_out_twice() {
        dies_of(TWICE_OR_WRITTEN, DIVIDED, || {
            let blocks: Vec<_> = (0..4_000).map(|_| alloc(BLOCK)).collect();
            // SAFETY: none for the last call, as said there; the blocks are live.
            unsafe {
                blocks[1..].iter().for_each(|&block| free(block, BLOCK));
                free(blocks[0], BLOCK);
                // Enough for that one to be given back, and not for all that came after it.
                (0..200)
                    .map(|_| alloc(BLOCK))
                    .collect::<Vec<_>>()
                    .iter()
                    .for_each(|&block| free(block, BLOCK));
                free(blocks[0], BLOCK);
            }
            is_not_handed_out_twice(blocks[0]);
        });
    }

    #[test]
    #[cfg(not(feature = "hardened"))]
    fn a_block_by_two_threads_before_it_is_handed_out_twice() {
        dies_of(TWICE_OR_WRITTEN, DIVIDED, || {
            let block = alloc(BLOCK);
            // SAFETY: none for the second call, as said there.
            unsafe { free(block, BLOCK) };
            let shared = AtomicPtr::new(block);
            // SAFETY: none, as said there.
            let second = thread::spawn(move || unsafe { free(shared.into_inner(), BLOCK) });
            second.join().expect("the thread's cache takes the block");
            is_not_handed_out_twice(block);
        });
    }

    #[test]
    fn a_block_that_is_written_to_after_it_was_freed() {
        dies_of(TWICE_OR_WRITTEN, DIVIDED, || {
            let block = alloc(BLOCK);
            announce(block);
            // SAFETY: none for the second line. The allocator is to find that out, and ends the process.
            unsafe {
                free(block, BLOCK);
                block.write_volatile(1);
            }
            (0..1_000).for_each(|_| _ = black_box(alloc(BLOCK)));
            survived();
        });
    }

    #[test]
    fn a_block_that_lost_its_contents_to_a_purge_is_none_of_these() {
        let output = in_child(
            |_| (),
            || {
                for _ in 0..3 {
                    let blocks: Vec<_> = (0..4_000).map(|_| alloc(BLOCK)).collect();
                    // SAFETY: each block is freed once.
                    let free = |&block: &*mut u8| unsafe { free(block, BLOCK) };
                    // One in a hundred keeps its page in use.
                    let (kept, freed): (Vec<_>, Vec<_>) =
                        (0..).zip(blocks).partition(|(number, _)| number % 100 == 0);
                    freed.iter().for_each(|(_, block)| free(block));
                    assert!(GLOBAL.purge() > 0);
                    kept.iter().for_each(|(_, block)| free(block));
                }
            },
        );
        assert!(output.status.success(), "{}{}", output.status, text(&output.stderr));
    }

    #[test]
    fn the_middle_of_a_block_by_the_end_of_the_thread() {
        for distance in cases(&[1, 4, 8, 16, 256, 767]) {
            dies_of(MIDDLE, DIVIDED, || {
                in_a_thread_that_ends(move || {
                    let middle = alloc(BLOCK).wrapping_add(distance);
                    announce(middle);
                    // SAFETY: none, as said there.
                    unsafe { free(middle, BLOCK) };
                });
            });
        }
    }

    #[test]
    fn the_middle_of_a_block_of_another_thread_at_the_call() {
        dies_of(MIDDLE, DIVIDED, || {
            let block = AtomicPtr::new(alloc(BLOCK));
            let _ = thread::spawn(move || {
                let middle = block.into_inner().wrapping_add(1);
                announce(middle);
                // SAFETY: none, as said there.
                unsafe { free(middle, BLOCK) };
                survived();
            })
            .join();
        });
    }
}
