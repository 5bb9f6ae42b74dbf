//! Options wanted by the allocator's type, and what the environment says instead.

use page_memory_allocator::PageAllocator;
use std::hint::black_box;
use std::time::{Duration, Instant};
use std::{fs, thread};

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};
#[path = "common/mappings.rs"]
mod mappings;
use mappings::bytes_with_huge_pages;
#[path = "common/resident.rs"]
mod resident;
use resident::resident;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new().purge_after_ms(50).background_purge(true).huge_pages(false);

const MIB: usize = 1 << 20;

/// Threads of the allocator's own: those that have all signals blocked.
fn background_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux shows them");
    let of_own = |task: &fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        blocked
            .is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask.count_ones() > 32))
    };
    tasks.flatten().filter(|task| of_own(task)).count()
}

/// Whether memory that was freed goes back within `longest` while nobody allocates.
fn goes_back(longest: Duration) -> bool {
    let blocks = vec![vec![1u8; 100_000]; 600];
    let held = resident();
    drop(black_box(blocks));
    let start = Instant::now();
    while start.elapsed() < longest {
        thread::sleep(Duration::from_millis(10));
        if resident() < held - 50 * MIB {
            return true;
        }
    }
    false
}

/// More than the heap that has no huge pages in any case, as a run and in blocks.
fn hold_much() -> (Vec<u8>, Vec<Box<[u8; 4096]>>) {
    (vec![1; 40 * MIB], (0..10_000).map(|_| Box::new([1; 4096])).collect())
}

#[test]
fn the_type_wants_memory_to_go_back_soon_by_a_thread() {
    let output = in_child(
        |_| (),
        || {
            assert!(goes_back(Duration::from_secs(30)));
            assert_eq!(background_threads(), 1);
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_environment_wants_no_thread() {
    let output = in_child(
        |child| _ = child.env("PMA_BACKGROUND_PURGE", "0"),
        || {
            assert!(!goes_back(Duration::from_millis(500)));
            assert_eq!(background_threads(), 0);
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// There is nothing for a thread to do if nothing is to go back.
#[test]
fn the_environment_wants_nothing_to_go_back() {
    let output = in_child(
        |child| _ = child.env("PMA_PURGE_MS", "never"),
        || {
            assert!(!goes_back(Duration::from_millis(500)));
            assert_eq!(background_threads(), 0);
            assert!(HEAP.purge() > 50 * MIB);
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_type_wants_no_huge_pages() {
    let output = in_child(
        |_| (),
        || {
            let held = hold_much();
            assert_eq!(bytes_with_huge_pages(), 0);
            drop(held);
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_environment_wants_huge_pages() {
    if fs::metadata("/sys/kernel/mm/transparent_hugepage").is_err() {
        return eprintln!("this system has no huge pages");
    }
    let output = in_child(
        |child| _ = child.env("PMA_HUGE_PAGES", "1"),
        || {
            let held = hold_much();
            assert!(bytes_with_huge_pages() > 32 * MIB);
            drop(held);
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}
