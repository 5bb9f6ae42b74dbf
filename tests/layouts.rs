//! Every size and alignment, straight through `GlobalAlloc` and through `Heap`.

use page_memory_allocator::size_class::{BuildGeometry, Geometry, SizeClasses, built};
use page_memory_allocator::units::ClassIndex;
use page_memory_allocator::{Heap, HeapOptions, PageAllocator};
use std::alloc::{GlobalAlloc, Layout};
use std::slice;

#[path = "common/pattern.rs"]
mod pattern;
use pattern::{fill, verify};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// Sizes around everything that is decided by size.
fn sizes() -> Vec<usize> {
    let page = built::PAGE_SIZE;
    let mut sizes: Vec<usize> = (0..=40).collect();
    for &block in &built::BLOCK_SIZES[1..] {
        let block = block as usize;
        sizes.extend([block - 1, block, block + 1]);
    }
    for pages in [1, 2, 3, 7, 16] {
        sizes.extend([pages * page - 1, pages * page, pages * page + 1]);
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Writes the first and the last byte of a block.
///
/// # Safety
/// The block belongs to the caller and is `size` bytes long.
unsafe fn touch(block: *mut u8, size: usize, with: u8) {
    if size > 0 {
        // SAFETY: the bytes are the block's.
        unsafe {
            block.write(with);
            block.add(size - 1).write(with);
        }
    }
}

#[test]
fn blocks_of_every_size_and_alignment_are_aligned_and_apart() {
    // Address space that the blocks of one batch may take.
    const BATCH: usize = 3 << 30;
    for align in (0..=30).map(|shift| 1 << shift) {
        let mut sizes = sizes();
        if align > 1 << 20 {
            sizes = sizes.into_iter().step_by(23).collect();
        }
        let mut rest = &sizes[..];
        while !rest.is_empty() {
            let batch = (BATCH / align).clamp(1, rest.len());
            let mut blocks: Vec<(usize, usize)> = rest[..batch]
                .iter()
                .map(|&size| {
                    // SAFETY: sizes of zero are served by this allocator.
                    let block = unsafe { HEAP.alloc(layout(size, align)) };
                    assert!(!block.is_null(), "size {size} align {align}");
                    assert_eq!(block.addr() % align, 0, "size {size} align {align}");
                    // SAFETY: the block was just allocated with this size.
                    unsafe { touch(block, size, align.ilog2() as u8) };
                    (block.expose_provenance(), size)
                })
                .collect();
            blocks.sort_unstable();
            for pair in blocks.windows(2) {
                let ((low, size), (high, _)) = (pair[0], pair[1]);
                assert!(
                    low + size.max(1) <= high,
                    "{low:#x} with {size} bytes reaches {high:#x}, align {align}"
                );
            }
            for (address, size) in blocks {
                // SAFETY: the block was allocated with this layout.
                unsafe { HEAP.dealloc(std::ptr::with_exposed_provenance_mut(address), layout(size, align)) };
            }
            rest = &rest[batch..];
        }
        HEAP.check().unwrap();
    }
}

#[test]
fn what_no_arena_can_hold_is_refused_and_the_heap_goes_on() {
    let most = isize::MAX as usize;
    let census = HEAP.check().unwrap();
    let arena = (census.free_pages + census.divided_pages + census.multi_pages) * built::PAGE_SIZE;
    for size in [most, most - 1, most / 2, 1 << 62, 1 << 48, arena * 4, arena + 1, arena] {
        for align in [1, 8, built::PAGE_SIZE, 1 << 30] {
            let Ok(layout) = Layout::from_size_align(size, align) else { continue };
            for _ in 0..1_000 {
                // SAFETY: the size is not zero.
                unsafe {
                    assert!(HEAP.alloc(layout).is_null());
                    assert!(HEAP.alloc_zeroed(layout).is_null());
                }
            }
        }
    }
    // An alignment beyond the arena.
    for shift in 48..63 {
        // SAFETY: the size is not zero.
        assert!(unsafe { HEAP.alloc(layout(1, 1 << shift)) }.is_null());
    }
    for size in [16, built::PAGE_SIZE * 3] {
        // SAFETY: the block is used as it was allocated; a refused realloc leaves it alone.
        unsafe {
            let block = HEAP.alloc(layout(size, 8));
            fill(block, size, 7);
            for wanted in [most - 7, most / 2, arena * 2, arena] {
                assert!(HEAP.realloc(block, layout(size, 8), wanted).is_null());
            }
            verify(block, size, 7);
            HEAP.dealloc(block, layout(size, 8));
        }
    }
    HEAP.check().unwrap();
}

/// Whether all bytes of a block are zero.
///
/// # Safety
/// The block belongs to the caller and `size` bytes of it were written.
unsafe fn is_zero(block: *const u8, size: usize) -> bool {
    // SAFETY: the block is the caller's.
    unsafe { slice::from_raw_parts(block, size) }.iter().all(|&byte| byte == 0)
}

#[test]
fn zeroed_blocks_are_zero_where_others_were_before() {
    for size in sizes() {
        for align in [1, 64, built::PAGE_SIZE * 2] {
            let layout = layout(size, align);
            // Enough of them that some are of those freed.
            let count = if size < built::PAGE_SIZE { 8 } else { 2 };
            // SAFETY: the blocks are freed once, with the layout that they were allocated with, and used before that.
            unsafe {
                for zeroed in [false, true, true] {
                    let blocks: Vec<_> = (0..count)
                        .map(|_| if zeroed { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) })
                        .collect();
                    for &block in &blocks {
                        assert!(!zeroed || is_zero(block, size), "size {size} align {align}");
                        block.write_bytes(0xAA, size);
                    }
                    blocks.iter().for_each(|&block| HEAP.dealloc(block, layout));
                }
            }
        }
    }
}

#[test]
fn a_zeroed_run_is_zero_although_only_some_of_its_pages_were_dirty() {
    const PAGE: usize = 4096;
    const PAGES: usize = 64;
    for dirty in [&[0][..], &[63], &[1, 40], &[0, 31, 32, 63], &[5, 6, 7, 8], &[]] {
        let heap = HeapOptions::new().capacity(PAGES * PAGE).page_size(PAGE).build().unwrap();
        // SAFETY: every block is freed once, with its layout, and used before that.
        unsafe {
            let one = layout(PAGE, 8);
            let pages: Vec<_> = (0..PAGES).map(|_| heap.alloc(one)).collect();
            assert!(pages.iter().all(|page| !page.is_null()));
            dirty.iter().for_each(|&at: &usize| pages[at].write_bytes(0xAA, PAGE));
            pages.iter().for_each(|&page| heap.dealloc(page, one));
            for size in [PAGES * PAGE, PAGES * PAGE - 1, 33 * PAGE + 5, PAGE] {
                let zeroed = heap.alloc_zeroed(layout(size, 8));
                assert!(is_zero(zeroed, size), "{dirty:?} dirty, {size} bytes");
                heap.dealloc(zeroed, layout(size, 8));
            }
        }
        heap.check().unwrap();
    }
}

#[test]
fn a_zeroed_run_is_zero_on_pages_fresh_and_recycled() {
    const PAGE: usize = 4096;
    let heap = HeapOptions::new().capacity(8 << 20).page_size(PAGE).build().unwrap();
    // SAFETY: every block is freed once, with its layout, and used before that.
    unsafe {
        let recycled = layout(5 * PAGE, 8);
        let block = heap.alloc(recycled);
        block.write_bytes(0xAA, recycled.size());
        heap.dealloc(block, recycled);
        // Begins with what was just freed, and reaches over what was never used.
        let whole = layout(3 << 20, 8);
        let zeroed = heap.alloc_zeroed(whole);
        assert_eq!(zeroed, block);
        assert!(is_zero(zeroed, whole.size()));
        zeroed.write_bytes(0xAA, whole.size());
        // What a run gives back when it shrinks is dirty.
        assert_eq!(heap.realloc(zeroed, whole, PAGE), zeroed);
        let rest = layout(2 << 20, 8);
        let behind = heap.alloc_zeroed(rest);
        assert_eq!(behind.addr(), zeroed.addr() + PAGE);
        assert!(is_zero(behind, rest.size()));
        heap.dealloc(behind, rest);
        heap.dealloc(zeroed, layout(PAGE, 8));
    }
    assert_eq!(heap.check().unwrap().free_pages, heap.pages().get());
}

/// Sizes to resize from and to.
fn realloc_sizes() -> Vec<usize> {
    let page = built::PAGE_SIZE;
    vec![
        0,
        1,
        8,
        9,
        100,
        129,
        1_000,
        5_000,
        page / 2 - 1,
        page / 2,
        page / 2 + 1,
        page - 1,
        page,
        page + 1,
        page * 4,
        page * 4 + 1,
        page * 20,
    ]
}

#[test]
fn realloc_keeps_the_contents_between_any_two_sizes() {
    for align in [1, 16, 4096, built::PAGE_SIZE * 2] {
        for from in realloc_sizes() {
            for to in realloc_sizes() {
                // SAFETY: the block is resized from the layout it has, and freed with that which it has then.
                unsafe {
                    let block = HEAP.alloc(layout(from, align));
                    fill(block, from, from ^ to);
                    let resized = HEAP.realloc(block, layout(from, align), to);
                    assert!(!resized.is_null() && resized.addr().is_multiple_of(align));
                    verify(resized, from.min(to), from ^ to);
                    fill(resized, to, to);
                    // The same block again, beside it: it must not be the one that was given up.
                    let other = HEAP.alloc(layout(from, align));
                    fill(other, from, 99);
                    verify(resized, to, to);
                    HEAP.dealloc(other, layout(from, align));
                    HEAP.dealloc(resized, layout(to, align));
                }
            }
        }
    }
    HEAP.check().unwrap();
}

#[test]
fn realloc_up_and_down_again_in_a_small_heap_keeps_the_contents() {
    for page in [512, 4096, 65536] {
        for classes in [SizeClasses::POWERS_OF_TWO, SizeClasses::BUILD] {
            let heap =
                HeapOptions::new().capacity(64 * page).page_size(page).classes(classes).build().unwrap();
            let mut sizes: Vec<usize> = (0..20 * page).step_by(page / 8 + 3).collect();
            sizes.extend(sizes.clone().into_iter().rev());
            // SAFETY: the block is resized from the layout it has, and freed with that which it has in the end.
            unsafe {
                let mut held = layout(1, 8);
                let mut block = heap.alloc(held);
                fill(block, 1, 0);
                for (seed, size) in sizes.into_iter().enumerate() {
                    let resized = heap.realloc(block, held, size);
                    assert!(!resized.is_null(), "{size} bytes, pages of {page}");
                    verify(resized, held.size().min(size), seed);
                    fill(resized, size, seed + 1);
                    (block, held) = (resized, layout(size, 8));
                    heap.check().unwrap();
                }
                heap.dealloc(block, held);
            }
            assert_eq!(heap.check().unwrap().free_pages, heap.pages().get());
        }
    }
}

#[test]
fn realloc_within_a_class_stays_in_place() {
    let largest_of = |class: ClassIndex| BuildGeometry.classes().block(class);
    for size in 1..=built::LARGEST_CLASS {
        let class = BuildGeometry.class_of(layout(size, 1));
        if size != largest_of(class) && size % 97 != 0 {
            continue;
        }
        let to = largest_of(class);
        // SAFETY: the block is resized from the layout it has, and freed with that which it has then.
        unsafe {
            let block = HEAP.alloc(layout(size, 1));
            assert_eq!(HEAP.realloc(block, layout(size, 1), to), block, "{size} to {to}");
            assert_eq!(HEAP.realloc(block, layout(to, 1), size), block, "{to} to {size}");
            HEAP.dealloc(block, layout(size, 1));
        }
    }
}

#[test]
fn a_run_grows_and_shrinks_in_place_where_there_is_room() {
    const PAGE: usize = 4096;
    let heap: Heap = HeapOptions::new().capacity(16 * PAGE).page_size(PAGE).build().unwrap();
    // SAFETY: the block is resized from the layout it has, and freed with that which it has then.
    unsafe {
        let run = heap.alloc(layout(PAGE, 8));
        assert_eq!(heap.realloc(run, layout(PAGE, 8), 16 * PAGE), run);
        assert_eq!(heap.realloc(run, layout(16 * PAGE, 8), 3 * PAGE), run);
        let behind = heap.alloc(layout(2 * PAGE, 8));
        assert_eq!(behind.addr(), run.addr() + 3 * PAGE);
        assert_eq!(heap.realloc(run, layout(3 * PAGE, 8), 3 * PAGE - 5), run);
        fill(run, 3 * PAGE - 5, 4);
        let moved = heap.realloc(run, layout(3 * PAGE - 5, 8), 4 * PAGE);
        assert_eq!(moved.addr(), behind.addr() + 2 * PAGE);
        verify(moved, 3 * PAGE - 5, 4);
        heap.dealloc(moved, layout(4 * PAGE, 8));
        heap.dealloc(behind, layout(2 * PAGE, 8));
    }
    assert_eq!(heap.check().unwrap().free_pages, 16);
}

#[test]
fn a_run_at_the_end_of_what_is_committed_grows_in_place_although_there_are_holes_below() {
    const MIB: usize = 1 << 20;
    let heap = HeapOptions::new().capacity(8 * MIB).page_size(4096).build().unwrap();
    let mib = layout(MIB, 8);
    // SAFETY: every block is freed once, with the layout it has then.
    unsafe {
        let hole = heap.alloc(mib);
        let run = heap.alloc(mib);
        assert_eq!(heap.committed_bytes(), 2 * MIB);
        heap.dealloc(hole, mib);
        assert_eq!(heap.realloc(run, mib, MIB + MIB / 2), run);
        heap.dealloc(run, layout(MIB + MIB / 2, 8));
    }
    heap.check().unwrap();
}

#[test]
fn a_run_grows_in_place_over_what_is_committed_and_beyond() {
    const MIB: usize = 1 << 20;
    let heap = HeapOptions::new().capacity(8 * MIB).page_size(4096).build().unwrap();
    // SAFETY: the block is resized from the layout it has, and freed with that which it has then.
    unsafe {
        let run = heap.alloc(layout(4096, 8));
        assert!(heap.committed_bytes() < 8 * MIB);
        fill(run, 4096, 1);
        // There is room for no other as large.
        let grown = heap.realloc(run, layout(4096, 8), 8 * MIB);
        assert_eq!(grown, run);
        verify(grown, 4096, 1);
        heap.dealloc(grown, layout(8 * MIB, 8));
    }
    assert_eq!(heap.check().unwrap().free_pages, heap.pages().get());
}
