//! A sampled profile of what is live: where it was allocated.
//!
//! Of the bytes that a thread allocates one in so many on average is picked, at random, and the allocation that it is
//! part of is sampled: its stack is kept until it is freed. The distances between picked bytes are exponentially
//! distributed, so an allocation of `size` bytes is sampled with probability `1 - exp(-size / interval)` whatever else
//! is allocated, and stands for the inverse of that many, whatever it shrinks to. Bytes are counted by each thread's cache:
//! a [`Countdown`].
//!
//! Unless the interval was asked for, a countdown whose samples come sooner one after the other than so many times what
//! they take, by the clock, doubles its interval, and goes back as soon as they do not. That bounds what the samples of
//! a thread cost, whatever it does. The next distance alone depends on it, and each sample remembers its own interval,
//! so it stands for as many as it should.
//!
//! A sampled block lies in a page of a shard of its own, which no thread's cache serves. That is what makes sampling
//! free for all others when they are freed: the tag of the page is not what the cache expects, so the free takes the
//! slow path by itself, and only there is the shard looked at. What remains on the fast path of an allocation is a
//! subtraction and a branch. A sampled run is marked by a bit of its first page; a block that is allocated inside a
//! component is sampled as a run, as pages have one component.
//!
//! Samples lie in a mapping of their own, behind one lock, which is held together with no other.

mod pprof;
mod samples;
mod stacks;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod unwind;

pub use stacks::Profile;

use crate::component::{self, current_component};
use crate::decay;
use crate::global::{PageAllocator, heap};
use crate::heap::Heap;
use crate::lock::Lock;
use crate::options;
use crate::page_table::Tag;
use crate::size_class::{BuildGeometry, Geometry as _, SizeClasses, built::CLASS_COUNT};
use crate::sys;
use crate::thread_cache::{self, current};
use crate::units::{ClassIndex, ComponentIndex, ShardIndex};
use core::alloc::Layout;
use core::cell::Cell;
use core::mem;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use samples::{Frames, MOST_FRAMES, Sample, Samples};

/// Bytes from one picked byte to the next, on average.
const USUAL_INTERVAL: usize = 512 << 10;
/// Samples come too soon if the time between two is less than so many times what one takes. In a loop that is too fast
/// the time is twice as long on average, and to free a sampled block takes about as long again as to sample it: that
/// makes a hundredth.
const SPARED: u64 = 100;
/// Times that an interval doubles at most.
const MOST_DOUBLINGS: u32 = 14;
/// Bytes after which the clock is looked at if none was picked, as a thread may allocate less by then.
const LOOKED_AFTER: isize = 16 << 20;
/// So many times as much time as is to be between two samples, and none: the interval is halved then.
const LONG: u64 = 8;
/// Nanoseconds that a sample is thought to take before there were any.
const USUAL_COST: u32 = 2_000;
/// What a sample takes is an average of about so many. One that takes much longer than that was interrupted.
const AVERAGED: u64 = 8;
const INTERRUPTED: u64 = 4;

static INTERVAL: AtomicUsize = AtomicUsize::new(USUAL_INTERVAL);
/// Whether intervals may double: nobody has asked for one.
static YIELDS: AtomicBool = AtomicBool::new(true);
static SAMPLES: Lock<Samples> = Lock::new(Samples::none());

std::thread_local! {
    /// Whether this thread samples nothing: it takes a sample, or reads them.
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// Looks at the environment. To be called once, when the heap is in use.
pub(crate) fn start() {
    let mut asked = None;
    options::set(
        &mut asked,
        c"PMA_PROFILE_BYTES",
        "it takes bytes, or so many K, M or G, and more than 0",
        |value| options::parse_bytes(value).filter(|&bytes| bytes > 0).map(Some),
    );
    if let Some(interval) = asked {
        INTERVAL.store(interval, Relaxed);
        YIELDS.store(false, Relaxed);
    }
    divide_pages();
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unwind::start();
}

/// Divides a page for each class, for the blocks that are sampled: side by side, and before there is
/// anything else, so that none is in the way of a run that grows, or pins memory that others have left. What is not
/// used of them has no memory. Where they would be more than a part of what the heap is limited to, they are divided
/// when they are needed.
fn divide_pages() {
    /// They are no more than this part of a limit.
    const OF_LIMIT: usize = 16;
    let Some(heap) = heap().filter(|heap| heap.limit().get() / OF_LIMIT >= CLASS_COUNT) else { return };
    for class in (1..CLASS_COUNT).map(|class| ClassIndex(class as u8)) {
        let block = heap.alloc_block(Tag::new(ShardIndex::SAMPLED, class)).start;
        if !block.is_null() {
            heap.put_all(class, &mut [block.addr()]);
        }
    }
}

/// Counts the bytes that are allocated through a thread's cache.
pub(crate) struct Countdown {
    /// Bytes to the next one that is picked, or to a look at the clock; below zero once that is passed.
    left: Cell<isize>,
    /// Whether it is to one that is picked.
    is_pick: Cell<bool>,
    /// State of the generator.
    random: Cell<u64>,
    /// When the last byte was picked, or the interval halved for want of one, and how often the interval is doubled.
    picked: Cell<u64>,
    doublings: Cell<u32>,
    /// Nanoseconds that a sample takes.
    cost: Cell<u32>,
}

impl Countdown {
    /// That of a cache through which nothing is allocated.
    #[allow(clippy::declare_interior_mutable_const)] // copied into the sentinels
    pub(crate) const NONE: Countdown = Countdown {
        left: Cell::new(0),
        is_pick: Cell::new(true),
        random: Cell::new(1),
        picked: Cell::new(0),
        doublings: Cell::new(0),
        cost: Cell::new(USUAL_COST),
    };

    /// A new countdown, the numbers of which are its own.
    pub(crate) fn new() -> Countdown {
        static COUNTDOWNS: AtomicU64 = AtomicU64::new(1);
        let number = COUNTDOWNS.fetch_add(1, Relaxed);
        // The address of the stack differs from run to run, if the system makes it random.
        let mut seed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (&raw const number).addr() as u64;
        // The bits of both are spread, as splitmix64 does.
        seed = (seed ^ seed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        seed = (seed ^ seed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        let countdown = Countdown { random: Cell::new(seed | 1), ..Countdown::NONE };
        countdown.draw();
        countdown
    }

    /// Counts bytes that are being allocated. True if one of them may be picked: see [`next`](Self::next).
    #[inline(always)]
    pub(crate) fn is_due(&self, bytes: usize) -> bool {
        let left = self.left.get().wrapping_sub(bytes as isize);
        self.left.set(left);
        left < 0
    }

    /// Bytes from one that is picked to the next, on average, until the next is.
    fn interval(&self) -> usize {
        INTERVAL.load(Relaxed).saturating_mul(1 << self.doublings.get())
    }

    /// A distance to the next byte that is picked.
    fn distance(&self) -> isize {
        let mut state = self.random.get();
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        let uniform = (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64;
        (-(1.0 - uniform).ln() * self.interval() as f64) as isize
    }

    /// Draws the distance to the next byte that is picked.
    fn draw(&self) {
        let distance = self.distance();
        self.is_pick.set(distance <= LOOKED_AFTER);
        self.left.set(distance.min(LOOKED_AFTER));
    }

    /// Draws the next distance, as one is passed, at `now` if intervals may double. Returns the interval by which a byte
    /// was picked; `None` if none was.
    fn next(&self, now: Option<u64>) -> Option<usize> {
        // What is not drawn beyond the look at the clock may be drawn then: that there was none so far tells nothing.
        let picked = self.is_pick.get() || self.left.get().saturating_add(self.distance()) < 0;
        let interval = picked.then(|| self.interval());
        if let Some(now) = now {
            let since = now.saturating_sub(self.picked.get());
            let times = since / (u64::from(self.cost.get()) * SPARED);
            let doublings = self.doublings.get();
            if times == 0 && picked {
                self.doublings.set((doublings + 1).min(MOST_DOUBLINGS));
            } else if picked || times >= LONG {
                self.doublings.set(doublings.saturating_sub(times.max(1).ilog2()));
            }
            if picked || times >= LONG {
                self.picked.set(now);
            }
        }
        self.draw();
        interval
    }

    /// Takes note of what a sample took.
    fn took(&self, nanoseconds: u64) {
        let cost = u64::from(self.cost.get());
        let took = nanoseconds.min(cost * INTERRUPTED);
        // Rounded up, and so never zero.
        let average = (cost * (AVERAGED - 1) + took).div_ceil(AVERAGED);
        self.cost.set(average.min(u32::MAX.into()) as u32);
    }
}

/// Does `work` if a byte is picked, while this thread samples nothing. It is given the interval by which that was.
/// `None`, and nothing done, if none is, or this thread samples nothing anyway.
fn sampling<T>(work: impl FnOnce(usize) -> Option<T>) -> Option<T> {
    let countdown = &current().countdown;
    let began = YIELDS.load(Relaxed).then(sys::nanoseconds);
    let interval = countdown.next(began)?;
    if PAUSED.get() {
        return None;
    }
    let done = paused(|| work(interval));
    if let Some(began) = began {
        countdown.took(sys::nanoseconds().saturating_sub(began));
    }
    done
}

/// Counts bytes that are being allocated on a slow path. True if one of them may be picked. What a thread allocates when its
/// cache is gone is not counted.
pub(crate) fn is_due(heap: &'static Heap<BuildGeometry>, bytes: usize) -> bool {
    thread_cache::current_or_made(heap, None).is_some_and(|cache| cache.countdown.is_due(bytes))
}

/// Does `work` while this thread samples nothing.
fn paused<T>(work: impl FnOnce() -> T) -> T {
    let before = PAUSED.replace(true);
    let result = work();
    PAUSED.set(before);
    result
}

/// Serves an allocation that is due if one of its bytes is picked, and keeps its stack. `None` if none is, or if that
/// cannot be, or is not to be.
#[cold]
#[inline(never)]
pub(crate) fn sample(heap: &'static Heap<BuildGeometry>, layout: Layout, zeroed: bool) -> Option<*mut u8> {
    sampling(|interval| {
        let class = BuildGeometry.class_of(layout);
        let is_block = class != ClassIndex::NONE && current_component() == ComponentIndex::NONE;
        let sampled = if is_block {
            let block = thread_cache::alloc_uncached(heap, Tag::new(ShardIndex::SAMPLED, class));
            // SAFETY: the block is the caller's to be, and at least as long as the layout.
            if zeroed { unsafe { block.zeroed(layout.size()) } } else { block.start }
        } else {
            // As large as the block would be, which may be used up to there.
            let size =
                if class == ClassIndex::NONE { layout.size() } else { SizeClasses::BUILD.block(class) };
            let room = Layout::from_size_align(size, layout.align()).ok()?;
            component::sampled_run(heap, room, zeroed)
        };
        if sampled.is_null() {
            return None;
        }
        if !keep(heap, sampled.addr(), layout.size(), interval) {
            if is_block {
                thread_cache::dealloc_uncached(heap, class, sampled.addr());
            } else {
                heap.dealloc_run(sampled.addr(), None);
            }
            return None;
        }
        Some(sampled)
    })
}

/// Keeps the calling thread's stack for the block or run at `address`. False if there is no room.
fn keep(heap: &Heap<BuildGeometry>, address: usize, size: usize, interval: usize) -> bool {
    let sample = Sample { address, size, counted: size, interval, frames: stack() };
    let run = if heap.tag_of(address).is_some() { None } else { heap.table().page_of(address) };
    SAMPLES.lock().add(heap.table().capacity(), run, sample)
}

/// The calling thread's stack.
fn stack() -> Frames {
    let mut frames = [0; MOST_FRAMES];
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if unwind::capture(&mut frames) {
        return frames;
    }
    frames.fill(0);
    let mut depth = 0;
    // SAFETY: the lock that this does without is for systems other than Linux.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            frames[depth] = frame.ip().addr();
            depth += 1;
            depth < MOST_FRAMES
        });
    }
    frames
}

/// Whether a run begins at `address` that is sampled.
#[inline]
pub(crate) fn is_sampled_run(address: usize) -> bool {
    // Runs begin where pages do, and few blocks.
    address.is_multiple_of(BuildGeometry.page_size())
        && heap().is_some_and(|heap| heap.table().page_of(address).is_some_and(samples::is_marked))
}

/// Forgets the sample of the run at `address`, which is being freed. Whether there was one.
pub(crate) fn forget_run(address: usize) -> bool {
    let Some(page) = heap().and_then(|heap| heap.table().page_of(address)) else { return false };
    samples::is_marked(page) && SAMPLES.lock().remove(Some(page), address).is_some()
}

/// Frees the block at `address`, of the shard of sampled blocks, and forgets its sample.
#[cold]
#[inline(never)]
pub(crate) fn free_block(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize) {
    SAMPLES.lock().remove(None, address);
    thread_cache::dealloc_uncached(heap, class, address);
    thread_cache::give_up_blocks(heap);
    decay::tick_freed(heap);
}

/// Takes the sample of the run at `address`, if there is one, out of the profile while the run is resized: another may have
/// its place before it is known where it went.
#[inline(never)]
pub(crate) fn begin_resize(address: usize) -> Option<Sample> {
    let page = heap().and_then(|heap| heap.table().page_of(address))?;
    if samples::is_marked(page) { SAMPLES.lock().remove(Some(page), address) } else { None }
}

/// Takes note that the run, of which that was the sample, has become one of `new_size` bytes at `new`, or is what it was.
#[inline(never)]
pub(crate) fn end_resize(sample: Option<Sample>, old_size: usize, new: usize, new_size: usize) {
    let Some(heap) = heap() else { return };
    if let Some(sample) = sample {
        let counted = sample.counted + new_size.saturating_sub(old_size);
        let sample = Sample { address: new, size: new_size, counted, ..sample };
        SAMPLES.lock().add(heap.table().capacity(), heap.table().page_of(new), sample);
    } else if new_size > old_size && is_due(heap, new_size - old_size) {
        // As if it had been allocated with that size: the bytes up to the old one were counted before.
        sampling(|interval| keep(heap, new, new_size, interval).then_some(()));
    }
}

/// Locks the samples until [`unlock`].
pub(crate) fn lock() {
    mem::forget(SAMPLES.lock());
}

/// Opens the samples again.
///
/// # Safety
/// This thread, or in a child process the one that forked, locked them.
pub(crate) unsafe fn unlock() {
    // SAFETY: the caller's lock; no reference to the samples was kept.
    unsafe { SAMPLES.unlock_leaked() };
}

impl PageAllocator {
    /// The profile of what is live: samples of it, and where they were allocated. Needs the feature `profile`.
    ///
    /// Unlike other views of the heap this one allocates; what it allocates is not sampled.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     let kept: Vec<Vec<u8>> = (0..100).map(|_| vec![1; 1 << 20]).collect();
    ///     let profile = HEAP.profile();
    ///     assert!(profile.live_bytes() > 50 << 20, "an estimate");
    ///     assert!(profile.pprof().starts_with(&[0x1F, 0x8B]), "gzip: std::fs::write it, and `go tool pprof` it");
    ///     assert!(profile.folded().lines().count() > 0);
    ///     drop(kept);
    /// }
    /// ```
    pub fn profile(&self) -> Profile {
        paused(|| {
            let mut samples = std::vec::Vec::new();
            // Room is made while the samples are open: to allocate or to free may need them.
            while !SAMPLES.lock().copy_to(&mut samples) {
                samples.reserve(samples.capacity() + 1024);
            }
            Profile::new(samples, INTERVAL.load(Relaxed))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that allocates `times` blocks of `size` bytes, one in `pace` nanoseconds, where a sample takes `cost`.
    struct Simulated {
        samples: f64,
        /// The part of its time that samples took.
        share: f64,
        /// The estimate of how many blocks it allocated, to the truth.
        estimated: f64,
    }

    fn simulate(size: usize, pace: u64, cost: u64, times: u32) -> Simulated {
        const START: u64 = 1 << 40;
        let countdown = Countdown::new();
        let (mut now, mut samples, mut estimated) = (START, 0, 0.0);
        for _ in 0..times {
            now += pace;
            if countdown.is_due(size)
                && let Some(interval) = countdown.next(Some(now))
            {
                countdown.took(cost);
                now += cost;
                samples += 1;
                estimated += -1.0 / (-(size as f64) / interval as f64).exp_m1();
            }
        }
        Simulated {
            samples: f64::from(samples),
            share: (samples as u64 * cost) as f64 / (now - START) as f64,
            estimated: estimated / f64::from(times),
        }
    }

    #[test]
    fn samples_take_a_part_of_the_time_whatever_they_cost_and_the_estimate_is_right_all_the_same() {
        // By bytes a second: 10 GB, 500 GB, more of runs, little.
        for (size, pace, times) in
            [(1_000, 100, 6_000_000), (100_000, 200, 3_000_000), (2 << 20, 300, 2_000_000)]
        {
            for cost in [400, 1_500, 8_000] {
                let simulated = simulate(size, pace, cost, times);
                let label = std::format!("{size} bytes in {pace} ns, {cost} ns a sample");
                assert!(simulated.share < 0.009, "{label}: {} of the time", simulated.share);
                let spared = 512.0 * 1024.0 / size as f64 * pace as f64 > 2.0 * (SPARED * cost) as f64;
                assert!(spared || simulated.share > 0.0025, "{label}: {} of the time", simulated.share);
                let error = (simulated.estimated - 1.0).abs() * simulated.samples.sqrt();
                assert!(error < 8.0, "{label}: {} estimated from {}", simulated.estimated, simulated.samples);
            }
        }
    }

    #[test]
    fn a_thread_that_allocates_slowly_is_sampled_by_the_usual_interval() {
        let simulated = simulate(1_000, 2_000, 1_500, 4_000_000);
        let expected = 4_000_000.0 * 1_000.0 / USUAL_INTERVAL as f64;
        // The interval doubles for the next after each pair that happens to be close.
        assert!(simulated.samples > expected * 0.6, "{} samples, {expected} expected", simulated.samples);
    }

    #[test]
    fn a_countdown_goes_back_to_the_usual_interval_when_its_thread_has_waited() {
        let countdown = Countdown::new();
        let pick = |now| {
            countdown.is_pick.set(true);
            countdown.next(Some(now))
        };
        (0..20).for_each(|turn| _ = pick(1 << 40 | turn));
        assert_eq!(countdown.interval(), USUAL_INTERVAL << MOST_DOUBLINGS);
        pick(2 << 40);
        assert_eq!(countdown.interval(), USUAL_INTERVAL);
        // It does so before the next byte is picked, which may be far.
        (0..20).for_each(|turn| _ = pick(2 << 40 | turn));
        countdown.is_pick.set(false);
        countdown.left.set(0);
        assert_eq!(countdown.next(Some(3 << 40)), None);
        assert_eq!(countdown.interval(), USUAL_INTERVAL);
    }

    #[test]
    fn a_sample_that_was_interrupted_does_not_keep_others_away() {
        let countdown = Countdown::new();
        (0..100).for_each(|_| countdown.took(1_000));
        assert!(countdown.cost.get().abs_diff(1_000) < 10, "{}", countdown.cost.get());
        countdown.took(50_000_000);
        assert!(countdown.cost.get() < 1_500, "{}", countdown.cost.get());
        (0..100).for_each(|_| countdown.took(0));
        assert!((1..10).contains(&countdown.cost.get()), "a cost of nothing would not spare anything");
        (0..100).for_each(|_| countdown.took(u64::MAX));
        assert_eq!(countdown.cost.get(), u32::MAX);
    }

    #[test]
    fn distances_are_as_long_as_asked_for_on_average() {
        let countdown = Countdown::new();
        let drawn = 100_000;
        let sum: f64 = (0..drawn).map(|_| countdown.distance() as f64).sum();
        let mean = sum / f64::from(drawn);
        assert!((mean / USUAL_INTERVAL as f64 - 1.0).abs() < 0.02, "{mean}");
    }
}
