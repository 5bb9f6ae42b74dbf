//! Heaps over given memory: they stay within it, and are the same as others.
//!
//! These tests are passed without the feature `os`, too.

use page_memory_allocator::units::PageCount;
use page_memory_allocator::{GlobalHeap, Heap, HeapError, HeapOptions, SizeClasses};
use std::alloc::{GlobalAlloc as _, Layout};
use std::ops::Range;
use std::ptr::NonNull;

const PAGE: usize = 4096;
/// What the memory holds before it is given: no zeros.
const RUBBISH: u8 = 0xA5;

const OPTIONS: HeapOptions = HeapOptions::new().page_size(PAGE).classes(SizeClasses::POWERS_OF_TWO);

/// Memory that is given away for good and never reused.
fn memory(bytes: usize) -> &'static mut [u8] {
    vec![RUBBISH; bytes].leak()
}

fn addresses(memory: &[u8]) -> Range<usize> {
    let range = memory.as_ptr_range();
    range.start.addr()..range.end.addr()
}

fn dump(heap: &Heap) -> String {
    let mut text = String::new();
    heap.dump_to(&mut text).unwrap();
    text
}

/// The heap's pages are aligned and lie in `range`.
fn is_within(heap: &Heap, range: &Range<usize>) {
    let start = heap.start().addr();
    assert_eq!(start % heap.page_size(), 0);
    assert!(range.start <= start && start + heap.reserved_bytes() <= range.end);
    assert_eq!(heap.reserved_bytes(), heap.committed_bytes());
}

#[test]
fn of_what_is_free_an_aligned_run_gets_what_is_aligned() {
    let heap = OPTIONS.build_in(memory(64 * PAGE)).unwrap();
    let (one, aligned) =
        (Layout::from_size_align(PAGE, 1).unwrap(), Layout::from_size_align(PAGE, 4 * PAGE).unwrap());
    let pages: Vec<*mut u8> =
        std::iter::from_fn(|| Some(heap.alloc(one)).filter(|run| !run.is_null())).collect();
    let is_aligned = |run: &*mut u8| run.addr().is_multiple_of(aligned.align());
    // The lowest is not aligned, and there is no room for one that is in a longer run.
    let others = pages.iter().skip(1).filter(|run| !is_aligned(run)).step_by(2).take(3);
    let fitting = pages.iter().rev().find(|run| is_aligned(run)).unwrap();
    // SAFETY: the runs are live and have these layouts.
    unsafe {
        others.chain([fitting]).for_each(|&run| heap.dealloc(run, one));
        let run = heap.alloc(aligned);
        assert_eq!(run, *fitting);
        assert!(heap.alloc(aligned).is_null());
        heap.dealloc(run, aligned);
    }
    heap.check().unwrap();
}

/// Allocates until nothing is left, writes every byte, verifies, and frees all.
fn use_up(heap: &Heap) {
    let layouts =
        [8, 24, 100, 2000, PAGE, 2 * PAGE + 1].map(|size| Layout::from_size_align(size, 8).unwrap());
    let mut blocks = Vec::new();
    let mut refused = 0;
    while refused < layouts.len() {
        refused = 0;
        for layout in layouts {
            let block = heap.alloc(layout);
            if block.is_null() {
                refused += 1;
                continue;
            }
            // SAFETY: the block is that long.
            unsafe { block.write_bytes(blocks.len() as u8, layout.size()) };
            blocks.push((block, layout));
        }
    }
    heap.check().unwrap();
    for (at, &(block, layout)) in blocks.iter().enumerate() {
        for offset in 0..layout.size() {
            // SAFETY: the byte is one of the block's.
            assert_eq!(unsafe { block.add(offset).read() }, at as u8);
        }
    }
    for &(block, layout) in &blocks {
        // SAFETY: the block is live and was allocated with this layout.
        unsafe { heap.dealloc(block, layout) };
    }
    let census = heap.check().unwrap();
    assert_eq!((census.free_pages, census.live_blocks), (heap.pages().get(), 0));
}

#[test]
fn a_heap_in_given_memory_stays_within_it() {
    for bytes in [3 * PAGE, 65536, 100_000, 1 << 20, (1 << 20) + 12345] {
        let memory = memory(bytes + 64);
        // Memory that begins anywhere.
        let memory = &mut memory[bytes % 61..][..bytes];
        let range = addresses(memory);
        let heap = OPTIONS.build_in(memory).unwrap();
        is_within(&heap, &range);
        // All but the tables and what alignment takes are pages.
        let tables = OPTIONS.table_bytes(heap.pages()).unwrap();
        assert!(heap.reserved_bytes() + tables + 64 + 2 * PAGE > bytes, "{heap:?} of {bytes}");
        use_up(&heap);
        use_up(&heap);
        // SAFETY: the heap never had the bytes around the given memory, which are leaked, not gone.
        let around = unsafe { [*(range.start as *const u8).sub(1), *(range.end as *const u8)] };
        assert_eq!(around, [RUBBISH; 2]);
    }
}

#[test]
fn tables_of_their_own_leave_all_pages_to_blocks() {
    let (pages, tables) = (memory(9 * PAGE), memory(8192));
    let tables_range = addresses(tables);
    let range = addresses(pages);
    let heap = OPTIONS.build_apart(pages, tables).unwrap();
    is_within(&heap, &range);
    assert!(heap.pages().get() >= 8);
    assert!(OPTIONS.table_bytes(PageCount(8)).unwrap() < 2048);
    assert!(OPTIONS.table_bytes(heap.pages()).unwrap() <= tables_range.len());
    use_up(&heap);
}

#[test]
fn short_tables_are_as_many_pages_as_they_describe() {
    let for_three = OPTIONS.table_bytes(PageCount(3)).unwrap();
    let heap = OPTIONS.build_apart(memory(64 * PAGE), memory(for_three + 63)).unwrap();
    assert_eq!(heap.pages(), PageCount(3));
    use_up(&heap);
}

#[test]
fn zeroed_blocks_are_zero_though_the_memory_was_not() {
    let heap = OPTIONS.build_in(memory(256 * PAGE)).unwrap();
    for layout in [Layout::new::<[u8; 77]>(), Layout::new::<[u8; 3 * PAGE + 5]>()] {
        let block = heap.alloc_zeroed(layout);
        assert!(!block.is_null());
        for offset in 0..layout.size() {
            // SAFETY: the byte is one of the block's.
            assert_eq!(unsafe { block.add(offset).read() }, 0);
        }
    }
}

#[test]
fn a_raw_region_serves_as_a_slice_does_and_again_after_its_heap() {
    let memory = NonNull::from(memory(64 * PAGE));
    for _ in 0..2 {
        // SAFETY: the memory is leaked, and the heap of the round before is gone with its blocks.
        let heap = unsafe { OPTIONS.build_in_region(memory) }.unwrap();
        assert_eq!(heap.check().unwrap().free_pages, heap.pages().get());
        use_up(&heap);
        let layout = Layout::new::<[u8; 100]>();
        assert!(!heap.alloc(layout).is_null());
        assert!(dump(&heap).contains(".Status: Divided;"));
    }
}

/// The memory may be a file's, or a device's: the system is not to take any of it back.
#[test]
fn given_memory_is_never_purged() {
    let given = memory(64 * 65536);
    let range = addresses(given);
    let heap = HeapOptions::new().page_size(65536).build_in(given).unwrap();
    let layout = Layout::new::<[u8; 100]>();
    let blocks: Vec<*mut u8> = (0..2000).map(|_| heap.alloc(layout)).collect();
    for block in blocks {
        // SAFETY: the block is live and was allocated with this layout.
        unsafe { heap.dealloc(block, layout) };
    }
    assert_eq!(heap.purge(), 0);
    // SAFETY: the memory is leaked, and nothing of it was written since.
    assert_eq!(unsafe { *((range.end - 1) as *const u8) }, RUBBISH);
    heap.check().unwrap();
}

/// Nor of its tables, where these are long enough.
#[cfg(feature = "os")]
#[test]
fn given_tables_are_never_purged() {
    let heap = OPTIONS.build_in(memory(4096 * PAGE)).unwrap();
    let resident = heap.stats().resident.table_bytes;
    heap.purge();
    assert_eq!(heap.stats().resident.table_bytes, resident);
}

#[cfg(feature = "os")]
#[test]
fn no_byte_of_given_memory_is_counted_twice() {
    // Tables and pages share OS pages, and all of them are resident.
    let options = HeapOptions::new().page_size(512).classes(SizeClasses::POWERS_OF_TWO);
    let memory = memory(64 << 10);
    let bytes = memory.len();
    let heap = options.build_in(memory).unwrap();
    let resident = heap.stats().resident;
    assert!(resident.table_bytes > 0 && resident.free_page_bytes == heap.reserved_bytes());
    assert!(resident.table_bytes + resident.free_page_bytes <= bytes, "{resident:?} of {bytes} bytes");
}

#[test]
fn the_dump_is_that_of_any_heap() {
    let (pages, tables) = (memory(3 * PAGE), memory(8192));
    let heap = OPTIONS.build_apart(pages, tables).unwrap();
    let (block, run) = (Layout::new::<[u8; 64]>(), Layout::new::<[u8; PAGE]>());
    assert!(!heap.alloc(block).is_null() && !heap.alloc(run).is_null());
    let start = heap.start().addr();
    let text = dump(&heap);
    assert!(text.starts_with("|------------Allocator Info------------|\nMemory heap: "), "{text}");
    let lines = format!(
        "\n0.Status: Divided;Address: {:#x};Class size: 64;Free blocks: 63;\n1.Status: Multi;Address: {:#x};\n",
        start + 64,
        start + PAGE
    );
    assert!(text.contains(&lines), "{text}");
    let summary = heap.summary();
    assert_eq!((summary.live_blocks, summary.live_runs), (1, 1));
    assert_eq!(summary.live_bytes, 64 + PAGE);
}

#[test]
fn too_little_memory_is_refused() {
    for bytes in [0, 1, 63, 64, 500, PAGE] {
        assert_eq!(OPTIONS.build_in(memory(bytes)).unwrap_err(), HeapError::TooSmall);
    }
    let refused = OPTIONS.build_apart(memory(64 * PAGE), memory(64)).unwrap_err();
    assert_eq!(refused, HeapError::TooSmall);
    assert_eq!(OPTIONS.page_size(1000).build_in(memory(64 * PAGE)).unwrap_err(), HeapError::PageSize);
}

#[test]
fn a_static_heap_serves_once_it_has_memory() {
    static HEAP: GlobalHeap = GlobalHeap::new(OPTIONS);
    let layout = Layout::new::<[u8; 300]>();
    // SAFETY: the layout's size is not zero; the blocks are freed with the layout that they have.
    unsafe {
        assert!(HEAP.alloc(layout).is_null());
        assert!(HEAP.get().is_none());
        assert_eq!(HEAP.init(memory(100)).unwrap_err(), HeapError::TooSmall);
        let given = memory(32 * PAGE);
        let range = addresses(given);
        let heap = HEAP.init(given).unwrap();
        is_within(heap, &range);
        // A second one is not needed.
        assert_eq!(HEAP.init(memory(32 * PAGE)).unwrap().start(), heap.start());

        let block = HEAP.alloc(layout);
        assert!(range.contains(&block.addr()));
        block.write_bytes(7, layout.size());
        let block = HEAP.realloc(block, layout, 5000);
        assert!((0..300).all(|offset| block.add(offset).read() == 7));
        HEAP.dealloc(block, Layout::new::<[u8; 5000]>());
        let zeroed = HEAP.alloc_zeroed(layout);
        assert!((0..300).all(|offset| zeroed.add(offset).read() == 0));
        HEAP.dealloc(zeroed, layout);
        assert_eq!(heap.check().unwrap().free_pages, heap.pages().get());
    }
}

/// There is no address space but with an operating system.
#[test]
fn heaps_in_address_space_of_their_own_need_an_operating_system() {
    let heap = HeapOptions::new().build();
    assert_eq!(heap.err(), (!cfg!(feature = "os")).then_some(HeapError::Refused));
}
