//! Memory that is not used goes back to the system: at once when asked for, in time otherwise.

#[path = "common/background.rs"]
mod background;
#[path = "common/child.rs"]
mod child;
#[path = "common/load.rs"]
mod load;
#[path = "common/refused.rs"]
mod refused;
#[path = "common/resident.rs"]
mod resident;

use background::becomes_true;
use child::{assert_ended_well, in_child};
use load::random::Random;
use load::{free_shuffled, mixed_blocks};
use page_memory_allocator::size_class::built;
use page_memory_allocator::{HeapOptions, PageAllocator, SizeClasses};
use refused::without;
use resident::resident;
use std::alloc::{GlobalAlloc, Layout};
use std::time::{Duration, Instant};
use std::{hint, ptr, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;

fn os_page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

#[test]
fn what_is_in_use_and_what_is_kept_have_no_more_memory_together_than_the_limit() {
    const LIMIT: usize = 64 * MIB;
    /// Stacks, and the page table.
    const BESIDE: usize = 3 * MIB;
    let output = in_child(
        |command| {
            _ = command.envs([("PMA_LIMIT", "64M"), ("PMA_PURGE_MS", "never"), ("PMA_HUGE_PAGES", "0")])
        },
        || {
            let before = resident();
            let keeps_to_the_limit = |what| {
                let more = resident().saturating_sub(before);
                assert!((48 * MIB..LIMIT + BESIDE).contains(&more), "{what}: {more}");
            };
            // 50 MiB in runs, of which some stay, so that 40 MiB do not fit in between.
            let mut runs: Vec<Vec<u8>> = (0..50).map(|_| vec![1; MIB - 4096]).collect();
            let mut number = 0;
            runs.retain(|_| {
                number += 1;
                number % 8 == 0
            });
            let long = vec![1u8; 40 * MIB];
            keeps_to_the_limit("a run");
            drop((runs, long));

            // 26 MiB in use, 4 more, 26 that have no memory since they went back, and 28 that were freed.
            let with_a_gap = || {
                HEAP.purge();
                let (below, before_it, gap) = (vec![1u8; 26 * MIB], vec![1u8; 4 * MIB], vec![1u8; 26 * MIB]);
                drop(below);
                HEAP.purge();
                let above = vec![1u8; 28 * MIB];
                drop(gap);
                HEAP.purge();
                drop(above);
                (vec![1u8; 26 * MIB], before_it)
            };
            let (below, mut grows) = with_a_gap();
            let place = grows.as_ptr();
            grows.resize(30 * MIB, 1);
            // With pages for samples, and guards around them, runs may lie in another order.
            assert!(grows.as_ptr() == place || cfg!(all(feature = "hardened", feature = "profile")));
            keeps_to_the_limit("a run that grows");
            drop((below, grows));

            let runs = with_a_gap();
            let blocks: Vec<Vec<u8>> = (0..25 * 1024).map(|_| vec![1; 1024]).collect();
            keeps_to_the_limit("blocks");
            drop((runs, blocks));
            assert!(HEAP.check().is_ok());
        },
    );
    assert_ended_well(&output);
}

#[test]
fn what_was_freed_goes_back_when_asked_for() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            let before = resident();
            let blocks = mixed_blocks(256 * MIB);
            let peak = resident() - before;
            assert!(peak >= 256 * MIB);
            free_shuffled(blocks);
            assert!(resident() - before > peak / 2, "nothing goes back unasked");
            let purged = HEAP.purge();
            assert!(resident() - before < peak / 20, "{} of {peak}", resident() - before);
            assert!(purged > peak / 2);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn parts_of_pages_go_back_while_blocks_beside_them_live() {
    let output = in_child(
        |_| (),
        || {
            let mut blocks = vec![Some(Box::new([1u8; 8192])); 8 * 1000];
            let (before, mut kept) = (resident(), Vec::new());
            for (number, block) in blocks.iter_mut().enumerate() {
                let block = block.take();
                if number % 8 == 0 {
                    kept.extend(block);
                }
            }
            HEAP.purge();
            let gone = before - resident();
            // Seven of eight blocks, whose first and last OS pages are theirs alone.
            assert!(gone > 7 * 1000 * 8192 * 9 / 10, "{gone}");
            assert!(kept.iter().all(|block| **block == [1; 8192]));
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

/// Runs that begin where a huge page does and end in the middle of one, so that behind each lies half a huge page that
/// nobody uses. Where the system has huge pages, these have memory, too.
fn runs_with_gaps() -> Vec<Vec<u8>> {
    (0..12).map(|_| vec![1; 31 * MIB]).collect()
}

#[test]
fn pages_that_were_never_used_in_huge_pages_that_were_go_back_when_asked_for() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            let before = resident();
            let mut runs = runs_with_gaps();
            let purged = HEAP.purge();
            let peak = resident() - before;
            assert!(peak < (12 * 31 + 5) * MIB, "{peak}, of which {purged} went back");
            runs.truncate(1);
            HEAP.purge();
            assert!(resident() - before < (31 + 5) * MIB, "{}", resident() - before);
            assert!(runs[0].iter().all(|&byte| byte == 1));
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn huge_pages_that_are_free_as_a_whole_go_back_on_slow_paths() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "50"),
        || {
            let before = resident();
            drop(runs_with_gaps());
            let goes_back = becomes_true(|| {
                hint::black_box(vec![0u8; 100_000]);
                resident() - before < 5 * MIB
            });
            assert!(goes_back, "{} are left", resident() - before);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn free_memory_goes_back_on_the_slow_paths_of_any_thread() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "50"),
        || {
            let before = resident();
            free_shuffled(mixed_blocks(128 * MIB));
            let goes_back = becomes_true(|| {
                // Another thread, every time: none of them is the one that freed.
                thread::spawn(|| hint::black_box(vec![0u8; 100_000])).join().unwrap();
                resident() - before < 16 * MIB
            });
            assert!(goes_back, "{} are left", resident() - before);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn free_memory_goes_back_where_the_system_refuses_to_tell_the_time() {
    let output = in_child(
        |command| {
            command.env("PMA_PURGE_MS", "50");
            without(command, libc::SYS_clock_gettime, libc::EPERM);
        },
        || {
            let before = resident();
            free_shuffled(mixed_blocks(64 * MIB));
            let goes_back = (0..1000).any(|_| {
                thread::sleep(Duration::from_millis(20));
                hint::black_box(vec![0u8; 100_000]);
                resident() - before < 16 * MIB
            });
            assert!(goes_back, "{} are left", resident() - before);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn parts_of_the_pages_of_a_large_heap_go_back_in_a_few_periods() {
    const PAGES: usize = 12_000;
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "2000"),
        || {
            // Two to a page.
            let mut blocks: Vec<Vec<u8>> = (0..2 * PAGES).map(|_| Vec::with_capacity(32 << 10)).collect();
            blocks.iter_mut().for_each(|block| block.push(1));
            let (before, start) = (resident(), Instant::now());
            let mut number = 0;
            blocks.retain(|_| {
                number += 1;
                number % 2 == 0
            });
            let goes_back = becomes_true(|| {
                hint::black_box(vec![0u8; 100_000]);
                before - resident().min(before) > PAGES * 4096 * 9 / 10
            });
            assert!(goes_back, "{} of {before} are left", resident());
            // A thousand pages a period would take 12 s.
            assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
            assert!(blocks.iter().all(|block| block[0] == 1));
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn free_memory_goes_back_while_the_pages_of_a_large_heap_are_looked_at() {
    const PAGES: usize = 16_000;
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "100"),
        || {
            let slow_path = || _ = hint::black_box(vec![0u8; 100_000]);
            // Two to a page. They are in use, and looked at twice, 1,024 at a time.
            let blocks: Vec<Vec<u8>> = (0..2 * PAGES).map(|_| Vec::with_capacity(32 << 10)).collect();
            slow_path();
            let run = vec![1u8; 32 * MIB];
            let before = resident();
            drop(run);
            let goes_back = (0..8).any(|_| {
                thread::sleep(Duration::from_millis(60));
                slow_path();
                before - resident().min(before) > 30 * MIB
            });
            assert!(goes_back, "{} of {before} are left", resident());
            drop(blocks);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn what_the_system_refuses_to_take_is_not_in_the_way_of_what_it_takes() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "50"),
        || {
            let mut runs: Vec<Option<Vec<u8>>> = (0..700).map(|_| Some(vec![1u8; 40_000])).collect();
            let behind = vec![1u8; 32 * MIB];
            // More than are tried in a pass, none beside another.
            for run in runs.iter_mut().step_by(2) {
                // SAFETY: to lock memory does not change it.
                if unsafe { libc::mlock(run.as_ref().unwrap().as_ptr().cast(), 1) } != 0 {
                    return eprintln!("this process may lock no memory");
                }
                *run = None;
            }
            let before = resident();
            drop(behind);
            let goes_back = becomes_true(|| {
                hint::black_box(vec![0u8; 100_000]);
                before - resident().min(before) > 30 * MIB
            });
            assert!(goes_back, "{} of {before} are left", resident());
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

/// The system takes what lies before it, and then refuses.
#[test]
fn blocks_beside_one_that_is_locked_can_be_handed_out_again() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            let bytes = os_page_size().min(built::LARGEST_CLASS / 8);
            let layout = Layout::from_size_align(bytes, bytes).unwrap();
            // SAFETY: the layout has a size.
            let alloc = || unsafe { HEAP.alloc(layout) };
            let blocks: Vec<*mut u8> = (0..20 * built::PAGE_SIZE / bytes).map(|_| alloc()).collect();
            // SAFETY: the blocks are live, and each is freed once.
            unsafe {
                blocks.iter().for_each(|block| block.write_bytes(7, bytes));
                let page = blocks
                    .iter()
                    .filter(|block| block.addr() % built::PAGE_SIZE == 0)
                    .find(|page| blocks.contains(&page.wrapping_add(built::PAGE_SIZE - bytes)));
                let page = *page.expect("most pages are full");
                if libc::mlock(page.add(built::PAGE_SIZE / 2).cast(), 1) != 0 {
                    return eprintln!("this process may lock no memory");
                }
                // The last one stays, so that the page does not become free.
                let stays = page.add(built::PAGE_SIZE - bytes);
                blocks.iter().filter(|&&block| block != stays).for_each(|&block| HEAP.dealloc(block, layout));
                HEAP.purge();
                let again: Vec<*mut u8> = (1..blocks.len()).map(|_| alloc()).collect();
                again.iter().for_each(|&block| HEAP.dealloc(block, layout));
                HEAP.dealloc(stays, layout);
            }
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn nothing_goes_back_by_itself_if_that_is_turned_off() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            let before = resident();
            drop(vec![1u8; 64 * MIB]);
            for _ in 0..20 {
                thread::sleep(Duration::from_millis(50));
                hint::black_box(vec![0u8; 100_000]);
            }
            assert!(resident() - before >= 64 * MIB);
        },
    );
    assert_ended_well(&output);
}

#[test]
#[cfg(not(feature = "hardened"))] // blocks of a fresh page are handed out in any order
fn blocks_that_a_thread_never_used_have_no_memory_when_it_has_ended() {
    let output = in_child(
        |command| _ = command.envs([("PMA_PURGE_MS", "never"), ("PMA_HUGE_PAGES", "0")]),
        || {
            // One more than several refills bring, so that most of the last one is left.
            const BLOCKS: usize = 57;
            let use_some = |size: usize| {
                let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; size]).collect();
                BLOCKS * blocks[0].capacity()
            };
            thread::spawn(move || use_some(100)).join().unwrap();
            let before = resident();
            let used: usize =
                thread::spawn(move || (512..=1024).step_by(64).map(use_some).sum()).join().unwrap();
            let after = resident() - before;
            assert!(after < used * 13 / 10, "{used} bytes were used, {after} are resident");
            // The blocks are there for the next thread all the same.
            let sizes = (512..=1024).step_by(64);
            let use_more = move || sizes.clone().chain(sizes).map(use_some).sum::<usize>();
            assert_eq!(thread::spawn(use_more).join().unwrap(), 2 * used);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn the_ends_of_runs_that_nobody_asked_for_go_back_in_time() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "100"),
        || {
            // Pages that have memory, and from then on less asked of them than they have. Of a hardened heap, some of
            // them lie between the runs.
            const LEAST: usize = if cfg!(feature = "hardened") { 32 << 10 } else { 48 << 10 };
            const RUNS: usize = 400;
            drop(vec![vec![1u8; 128 << 10]; RUNS]);
            let runs: Vec<Vec<u8>> = (0..RUNS).map(|_| Vec::with_capacity((64 << 10) + 1)).collect();
            let before = resident();
            let goes_back = becomes_true(|| {
                hint::black_box(vec![0u8; 100_000]);
                before.saturating_sub(resident()) > RUNS * LEAST
            });
            assert!(goes_back, "{before} then, {} now", resident());
            drop(runs);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn the_end_of_a_run_that_was_kept_for_its_thread_goes_back_in_time() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "100"),
        || {
            const LEAST: usize = if cfg!(feature = "hardened") { 32 << 10 } else { 48 << 10 };
            const RUNS: usize = 100;
            let mut runs = vec![vec![1u8; 128 << 10]; RUNS];
            let pass = || _ = hint::black_box(vec![0u8; 300_000]);
            // Runs that were looked at, and have nothing to give back.
            for _ in 0..30 {
                pass();
                thread::sleep(Duration::from_millis(10));
            }
            for run in &mut runs {
                *run = Vec::new();
                run.reserve_exact((64 << 10) + 1);
            }
            let before = resident();
            let goes_back = becomes_true(|| {
                pass();
                before.saturating_sub(resident()) > RUNS * LEAST
            });
            assert!(goes_back, "{before} then, {} now", resident());
            drop(runs);
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

// A hardened heap has a byte for each block besides, which it keeps.
#[cfg(not(feature = "hardened"))]
#[test]
fn the_page_table_is_small_and_what_it_has_for_free_pages_goes_back() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            let table = || HEAP.stats().resident.table_bytes;
            let before = table();
            // Of few blocks to a page, and of many.
            let larger = (0..128 * MIB / 256).map(|_| Box::new([1u8; 256])).collect::<Vec<_>>();
            let for_larger = table() - before;
            println!("{for_larger} bytes for 128 MiB");
            assert!(for_larger < 128 * MIB / 256, "{for_larger}");
            let smaller = (0..64 * MIB / 16).map(|_| Box::new([1u8; 16])).collect::<Vec<_>>();
            assert!(table() - before > for_larger + 512 * 1024);
            free_shuffled(larger);
            free_shuffled(smaller);
            HEAP.purge();
            let left = table().saturating_sub(before);
            assert!(left < 96 << 10, "{left} more than at the beginning");
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn memory_that_went_back_is_zero_and_memory_that_did_not_is_zeroed() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            let layout = Layout::from_size_align(32 * MIB, 8).unwrap();
            let faults = || {
                // SAFETY: zeros are a valid value, which getrusage overwrites.
                unsafe {
                    let mut usage: libc::rusage = std::mem::zeroed();
                    libc::getrusage(libc::RUSAGE_SELF, &mut usage);
                    usage.ru_minflt
                }
            };
            // SAFETY: each block is freed once, with its layout.
            unsafe {
                // Fresh: no byte is touched.
                let (before, faults_before) = (resident(), faults());
                let fresh = HEAP.alloc_zeroed(layout);
                assert!(resident() - before < MIB && faults() - faults_before < 50);
                fresh.write_bytes(0xAA, layout.size());
                HEAP.dealloc(fresh, layout);
                // Recycled: every byte is zeroed.
                let recycled = HEAP.alloc_zeroed(layout);
                assert_eq!(recycled, fresh);
                assert!(std::slice::from_raw_parts(recycled, layout.size()).iter().all(|&byte| byte == 0));
                recycled.write_bytes(0xAA, layout.size());
                HEAP.dealloc(recycled, layout);
                // Purged: no byte is touched, and all are zero.
                HEAP.purge();
                let (before, faults_before) = (resident(), faults());
                let purged = HEAP.alloc_zeroed(layout);
                assert_eq!(purged, fresh);
                assert!(resident() - before < MIB && faults() - faults_before < 50);
                assert!(std::slice::from_raw_parts(purged, layout.size()).iter().all(|&byte| byte == 0));
                HEAP.dealloc(purged, layout);
            }
        },
    );
    assert_ended_well(&output);
}

#[test]
fn of_a_zeroed_run_what_had_no_memory_between_what_had_has_none() {
    const PAGES: usize = 240;
    let heap = HeapOptions::new().build().unwrap();
    let page = Layout::new::<[u8; 64 << 10]>();
    let run = Layout::from_size_align(PAGES * page.size(), 1).unwrap();
    if heap.page_size() != page.size() || os_page_size() > page.size() {
        return;
    }
    // SAFETY: the runs are live, as long as they are written and read, and freed with their layouts.
    unsafe {
        let pages: Vec<*mut u8> = (0..PAGES).map(|_| heap.alloc(page)).collect();
        let (ends, between): (Vec<_>, Vec<_>) =
            (0..PAGES).partition(|&number| [0, 1, PAGES / 2, PAGES - 1].contains(&number));
        between.into_iter().for_each(|number| heap.dealloc(pages[number], page));
        heap.purge();
        for &number in &ends {
            pages[number].write_bytes(1, page.size());
            heap.dealloc(pages[number], page);
        }
        let zeroed = heap.alloc_zeroed(run);
        assert_eq!(zeroed, pages[0]);
        let mut resident = vec![0u8; run.size() / os_page_size()];
        assert_eq!(libc::mincore(zeroed.cast(), run.size(), resident.as_mut_ptr()), 0);
        let resident = resident.iter().filter(|&page| page & 1 != 0).count() * os_page_size();
        assert_eq!(resident, ends.len() * page.size());
        assert!((0..run.size()).all(|at| zeroed.add(at).read() == 0));
        heap.dealloc(zeroed, run);
    }
}

#[test]
fn zeroed_blocks_have_no_memory_where_there_was_none_and_are_zero_where_others_were_before() {
    const BLOCKS: usize = 1_000;
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            let layout = Layout::from_size_align(24 << 10, 8).unwrap();
            // So many zeroed blocks, of which only a word is written at first; and the resident bytes that they take.
            let allocate = |count: usize| {
                let before = resident();
                // SAFETY: the layout is not empty; the blocks are the caller's.
                let blocks: Vec<_> = (0..count).map(|_| unsafe { HEAP.alloc_zeroed(layout) }).collect();
                // SAFETY: as above.
                blocks.iter().for_each(|block| unsafe { block.write(0) });
                let taken = resident().saturating_sub(before);
                for &block in &blocks {
                    // SAFETY: as above.
                    unsafe {
                        let bytes = std::slice::from_raw_parts(block, layout.size());
                        assert!(bytes.iter().all(|&byte| byte == 0));
                        block.write_bytes(0xAA, layout.size());
                    }
                }
                (blocks, taken)
            };
            // SAFETY: each block is freed once, with its layout.
            let free =
                |blocks: Vec<*mut u8>| blocks.into_iter().for_each(|it| unsafe { HEAP.dealloc(it, layout) });
            let (fresh, taken) = allocate(BLOCKS);
            assert!(taken < 2 * BLOCKS * 4096, "fresh: {} KiB", taken / 1024);
            free(fresh);
            let (recycled, _) = allocate(BLOCKS);
            free(recycled);
            HEAP.purge();
            let (purged, taken) = allocate(BLOCKS);
            assert!(taken < 2 * BLOCKS * 4096, "in purged pages: {} KiB", taken / 1024);
            let (left, freed): (Vec<_>, Vec<_>) =
                purged.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
            free(freed.into_iter().map(|(_, block)| block).collect());
            HEAP.purge();
            let (again, taken) = allocate(left.len());
            assert!(taken < 2 * left.len() * 4096, "in purged parts of pages in use: {} KiB", taken / 1024);
            free(again);
            free(left.into_iter().map(|(_, block)| block).collect());
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_heap_of_ones_own_gives_back_what_is_free_and_keeps_what_is_not() {
    for page in [4096, 16 << 10, 64 << 10, 1 << 20] {
        for classes in [SizeClasses::BUILD, SizeClasses::POWERS_OF_TWO] {
            let heap =
                HeapOptions::new().capacity(64 * MIB).page_size(page).classes(classes).build().unwrap();
            let mut random = Random::new(page as u64);
            let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
            for step in 0..20_000 {
                if step % 5_000 == 4_999 {
                    heap.purge();
                    heap.check().unwrap();
                }
                if held.len() > 2_000 || (random.below(3) == 0 && !held.is_empty()) {
                    let (block, layout, value) = held.swap_remove(random.below(held.len()));
                    // SAFETY: the block is live, and was filled with its value.
                    unsafe {
                        let bytes = std::slice::from_raw_parts(block, layout.size());
                        assert!(bytes.iter().all(|&byte| byte == value));
                        heap.dealloc(block, layout);
                    }
                    continue;
                }
                let shift = random.below(15);
                let layout = Layout::from_size_align(1 + random.below(1 << shift), 8).unwrap();
                let block = heap.alloc(layout);
                if !block.is_null() {
                    // SAFETY: the block is as long as its layout.
                    unsafe { block.write_bytes(step as u8, layout.size()) };
                    held.push((block, layout, step as u8));
                }
            }
            for (block, layout, _) in held {
                // SAFETY: the block is live.
                unsafe { heap.dealloc(block, layout) };
            }
            assert!(heap.purge() > 0);
            assert_eq!(heap.purge(), 0, "what went back is known to have gone");
            assert_eq!(heap.check().unwrap().free_pages, heap.pages().get());
        }
    }
}

#[test]
fn the_end_of_a_run_goes_back_once_and_once_more_when_the_run_was_resized() {
    const PAGE: usize = 64 << 10;
    let heap = HeapOptions::new().capacity(MIB).page_size(PAGE).build().unwrap();
    let layout = |bytes| Layout::from_size_align(bytes, 8).unwrap();
    let end = (PAGE - 1) / os_page_size() * os_page_size();
    let run = heap.alloc(layout(PAGE + 1));
    assert_eq!((heap.purge(), heap.purge()), (end, 0));
    // SAFETY: the run is live, and has the layout that it has at each time.
    unsafe {
        assert_eq!(heap.realloc(run, layout(PAGE + 1), 2 * PAGE), run);
        run.write_bytes(1, 2 * PAGE);
        assert_eq!(heap.purge(), 0);
        assert_eq!(heap.realloc(run, layout(2 * PAGE), PAGE + 1), run);
        assert_eq!((heap.purge(), heap.purge()), (end, 0));
        heap.dealloc(run, layout(PAGE + 1));
    }
}

#[test]
fn what_the_system_refuses_to_take_is_given_back_later() {
    let heap = HeapOptions::new().capacity(MIB).page_size(64 << 10).build().unwrap();
    let layout = Layout::new::<[u64; 1024]>();
    let blocks: Vec<_> = (0..8).map(|_| heap.alloc(layout)).collect();
    // SAFETY: the blocks are live, and all of a page, which the first one begins.
    unsafe {
        blocks.iter().for_each(|block| block.write_bytes(1, layout.size()));
        if libc::mlock(blocks[0].cast(), 64 << 10) != 0 {
            return eprintln!("this process may lock no memory");
        }
        blocks[1..].iter().for_each(|&block| heap.dealloc(block, layout));
        assert_eq!(heap.purge(), 0, "the page is locked");
        assert_eq!(libc::munlock(blocks[0].cast(), 64 << 10), 0);
    }
    assert_eq!((heap.purge(), heap.purge()), (7 << 13, 0));
}

#[test]
fn pages_smaller_than_those_of_the_system_are_kept() {
    let heap = HeapOptions::new().capacity(MIB).page_size(512).build().unwrap();
    let layout = Layout::from_size_align(4096, 8).unwrap();
    let (block, other) = (heap.alloc(layout), heap.alloc(layout));
    // SAFETY: the blocks are live until they are freed.
    unsafe {
        ptr::write_bytes(other, 7, 4096);
        heap.dealloc(block, layout);
        assert_eq!(heap.purge(), 0);
        assert!(std::slice::from_raw_parts(other, 4096).iter().all(|&byte| byte == 7));
        heap.dealloc(other, layout);
    }
}
