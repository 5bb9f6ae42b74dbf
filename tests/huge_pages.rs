//! What is backed by huge pages, runs or blocks: what will be used whole.

#[path = "common/child.rs"]
mod child;
#[path = "common/faults.rs"]
mod faults;
#[path = "common/mappings.rs"]
mod mappings;
#[path = "common/random.rs"]
mod random;
#[path = "common/resident.rs"]
mod resident;

use child::{assert_ended_well, cases, in_child, text};
use faults::page_faults;
use mappings::{advice_for, bytes_with_huge_pages, mappings};
use page_memory_allocator::{Heap, HeapOptions, PageAllocator};
use random::Random;
use resident::resident;
use std::alloc::{GlobalAlloc, Layout};
use std::fs;
use std::process::{Command, Output};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 8).unwrap()
}

fn has_huge_pages() -> bool {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    enabled.contains("[madvise]") || enabled.contains("[always]")
}

/// Whether a test is skipped, as the system has no transparent huge pages, or else if it is not for this heap; says so.
fn is_skipped(not_for_this_heap: bool) -> bool {
    let skipped = !has_huge_pages() || not_for_this_heap;
    if skipped {
        eprintln!("skipped: this system has no transparent huge pages, or the heap is hardened");
    }
    skipped
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
    if is_skipped(false) {
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
            let before = resident();
            let mut table = vec![0u8; 512 * MIB];
            (0..table.len()).step_by(MIB).for_each(|at| table[at] = 1);
            let grown = resident() - before;
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

#[test]
fn huge_pages_are_refused_where_they_are_not_asked_for() {
    if is_skipped(false) {
        return;
    }
    // A system that uses huge pages always, too, uses none for what has the flag `nh`.
    let small_and_large = || {
        let (block, zeroed, array) =
            (Box::new(1u64), vec![0u8; 64 * MIB], Vec::<u8>::with_capacity(64 * MIB));
        let within = array.as_ptr().addr() + 32 * MIB;
        for address in [&raw const *block as usize, zeroed.as_ptr().addr(), within] {
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
            let (before, bytes) = (resident(), 4 * MIB + 64);
            let runs: Vec<_> = (0..50).map(|_| vec![1u8; bytes]).collect();
            let grown = resident() - before;
            let asked: usize = runs.iter().map(Vec::len).sum();
            // A page each that is used in part, and where huge pages are, the last one.
            assert!(grown < asked + asked / 10, "{grown} for {asked}");
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
                let before = resident();
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
                let grown = resident() - before;
                // An OS page of each, and below where huge pages begin it may be one of those.
                assert!(grown < count * (4 << 10) + 16 * MIB, "{grown} for {count} of {size} at {align}");
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
    if is_skipped(cfg!(feature = "hardened")) {
        return;
    }
    let output = in_child(
        |_| (),
        || {
            const COUNT: usize = 2_000;
            let dense = beyond_where_huge_pages_begin();
            let layout = Layout::from_size_align(16 << 10, 64 << 10).unwrap();
            let mut runs = Vec::with_capacity(COUNT);
            let before = resident();
            for _ in 0..COUNT {
                // SAFETY: the layout has a size, and the run is as long.
                unsafe {
                    let run = HEAP.alloc(layout);
                    run.write_bytes(1, layout.size());
                    runs.push(run);
                }
            }
            let grown = resident() - before;
            assert!(grown < COUNT * (20 << 10), "{grown}");
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
    if is_skipped(false) {
        return;
    }
    let output = in_child(
        |_| (),
        || {
            const BLOCKS: usize = 20_000;
            let dense = beyond_where_huge_pages_begin();
            let (before, huge) = (resident(), bytes_with_huge_pages());
            let (mut random, mut small) = (Random::new(5), Vec::new());
            let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(BLOCKS);
            for number in 0..BLOCKS {
                blocks.push(Vec::with_capacity(9_000 + random.below(23_000)));
                blocks[number].push(number as u8);
                small.push(Box::new([1u8; 500]));
            }
            // An OS page of each large block, and the small ones; not their 390 MiB. What a hardened heap hands out it has
            // written 128 bytes of, in an order of chance.
            let (touched, grown) = (BLOCKS * (4096 + 512), resident() - before);
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
    if is_skipped(cfg!(feature = "hardened")) {
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
    if is_skipped(cfg!(feature = "hardened")) {
        return;
    }
    for (count, bytes) in cases(&[(2_000, 40_000), (1_000, 256 << 10), (300, 1_000_000), (100, 3 * MIB)]) {
        let output = in_child(
            |_| (),
            || {
                let dense = beyond_where_huge_pages_begin();
                let before = resident();
                let rooms = hardly_used(count, bytes);
                let grown = resident() - before;
                // An OS page of each, and all of a few: one as long was filled, that which holds the vectors.
                assert!(grown < count * 5_000 + 4 * bytes + MIB, "{grown} for {count} of {bytes}");
                // Some that are filled are no reason to believe that all will be, for long.
                let filled = vec![vec![1u8; bytes]; 40];
                let before = resident();
                let more = hardly_used(count, bytes);
                let grown = resident() - before;
                assert!(grown < count * 5_000 + 33 * bytes + 3 * MIB, "{grown} for {count} of {bytes}");
                assert!(rooms.iter().chain(&more).chain(&filled).chain(&dense).all(|room| room[0] == 1));
                HEAP.check().unwrap();
            },
        );
        assert_ended_well(&output);
    }
}

/// A program that reserves the most that it may need.
#[test]
fn long_runs_of_which_the_beginning_is_touched_have_little_memory() {
    if is_skipped(false) {
        return;
    }
    let output = in_child(
        |_| (),
        || {
            let before = resident();
            let rooms = hardly_used(40, 24 * MIB);
            let grown = resident() - before;
            assert!(grown < 4 * MIB, "{grown}");
            // What is filled has huge pages nevertheless: the first but at its beginning, and the next as wholes.
            let faults = page_faults();
            let filled = vec![vec![1u8; 24 * MIB]; 8];
            let faults = page_faults() - faults;
            assert!(faults < 3_000, "{faults}");
            assert!(rooms.iter().chain(&filled).all(|room| room[0] == 1));
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn runs_that_are_filled_have_huge_pages() {
    if is_skipped(cfg!(feature = "hardened")) {
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
    if is_skipped(false) {
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
    assert_eq!(advice_for(run.addr() + 4 * MIB), "hg");
    // SAFETY: the run is live.
    unsafe { heap.dealloc(run, layout(8 * MIB)) };
    assert_eq!(advice_for(run.addr() + 4 * MIB), "nh");
    heap.check().unwrap();
}
