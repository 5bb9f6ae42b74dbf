//! Runs of pages that are freed and taken again: their memory is at hand. In a hardened heap they wait for others first, and
//! a sample may take a page where the run was.
#![cfg(not(any(feature = "hardened", feature = "profile")))]

use page_memory_allocator::PageAllocator;
use std::alloc::{Layout, alloc, dealloc};
use std::mem::MaybeUninit;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const OS_PAGE: usize = 4096;

/// Page faults of the calling thread so far.
fn faults() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the struct is written; zeros are a value of it.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    usage.ru_minflt + usage.ru_majflt
}

/// Allocates a run, writes to each of its OS pages, and frees it; returns where it was.
fn use_once(layout: Layout) -> usize {
    // SAFETY: the size is not zero; the run is written within its size, and freed with its layout.
    unsafe {
        let run = alloc(layout);
        assert!(!run.is_null());
        for offset in (0..layout.size()).step_by(OS_PAGE) {
            run.add(offset).write(1);
        }
        dealloc(run, layout);
        run.addr()
    }
}

#[test]
fn a_run_freed_and_taken_again_is_the_same_memory_without_a_page_fault() {
    for size in [40 << 10, 64 << 10, 300 << 10, 1 << 20, 5 << 20] {
        let layout = Layout::from_size_align(size, 8).expect("a valid layout");
        let first = use_once(layout);
        let before = faults();
        for _ in 0..1_000 {
            assert_eq!(use_once(layout), first, "the lowest free run of {size} bytes is another one");
        }
        let faults = faults() - before;
        assert!(faults < 50, "{faults} page faults for a run of {size} bytes");
    }
}
