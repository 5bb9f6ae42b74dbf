//! The resident size in parts: each is what it should be, and together they are what the system says.

use page_memory_allocator::{Heap, HeapOptions, PageAllocator, SizeClasses, Stats};
use std::alloc::Layout;
use std::fs::File;
use std::hint::black_box;
use std::io::Read as _;
use std::process::Command;
use std::sync::Barrier;
use std::thread;

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};
#[path = "common/forked.rs"]
mod forked;
use forked::run_forked;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;
/// Room for the text of `/proc/self/smaps`: a run, which is live while it is compared with.
const SMAPS: usize = MIB / 4 * 3;

/// Resident bytes of this process, from `/proc/self/smaps`: of all mappings, and of those without a name, which the
/// allocator's are. The text goes into memory that is the same each time.
fn resident_size(smaps: &mut String) -> (usize, usize) {
    smaps.clear();
    File::open("/proc/self/smaps").unwrap().read_to_string(smaps).unwrap();
    let mut named = false;
    let (mut all, mut unnamed) = (0, 0);
    for line in smaps.lines() {
        if let Some(kibibytes) = line.strip_prefix("Rss:") {
            let bytes = kibibytes.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024;
            all += bytes;
            unnamed += if named { 0 } else { bytes };
        } else if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            // Addresses, permissions, offset, device, inode, and the name if there is one.
            named = line.split_whitespace().count() > 5;
        }
    }
    (all, unnamed)
}

#[track_caller]
fn assert_near(what: &str, counted: usize, expected: usize) {
    assert!(counted.abs_diff(expected) * 50 <= expected, "{what}: {counted}, and {expected} expected");
}

/// The parts, which add up: exactly to their own whole, and within 2 % to what the system says.
#[track_caller]
fn checked_stats() -> Stats {
    // Either way of reading makes code resident, the first time; and so does a sample, which is taken now and then.
    // The text is written to before, so that it is resident as a whole whatever was in its place.
    let mut smaps = "-".repeat(SMAPS);
    let _ = (resident_size(&mut smaps), HEAP.stats());
    if cfg!(feature = "profile") {
        static SAMPLED: std::sync::Once = std::sync::Once::new();
        SAMPLED.call_once(|| (0..20).for_each(|_| drop(black_box(vec![1u8; MIB]))));
    }
    let stats = HEAP.stats();
    let parts = &stats.resident;
    let sum = parts.live_block_bytes
        + parts.cached_block_bytes
        + parts.free_block_bytes
        + parts.tail_bytes
        + parts.live_run_bytes
        + parts.free_page_bytes
        + parts.guarded_bytes
        + parts.table_bytes
        + parts.cache_bytes
        + parts.other_bytes;
    assert_eq!(sum, parts.process_bytes);
    let (all, unnamed) = resident_size(&mut smaps);
    let difference = parts.process_bytes.abs_diff(all) as f64 / all as f64;
    println!("{} KiB, {:.3} % from what the system says", parts.process_bytes >> 10, 100.0 * difference);
    assert_near("the process", parts.process_bytes, all);
    // Threads' stacks and the C library have a little memory without a name, too.
    let own = parts.own_bytes();
    assert!(own <= unnamed && unnamed - own <= unnamed / 50 + MIB / 4, "own: {own}; without name: {unnamed}");
    let classes: usize = stats.classes().iter().map(|class| class.resident_bytes).sum();
    assert_eq!(classes + parts.live_run_bytes + parts.free_page_bytes, parts.arena_bytes());
    for class in stats.classes() {
        assert!(class.resident_bytes <= class.pages.get() * stats.summary.page_size, "{class:?}");
        let known = class.taken_resident_bytes + class.free_resident_bytes;
        assert!(known <= class.resident_bytes, "{class:?}");
    }
    assert!(stats.least_asked_bytes() <= stats.live_bytes());
    let (tables, committed) = (stats.summary.table_bytes, stats.summary.committed_bytes);
    assert!(
        (parts.table_bytes + parts.cache_bytes..committed / 4 + MIB).contains(&tables),
        "{tables} of {committed}"
    );
    stats
}

/// Runs `body` where no other test does.
fn alone<F: FnOnce()>(body: F) {
    let prepare = |command: &mut Command| {
        if cfg!(feature = "profile") {
            command.env("PMA_PROFILE_BYTES", "512K");
        }
    };
    let output = in_child(prepare, body);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn the_parts_of_the_resident_size_add_up_to_what_the_system_says() {
    alone(|| {
        checked_stats();

        // Live runs: 24 MiB written, 8 MiB never touched, 32 MiB of zeros that are only read.
        let mut written = Vec::<u8>::with_capacity(32 * MIB);
        written.resize(24 * MIB, 1);
        let zeros = vec![0u8; 32 * MIB];
        assert_eq!(zeros.iter().step_by(512).map(|&byte| usize::from(byte)).sum::<usize>(), 0);
        let before = checked_stats();
        assert_near("written runs", before.resident.live_run_bytes, 24 * MIB + SMAPS);

        // Live and free blocks: one of two freed, so that most of them are in pages with live ones.
        let mut blocks: Vec<Option<Box<[u8; 1000]>>> =
            (0..40_000).map(|_| Some(Box::new([1; 1000]))).collect();
        blocks.iter_mut().step_by(2).for_each(|block| drop(block.take()));
        let mixed = checked_stats();
        let grown = mixed.resident.live_block_bytes - before.resident.live_block_bytes;
        assert_near("live blocks", grown, 20_000 * 1024);
        let freed = mixed.resident.free_block_bytes + mixed.resident.cached_block_bytes
            - before.resident.free_block_bytes
            - before.resident.cached_block_bytes;
        assert_near("freed blocks", freed, 20_000 * 1024);

        // Freed, the run is free pages, or nothing if they were purged; the sums hold either way.
        drop(black_box(written));
        let freed = checked_stats();
        assert!(freed.resident.live_run_bytes < MIB + SMAPS);
        assert!(freed.resident.free_page_bytes <= freed.free.resident_pages.get() * freed.summary.page_size);
        black_box((zeros, blocks));
    });
}

#[test]
fn the_parts_add_up_with_the_caches_of_several_threads() {
    alone(|| {
        const THREADS: usize = 4;
        // All are at rest while the parts are looked at.
        let (ready, seen) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (ready, seen) = (&ready, &seen);
                scope.spawn(move || {
                    let mut held: Vec<Vec<u8>> = Vec::new();
                    for round in 1..4 {
                        held.extend((0..round * 3000).map(|n| vec![1; (n * 37 + thread * 11) % 3000]));
                        held.extend((0..round * 5).map(|n| vec![1; 50_000 + n * 1000]));
                        let mut at = 0;
                        held.retain(|_| {
                            at += 1;
                            at % 3 != 0
                        });
                        ready.wait();
                        seen.wait();
                    }
                });
            }
            for _ in 1..4 {
                ready.wait();
                let stats = checked_stats();
                assert!(stats.resident.cached_block_bytes > 0 && stats.resident.live_block_bytes > 0);
                seen.wait();
            }
        });
        checked_stats();
    });
}

#[test]
fn the_parts_add_up_with_guarded_blocks() {
    let output = in_child(
        |command| {
            command.env("PMA_GUARD_SAMPLE", "20");
        },
        || {
            let held: Vec<Vec<u8>> = (0..3000).map(|size| vec![1; size]).collect();
            let stats = checked_stats();
            assert!(stats.guarded.live_blocks > 10 && stats.resident.guarded_bytes > 0, "{stats}");
            assert!(stats.guarded.live_bytes <= stats.resident.guarded_bytes);
            black_box(held);
        },
    );
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn what_runs_were_asked_for_with_is_known_to_the_byte() {
    alone(|| {
        let asked = || HEAP.stats().runs.asked_bytes;
        let none = asked();
        let sizes = [40_001, 100_000, 65_536, 65_537, 3 * MIB + 7];
        let mut runs = sizes.map(|size| vec![1u8; size]);
        let expected = |runs: &[Vec<u8>]| runs.iter().map(Vec::capacity).sum::<usize>();
        assert_eq!(asked() - none, sizes.iter().sum());
        // Longer, where they stand or elsewhere; then shorter.
        for size in [150_001, 2 * MIB + 1] {
            runs.iter_mut().for_each(|run| run.reserve_exact(size));
            assert_eq!(asked() - none, expected(&runs));
        }
        for size in [2 * MIB - 1, 65_536, 40_000] {
            runs.iter_mut().for_each(|run| {
                run.truncate(size);
                run.shrink_to(size);
            });
            assert_eq!(asked() - none, expected(&runs));
        }
        assert!(expected(&runs) < 5 * 65_536);
        drop(runs);
        assert_eq!(asked(), none);
    });
}

#[cfg(feature = "profile")]
#[test]
fn sampled_blocks_are_counted_as_blocks() {
    let output = in_child(
        |command| {
            command.env("PMA_PROFILE_BYTES", "1");
        },
        || {
            let mut blocks: Vec<Box<[u8; 100]>> = Vec::with_capacity(300);
            let (runs, live) = (HEAP.stats().runs.runs, HEAP.summary().live_blocks);
            blocks.extend((0..300).map(|_| Box::new([1; 100])));
            assert_eq!((HEAP.stats().runs.runs, HEAP.summary().live_blocks), (runs, live + 300));
            black_box(blocks);
        },
    );
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn the_parts_add_up_in_a_process_that_forked_and_in_its_child() {
    alone(|| {
        let run = vec![1u8; 16 * MIB];
        // Both have what neither has written since, and the resident size of each has it.
        run_forked(|| _ = checked_stats()).unwrap();
        checked_stats();
        black_box(run);
    });
}

#[test]
fn what_other_mappings_hold_is_all_else() {
    alone(|| {
        let before = HEAP.stats().resident;
        // SAFETY: a new mapping touches no memory in use, and is written within its length.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let start = libc::mmap(std::ptr::null_mut(), 50 * MIB, access, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            start.cast::<u8>().write_bytes(1, 50 * MIB);
        }
        let after = HEAP.stats().resident;
        assert_near("other mappings", after.other_bytes - before.other_bytes, 50 * MIB);
        assert_near("the rest", after.own_bytes() + MIB, before.own_bytes() + MIB);
    });
}

const PAGE: usize = 64 << 10;

fn heap() -> Heap {
    let options = HeapOptions::new().capacity(64 * PAGE).page_size(PAGE).classes(SizeClasses::POWERS_OF_TWO);
    options.build().unwrap()
}

fn alloc(heap: &Heap, size: usize, touched: bool) -> *mut u8 {
    let block = heap.alloc(Layout::from_size_align(size, 8).unwrap());
    assert!(!block.is_null());
    if touched {
        // SAFETY: the block is that long.
        unsafe { block.write_bytes(1, size) };
    }
    block
}

#[test]
fn an_os_page_is_shared_out_among_the_blocks_that_lie_in_it() {
    let os_page = 4096;
    // SAFETY: sysconf has no preconditions.
    if unsafe { libc::sysconf(libc::_SC_PAGESIZE) } != os_page {
        return;
    }
    let heap = heap();
    // Blocks of 1024: two live in the first OS page, of which the third block is free again; of the page's last OS
    // page only the last block is touched.
    let blocks: Vec<_> = (0..64).map(|_| alloc(&heap, 1024, false)).collect();
    for touched in [0, 63] {
        // SAFETY: the block is live.
        unsafe { blocks[touched].write_bytes(1, 1024) };
    }
    for freed in [2, 3, 4, 5] {
        // SAFETY: the block is live and was allocated with this layout.
        unsafe { heap.dealloc(blocks[freed], Layout::from_size_align(1024, 8).unwrap()) };
    }
    // A run of three pages of which one is touched by half.
    let run = alloc(&heap, 3 * PAGE, false);
    // SAFETY: the run is that long.
    unsafe { run.add(PAGE).write_bytes(1, PAGE / 2) };
    let stats = heap.stats();
    let class = stats.classes().iter().find(|class| class.block == 1024).unwrap();
    assert_eq!((class.pages.get(), class.live_blocks, class.free_blocks), (1, 60, 4));
    assert_eq!((class.resident_bytes, class.free_resident_bytes), (2 * 4096, 2 * 1024));
    assert_eq!((class.taken_resident_bytes, class.cached_blocks), (6 * 1024, 0));
    assert_eq!((class.live_bytes(), class.least_asked_bytes()), (60 * 1024, 60 * 513));
    assert_eq!(stats.resident.live_block_bytes, 6 * 1024);
    assert_eq!((stats.runs.runs, stats.runs.live_bytes, stats.runs.resident_bytes), (1, 3 * PAGE, PAGE / 2));
    assert_eq!(stats.runs.asked_bytes, 3 * PAGE);
    assert_eq!(stats.summary, heap.summary());

    // Freed, the pages are free: those with something in them are resident, unless they were purged.
    let before = stats.free;
    // SAFETY: the run is live and was allocated with this layout.
    unsafe { heap.dealloc(run, Layout::from_size_align(3 * PAGE, 8).unwrap()) };
    let after = heap.stats().free;
    assert_eq!(after.pages.get(), before.pages.get() + 3);
    assert!(after.resident_pages.get() <= before.resident_pages.get() + 1);
    assert_eq!(after.resident_bytes > 0, after.resident_pages.get() > 0);
    assert_eq!(after.purged_pages().get() + after.resident_pages.get(), after.pages.get());
}

#[test]
fn a_snapshot_tells_by_class_what_grew() {
    let heap = heap();
    let kept: Vec<_> = (0..10).map(|_| alloc(&heap, 100, true)).collect();
    let before = heap.snapshot();
    for _ in 0..100 {
        alloc(&heap, 500, true);
    }
    alloc(&heap, 3 * PAGE, true);
    for block in kept {
        // SAFETY: the blocks are live and were allocated with this layout.
        unsafe { heap.dealloc(block, Layout::from_size_align(100, 8).unwrap()) };
    }
    let after = heap.snapshot();
    let difference = after.diff(&before);
    let classes: Vec<_> =
        difference.classes().map(|class| (class.block, class.live_blocks, class.live_bytes)).collect();
    assert_eq!(classes, [(128, -10, -1280), (512, 100, 51200)]);
    assert_eq!((difference.runs().live_blocks, difference.runs().live_bytes), (1, 3 * PAGE as isize));
    assert_eq!(difference.live_bytes(), 3 * PAGE as isize + 51200 - 1280);
    let text = difference.to_string();
    let first: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(first, ["Resident", "Handed", "Block", "runs", "512", "128"], "{text}");
    assert!(text.lines().nth(4).unwrap().starts_with("     512         +100 +  50.0 KiB"), "{text}");
    assert_eq!(before.diff(&before).classes().count(), 0);
    assert_eq!(before.diff(&before).to_string().lines().count(), 3);
}

#[test]
fn the_stats_are_printed_in_lines_of_one_figure_each() {
    let heap = heap();
    alloc(&heap, 100, true);
    let text = heap.stats().to_string();
    let names: Vec<_> = text.lines().map(|line| line[..19].trim_end_matches([' ', ':', '1', '0'])).collect();
    assert_eq!(
        names,
        [
            "Resident size",
            "  Live blocks",
            "  Live runs",
            "  In thread caches",
            "  Free blocks",
            "  Page tails",
            "  Free pages",
            "  Own tables",
            "  All else",
            "Handed out",
            "Committed",
            "Reserved",
        ],
        "{text}"
    );
}
