//! The thread that gives memory back, if it is asked for: at once when there is some, and although nobody allocates.

#[path = "common/background.rs"]
mod background;
#[path = "common/child.rs"]
mod child;
#[path = "common/forked.rs"]
mod forked;
#[path = "common/load.rs"]
mod load;
#[path = "common/resident.rs"]
mod resident;

use background::{OF_THE_HARNESS, becomes_true, threads};
use child::{assert_ended_well, in_child};
use forked::run_forked;
use load::{free_shuffled, mixed_blocks};
use page_memory_allocator::PageAllocator;
use resident::resident;
use std::time::Duration;
use std::{hint, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;

#[test]
fn with_the_background_thread_memory_goes_back_although_nobody_allocates() {
    let output = in_child(
        |command| _ = command.envs([("PMA_BACKGROUND_PURGE", "1"), ("PMA_PURGE_MS", "60")]),
        || {
            let before = resident();
            free_shuffled(mixed_blocks(256 * MIB));
            assert_eq!(threads(), OF_THE_HARNESS + 1);
            // Reading the resident size allocates. So it is read twice.
            thread::sleep(Duration::from_secs(2));
            let first = resident() - before;
            assert!(first < 16 * MIB, "{first}");
            // Once asleep, it is woken.
            thread::sleep(Duration::from_secs(1));
            drop(vec![1u8; 64 * MIB]);
            thread::sleep(Duration::from_secs(1));
            assert!(resident() - before < 16 * MIB, "{}", resident() - before);
            assert_eq!(threads(), OF_THE_HARNESS + 1);
        },
    );
    assert_ended_well(&output);
}

#[test]
fn what_is_freed_while_the_thread_is_about_to_sleep_goes_back() {
    let output = in_child(
        |command| _ = command.envs([("PMA_BACKGROUND_PURGE", "1"), ("PMA_PURGE_MS", "40")]),
        || {
            // It sleeps after some periods of 20 ms: the blocks are freed before that, after that, and in between.
            for milliseconds in (0..200).step_by(8) {
                let mut blocks = vec![Some(Box::new([1u8; 256])); 8 * MIB / 256];
                drop(vec![1u8; MIB]);
                let before = resident();
                thread::sleep(Duration::from_millis(milliseconds));
                for (number, block) in blocks.iter_mut().enumerate() {
                    // Some are left of each page.
                    if number % 128 != 0 {
                        *block = None;
                    }
                }
                let goes_back = becomes_true(|| before.saturating_sub(resident()) > 5 * MIB);
                assert!(goes_back, "after {milliseconds} ms: {before} then, {} now", resident());
            }
        },
    );
    assert_ended_well(&output);
}

#[test]
fn what_a_run_that_shrinks_gives_up_goes_back_although_nobody_allocates() {
    let output = in_child(
        |command| _ = command.envs([("PMA_BACKGROUND_PURGE", "1"), ("PMA_PURGE_MS", "20")]),
        || {
            let mut run = vec![1u8; 128 * MIB];
            drop(vec![1u8; MIB]);
            // Once it was read, to read it again takes no slow path.
            let before = resident();
            assert_eq!(threads(), OF_THE_HARNESS + 1);
            // The thread has nothing to do for many periods, and sleeps.
            thread::sleep(Duration::from_secs(1));
            run.truncate(MIB);
            run.shrink_to_fit();
            assert!(becomes_true(|| before.saturating_sub(resident()) > 120 * MIB), "{}", resident());
        },
    );
    assert_ended_well(&output);
}

#[test]
fn the_background_thread_is_there_before_the_process_is_idle() {
    // The process is idle long before the first period is over.
    let variables = [("PMA_BACKGROUND_PURGE", "1"), ("PMA_PURGE_MS", "10000")];
    let output = in_child(
        |command| _ = command.envs(variables),
        || {
            free_shuffled(mixed_blocks(4 * MIB));
            assert_eq!(threads(), OF_THE_HARNESS + 1);
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_child_process_has_a_background_thread_of_its_own() {
    let output = in_child(
        |command| _ = command.envs([("PMA_BACKGROUND_PURGE", "1"), ("PMA_PURGE_MS", "20")]),
        || {
            let has_thread = || {
                becomes_true(|| {
                    hint::black_box(vec![0u8; 100_000]);
                    threads() >= 2
                })
            };
            assert!(has_thread());
            run_forked(|| assert!(threads() == 1 && has_thread())).unwrap();
        },
    );
    assert_ended_well(&output);
}
