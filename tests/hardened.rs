//! What the feature `hardened` adds: misuse is seen at the call, freed blocks are wiped and checked, and what is handed
//! out next is hard to guess. Without it, the same programs show that it does: there the misuse goes unnoticed.
//!
//! The tests of guard pages are made twice: with those of the system, if it has any, and as on a system before Linux
//! 6.13, which has none. For that this binary's `madvise` stands before that of the C library.

use page_memory_allocator::PageAllocator;
use page_memory_allocator::size_class::built;
use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{CStr, c_int, c_long, c_void};
use std::hint::black_box;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{self, Command, Output};
use std::sync::atomic::AtomicPtr;
use std::thread;

#[path = "common/child.rs"]
mod child;
use child::{cases, in_child, text};
#[path = "common/mappings.rs"]
mod mappings;
use mappings::mappings;
#[path = "common/resident.rs"]
mod resident;
use resident::resident;

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
    died_if_hardened(&in_child(|_| (), misuse), signal, says);
}

fn died_if_hardened(output: &Output, signal: libc::c_int, says: &str) {
    if HARDENED {
        died(output, signal, says);
    } else {
        assert_eq!(output.status.code(), Some(2), "{}: {}", output.status, text(&output.stderr));
        assert!(text(&output.stderr).ends_with("the misuse went unnoticed"), "{}", text(&output.stderr));
    }
}

fn died(output: &Output, signal: libc::c_int, says: &str) {
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
fn a_block_resized_without_its_layout_after_it_was_freed_is_seen_at_the_call() {
    dies(libc::SIGABRT, TWICE, || {
        let block = HEAP.malloc(100);
        // SAFETY: none for the second call.
        unsafe {
            HEAP.free(block);
            black_box(HEAP.realloc_unsized(block, 103));
        }
        survived();
    });
}

#[test]
fn a_write_to_a_freed_block_is_found_when_it_is_handed_out() {
    // Of two words the same is written to: together they are no less than one.
    let written =
        [(768, 0, 1), (768, 9, 1), (768, 127, 1), (768, 8, 16), (104, 103, 1), (40, 39, 1), (8, 7, 1)];
    for (size, at, bytes) in cases(&written) {
        let write = || {
            let layout = Layout::from_size_align(size, 8).unwrap();
            let block = alloc(layout);
            // SAFETY: none for the write.
            unsafe {
                free(block, layout);
                for at in at..at + bytes {
                    block.add(at).write_volatile(1);
                }
            }
            (0..20_000).for_each(|_| _ = black_box(alloc(layout)));
            survived();
        };
        if at < 8 {
            // Where its mark was: any build sees that.
            died(&in_child(|_| (), write), libc::SIGABRT, TWICE_OR_WRITTEN);
        } else {
            dies(libc::SIGABRT, TWICE_OR_WRITTEN, write);
        }
    }
}

#[test]
fn the_beginning_of_a_freed_block_is_wiped() {
    let block = alloc(BLOCK);
    // SAFETY: none for the reads, which see what others would see that hold a dangling pointer.
    unsafe {
        block.write_bytes(0xAA, BLOCK.size());
        free(block, BLOCK);
        assert_eq!((0..128).all(|at| block.add(at).read_volatile() != 0xAA), HARDENED);
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

/// Set in a child whose system is to know nothing of guard pages.
const OLD: &CStr = c"PMA_TEST_OLD_SYSTEM";

fn system_is_old(command: &mut Command, old: bool) {
    if old {
        command.env(OLD.to_str().unwrap(), "1");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int {
    const MADV_GUARD_INSTALL: c_int = 102;
    const MADV_GUARD_REMOVE: c_int = 103;
    // SAFETY: nobody changes the environment; the call is as the caller says; errno can be written.
    unsafe {
        if matches!(advice, MADV_GUARD_INSTALL | MADV_GUARD_REMOVE) && !libc::getenv(OLD.as_ptr()).is_null() {
            *libc::__errno_location() = libc::EINVAL;
            return -1;
        }
        libc::syscall(libc::SYS_madvise, start, bytes, c_long::from(advice)) as c_int
    }
}

/// Runs `body` where the system notes guards in its page table, and where it does not.
fn on_either_system<F: FnOnce() + Copy>(body: F) {
    for old in cases(&[false, true]) {
        let output = in_child(|command| system_is_old(command, old), body);
        assert!(output.status.success(), "{}{}", output.status, text(&output.stderr));
    }
}

/// Bytes of a group of pages, the last of which is a guard.
const GROUP: usize = 16 * built::PAGE_SIZE;

/// A run of so many pages.
fn run(pages: usize) -> Layout {
    Layout::from_size_align(pages * built::PAGE_SIZE, 1).unwrap()
}

#[test]
fn what_lies_around_a_run_cannot_be_touched() {
    let (before, behind) = (-1, (3 * built::PAGE_SIZE) as isize);
    for (at, old) in cases(&[(before, false), (behind, false), (before, true), (behind, true)]) {
        let output = in_child(
            |command| system_is_old(command, old),
            || {
                // SAFETY: none.
                unsafe { alloc(run(3)).offset(at).write_volatile(1) };
                survived();
            },
        );
        died_if_hardened(&output, libc::SIGSEGV, "");
    }
}

#[test]
fn what_lies_behind_a_run_that_grew_and_shrank_cannot_be_touched() {
    dies(libc::SIGSEGV, "", || {
        // SAFETY: the run is live; none for the last line.
        unsafe {
            let mut start = alloc(run(3));
            start = HEAP.realloc(start, run(3), 40 * built::PAGE_SIZE);
            start.add(40 * built::PAGE_SIZE - 1).write_volatile(1);
            start = HEAP.realloc(start, run(40), run(3).size());
            start.add(run(3).size() - 1).write_volatile(1);
            start.add(run(3).size()).write_volatile(1);
        }
        survived();
    });
}

#[test]
fn runs_that_come_and_go_keep_their_guards_and_all_of_their_bytes() {
    on_either_system(|| {
        let mut random = 7_u64;
        let mut live: Vec<(*mut u8, usize)> = Vec::new();
        let ends = |&(start, pages): &(*mut u8, usize)| {
            [start.wrapping_sub(1), start.wrapping_add(run(pages).size())].map(<*mut u8>::cast_const)
        };
        // Between the runs, pages of blocks, which have no guards of their own.
        let block = Layout::new::<[u8; built::PAGE_SIZE / 2]>();
        let mut blocks: Vec<*mut u8> = Vec::new();
        for _ in 0..4_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (pages, at) = (1 + (random >> 40) as usize % 24, (random >> 20) as usize % 32);
            // SAFETY: runs are live, and freed with their layouts.
            unsafe {
                if at < live.len() {
                    let (start, pages) = live.swap_remove(at);
                    free(start, run(pages));
                }
                let start =
                    if random.is_multiple_of(3) { HEAP.alloc_zeroed(run(pages)) } else { alloc(run(pages)) };
                for at in (0..pages * built::PAGE_SIZE).step_by(4_096) {
                    assert!(!random.is_multiple_of(3) || start.add(at).read_volatile() == 0);
                    start.add(at).write_volatile(1);
                }
                live.push((start, pages));
                if random.is_multiple_of(7) {
                    let (start, pages) = live.pop().unwrap();
                    let other = 1 + (random >> 50) as usize % 40;
                    live.push((HEAP.realloc(start, run(pages), run(other).size()), other));
                }
                match (random >> 33) as usize % 64 {
                    at if at < blocks.len() => free(blocks.swap_remove(at), block),
                    _ => blocks.push(alloc(block)),
                }
            }
            let newest = live.last().unwrap();
            assert!(!HARDENED || !ends(newest).into_iter().any(can_be_touched), "{newest:?}");
        }
        let touched: Vec<_> = live.iter().flat_map(ends).filter(|&end| can_be_touched(end)).collect();
        assert_eq!(touched.is_empty(), HARDENED, "{touched:?}");
        HEAP.check().unwrap();
    });
}

/// The system makes a guard of what lies before the part, and then refuses.
#[test]
fn what_was_a_guard_can_be_touched_again_although_a_part_of_it_is_locked() {
    on_either_system(|| {
        let fill = |count: usize, pages: usize, locked: bool| {
            let starts: Vec<_> = (0..count).map(|_| alloc(run(pages))).collect();
            for &start in &starts {
                // SAFETY: the run is live, and as long; to lock memory does not change it.
                unsafe {
                    start.write_bytes(1, run(pages).size());
                    for middle in (0..pages).map(|page| page * built::PAGE_SIZE + built::PAGE_SIZE / 2) {
                        if locked && libc::mlock(start.add(middle).cast(), 1) != 0 {
                            return eprintln!("this process may lock no memory");
                        }
                    }
                }
            }
            // SAFETY: each is freed once.
            starts.into_iter().for_each(|start| unsafe { free(start, run(pages)) });
            HEAP.purge();
        };
        fill(4, 20, true);
        // With guards between them, and then where those were.
        fill(40, 1, false);
        fill(4, 20, false);
    });
}

/// Whether the system can read a byte there.
fn can_be_touched(address: *const u8) -> bool {
    let mut pipe = [0; 2];
    // SAFETY: the kernel reads the byte, or says that it cannot.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let written = libc::write(pipe[1], address.cast(), 1);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        written == 1
    }
}

#[test]
fn between_groups_of_pages_of_blocks_there_is_one_that_cannot_be_touched() {
    on_either_system(|| {
        // Pages of a class: 64 of them, some groups' worth.
        let blocks: Vec<_> =
            (0..64 * built::PAGE_SIZE / 1_024).map(|_| alloc(Layout::new::<[u8; 1_024]>())).collect();
        let lowest = *blocks.iter().min().unwrap() as usize & !(GROUP - 1);
        let highest = *blocks.iter().max().unwrap() as usize;
        let guards: Vec<_> = (lowest..highest)
            .step_by(GROUP)
            .map(|group| can_be_touched((group + GROUP - 1) as *const u8))
            .collect();
        assert!(guards.len() >= 4);
        assert_eq!(guards[..guards.len() - 1].iter().all(|&touched| !touched), HARDENED, "{guards:?}");
        // SAFETY: the blocks are live.
        blocks.iter().for_each(|&block| unsafe { free(block, Layout::new::<[u8; 1_024]>()) });
        drop(blocks);
        HEAP.purge();
        // Where nothing is divided any more, there is room for a long run.
        let used = HEAP.summary().committed_bytes;
        // SAFETY: the run is live, and as long as that.
        unsafe {
            let long = alloc(run(56));
            (0..56).for_each(|page| long.add(page * built::PAGE_SIZE).write_volatile(1));
        }
        assert!(HEAP.summary().committed_bytes <= used, "guards were left behind");
        HEAP.check().unwrap();
    });
}

#[test]
fn the_last_page_of_a_group_is_a_guard_from_the_first_that_is_divided_to_the_last() {
    on_either_system(|| {
        // Two to a page.
        let block = Layout::new::<[u8; built::PAGE_SIZE / 2]>();
        let mut blocks: Vec<_> = (0..4 * GROUP / block.size()).map(|_| alloc(block)).collect();
        // The newest page is in the middle of its group, the number of which is even.
        while !(GROUP / 4..GROUP / 2).contains(&(blocks.iter().max().unwrap().addr() % (2 * GROUP))) {
            blocks.push(alloc(block));
        }
        blocks.sort_unstable();
        let newest = *blocks.last().unwrap();
        let its_group = newest.wrapping_sub(newest.addr() % GROUP);
        assert_eq!(can_be_touched(its_group.wrapping_add(GROUP - 1)), !HARDENED);

        // Of the groups that become free, the first is the one behind it in a pair of them; the other stays.
        let first_free = its_group.addr() - 3 * GROUP;
        // From above, but for one page: those next to the guards do not go last.
        let mut freed = blocks.split_off(blocks.partition_point(|block| block.addr() < first_free));
        freed.rotate_left(10);
        while let Some(freed) = freed.pop() {
            // SAFETY: the block is live.
            unsafe { free(freed, block) };
            HEAP.purge();
        }
        let pages = (newest.addr() - first_free) / built::PAGE_SIZE - 2;
        let long = (0..100).map(|_| alloc(run(pages)).addr()).find(|&long| long >= first_free).unwrap();
        assert_eq!(long, first_free, "a guard was left behind");
        HEAP.check().unwrap();
    });
}

#[test]
fn a_process_that_locks_its_memory_has_tables_for_what_it_uses_only() {
    let output = in_child(
        |_| (),
        || {
            // SAFETY: locking changes nothing but what is resident.
            if unsafe { libc::mlockall(libc::MCL_CURRENT) } != 0 {
                println!("skipped: memory may not be locked");
                return;
            }
            let blocks: Vec<Vec<u8>> = (0..10_000).map(|size| vec![1; size]).collect();
            assert!(blocks.iter().all(|block| block.iter().all(|&byte| byte == 1)));
            let resident = resident();
            println!("{} MiB", resident >> 20);
            assert!(resident < 512 << 20, "{resident} bytes are resident");
        },
    );
    print!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}{}", output.status, text(&output.stderr));
}

#[test]
fn guards_of_an_old_system_leave_mappings_to_the_program() {
    let output = in_child(
        |command| system_is_old(command, true),
        || {
            let touch = |&start: &*mut u8| {
                // SAFETY: the run is live, and as long as that.
                unsafe {
                    start.write_volatile(1);
                    start.add(run(1).size() - 1).write_volatile(1);
                }
            };
            let before = mappings();
            for _ in 0..2 {
                // Each with a guard behind it.
                let runs: Vec<_> = (0..6_000).map(|_| alloc(run(1))).collect();
                runs.iter().for_each(touch);
                let made = mappings() - before;
                assert_eq!((8_000..8_300).contains(&made), HARDENED, "{made} mappings");
                let traps = runs.iter().filter(|start| !can_be_touched(start.wrapping_add(run(1).size())));
                assert_eq!(traps.count() > 4_000, HARDENED);
                // SAFETY: the runs are live.
                runs.into_iter().for_each(|start| unsafe { free(start, run(1)) });
                HEAP.purge();
                HEAP.check().unwrap();
                // A run without guards in it takes the place of all of them.
                // SAFETY: the run is live, and as long as that.
                unsafe {
                    let long = alloc(run(11_000));
                    (0..11_000).for_each(|page| long.add(page * built::PAGE_SIZE).write_volatile(1));
                    free(long, run(11_000));
                }
                assert!(mappings() < before + 100, "{} mappings, {before} before", mappings());
            }
        },
    );
    assert!(output.status.success(), "{}{}", output.status, text(&output.stderr));
}

#[test]
fn a_run_that_was_freed_is_not_the_next() {
    let (mut before, mut soon) = (Vec::new(), 0);
    for _ in 0..20 {
        let start = alloc(run(5));
        soon += usize::from(before.iter().rev().take(4).any(|&other| other == start));
        before.push(start);
        // SAFETY: the run is live.
        unsafe { free(start, run(5)) };
    }
    assert_eq!(soon == 0, HARDENED, "{soon} of 20");
    // But they are used again.
    before.sort_unstable();
    before.dedup();
    assert!(before.len() < 12, "{} places", before.len());
}

#[test]
fn no_more_than_64_pages_wait() {
    let output = in_child(
        |_| (),
        || {
            let runs: Vec<_> = (0..20).map(|_| alloc(run(15))).collect();
            let last = *runs.iter().max().unwrap();
            // So long that it has room in the place of three of them; there is none below.
            let long = run(3 * 15);
            assert!((0..100).any(|_| alloc(long) > last));
            // SAFETY: the runs are live.
            runs.iter().for_each(|&freed| unsafe { free(freed, run(15)) });
            assert!(alloc(long) < last);
        },
    );
    assert!(output.status.success(), "{}{}", output.status, text(&output.stderr));
}

#[test]
fn the_place_of_a_run_that_was_moved_is_not_the_next() {
    // The longest that waits, and the shortest that is moved.
    let (long, longer) = (run((1 << 20) / built::PAGE_SIZE), run((2 << 20) / built::PAGE_SIZE));
    let (start, in_the_way) = (alloc(long), alloc(long));
    // SAFETY: the runs are live, and freed with their layouts.
    unsafe {
        let moved = HEAP.realloc(start, long, longer.size());
        assert_ne!(moved, start);
        let next = alloc(long);
        let is_beside = next.addr().abs_diff(start.addr()) >= long.size();
        assert_eq!(is_beside, HARDENED, "{next:p} after {start:p}");
        free(moved, longer);
        free(in_the_way, long);
        free(next, long);
    }
}

#[test]
fn a_run_that_waits_is_known_to_be_free() {
    let twice = || {
        let start = alloc(run(5));
        // SAFETY: none for the second call.
        unsafe {
            free(start, run(5));
            free(start, run(5));
        }
        survived();
    };
    died(&in_child(|_| (), twice), libc::SIGABRT, "freed a pointer into a page that is not in use");
}

/// What is left of blocks and runs of so many bytes that are filled with 0xAA, `locked` in memory if so wanted, and freed.
fn left_of_freed(sizes: &[usize], locked: bool) -> usize {
    let mut left = 0;
    for &bytes in sizes {
        let layout = Layout::from_size_align(bytes, 8).unwrap();
        let block = alloc(layout);
        // SAFETY: none for the reads, which see what others would see that hold a dangling pointer.
        unsafe {
            block.write_bytes(0xAA, bytes);
            if locked && libc::mlock(block.cast(), bytes) != 0 {
                eprintln!("this process may lock no memory");
            }
            free(block, layout);
            left += (8..bytes).filter(|&at| block.add(at).read_volatile() != 0).count();
        }
    }
    left
}

#[test]
fn all_of_what_is_freed_is_zeroed_if_that_is_wanted() {
    // The system takes no memory back that is locked.
    for (zero, locked) in cases(&[("1", false), ("1", true), ("0", false)]) {
        let output = in_child(
            |command| {
                command.env("PMA_ZERO_ON_FREE", zero);
            },
            || {
                let left = left_of_freed(&[8, 24, 100, 128, 1_000, 30_000, 70_000, 900_000], locked);
                println!("left: {left}");
            },
        );
        assert!(output.status.success(), "{}{}", output.status, text(&output.stderr));
        let line = text(&output.stdout).lines().find_map(|line| line.split_once("left: "));
        let left: usize = line.unwrap().1.parse().unwrap();
        let zeroed = HARDENED && zero == "1";
        assert!(if zeroed { left == 0 } else { left > 500_000 }, "{left} bytes with {zero}");
    }
}

#[test]
fn a_write_to_the_end_of_a_long_freed_block_is_found_if_all_is_zeroed() {
    let output = in_child(
        |command| {
            command.env("PMA_ZERO_ON_FREE", "1");
        },
        || {
            let layout = Layout::new::<[u8; 10_000]>();
            let block = alloc(layout);
            // SAFETY: none for the write.
            unsafe {
                free(block, layout);
                block.add(9_999).write_volatile(1);
            }
            (0..1_000).for_each(|_| _ = black_box(alloc(layout)));
            survived();
        },
    );
    died_if_hardened(&output, libc::SIGABRT, TWICE_OR_WRITTEN);
}

#[test]
fn guards_are_not_counted_against_the_limit() {
    let output = in_child(
        |command| _ = command.env("PMA_LIMIT", "32M"),
        || {
            let run = Layout::new::<[u8; built::PAGE_SIZE]>();
            // SAFETY: the size is not zero.
            let runs = (0..1024).filter(|_| !unsafe { HEAP.alloc(run) }.is_null()).count();
            assert!((24 << 20..32 << 20).contains(&(runs * run.size())), "{runs} runs");
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_run_that_waited_is_handed_out_again_only_where_it_is_aligned() {
    let plain = Layout::new::<[u8; built::PAGE_SIZE]>();
    let aligned = Layout::from_size_align(built::PAGE_SIZE, 4 * built::PAGE_SIZE).unwrap();
    for _ in 0..20 {
        let runs: Vec<*mut u8> = (0..16).map(|_| alloc(plain)).collect();
        // SAFETY: the runs are live, and have this layout.
        runs.into_iter().for_each(|run| unsafe { free(run, plain) });
        let run = alloc(aligned);
        assert!(run.addr().is_multiple_of(aligned.align()), "{run:p}");
        // SAFETY: as above.
        unsafe { free(run, aligned) };
    }
}

#[test]
fn the_order_of_blocks_differs_from_process_to_process() {
    let mut orders = Vec::new();
    for _ in cases(&[1, 2]) {
        let output = in_child(
            |_| (),
            || {
                let blocks: Vec<usize> = (0..200).map(|_| alloc(BLOCK).addr()).collect();
                let distances: Vec<isize> =
                    blocks.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]) as isize).collect();
                eprintln!("{distances:?}");
            },
        );
        orders.push(text(&output.stderr).to_owned());
    }
    assert!(orders[0].starts_with('['), "{}", orders[0]);
    assert_eq!(orders[0] != orders[1], HARDENED, "{}", orders[0]);
}
