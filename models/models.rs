//! What threads do to each other without a lock between them, in every order that the memory model allows.
//!
//! `cd models && RUSTFLAGS="--cfg loom" cargo test --release`
//!
//! The files of the library that are named here are compiled a second time, with loom's atomics and cells in place of the
//! core's. What is around them is in `surroundings.rs`, a [fence in all threads](sys::fence_all_threads) among it: each thread
//! executes it between two of its atomic operations, any two. Three models, of the caches of threads, restate what they are about
//! with the same steps and memory orders: a change to one is to be made to the other.
//!
//! Each model is run once more with something broken, and must fail.
#![cfg(all(test, loom))]
#![allow(dead_code)] // not all of the files is used here

#[path = "../src/decay.rs"]
mod decay;
#[path = "../src/thread_cache/fast.rs"]
mod fast;
#[path = "../src/first_use.rs"]
mod first_use;
#[path = "../src/fork.rs"]
mod fork;
#[path = "../src/thread_cache/gate.rs"]
mod gate;
#[path = "../src/lock.rs"]
mod lock;
#[allow(dead_code)] // what a walk over pages counts
#[path = "../src/heap/progress.rs"]
mod progress;
#[path = "../src/thread_cache/raise.rs"]
mod raise;
#[path = "../src/page_table/state.rs"]
mod state;
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
use state::{AtomicState, State};
use std::cell::Cell;
use std::ptr;
use sync::{AtomicPtr, AtomicUsize as Word};

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
        decay::tick(heap);
        // It has seen that somebody came by.
        decay::pass_of_thread(heap, 0);
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
fn a_thread_that_looks_again_without_order_sleeps_for_ever() {
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
    /// `Stacks::held` of `src/thread_cache/stacks.rs`, as `totals` of `registry.rs` counts it.
    fn held(&self) -> usize {
        // SAFETY: loom verifies it.
        assert!(!self.freed.with(|freed| unsafe { *freed }), "a cache is counted that is freed");
        let (start, len) = (self.start.load(Relaxed), self.len.load(Relaxed) as usize);
        let used = self.top.load(Relaxed).wrapping_sub(start);
        if start != 0 && used < len { used } else { 0 }
    }
}

/// `totals` of `src/thread_cache/registry.rs` against a thread that pushes, moves its stack to a longer one, and ends: `at_exit`
/// of `lifetime.rs`.
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
        assert!(is_broken("registry") || !*registry.lock());
    });
}

/// `call_for_blocks` of `src/thread_cache/registry.rs`, and `give_up_blocks` of `src/thread_cache.rs`.
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
        assert_eq!(heard, 2, "a call is missed");
        assert_eq!(held, u32::from(before == 2), "a call is heard once");
    });
}

#[test]
fn caches_are_counted_while_their_threads_work_and_end() {
    count_caches();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_cache_is_counted_after_its_end_if_it_stays_in_the_registry() {
    with_broken("registry", count_caches);
}

#[test]
fn every_call_for_blocks_is_heard_on_the_next_slow_path() {
    hear_calls();
}

#[test]
#[should_panic(expected = "a call is missed")]
fn a_call_for_blocks_is_missed_by_who_counts_for_himself() {
    with_broken("calls", hear_calls);
}

/// What a thread does with a stack on fast paths.
#[derive(Clone, Copy)]
enum Step {
    Pop,
    Push,
}

/// Blocks of a model.
const BLOCKS: usize = 3;

/// A stack that another thread takes from, its blocks, and where each of them is.
struct TakenFrom {
    lock: Lock<()>,
    top: AtomicPtr<Word>,
    /// A bottom, as many slots as there are blocks, and a lid.
    words: [Word; BLOCKS + 2],
    /// The bottom, which is raised with the lock.
    bottom: Cell<usize>,
    blocks: Box<[u64; BLOCKS]>,
    /// Who has a block reads and writes it.
    contents: [UnsafeCell<u32>; BLOCKS],
    places: [Cell<Place>; BLOCKS],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Stack,
    Owner,
    Taker,
}

// SAFETY: that nobody gets a block that another has is what the model verifies; the bottom is changed with the lock.
unsafe impl Send for TakenFrom {}
// SAFETY: as above.
unsafe impl Sync for TakenFrom {}

impl TakenFrom {
    /// A full stack, its blocks marked as freed, or as never used.
    fn new(unmarked: bool) -> TakenFrom {
        let blocks = Box::new([fast::FREED; BLOCKS]);
        let slot = |at: usize| match at {
            0 => fast::BOTTOM,
            at if at <= BLOCKS => {
                (&raw const blocks[at - 1]).expose_provenance() | if unmarked { fast::UNMARKED } else { 0 }
            }
            _ => fast::LID,
        };
        TakenFrom {
            lock: Lock::new(()),
            top: AtomicPtr::new(ptr::null_mut()),
            words: std::array::from_fn(|at| Word::new(slot(at))),
            bottom: Cell::new(0),
            contents: std::array::from_fn(|_| UnsafeCell::new(0)),
            places: [const { Cell::new(Place::Stack) }; BLOCKS],
            blocks,
        }
    }

    fn word(&self, at: usize) -> *mut Word {
        (&raw const self.words[at]).cast_mut()
    }

    /// A block changes hands.
    fn moves(&self, address: usize, from: Place, to: Place) {
        let block = (address - self.blocks.as_ptr().addr()) / size_of::<u64>();
        assert_eq!(self.places[block].replace(to), from, "block {block} has two owners");
        // SAFETY: loom verifies that it is nobody else's.
        self.contents[block].with_mut(|contents| unsafe { *contents += 1 });
    }

    fn pop(&self) -> Option<usize> {
        // SAFETY: the top leads to a slot in use, or to the bottom; one thread pops.
        let address = unsafe { fast::pop(&self.top) }.0.addr();
        (address != 0).then(|| {
            self.moves(address, Place::Stack, Place::Owner);
            address
        })
    }

    /// What the owner does; what it has popped it pushes again.
    fn work(&self, steps: &[Step]) {
        let mut held = Vec::new();
        for step in steps {
            match step {
                // The slow path begins by looking again.
                Step::Pop => match self.pop().or_else(|| {
                    let _alone = self.lock.lock();
                    self.pop()
                }) {
                    Some(block) => held.push(block),
                    None => assert_eq!(self.used(), 0, "a stack with blocks serves none"),
                },
                Step::Push => {
                    if !held.is_empty() {
                        // Not to where it was.
                        let block = held.remove(0);
                        self.moves(block, Place::Owner, Place::Stack);
                        // SAFETY: as above.
                        assert!(unsafe { fast::push(&self.top, block) }, "there was room before");
                    }
                }
            }
        }
    }

    /// Blocks above the bottom.
    fn used(&self) -> usize {
        let _alone = self.lock.lock();
        (self.top.load(Relaxed).addr() - self.word(self.bottom.get()).addr()) / size_of::<Word>()
    }

    /// What a taker does who leaves so many blocks: `ThreadCache::take` and `Stacks::take_below`, for one stack. A lock does for
    /// the gate, which has a model of its own.
    fn take(&self, left: usize) {
        let Some(_alone) = self.lock.try_lock() else { return };
        let bottom = self.bottom.get();
        // SAFETY: the lock is held, and the top leads to a word.
        let Some(mut raise) = (unsafe { raise::Raise::begin(&self.top, self.word(bottom), left) }) else {
            return;
        };
        sys::fence_all_threads();
        raise.look();
        sys::fence_all_threads();
        if !raise.is_done() {
            raise.undo();
            return;
        }
        let new = (raise.slot().addr() - self.word(0).addr()) / size_of::<Word>();
        let below = (bottom + 1..new).map(|at| self.words[at].load(Relaxed));
        for value in below.chain([raise.block()]) {
            self.moves(value & !fast::UNMARKED, Place::Stack, Place::Taker);
        }
        self.bottom.set(new);
    }

    /// Each block is where it should be.
    fn check(&self) {
        let (bottom, used) = (self.bottom.get(), self.used());
        let mut here: Vec<_> = (bottom + 1..bottom + 1 + used)
            .map(|at| self.words[at].load(Relaxed) & !fast::UNMARKED)
            .collect();
        here.sort_unstable();
        let all = self.blocks.iter().zip(&self.places).filter(|(_, place)| place.get() == Place::Stack);
        assert!(here.into_iter().eq(all.map(|(block, _)| (&raw const *block).addr())), "a block is lost");
    }
}

/// `raise.rs`: a thread pops and pushes (`fast.rs`) while another takes what is in the stack, so many times.
fn take_from(steps: &'static [Step], unmarked: bool, times: usize) {
    let mut builder = loom::model::Builder::new();
    // Changes of thread against a thread's will.
    builder.preemption_bound = Some(if is_broken("second fence") { 4 } else { 3 });
    builder.check(move || {
        let stack = Arc::new(TakenFrom::new(unmarked));
        stack.top.store(stack.word(BLOCKS), Relaxed);
        // The first thread goes first: it is within a step when the other takes.
        let taker = {
            let stack = Arc::clone(&stack);
            thread::spawn(move || {
                sys::be(20);
                let left = if is_broken("left") { 0 } else { 1 };
                (0..times).for_each(|_| stack.take(left));
            })
        };
        sys::begin_to_run();
        stack.work(steps);
        sys::come_to_rest();
        taker.join().unwrap();
        stack.check();
    });
}

/// Down past the slot that others take first, and up again.
const DOWN_AND_UP: [Step; 4] = [Step::Pop, Step::Pop, Step::Push, Step::Push];
/// Down to the bottom.
const DOWN: [Step; 4] = [Step::Pop; 4];
/// About the slot that others take first.
const ABOUT: [Step; 4] = [Step::Pop, Step::Push, Step::Pop, Step::Push];

#[test]
fn a_block_is_taken_or_popped_while_its_stack_goes_down_and_up() {
    take_from(&DOWN_AND_UP, false, 1);
}

#[test]
fn a_block_never_used_is_taken_or_popped_while_its_stack_goes_down_and_up() {
    take_from(&DOWN_AND_UP, true, 1);
}

#[test]
fn a_block_is_taken_or_popped_while_its_stack_is_emptied() {
    take_from(&DOWN, false, 1);
    take_from(&DOWN, true, 1);
}

#[test]
fn a_block_is_taken_or_popped_where_others_take_first() {
    take_from(&ABOUT, false, 1);
    take_from(&ABOUT, true, 1);
}

#[test]
fn a_block_is_taken_or_popped_when_others_try_again() {
    take_from(&DOWN[..2], false, 2);
    take_from(&ABOUT[..2], true, 2);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_block_has_two_owners_if_others_do_not_execute_the_fences() {
    with_broken("fence", || take_from(&DOWN_AND_UP, false, 1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_block_has_two_owners_if_others_execute_one_fence_only() {
    with_broken("second fence", || take_from(&DOWN_AND_UP, false, 1));
}

#[test]
#[should_panic(expected = "has two owners")]
fn a_block_has_two_owners_if_none_is_left() {
    with_broken("left", || take_from(&DOWN, false, 1));
}

/// A stack that is only pushed to, and taken from to the top.
#[test]
fn a_stack_that_is_only_pushed_to_is_taken_whole() {
    loom::model(|| {
        let stack = Arc::new(TakenFrom::new(false));
        // One block is in the stack, and another is pushed.
        stack.top.store(stack.word(1), Relaxed);
        let pushed = (&raw const stack.blocks[1]).addr();
        stack.places[1].set(Place::Owner);
        stack.places[2].set(Place::Owner);
        let owner = {
            let stack = Arc::clone(&stack);
            thread::spawn(move || {
                sys::be(20);
                sys::begin_to_run();
                stack.moves(pushed, Place::Owner, Place::Stack);
                // SAFETY: the top leads to a slot in use; one thread pushes.
                assert!(unsafe { fast::push(&stack.top, pushed) });
                sys::come_to_rest();
            })
        };
        stack.take(0);
        owner.join().unwrap();
        stack.check();
    });
}

/// `gate.rs`: a thread goes through twice, on a fast path and a slow one, while another closes and opens it.
fn go_through_gate() {
    loom::model(|| {
        let gate = Arc::new((gate::Gate::new(), UnsafeCell::new(0)));
        let owner = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || {
                sys::be(20);
                sys::begin_to_run();
                // SAFETY: loom verifies that nobody else is behind the gate.
                let work = |_inside| gate.1.with_mut(|value| unsafe { *value += 1 });
                let times = 1 + u32::from(gate.0.try_enter().map(work).is_some());
                work(gate.0.enter(|| false));
                sys::come_to_rest();
                times
            })
        };
        let mut closed = 0;
        if gate.0.close() {
            // SAFETY: as above.
            gate.1.with_mut(|value| unsafe { *value += 1 });
            gate.0.open();
            closed = 1;
        }
        let times = owner.join().unwrap() + closed;
        // SAFETY: as above.
        assert_eq!(gate.1.with(|value| unsafe { *value }), times);
    });
}

#[test]
fn nobody_goes_through_a_gate_that_was_closed() {
    go_through_gate();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn somebody_goes_through_a_closed_gate_without_a_fence() {
    with_broken("fence", go_through_gate);
}

/// A Multi run: how much of its end nobody asked for, and what is there.
struct Run {
    state: AtomicState,
    tail: AtomicU32,
    end: UnsafeCell<u32>,
    runs: Lock<()>,
}

/// `State`: what `keep_run`, `take_run` and `purge_tail` do to a run. Its owner frees it to its cache, and takes it from there for
/// all of its length, or waits for the lock if somebody holds the run; meanwhile another gives its end back to the system, which
/// nobody asked for at first.
fn free_and_take_while_the_end_goes_back() {
    loom::model(|| {
        let run = Arc::new(Run {
            state: AtomicState::new(State::MultiHead),
            tail: AtomicU32::new(1),
            end: UnsafeCell::new(0),
            runs: Lock::new(()),
        });
        let other = {
            let run = Arc::clone(&run);
            thread::spawn(move || {
                sys::be(20);
                let _runs = run.runs.lock();
                let held = match is_broken("hold") {
                    true => run.state.get() == State::MultiHead,
                    false => run.state.exchange(State::MultiHead, State::Held),
                };
                if held {
                    if run.tail.load(Relaxed) > 0 {
                        // SAFETY: that nobody uses it meanwhile is what loom verifies.
                        run.end.with_mut(|end| unsafe { *end = 0 });
                    }
                    if !is_broken("hold") {
                        run.state.set(State::MultiHead);
                    }
                }
            })
        };
        if run.state.exchange(State::MultiHead, State::Cached) {
            run.tail.store(0, Relaxed);
            run.state.set(State::MultiHead);
        } else {
            let _runs = run.runs.lock();
            assert_eq!(run.state.get(), State::MultiHead);
            run.tail.store(0, Relaxed);
        }
        // SAFETY: as above.
        run.end.with_mut(|end| unsafe { *end = 7 });
        other.join().unwrap();
        // SAFETY: as above.
        run.end.with(|end| assert_eq!(unsafe { *end }, 7));
    });
}

#[test]
fn the_end_of_a_run_does_not_go_back_once_it_was_asked_for() {
    free_and_take_while_the_end_goes_back();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_end_of_a_run_goes_back_while_it_is_written_to_if_nobody_holds_it() {
    with_broken("hold", free_and_take_while_the_end_goes_back);
}
