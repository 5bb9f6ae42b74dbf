//! Large runs: grown and moved without copying.

#[path = "common/child.rs"]
mod child;
#[path = "common/faults.rs"]
mod faults;
#[path = "common/mappings.rs"]
mod mappings;
#[path = "common/random.rs"]
mod random;

use child::{assert_ended_well, cases, in_child};
use faults::page_faults;
use mappings::mappings;
use page_memory_allocator::{Heap, HeapOptions, PageAllocator};
use random::Random;
use std::alloc::Layout;
use std::{fs, ptr, slice};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 8).unwrap()
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap() * 1024
}

fn os_page_size() -> usize {
    // SAFETY: a query.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Each word of a block holds its own number, plus `salt`.
fn fill(block: *mut u8, bytes: usize, salt: usize) {
    for at in 0..bytes / 8 {
        // SAFETY: the block has so many bytes.
        unsafe { block.cast::<usize>().add(at).write(at + salt) };
    }
}

fn is_filled(block: *mut u8, bytes: usize, salt: usize) -> bool {
    // SAFETY: as above.
    (0..bytes / 8).all(|at| unsafe { block.cast::<usize>().add(at).read() } == at + salt)
}

#[test]
fn a_vector_that_grows_by_push_never_needs_its_memory_twice() {
    const BYTES: usize = 256 * MIB;
    let output = in_child(
        |_| (),
        || {
            let (mut vector, mut in_the_way) = (Vec::new(), Vec::new());
            let mut capacity = 0;
            while vector.len() < BYTES {
                vector.push(vector.len() as u8);
                if vector.capacity() != capacity {
                    capacity = vector.capacity();
                    // Whatever is allocated meanwhile may lie right behind it.
                    in_the_way.push(vec![1u8; 100_000]);
                }
            }
            assert!(vector.iter().enumerate().all(|(at, &byte)| byte == at as u8));
            let peak = status("VmHWM:");
            assert!(peak < vector.capacity() + vector.capacity() / 10, "{peak}");
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

/// Two runs, the first of which cannot grow where it is.
fn neighbours(heap: &Heap, bytes: usize) -> (*mut u8, *mut u8) {
    let (first, second) = (heap.alloc(layout(bytes)), heap.alloc(layout(bytes)));
    assert!(!first.is_null() && !second.is_null());
    fill(first, bytes, 1);
    fill(second, bytes, 2);
    (first, second)
}

#[test]
fn a_run_that_moves_takes_its_memory_with_it_and_leaves_none_behind() {
    const BYTES: usize = 16 * MIB;
    let output = in_child(
        |_| (),
        || {
            let heap = HeapOptions::new().capacity(256 * MIB).build().unwrap();
            let (first, second) = neighbours(&heap, BYTES);
            let (faults, resident) = (page_faults(), status("VmRSS:"));
            // SAFETY: blocks are used while they are live.
            unsafe {
                let moved = heap.realloc(first, layout(BYTES), 2 * BYTES);
                assert_ne!(moved, first);
                assert!(is_filled(moved, BYTES, 1));
                assert!(page_faults() - faults < 100, "{}", page_faults() - faults);
                assert!(status("VmRSS:") < resident + MIB);
                // What it left behind is zero, without being written to.
                let zeroed = heap.alloc_zeroed(layout(BYTES));
                assert_eq!(zeroed, first);
                assert!(slice::from_raw_parts(zeroed, BYTES).iter().all(|&byte| byte == 0));
                heap.dealloc(zeroed, layout(BYTES));
                // It shrinks, and what it gives back is in order.
                assert_eq!(heap.realloc(moved, layout(2 * BYTES), BYTES / 2), moved);
                let tail = heap.alloc_zeroed(layout(3 * BYTES));
                assert!(slice::from_raw_parts(tail, 3 * BYTES).iter().all(|&byte| byte == 0));
                assert!(is_filled(moved, BYTES / 2, 1) && is_filled(second, BYTES, 2));
                heap.dealloc(tail, layout(3 * BYTES));
                heap.dealloc(moved, layout(BYTES / 2));
                heap.dealloc(second, layout(BYTES));
            }
            assert_eq!(heap.check().unwrap().free_pages, heap.pages().get());
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_run_that_cannot_move_for_want_of_mappings_keeps_what_it_holds() {
    // A run in several mappings: it has grown across the place from where on there are huge pages.
    const BYTES: usize = 8 * MIB;
    let most = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse::<usize>().unwrap();
    if most > 300_000 {
        println!("skipped: a process may have {most} mappings");
        return;
    }
    for left in cases(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12]) {
        let output = in_child(
            |_| (),
            || {
                let heap = HeapOptions::new().capacity(256 * MIB).build().unwrap();
                // SAFETY: blocks are used while they are live. The pages of `space` are nobody's.
                unsafe {
                    let _before = [(); 7].map(|()| heap.alloc(layout(2 * MIB)));
                    let run = heap.alloc(layout(3 * MIB / 2));
                    let behind =
                        [MIB / 2, 2 * MIB, 8192, 2 * MIB].map(|bytes| (heap.alloc(layout(bytes)), bytes));
                    behind.into_iter().for_each(|(block, bytes)| heap.dealloc(block, layout(bytes)));
                    assert_eq!(heap.realloc(run, layout(3 * MIB / 2), BYTES), run, "it grows where it is");
                    fill(run, BYTES, left);
                    let _in_the_way = heap.alloc(layout(MIB));
                    let os_page = os_page_size();
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                    let space =
                        libc::mmap(ptr::null_mut(), (most + 9) * os_page, libc::PROT_NONE, flags, -1, 0);
                    assert_ne!(space, libc::MAP_FAILED);
                    let protect = |page: usize, protection| {
                        libc::mprotect(space.byte_add(page * os_page), os_page, protection) == 0
                    };
                    let taken =
                        (1..most).step_by(2).take_while(|&page| protect(page, libc::PROT_READ)).count();
                    assert!(taken < most / 2, "there are always more mappings");
                    // One that is as its neighbours are gives back two.
                    (0..left / 2).for_each(|pair| assert!(protect(1 + 2 * pair, libc::PROT_NONE)));
                    if left % 2 == 1 {
                        libc::munmap(space, os_page);
                    }
                    let moved = heap.realloc(run, layout(BYTES), 2 * BYTES);
                    assert!(is_filled(if moved.is_null() { run } else { moved }, BYTES, left));
                }
            },
        );
        assert_ended_well(&output);
    }
}

#[test]
fn to_zero_a_large_run_gives_no_memory_to_what_has_none() {
    const BYTES: usize = 256 * MIB;
    let output = in_child(
        |_| (),
        || {
            let heap = HeapOptions::new().capacity(1024 * MIB).build().unwrap();
            let before = status("VmRSS:");
            // SAFETY: blocks are used while they are live.
            unsafe {
                for written in [8, BYTES / 8, BYTES] {
                    let run = heap.alloc(layout(BYTES));
                    run.write_bytes(1, written);
                    // Its pages are not known to be zero any more.
                    heap.dealloc(run, layout(BYTES));
                    let zeroed = heap.alloc_zeroed(layout(BYTES));
                    assert_eq!(zeroed, run);
                    assert!(status("VmRSS:") < before + written + 8 * MIB);
                    assert!(slice::from_raw_parts(zeroed, BYTES).iter().all(|&byte| byte == 0));
                    heap.dealloc(zeroed, layout(BYTES));
                    heap.purge();
                }
            }
            heap.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn runs_that_move_and_are_freed_leave_few_mappings_behind() {
    let output = in_child(
        |_| (),
        || {
            let heap = HeapOptions::new().capacity(1024 * MIB).build().unwrap();
            let mut random = Random::new(3);
            let mut runs: Vec<(*mut u8, usize, usize)> = Vec::new();
            let (before, mut most, mut moves) = (mappings(), 0, 0);
            for step in 0..4_000 {
                let bytes = MIB + random.below(5 * MIB);
                if runs.len() < 60 {
                    let run = heap.alloc(layout(bytes));
                    assert!(!run.is_null());
                    fill(run, 4096, step);
                    runs.push((run, bytes, step));
                    continue;
                }
                let at = random.below(runs.len());
                let (run, old, salt) = runs[at];
                assert!(is_filled(run, 4096, salt));
                // SAFETY: the run is live.
                unsafe {
                    if random.below(3) == 0 {
                        heap.dealloc(run, layout(old));
                        runs.swap_remove(at);
                    } else {
                        let moved = heap.realloc(run, layout(old), bytes);
                        assert!(!moved.is_null());
                        moves += usize::from(moved != run);
                        runs[at] = (moved, bytes, salt);
                    }
                }
                if step % 100 == 0 {
                    most = most.max(mappings() - before);
                    heap.check().unwrap();
                }
            }
            assert!(moves > 300, "{moves}");
            assert!(most <= 3 * 60, "{most}");
            for (run, bytes, salt) in runs {
                assert!(is_filled(run, 4096, salt));
                // SAFETY: the run is live.
                unsafe { heap.dealloc(run, layout(bytes)) };
            }
            assert!(mappings() - before <= 12, "{}", mappings() - before);
            assert_eq!(heap.check().unwrap().free_pages, heap.pages().get());
        },
    );
    assert_ended_well(&output);
}

#[test]
fn many_runs_that_have_to_move_are_not_copied() {
    let output = in_child(
        |command| _ = command.env("PMA_HUGE_PAGES", "0"),
        || {
            const RUNS: usize = 100;
            let mut runs: Vec<Vec<u8>> = (0..RUNS).map(|_| vec![1; 2 * MIB]).collect();
            let (before, mappings_before) = (page_faults(), mappings());
            let starts: Vec<usize> = runs.iter().map(|run| run.as_ptr().addr()).collect();
            runs.iter_mut().for_each(|run| run.reserve_exact(MIB));
            let moved =
                runs.iter().zip(&starts).filter(|(run, start)| run.as_ptr().addr() != **start).count();
            assert!(moved >= RUNS / 2, "{moved}");
            // Of 512 each, had they been copied.
            let faults = page_faults() - before;
            assert!(faults < 512 * RUNS as i64 / 20, "{faults}");
            assert!(mappings() - mappings_before < 3 * RUNS + 20, "{}", mappings() - mappings_before);
            assert!(runs.iter().all(|run| run.iter().all(|&byte| byte == 1)));
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn runs_are_moved_however_many_were_moved_before_or_could_not_be() {
    const BYTES: usize = MIB;
    let output = in_child(
        |_| (),
        || {
            let heap = HeapOptions::new().capacity(16 * MIB).build().unwrap();
            let moves_without_a_copy = || {
                let (first, second) = neighbours(&heap, BYTES);
                let faults = page_faults();
                // SAFETY: blocks are used while they are live.
                unsafe {
                    let moved = heap.realloc(first, layout(BYTES), 2 * BYTES);
                    assert!(moved != first && !moved.is_null());
                    let faults = page_faults() - faults;
                    assert!(is_filled(moved, BYTES, 1));
                    heap.dealloc(moved, layout(2 * BYTES));
                    heap.dealloc(second, layout(BYTES));
                    // A copy would be one for each.
                    faults < (BYTES / os_page_size() / 4) as i64
                }
            };
            // More than there may be at a time.
            assert!((0..300).all(|_| moves_without_a_copy()));
            let (first, second) = neighbours(&heap, BYTES);
            // SAFETY: as above.
            unsafe {
                assert!((0..300).all(|_| heap.realloc(first, layout(BYTES), 16 * BYTES).is_null()));
                heap.dealloc(first, layout(BYTES));
                heap.dealloc(second, layout(BYTES));
            }
            assert!(moves_without_a_copy());
        },
    );
    assert_ended_well(&output);
}

#[test]
fn many_zeroed_tables_of_which_little_is_used_stay_small() {
    let output = in_child(
        |_| (),
        || {
            const TABLES: usize = 60;
            // Beyond where huge pages begin.
            let dense = vec![1u8; 64 * MIB];
            let (before, mappings_before) = (status("VmRSS:"), mappings());
            let mut tables: Vec<Vec<u8>> = (0..TABLES).map(|_| vec![0; 16 * MIB]).collect();
            for table in &mut tables {
                (0..table.len()).step_by(MIB).for_each(|at| table[at] = 1);
            }
            let grown = status("VmRSS:") - before;
            assert!(grown < TABLES * MIB / 4, "{grown}");
            assert!(mappings() - mappings_before < 3 * TABLES + 20, "{}", mappings() - mappings_before);
            assert_eq!(dense[5], 1);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

/// A run aligned to its own length fits into the place that one has left, and nowhere before it.
#[test]
fn an_aligned_run_takes_the_place_of_another_whatever_is_free_below() {
    const PAGE: usize = 64 << 10;
    let heap = HeapOptions::new().capacity(64 * MIB).page_size(PAGE).build().unwrap();
    let aligned = Layout::from_size_align(MIB, MIB).unwrap();
    let alloc = |layout| {
        let run = heap.alloc(layout);
        assert!(!run.is_null());
        run
    };
    // Up to a place to align, a page short of it, and then some more to which it is none.
    let first = alloc(layout(PAGE));
    let before = (first.wrapping_add(PAGE).addr().wrapping_neg() % MIB).max(PAGE);
    let fillers = [before, PAGE, MIB, PAGE].map(|bytes| alloc(layout(bytes)));
    let runs = [(); 4].map(|()| alloc(aligned));
    // SAFETY: the runs are live, and each is freed once.
    unsafe {
        heap.dealloc(fillers[2], layout(MIB));
        heap.dealloc(runs[1], aligned);
    }
    assert_eq!(alloc(aligned), runs[1]);
}

#[test]
fn a_run_that_cannot_be_served_longer_stays_as_it_is() {
    let heap = HeapOptions::new().capacity(32 * MIB).build().unwrap();
    let (first, second) = neighbours(&heap, 8 * MIB);
    // SAFETY: blocks are used while they are live.
    unsafe {
        assert_eq!(heap.realloc(first, layout(8 * MIB), 25 * MIB), ptr::null_mut());
        assert!(is_filled(first, 8 * MIB, 1) && is_filled(second, 8 * MIB, 2));
        heap.dealloc(first, layout(8 * MIB));
        heap.dealloc(second, layout(8 * MIB));
    }
    heap.check().unwrap();
}

#[test]
fn a_run_is_served_from_where_large_blocks_were() {
    let heap = HeapOptions::new().capacity(64 * MIB).build().unwrap();
    let blocks: Vec<*mut u8> =
        (0..).map(|_| heap.alloc(layout(20_000))).take_while(|b| !b.is_null()).collect();
    assert_eq!(blocks.len(), 3 * 1024);
    heap.check().unwrap();
    blocks.into_iter().for_each(|block| {
        // SAFETY: the block is live.
        unsafe { heap.dealloc(block, layout(20_000)) }
    });
    let run = heap.alloc(layout(64 * MIB));
    assert!(!run.is_null());
    fill(run, 64 * MIB, 3);
    assert!(is_filled(run, 64 * MIB, 3));
    heap.check().unwrap();
    // SAFETY: the run is live.
    unsafe { heap.dealloc(run, layout(64 * MIB)) };
    heap.check().unwrap();
}
