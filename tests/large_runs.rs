//! Large runs: grown and moved without copying; and what is backed by huge pages, runs or blocks: what will be used whole.

#[path = "common/child.rs"]
mod child;
#[path = "common/random.rs"]
mod random;

use child::{assert_ended_well, cases, in_child, text};
use page_memory_allocator::{Heap, HeapOptions, PageAllocator};
use random::Random;
use std::alloc::{GlobalAlloc, Layout};
use std::process::{Command, Output};
use std::{fs, mem, ptr, slice};

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

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

fn os_page_size() -> usize {
    // SAFETY: a query.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn page_faults() -> i64 {
    // SAFETY: zeros are a valid value, which getrusage overwrites.
    unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage.ru_minflt
    }
}

fn has_huge_pages() -> bool {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    enabled.contains("[madvise]") || enabled.contains("[always]")
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

/// Page faults of writing to every OS page of a large vector.
fn faults_of_a_large_array(bytes: usize) -> i64 {
    let faults = page_faults();
    let mut array: Vec<u8> = Vec::with_capacity(bytes);
    // SAFETY: the bytes are within the capacity.
    (0..bytes).step_by(4096).for_each(|at| unsafe { array.as_mut_ptr().add(at).write(1) });
    page_faults() - faults
}

#[test]
fn a_large_array_costs_few_page_faults_unless_huge_pages_are_turned_off() {
    if !has_huge_pages() {
        eprintln!("skipped: this system has no transparent huge pages");
        return;
    }
    let output = in_child(|_| (), || println!("faults: {}", faults_of_a_large_array(1024 * MIB)));
    let faults = |output: &Output| {
        assert_ended_well(output);
        let line = text(&output.stdout).lines().find_map(|line| line.split_once("faults: "));
        line.unwrap().1.parse::<i64>().unwrap()
    };
    let with = faults(&output);
    // One for each huge page, and some that the system did not have whole, of 262,144.
    assert!(with <= 4_096, "{with}");
    let without = |command: &mut Command| {
        command.env("PMA_HUGE_PAGES", "0");
    };
    let without = faults(&in_child(without, || println!("faults: {}", faults_of_a_large_array(256 * MIB))));
    assert!(without >= 65_536, "{without}");
}

#[test]
fn zeroed_memory_of_which_little_is_used_stays_small() {
    let output = in_child(
        |_| (),
        || {
            // Beyond where huge pages begin.
            let dense = vec![1u8; 64 * MIB];
            let before = status("VmRSS:");
            let mut table = vec![0u8; 512 * MIB];
            (0..table.len()).step_by(MIB).for_each(|at| table[at] = 1);
            let grown = status("VmRSS:") - before;
            assert!(grown < 8 * MIB, "{grown}");
            drop(table);
            // The same addresses are backed as usual again.
            let again = vec![2u8; 64 * MIB];
            assert_eq!((dense[5], again[5]), (1, 2));
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

/// Bytes of mappings that the system may back with huge pages.
fn bytes_with_huge_pages() -> usize {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut bytes = 0;
    let mut size = 0;
    for line in smaps.lines() {
        if let Some(kib) = line.strip_prefix("Size:") {
            size = kib.trim_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap() * 1024;
        }
        if line.starts_with("VmFlags:") && line.contains(" hg") {
            bytes += size;
        }
    }
    bytes
}

/// What the system was advised for the mapping that `address` is in: `nh` for no huge pages, `hg` for some.
fn advice_for(address: usize) -> &'static str {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut here = false;
    for line in smaps.lines() {
        if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-'))
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            here = (start..end).contains(&address);
        }
        if here && line.starts_with("VmFlags:") {
            return ["nh", "hg"].into_iter().find(|flag| line.contains(flag)).unwrap_or("none");
        }
    }
    "no mapping"
}

#[test]
fn huge_pages_are_refused_where_they_are_not_asked_for() {
    if !has_huge_pages() {
        eprintln!("skipped: this system has no transparent huge pages");
        return;
    }
    // A system that uses huge pages always, too, uses none for what has the flag `nh`.
    let small_and_large = || {
        let (block, zeroed, array) =
            (Box::new(1u64), vec![0u8; 64 * MIB], Vec::<u8>::with_capacity(64 * MIB));
        for address in [&raw const *block as usize, zeroed.as_ptr().addr(), array.as_ptr().addr()] {
            println!("advice: {}", advice_for(address));
        }
    };
    let advice = |output: &Output| {
        assert_ended_well(output);
        let lines = text(&output.stdout).lines();
        lines
            .filter_map(|line| line.split_once("advice: "))
            .map(|(_, advice)| advice.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(advice(&in_child(|_| (), small_and_large)), ["nh", "nh", "hg"]);
    let without = |command: &mut Command| {
        command.env("PMA_HUGE_PAGES", "0");
    };
    assert_eq!(advice(&in_child(without, small_and_large)), ["nh", "nh", "nh"]);
}

#[test]
fn runs_that_end_early_in_a_huge_page_do_not_have_the_rest_of_it() {
    let output = in_child(
        |_: &mut Command| (),
        || {
            let (before, bytes) = (status("VmRSS:"), 4 * MIB + 64);
            let runs: Vec<_> = (0..50).map(|_| vec![1u8; bytes]).collect();
            let resident = status("VmRSS:") - before;
            let asked: usize = runs.iter().map(Vec::len).sum();
            // A page each that is used in part, and where huge pages are, the last one.
            assert!(resident < asked + asked / 10, "{resident} for {asked}");
        },
    );
    assert_ended_well(&output);
}

#[test]
fn runs_aligned_to_more_than_their_length_do_not_have_what_lies_between_them() {
    if cfg!(feature = "hardened") {
        eprintln!("skipped: between hardened runs there are guards, and huge pages");
        return;
    }
    let output = in_child(
        |_: &mut Command| (),
        || {
            for (size, align, count) in
                [(64 << 10, MIB, 300), (4 << 10, 128 << 10, 2_000), (100_000, 4 * MIB, 100)]
            {
                let layout = Layout::from_size_align(size, align).unwrap();
                let before = status("VmRSS:");
                let runs: Vec<_> = (0..count)
                    .map(|_| {
                        // SAFETY: the layout has a size.
                        let run = unsafe { HEAP.alloc(layout) };
                        assert!(!run.is_null() && run.addr().is_multiple_of(align));
                        // SAFETY: the run is as long.
                        unsafe { run.write_bytes(1, 4 << 10) };
                        run
                    })
                    .collect();
                let resident = status("VmRSS:") - before;
                // An OS page of each, and below where huge pages begin it may be one of those.
                assert!(
                    resident < count * (4 << 10) + 16 * MIB,
                    "{resident} for {count} of {size} at {align}"
                );
                // SAFETY: each run was allocated with this layout.
                runs.into_iter().for_each(|run| unsafe { HEAP.dealloc(run, layout) });
                HEAP.check().unwrap();
            }
        },
    );
    assert_ended_well(&output);
}

#[test]
fn runs_that_fill_a_small_part_of_their_page_do_not_have_the_rest_of_it() {
    if !has_huge_pages() || cfg!(feature = "hardened") {
        eprintln!("skipped: this system has no transparent huge pages, or the heap is hardened");
        return;
    }
    let output = in_child(
        |_| (),
        || {
            const COUNT: usize = 2_000;
            let dense = beyond_where_huge_pages_begin();
            let layout = Layout::from_size_align(16 << 10, 64 << 10).unwrap();
            let mut runs = Vec::with_capacity(COUNT);
            let before = status("VmRSS:");
            for _ in 0..COUNT {
                // SAFETY: the layout has a size, and the run is as long.
                unsafe {
                    let run = HEAP.alloc(layout);
                    run.write_bytes(1, layout.size());
                    runs.push(run);
                }
            }
            let resident = status("VmRSS:") - before;
            assert!(resident < COUNT * (20 << 10), "{resident}");
            // SAFETY: each run was allocated with this layout.
            runs.into_iter().for_each(|run| unsafe { HEAP.dealloc(run, layout) });
            drop(dense);
        },
    );
    assert_ended_well(&output);
}

#[test]
fn where_memory_went_back_in_parts_the_system_does_not_fill_huge_pages() {
    let output = in_child(
        |_| (),
        || {
            let mut blocks: Vec<Option<Box<[u8; 8192]>>> = vec![Some(Box::new([1; 8192])); 16_000];
            assert!(!has_huge_pages() || bytes_with_huge_pages() >= 64 * MIB);
            blocks
                .iter_mut()
                .enumerate()
                .filter(|(number, _)| number % 7 != 0)
                .for_each(|(_, block)| *block = None);
            HEAP.purge();
            assert!(bytes_with_huge_pages() <= 32 * MIB, "{}", bytes_with_huge_pages());
            // What is committed next may have them.
            let more = vec![1u8; 256 * MIB];
            assert!(!has_huge_pages() || bytes_with_huge_pages() >= 128 * MIB);
            assert!(blocks.iter().flatten().all(|block| **block == [1; 8192]) && more[MIB] == 1);
        },
    );
    assert_ended_well(&output);
}

/// More than a heap has without huge pages, in small blocks.
fn beyond_where_huge_pages_begin() -> Vec<Vec<u8>> {
    vec![vec![1; 1000]; 50_000]
}

/// A program that reserves room, and may never use it.
#[test]
fn large_blocks_of_which_little_is_touched_have_little_memory() {
    if !has_huge_pages() {
        eprintln!("skipped: this system has no transparent huge pages");
        return;
    }
    let output = in_child(
        |_| (),
        || {
            const BLOCKS: usize = 20_000;
            let dense = beyond_where_huge_pages_begin();
            let (resident, huge) = (status("VmRSS:"), bytes_with_huge_pages());
            let (mut random, mut small) = (Random::new(5), Vec::new());
            let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(BLOCKS);
            for number in 0..BLOCKS {
                blocks.push(Vec::with_capacity(9_000 + random.below(23_000)));
                blocks[number].push(number as u8);
                small.push(Box::new([1u8; 500]));
            }
            // An OS page of each large block, and the small ones; not their 390 MiB. What a hardened heap hands out it has
            // written 128 bytes of, in an order of chance.
            let (touched, grown) = (BLOCKS * (4096 + 512), status("VmRSS:") - resident);
            let share = if cfg!(feature = "hardened") { 2 } else { 4 };
            assert!(grown < touched + touched / share, "{grown} bytes for {touched}");
            // The small ones have huge pages.
            assert!(bytes_with_huge_pages() > huge + 8 * MIB);
            assert!(blocks.iter().zip(0..).all(|(block, number)| block[0] == number as u8));
            assert!(dense.iter().all(|block| block == &[1; 1000]));
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn large_blocks_that_are_filled_have_huge_pages() {
    // A hardened heap divides the next page while blocks of the one before, chosen by chance, are not used yet.
    if !has_huge_pages() || cfg!(feature = "hardened") {
        eprintln!("skipped: this system has no transparent huge pages, or the heap is hardened");
        return;
    }
    let output = in_child(
        |_| (),
        || {
            let dense = beyond_where_huge_pages_begin();
            let faults = page_faults();
            let blocks: Vec<Vec<u8>> = (0..8_000).map(|number| vec![number as u8; 20_000]).collect();
            let faults = page_faults() - faults;
            // Of 40,000 OS pages.
            assert!(faults < 10_000, "{faults}");
            assert!(blocks.iter().zip(0..).all(|(block, number)| block[19_999] == number as u8));
            assert!(dense.len() == 50_000 && HEAP.check().is_ok());
        },
    );
    assert_ended_well(&output);
}

/// Rooms of so many bytes each, of which only the first byte is used.
fn hardly_used(count: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut rooms: Vec<Vec<u8>> = (0..count).map(|_| Vec::with_capacity(bytes)).collect();
    rooms.iter_mut().for_each(|room| room.push(1));
    rooms
}

#[test]
fn runs_of_which_little_is_touched_have_little_memory() {
    if !has_huge_pages() || cfg!(feature = "hardened") {
        eprintln!("skipped: this system has no transparent huge pages, or the heap is hardened");
        return;
    }
    for (count, bytes) in cases(&[(2_000, 40_000), (1_000, 256 << 10), (300, 1_000_000), (100, 3 * MIB)]) {
        let output = in_child(
            |_| (),
            || {
                let dense = beyond_where_huge_pages_begin();
                let before = status("VmRSS:");
                let rooms = hardly_used(count, bytes);
                let resident = status("VmRSS:") - before;
                // An OS page of each, and all of a few: one as long was filled, that which holds the vectors.
                assert!(resident < count * 5_000 + 4 * bytes + MIB, "{resident} for {count} of {bytes}");
                // Some that are filled are no reason to believe that all will be, for long.
                let filled = vec![vec![1u8; bytes]; 40];
                let before = status("VmRSS:");
                let more = hardly_used(count, bytes);
                let resident = status("VmRSS:") - before;
                assert!(resident < count * 5_000 + 33 * bytes + 3 * MIB, "{resident} for {count} of {bytes}");
                assert!(rooms.iter().chain(&more).chain(&filled).chain(&dense).all(|room| room[0] == 1));
                HEAP.check().unwrap();
            },
        );
        assert_ended_well(&output);
    }
}

#[test]
fn runs_that_are_filled_have_huge_pages() {
    if !has_huge_pages() || cfg!(feature = "hardened") {
        eprintln!("skipped: this system has no transparent huge pages, or the heap is hardened");
        return;
    }
    for (count, bytes) in cases(&[(2_000, 40_000), (1_000, 256 << 10), (300, 1_000_000), (100, 3 * MIB)]) {
        let output = in_child(
            |_| (),
            || {
                let dense = beyond_where_huge_pages_begin();
                let faults = page_faults();
                let runs: Vec<_> = (0..count).map(|_| vec![1u8; bytes]).collect();
                let faults = page_faults() - faults;
                assert!(faults < (count * bytes / 4096 / 6) as i64, "{faults} for {count} of {bytes}");
                assert!(runs.iter().chain(&dense).all(|run| run[run.len() - 1] == 1));
            },
        );
        assert_ended_well(&output);
    }
}

/// To be backed otherwise than its neighbours costs a mapping, and a process may have 65,530.
#[test]
fn large_blocks_and_small_ones_in_turn_take_few_mappings() {
    let output = in_child(
        |_| (),
        || {
            let heap = HeapOptions::new().capacity(4096 * MIB).build().unwrap();
            let before = mappings();
            let blocks = (0..).map(|number| heap.alloc(layout(if number % 8 == 0 { 32_000 } else { 4_000 })));
            assert!(blocks.take_while(|block| !block.is_null()).count() > 400_000);
            assert!(mappings() < before + 150, "{} mappings, {before} before", mappings());
        },
    );
    assert_ended_well(&output);
}

/// Fills a heap with so many blocks of `bytes`, and returns them.
fn many(heap: &Heap, count: usize, bytes: usize) -> Vec<*mut u8> {
    (0..count).map(|_| heap.alloc(layout(bytes))).collect()
}

#[test]
fn large_blocks_and_small_ones_use_the_memory_that_the_others_had() {
    for [first, then] in [[20_000, 4_000], [4_000, 20_000]] {
        let heap = HeapOptions::new().capacity(256 * MIB).build().unwrap();
        for (number, block) in many(&heap, 60 * MIB / first, first).into_iter().enumerate() {
            // What is left keeps nearly every range of a huge page from being free as a whole.
            if number % (2 * MIB / first) != 0 {
                // SAFETY: the block is live.
                unsafe { heap.dealloc(block, layout(first)) };
            }
        }
        let committed = heap.committed_bytes();
        assert!(many(&heap, 48 * MIB / then, then).iter().all(|block| !block.is_null()));
        assert_eq!(heap.committed_bytes(), committed, "blocks of {first}, then of {then}");
        heap.check().unwrap();
    }
}

#[test]
fn a_run_where_large_blocks_were_has_huge_pages_as_long_as_it_lives() {
    if !has_huge_pages() {
        eprintln!("skipped: this system has no transparent huge pages");
        return;
    }
    let heap = HeapOptions::new().capacity(64 * MIB).build().unwrap();
    // All that it has. What is freed lies beyond where huge pages begin.
    let blocks = many(&heap, 3 * 1024, 20_000);
    for block in blocks.into_iter().filter(|block| block.addr() - heap.start().addr() > 32 * MIB) {
        // SAFETY: the block is live.
        unsafe { heap.dealloc(block, layout(20_000)) };
    }
    heap.purge();
    let run = heap.alloc(layout(8 * MIB));
    assert_eq!(advice_for(run.addr() + MIB), "hg");
    // SAFETY: the run is live.
    unsafe { heap.dealloc(run, layout(8 * MIB)) };
    assert_eq!(advice_for(run.addr() + MIB), "nh");
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
