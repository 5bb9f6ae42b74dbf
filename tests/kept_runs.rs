//! Freed runs that a thread keeps for itself: free to all who look, at hand for the thread, and nobody's loss. Where pages for
//! samples lie among them, runs have other places.
#![cfg(not(any(feature = "hardened", feature = "profile")))]

use page_memory_allocator::size_class::built;
use page_memory_allocator::{Component, PageAllocator};
use std::alloc::{GlobalAlloc, Layout};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use std::{array, env, thread};

#[path = "common/child.rs"]
mod child;
#[path = "common/pattern.rs"]
mod pattern;
#[path = "common/random.rs"]
mod random;
use child::{assert_ended_well, in_child};
use pattern::{fill, verify};
use random::Random;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const PAGE: usize = built::PAGE_SIZE;
const RUN: Layout = Layout::new::<[u8; 3 * PAGE]>();

fn alloc(layout: Layout) -> *mut u8 {
    // SAFETY: the layout has a size.
    let run = unsafe { HEAP.alloc(layout) };
    assert!(!run.is_null());
    run
}

/// Frees a live run.
fn free(run: *mut u8, layout: Layout) {
    // SAFETY: the caller's run has this layout.
    unsafe { HEAP.dealloc(run, layout) };
}

/// Has the calling thread keep the runs of `layout` that it frees.
fn want(layout: Layout) {
    drop(Box::new(0));
    free(alloc(layout), layout);
    free(alloc(layout), layout);
}

fn alone<F: FnOnce()>(prepare: impl FnOnce(&mut Command), body: F) {
    assert_ended_well(&in_child(prepare, body));
}

#[test]
fn a_run_that_is_kept_is_free_to_all_who_look_and_the_next_of_its_length() {
    alone(
        |_| (),
        || {
            want(RUN);
            let (pages, live) = (HEAP.summary().free_pages, HEAP.summary().live_bytes);
            let run = alloc(RUN);
            assert_eq!(HEAP.summary().free_pages.get() + 3, pages.get());
            let census = HEAP.check().unwrap();
            free(run, RUN);
            assert_eq!((HEAP.summary().free_pages, HEAP.summary().live_bytes), (pages, live));
            let after = HEAP.check().unwrap();
            assert_eq!((after.runs + 1, after.free_pages), (census.runs, census.free_pages + 3));
            // One of another length has the lowest place, which is not free as long as the run is kept.
            let longer = Layout::new::<[u8; 4 * PAGE]>();
            let other = alloc(longer);
            assert_eq!(alloc(RUN), run);
            free(other, longer);
            free(run, RUN);
            HEAP.purge();
            assert_eq!(alloc(longer), run, "the place of the run is not free after all is given back");
        },
    );
}

#[test]
fn a_thread_keeps_32_runs_and_two_megabytes_at_most() {
    const RUNS: usize = 64;
    let layout = Layout::new::<[u8; 2 * PAGE]>();
    // Too long to be kept, or to lie where one is.
    let longer = Layout::new::<[u8; 9 * PAGE]>();
    alone(
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            want(layout);
            let runs: [_; RUNS] = array::from_fn(|_| alloc(layout));
            let range = runs[0]..runs[0].wrapping_add(RUNS * layout.size());
            assert_eq!(runs[RUNS - 1].wrapping_add(layout.size()), range.end, "they do not lie side by side");
            runs.into_iter().for_each(|run| free(run, layout));
            let within = (0..RUNS).filter(|_| range.contains(&alloc(longer))).count();
            let kept = (2 << 20).min(32 * layout.size());
            assert_eq!(within, (RUNS * layout.size() - kept) / longer.size());
        },
    );
}

#[test]
fn a_run_that_was_kept_holds_zeros_where_they_are_asked_for() {
    alone(
        |_| (),
        || {
            want(RUN);
            let run = alloc(RUN);
            // SAFETY: the run is as long as its layout.
            unsafe {
                run.write_bytes(0xa5, RUN.size());
                free(run, RUN);
                let zeroed = HEAP.alloc_zeroed(Layout::new::<[u8; 3 * PAGE - 100]>());
                assert_eq!(zeroed, run);
                assert!((0..3 * PAGE - 100).all(|at| zeroed.add(at).read() == 0));
                let aligned = Layout::from_size_align(3 * PAGE, 16 * PAGE).unwrap();
                free(zeroed, Layout::new::<[u8; 3 * PAGE - 100]>());
                assert!(alloc(aligned).addr().is_multiple_of(16 * PAGE));
            }
        },
    );
}

#[test]
fn a_run_grows_into_the_place_of_one_that_is_kept() {
    alone(
        |_| (),
        || {
            want(RUN);
            let (run, neighbour) = (alloc(RUN), alloc(RUN));
            assert_eq!(run.wrapping_add(RUN.size()), neighbour);
            free(neighbour, RUN);
            // SAFETY: the run is live, and has this layout.
            let grown = unsafe { HEAP.realloc(run, RUN, 6 * PAGE) };
            assert_eq!(grown, run);
            free(grown, Layout::new::<[u8; 6 * PAGE]>());
            HEAP.check().unwrap();
        },
    );
}

#[test]
fn what_a_thread_kept_is_free_once_it_ends_or_others_ask_for_it() {
    alone(
        |_| (),
        || {
            let all = HEAP.summary().free_pages;
            thread::spawn(|| want(RUN)).join().unwrap();
            let (kept, asked) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
            let sleeper = {
                let (kept, asked) = (Arc::clone(&kept), Arc::clone(&asked));
                thread::spawn(move || {
                    let run = alloc(RUN);
                    free(run, RUN);
                    want(RUN);
                    kept.wait();
                    asked.wait();
                    run.addr()
                })
            };
            kept.wait();
            HEAP.purge();
            let run = alloc(RUN);
            asked.wait();
            // It sleeps with the run in its cache, where the system lets nobody take it from there.
            let place = sleeper.join().unwrap();
            assert!(run.addr() == place || !has_membarrier(), "{run:p} {place:x}");
            free(run, RUN);
            assert!(HEAP.summary().free_pages.get() + 4 >= all.get());
            HEAP.check().unwrap();
        },
    );
}

#[test]
fn what_a_thread_kept_is_used_again_when_it_has_ended() {
    alone(
        |_| (),
        || {
            thread::spawn(|| want(RUN)).join().unwrap();
            let before = HEAP.summary().committed_bytes;
            // 3 pages each, if each left one behind.
            (0..200).for_each(|_| thread::spawn(|| want(RUN)).join().unwrap());
            let more = HEAP.summary().committed_bytes - before;
            assert!(more < 200 * PAGE, "{more} bytes more are committed");
        },
    );
}

/// What a component is charged for is not kept, wherever it is freed; and inside one, nothing that nobody is charged for.
#[test]
fn runs_of_components_are_not_kept_and_none_that_was_is_given_to_one() {
    alone(
        |_| (),
        || {
            static INSIDE: Component = Component::new("of runs");
            let inside = || INSIDE.enter(|| alloc(RUN));
            want(RUN);
            let run = inside();
            assert_eq!(INSIDE.held_bytes(), RUN.size());
            free(run, RUN);
            assert_eq!(INSIDE.held_bytes(), 0);
            // Runs of nobody, freed inside: before one is wanted there, and after that.
            let runs = [alloc(RUN), alloc(RUN)];
            INSIDE.enter(|| {
                drop(Box::new(0));
                free(runs[0], RUN);
                free(alloc(RUN), RUN);
                free(runs[1], RUN);
            });
            let blocks = INSIDE.held_bytes();
            let run = inside();
            assert_eq!(INSIDE.held_bytes(), blocks + RUN.size());
            free(run, RUN);
            HEAP.check().unwrap();
        },
    );
}

#[test]
fn a_run_that_is_kept_has_its_memory_still() {
    alone(
        |_| (),
        || {
            let unused = || {
                let usage = HEAP.usage();
                usage.resident - usage.active - usage.metadata
            };
            drop(Box::new(0));
            HEAP.purge();
            let before = unused();
            want(RUN);
            assert!(unused() >= before + RUN.size(), "{}", HEAP.usage());
        },
    );
}

fn has_membarrier() -> bool {
    // SAFETY: a query.
    unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) > 0 }
}

/// At the limit, what others keep is not what an allocation is refused for.
#[test]
fn runs_that_threads_keep_are_no_reason_to_refuse_another() {
    alone(
        |command| {
            command.env("PMA_LIMIT", "8M");
        },
        || {
            let (kept, asked) = (Arc::new(Barrier::new(4)), Arc::new(Barrier::new(4)));
            let sleepers: Vec<_> = (0..3)
                .map(|_| {
                    let (kept, asked) = (Arc::clone(&kept), Arc::clone(&asked));
                    thread::spawn(move || {
                        want(Layout::new::<[u8; 8 * PAGE]>());
                        kept.wait();
                        asked.wait();
                    })
                })
                .collect();
            kept.wait();
            // All that is left, but for a few pages: what is kept is less than that.
            let summary = HEAP.summary();
            let used = summary.divided_pages.get() + summary.multi_pages.get();
            let most = Layout::from_size_align(((8 << 20) / PAGE - used - 8) * PAGE, 8).unwrap();
            let run = alloc(most);
            asked.wait();
            sleepers.into_iter().for_each(|sleeper| sleeper.join().unwrap());
            free(run, most);
        },
    );
}

const LARGE: Layout = Layout::new::<[u8; 64 << 20]>();

/// Free pages that have memory, as many bytes as [`LARGE`] has at first.
fn free_bytes() -> usize {
    HEAP.stats().free.resident_bytes
}

fn purging_soon(command: &mut Command) {
    command.env("PMA_PURGE_MS", "40").env("PMA_HUGE_PAGES", "0");
}

/// Has the thread come by often, with a run that it keeps, and frees a larger one then.
fn free_beside_a_kept_run() {
    want(RUN);
    (0..1_000).for_each(|_| free(alloc(RUN), RUN));
    let large = alloc(LARGE);
    // SAFETY: the run is the test's, and as long.
    unsafe { fill(large, LARGE.size(), 1) };
    free(large, LARGE);
    assert!(free_bytes() >= LARGE.size());
}

#[test]
fn memory_goes_back_while_a_thread_takes_and_frees_what_it_keeps() {
    alone(purging_soon, || {
        free_beside_a_kept_run();
        let start = Instant::now();
        while free_bytes() >= LARGE.size() {
            (0..1_000).for_each(|_| free(alloc(RUN), RUN));
            assert!(start.elapsed() < Duration::from_secs(20));
        }
    });
}

#[test]
fn memory_goes_back_soon_when_a_thread_comes_by_seldom() {
    alone(purging_soon, || {
        free_beside_a_kept_run();
        (0..1_000).for_each(|_| free(alloc(RUN), RUN));
        // Eight without a look at the clock, and a few for the passes.
        let rests = (0..8 + 6).find(|_| {
            thread::sleep(Duration::from_millis(60));
            free(alloc(RUN), RUN);
            free_bytes() < LARGE.size()
        });
        assert!(rests.is_some());
    });
}

/// Runs are filled, and looked at again, while the ends of others, and of those that they were before, go back to the system as
/// fast as can be.
#[test]
fn runs_keep_what_they_hold_while_ends_of_runs_go_back() {
    let rounds: usize = env::var("PMA_TEST_ROUNDS").map_or(500, |rounds| rounds.parse().expect("a number"));
    alone(
        |command| {
            command.env("PMA_PURGE_MS", "2").env("PMA_BACKGROUND_PURGE", "1");
        },
        || {
            static DONE: AtomicBool = AtomicBool::new(false);
            let purger = thread::spawn(|| {
                while !DONE.load(Ordering::Relaxed) {
                    HEAP.purge();
                    HEAP.check().unwrap();
                    let summary = HEAP.summary();
                    assert!(summary.free_pages.get() * PAGE <= summary.reserved_bytes);
                }
            });
            let workers: Vec<_> = (1..=3)
                .map(|seed| {
                    thread::spawn(move || {
                        let mut random = Random::new(seed);
                        let mut runs: Vec<(*mut u8, Layout)> = Vec::new();
                        for round in 0..rounds {
                            let size = 33_000 + random.below(4 * PAGE);
                            let layout = Layout::from_size_align(size, 8).unwrap();
                            let run = alloc(layout);
                            // SAFETY: the runs are this thread's, and as long as their layouts.
                            unsafe { fill(run.add(size - 3_000), 3_000, run.addr() + size) };
                            runs.push((run, layout));
                            if runs.len() > 4 {
                                let (run, layout) = runs.swap_remove(random.below(5));
                                let size = layout.size();
                                // SAFETY: as above; it was filled so.
                                unsafe { verify(run.add(size - 3_000), 3_000, run.addr() + size) };
                                free(run, layout);
                            }
                            if round % 64 == 0 {
                                thread::yield_now();
                            }
                        }
                        runs.into_iter().for_each(|(run, layout)| free(run, layout));
                    })
                })
                .collect();
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            DONE.store(true, Ordering::Relaxed);
            purger.join().unwrap();
            HEAP.check().unwrap();
        },
    );
}
