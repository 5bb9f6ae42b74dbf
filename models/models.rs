//! What threads do to each other without a lock between them, in every order that the memory model allows.
//!
//! `cd models && cargo test`
//!
//! Statics cannot be made of loom's types, so these are models: each restates a protocol of the source that it names,
//! with the same steps and the same memory orderings, around as little else as it takes to see it go wrong. A change
//! to one is to be made to the other.
#![cfg(test)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// The lock of `src/lock.rs`, whose guards may be forgotten; who holds it is left out.
struct Lock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by whoever has the lock. That this is so is what loom verifies.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    fn new(value: T) -> Lock<T> {
        Lock { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the lock, as if the guard were forgotten at once.
    fn lock_leaked(&self) {
        while self.locked.compare_exchange(false, true, Acquire, Relaxed).is_err() {
            thread::yield_now();
        }
    }

    fn unlock_leaked(&self) {
        self.locked.store(false, Release);
    }

    fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> R {
        self.lock_leaked();
        // SAFETY: the lock is this thread's.
        let result = self.value.with_mut(|value| body(unsafe { &mut *value }));
        self.unlock_leaked();
        result
    }
}

/// `Heap::lock_all` and `unlock_all`, around a fork: what was locked by one function is opened by another, and nobody is
/// inside meanwhile. The order is that of the bins, then the runs.
#[test]
fn what_a_fork_locked_stands_still_until_it_is_opened() {
    loom::model(|| {
        let heap = Arc::new((Lock::new(0), Lock::new(0)));
        let other = {
            let heap = Arc::clone(&heap);
            thread::spawn(move || {
                heap.0.with(|bin| {
                    *bin += 1;
                    heap.1.with(|runs| *runs += 1);
                })
            })
        };
        heap.0.lock_leaked();
        heap.1.lock_leaked();
        // The system copies memory here: both have changed, or neither.
        // SAFETY: this thread has both locks.
        let (bin, runs) = unsafe { (heap.0.value.with(|bin| *bin), heap.1.value.with(|runs| *runs)) };
        assert_eq!(bin, runs);
        heap.0.unlock_leaked();
        heap.1.unlock_leaked();
        other.join().unwrap();
        assert_eq!(heap.0.with(|bin| *bin), 1);
    });
}

/// `make_heap` in `src/global.rs`, and `register` in `src/fork.rs`.
struct Process {
    /// spin's `Once`: 0, 1 while it runs, 2.
    once: AtomicU32,
    made: UnsafeCell<u32>,
    /// 0, 1 once the handlers are registered, or the thread that registers them.
    registrar: AtomicUsize,
    handlers: UnsafeCell<u32>,
    /// The pointer that all use: null or not.
    heap: AtomicUsize,
}

// SAFETY: that nobody reads what another writes is what loom verifies.
unsafe impl Sync for Process {}

impl Process {
    /// What a thread's first call does; true if it finds the heap, published or its own to register.
    fn first_call(&self, this_thread: usize) {
        if self.heap.load(Acquire) == 0 {
            self.make_heap(this_thread);
        } else {
            // Who finds the heap finds the handlers, too.
            // SAFETY: loom verifies it.
            assert_eq!(self.handlers.with(|handlers| unsafe { *handlers }), 1);
        }
        // SAFETY: as above.
        assert_eq!(self.made.with(|made| unsafe { *made }), 1);
    }

    fn make_heap(&self, this_thread: usize) {
        match self.once.compare_exchange(0, 1, Acquire, Acquire) {
            Ok(_) => {
                // SAFETY: one thread gets here.
                self.made.with_mut(|made| unsafe { *made += 1 });
                self.once.store(2, Release);
            }
            Err(_) => {
                while self.once.load(Acquire) != 2 {
                    thread::yield_now();
                }
            }
        }
        if self.register(this_thread) {
            self.heap.store(1, Release);
        }
    }

    fn register(&self, this_thread: usize) -> bool {
        loop {
            match self.registrar.compare_exchange(0, this_thread, Acquire, Acquire) {
                Ok(_) => {
                    // The C library allocates to register them: not published, but served.
                    self.make_heap(this_thread);
                    assert_eq!(self.heap.load(Relaxed), 0);
                    // SAFETY: one thread gets here.
                    self.handlers.with_mut(|handlers| unsafe { *handlers += 1 });
                    self.registrar.store(1, Release);
                    return true;
                }
                Err(1) => return true,
                Err(registrar) if registrar == this_thread => return false,
                Err(_) => thread::yield_now(),
            }
        }
    }
}

#[test]
fn the_heap_is_made_once_and_found_by_nobody_before_forks_are_provided_for() {
    loom::model(|| {
        let process = Arc::new(Process {
            once: AtomicU32::new(0),
            made: UnsafeCell::new(0),
            registrar: AtomicUsize::new(0),
            handlers: UnsafeCell::new(0),
            heap: AtomicUsize::new(0),
        });
        let other = {
            let process = Arc::clone(&process);
            thread::spawn(move || process.first_call(20))
        };
        process.first_call(10);
        other.join().unwrap();
        process.first_call(10);
    });
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
#[test]
fn caches_are_counted_while_their_threads_work_and_end() {
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
                cache.top.store(101, Relaxed);
                cache.start.store(200, Relaxed);
                cache.len.store(LONGEST, Relaxed);
                cache.top.store(201, Relaxed);
                // The end: all blocks go back, then the words, then the cache.
                cache.top.store(200, Relaxed);
                cache.len.store(0, Relaxed);
                cache.start.store(0, Relaxed);
                registry.with(|listed| *listed = false);
                // SAFETY: nothing leads to the cache any more.
                cache.freed.with_mut(|freed| unsafe { *freed = true });
            })
        };
        let counted = registry.with(|listed| if *listed { cache.held() } else { 0 });
        assert!(counted < LONGEST as usize);
        owner.join().unwrap();
        assert!(!registry.with(|listed| *listed));
    });
}

/// `call_for_blocks` and `give_up_blocks` in `src/thread_cache.rs`.
#[test]
fn every_call_for_blocks_is_heard_on_the_next_slow_path() {
    /// The slow path of a thread that heard `heard` calls, and holds so many blocks.
    fn slow_path(calls: &AtomicU32, heard: &mut u32, held: &mut u32) {
        if *heard != calls.load(Relaxed) {
            *heard = calls.load(Relaxed);
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

const AT_WORK: u32 = 2;
const WAITING: u32 = 3;

/// The thread of `src/decay.rs`, and the kernel's part in it: `wait` compares and falls asleep in one step.
struct Background {
    state: AtomicU32,
    kernel: Mutex<()>,
    sleepers: Condvar,
}

impl Background {
    /// What the thread does when it has been idle for long; returns when it was woken.
    fn wait(&self) {
        self.state.store(WAITING, Relaxed);
        while self.state.load(Relaxed) == WAITING {
            let kernel = self.kernel.lock().unwrap();
            if self.state.load(Relaxed) == WAITING {
                drop(self.sleepers.wait(kernel).unwrap());
            }
        }
    }

    /// A slow path that finds nothing due. True if it was this one that woke the thread.
    fn tick(&self) -> bool {
        let wakes = self.state.load(Relaxed) == WAITING
            && self.state.compare_exchange(WAITING, AT_WORK, Relaxed, Relaxed).is_ok();
        if wakes {
            let _kernel = self.kernel.lock().unwrap();
            self.sleepers.notify_one();
        }
        wakes
    }
}

/// No wake is lost between the thread's looking and its falling asleep: else it would sleep for ever, and loom end the
/// model. That a slow path which finds the thread at work wakes nobody is part of the protocol.
#[test]
fn a_thread_that_waits_is_woken_by_exactly_one_slow_path() {
    loom::model(|| {
        let background = Arc::new(Background {
            state: AtomicU32::new(AT_WORK),
            kernel: Mutex::new(()),
            sleepers: Condvar::new(),
        });
        let waiting = {
            let background = Arc::clone(&background);
            thread::spawn(move || background.wait())
        };
        let early = {
            let background = Arc::clone(&background);
            thread::spawn(move || background.tick())
        };
        let mut woken = u32::from(early.join().unwrap());
        // Others come by until the thread is known to have waited.
        while woken == 0 {
            woken += u32::from(background.tick());
            thread::yield_now();
        }
        waiting.join().unwrap();
        assert!(!background.tick(), "it is at work");
    });
}
