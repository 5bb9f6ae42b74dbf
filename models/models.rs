//! What threads do to each other without a lock between them, in every order that the memory model allows.
//!
//! `cd models && RUSTFLAGS="--cfg loom" cargo test --release`
//!
//! The files of the library that are named here are compiled a second time, with loom's atomics and cells in place of the
//! core's. What is around them is in `surroundings.rs`. Two models, of the caches of threads, restate what they are about
//! with the same steps and memory orders: a change to one is to be made to the other.
//!
//! Each model is run once more with something broken, and must fail.
#![cfg(all(test, loom))]
#![allow(dead_code)] // not all of the files is used here

#[path = "../src/decay.rs"]
mod decay;
#[path = "../src/first_use.rs"]
mod first_use;
#[path = "../src/fork.rs"]
mod fork;
#[path = "../src/lock.rs"]
mod lock;
mod surroundings;
mod sync;
#[path = "../src/units.rs"]
mod units;

use surroundings::{Options, guarded, heap, metadata, profile, report, size_class, sys, thread_cache};
/// The library has them in files of their own.
mod options {
    pub(crate) use super::surroundings::Options;
}

use heap::Heap;
use lock::Lock;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::atomic::{AtomicU32, AtomicUsize};
use loom::thread;
use size_class::BuildGeometry;
use std::cell::Cell;

std::thread_local! {
    /// What is broken in the models that this thread of the system runs; nothing if it is empty.
    static BROKEN: Cell<&'static str> = const { Cell::new("") };
}

fn is_broken(part: &str) -> bool {
    BROKEN.get() == part
}

fn with_broken(part: &'static str, model: fn()) {
    BROKEN.set(part);
    model();
}

/// `Lock`: a value that two threads change is never seen half changed. Nor are two values, each behind a lock of its own,
/// whose locks a fork takes both: `prepare` and `in_parent` of `fork.rs`.
fn fork_while_another_works() {
    loom::model(|| {
        let heap = first_use::make_heap(&Options::default()).expect("it can be made");
        let other = thread::spawn(move || {
            sys::be(20);
            let mut bin = heap.bin.lock();
            *bin += 1;
            heap.runs().changes += 1;
        });
        let (prepare, in_parent) = surroundings::handlers().expect("they are registered");
        prepare();
        // The system copies memory here: both have changed, or neither.
        // SAFETY: this thread has both locks.
        let (bin, runs) = unsafe { (*heap.bin.leaked(), heap.leaked_runs().changes) };
        assert_eq!(bin, runs);
        in_parent();
        other.join().unwrap();
        assert_eq!((*heap.bin.lock(), heap.runs().changes), (1, 1));
    });
}

#[test]
fn what_a_fork_locked_stands_still_until_it_is_opened() {
    fork_while_another_works();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn what_a_fork_locked_does_not_stand_still_behind_locks_without_order() {
    with_broken("order", fork_while_another_works);
}

/// `first_use.rs`, and `register` of `fork.rs`.
fn use_first() {
    /// What a thread's first call does.
    fn first_call() {
        let found = first_use::heap();
        if found.is_some() {
            // Who finds the heap finds the handlers, too.
            assert!(surroundings::handlers().is_some());
        }
        let heap = found.or_else(|| first_use::make_heap(&Options::default())).expect("it can be made");
        assert_eq!(*heap.made.read(), 1);
    }
    let mut builder = loom::model::Builder::new();
    // Each thread goes through three waits, one in the other: all orders with so many changes of thread in between.
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let other = thread::spawn(|| {
            sys::be(20);
            first_call();
        });
        first_call();
        other.join().unwrap();
        first_call();
        assert!(first_use::heap().is_some());
    });
}

#[test]
fn the_heap_is_made_once_and_found_by_nobody_before_forks_are_provided_for() {
    use_first();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_heap_is_found_half_made_without_order() {
    with_broken("order", use_first);
}

/// The thread of `decay.rs`, which goes to sleep while another frees. Unless it is woken, or sees what was freed, it sleeps for
/// ever, and loom ends the model.
fn free_while_the_thread_goes_to_sleep() {
    loom::model(|| {
        let options = Options { purge_after_ms: Some(2), background_purge: true };
        let heap: &'static Heap<BuildGeometry> = first_use::make_heap(&options).expect("it can be made");
        // Starts the thread.
        decay::tick_freed(heap);
        let background = thread::spawn(move || {
            sys::be(20);
            decay::pass_of_thread(heap, decay::IDLE_PASSES - 1);
        });
        heap.runs().dirty += 1;
        decay::tick_freed(heap);
        background.join().unwrap();
    });
}

#[test]
fn a_thread_that_goes_to_sleep_is_woken_or_sees_what_was_freed() {
    free_while_the_thread_goes_to_sleep();
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_thread_that_does_not_look_again_sleeps_for_ever() {
    with_broken("look", free_while_the_thread_goes_to_sleep);
}

/// A cache of `src/thread_cache.rs`: where a stack's words are, and its top, by number.
struct Cache {
    start: AtomicUsize,
    len: AtomicU32,
    top: AtomicUsize,
    /// Whether the memory of the cache is its own still: written when it is freed.
    freed: UnsafeCell<bool>,
}

// SAFETY: that nobody reads a cache that is freed is what loom verifies.
unsafe impl Sync for Cache {}

impl Cache {
    /// `ThreadCache::held`, as `totals` counts it.
    fn held(&self) -> usize {
        // SAFETY: loom verifies it.
        assert!(!self.freed.with(|freed| unsafe { *freed }), "a cache is counted that is freed");
        let (start, len) = (self.start.load(Relaxed), self.len.load(Relaxed) as usize);
        let used = self.top.load(Relaxed).wrapping_sub(start);
        if start != 0 && used < len { used } else { 0 }
    }
}

/// `totals` against a thread that pushes, moves its stack to a longer one, and ends: `at_exit`.
fn count_caches() {
    const LONGEST: u32 = 8;
    loom::model(|| {
        let cache = Arc::new(Cache {
            start: AtomicUsize::new(100),
            len: AtomicU32::new(4),
            top: AtomicUsize::new(100),
            freed: UnsafeCell::new(false),
        });
        // Whether the cache is in the list.
        let registry = Arc::new(Lock::new(true));
        let owner = {
            let (cache, registry) = (Arc::clone(&cache), Arc::clone(&registry));
            thread::spawn(move || {
                sys::be(20);
                cache.top.store(101, Relaxed);
                cache.start.store(200, Relaxed);
                cache.len.store(LONGEST, Relaxed);
                cache.top.store(201, Relaxed);
                // The end: all blocks go back, then the words, then the cache.
                cache.top.store(200, Relaxed);
                cache.len.store(0, Relaxed);
                cache.start.store(0, Relaxed);
                if !is_broken("registry") {
                    *registry.lock() = false;
                }
                // SAFETY: nothing leads to the cache any more.
                cache.freed.with_mut(|freed| unsafe { *freed = true });
            })
        };
        let counted = {
            let listed = registry.lock();
            if *listed { cache.held() } else { 0 }
        };
        assert!(counted < LONGEST as usize);
        owner.join().unwrap();
        assert!(!*registry.lock());
    });
}

/// `call_for_blocks` and `give_up_blocks` in `src/thread_cache.rs`.
fn hear_calls() {
    /// The slow path of a thread that heard `heard` calls, and holds so many blocks.
    fn slow_path(calls: &AtomicU32, heard: &mut u32, held: &mut u32) {
        if *heard != calls.load(Relaxed) {
            *heard = if is_broken("calls") { *heard + 1 } else { calls.load(Relaxed) };
            *held = 0;
        }
    }
    loom::model(|| {
        let calls = Arc::new(AtomicU32::new(0));
        let purging: Vec<_> = (0..2)
            .map(|_| {
                let calls = Arc::clone(&calls);
                thread::spawn(move || calls.fetch_add(1, Relaxed))
            })
            .collect();
        let (mut heard, mut held) = (0, 1);
        slow_path(&calls, &mut heard, &mut held);
        assert_eq!(held, u32::from(heard == 0), "blocks went back, if and only if a call was heard");
        let before = heard;
        purging.into_iter().for_each(|thread| _ = thread.join().unwrap());
        held = 1;
        slow_path(&calls, &mut heard, &mut held);
        assert_eq!(heard, 2);
        assert_eq!(held, u32::from(before == 2), "a call is heard once");
    });
}

#[test]
fn caches_are_counted_while_their_threads_work_and_end() {
    count_caches();
}

#[test]
#[should_panic]
fn a_cache_is_counted_after_its_end_if_it_stays_in_the_registry() {
    with_broken("registry", count_caches);
}

#[test]
fn every_call_for_blocks_is_heard_on_the_next_slow_path() {
    hear_calls();
}

#[test]
#[should_panic]
fn a_call_for_blocks_is_missed_by_who_counts_for_himself() {
    with_broken("calls", hear_calls);
}
