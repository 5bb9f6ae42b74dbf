//! A sampled profile of what is live: where it was allocated.
//!
//! Of the bytes that a thread allocates one in so many on average is picked, at random, and the allocation that it is
//! part of is sampled: its stack is kept until it is freed. The distances between picked bytes are exponentially
//! distributed, so an allocation of `size` bytes is sampled with probability `1 - exp(-size / interval)` whatever else
//! is allocated, and stands for the inverse of that many. Bytes are counted by each thread's cache: a [`Countdown`].
//!
//! Unless the interval was asked for, a countdown whose samples come too soon one after the other, as those of a loop do
//! that allocates many gigabytes a second, doubles its interval, and goes back as soon as they do not. The next distance
//! alone depends on that, and each sample remembers its own interval, so it stands for as many as it should.
//!
//! A sampled allocation is always a run of pages, even if it would fit a block. That is what makes sampling free for
//! all others when they are freed: the tag of the page is not what the thread's cache expects, so the free takes the
//! slow path by itself, and only there is a bit of the page looked at that says whether it was sampled. What remains
//! on the fast path of an allocation is a subtraction and a branch.
//!
//! Samples lie in a mapping of their own, behind one lock, which is held together with no other.

mod pprof;
mod samples;
mod stacks;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod unwind;

pub use stacks::Profile;

use crate::global::{PageAllocator, heap};
use crate::heap::Heap;
use crate::lock::Lock;
use crate::options;
use crate::size_class::{BuildGeometry, Geometry as _};
use crate::sys;
use crate::thread_cache::{self, current};
use core::alloc::Layout;
use core::cell::Cell;
use core::mem;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use samples::{Frames, MOST_FRAMES, Sample, Samples};

/// Bytes from one picked byte to the next, on average.
const USUAL_INTERVAL: usize = 512 << 10;
/// Nanoseconds between two samples below which the interval doubles: fifty times what a sample takes.
const SOON: u64 = 20_000;
/// Times that it doubles at most.
const MOST_DOUBLINGS: u32 = 6;

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
    options::set(&mut asked, c"PMA_PROFILE_BYTES", "it takes bytes, or so many K, M or G", |value| {
        options::parse_bytes(value).filter(|&bytes| bytes > 0).map(Some)
    });
    if let Some(interval) = asked {
        INTERVAL.store(interval, Relaxed);
        YIELDS.store(false, Relaxed);
    }
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unwind::start();
}

/// Counts the bytes that are allocated through a thread's cache.
pub(crate) struct Countdown {
    /// Bytes to the next one that is picked; below zero once it is passed.
    left: Cell<isize>,
    /// State of the generator.
    random: Cell<u64>,
    /// When the last byte was picked, and how often the interval is doubled.
    picked: Cell<u64>,
    doublings: Cell<u32>,
}

impl Countdown {
    /// That of a cache through which nothing is allocated.
    #[allow(clippy::declare_interior_mutable_const)] // copied into the sentinels
    pub(crate) const NONE: Countdown =
        Countdown { left: Cell::new(0), random: Cell::new(1), picked: Cell::new(0), doublings: Cell::new(0) };

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

    /// Counts bytes that are being allocated. True if one of them is picked.
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

    /// Draws the distance to the next byte that is picked.
    fn draw(&self) {
        let mut state = self.random.get();
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        let uniform = (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64;
        self.left.set((-(1.0 - uniform).ln() * self.interval() as f64) as isize);
    }

    /// Draws the next distance after a byte was picked. Returns the interval by which that one was.
    fn next(&self) -> usize {
        let interval = self.interval();
        if YIELDS.load(Relaxed) {
            let now = sys::nanoseconds();
            let since = now - self.picked.replace(now).min(now);
            let doublings = self.doublings.get();
            self.doublings.set(match since / SOON {
                0 => (doublings + 1).min(MOST_DOUBLINGS),
                times => doublings.saturating_sub(times.ilog2()),
            });
        }
        self.draw();
        interval
    }
}

/// Counts bytes that are being allocated on a slow path. True if one of them is picked. What a thread allocates when its
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

/// Serves an allocation one of whose bytes is picked, and keeps its stack. `None` if that cannot be, or is not to be.
#[cold]
#[inline(never)]
pub(crate) fn sample(heap: &'static Heap<BuildGeometry>, layout: Layout, zeroed: bool) -> Option<*mut u8> {
    let interval = current().countdown.next();
    if PAUSED.get() {
        return None;
    }
    paused(|| {
        let run = crate::component::run_within_limits(heap, layout, zeroed);
        if run.is_null() {
            return None;
        }
        if !keep(heap, run.addr(), layout.size(), interval) {
            heap.dealloc_run(run.addr(), None);
            return None;
        }
        Some(run)
    })
}

/// Keeps the calling thread's stack for the run at `address`. False if there is no room.
fn keep(heap: &Heap<BuildGeometry>, address: usize, size: usize, interval: usize) -> bool {
    let Some(page) = heap.table().page_of(address) else { return false };
    let frames = stack();
    SAMPLES.lock().add(heap.table().capacity(), page, Sample { address, size, interval, frames })
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

/// Whether the run at `address` is sampled.
#[inline]
pub(crate) fn is_sampled(address: usize) -> bool {
    // Runs begin where pages do, and few blocks.
    address.is_multiple_of(BuildGeometry.page_size())
        && heap().is_some_and(|heap| heap.table().page_of(address).is_some_and(samples::is_marked))
}

/// Forgets the sample of the run at `address`, which is being freed. Whether there was one.
pub(crate) fn forget(address: usize) -> bool {
    let Some(page) = heap().and_then(|heap| heap.table().page_of(address)) else { return false };
    samples::is_marked(page) && SAMPLES.lock().remove(page, address).is_some()
}

/// Takes note that the run at `old` has become one of `new_size` bytes at `new`.
#[inline(never)]
pub(crate) fn resized(old: usize, old_size: usize, new: usize, new_size: usize) {
    let Some(heap) = heap() else { return };
    let page_of = |address| heap.table().page_of(address);
    if let Some(page) = page_of(old).filter(|&page| samples::is_marked(page)) {
        let mut samples = SAMPLES.lock();
        if let Some(sample) = samples.remove(page, old)
            && let Some(page) = page_of(new)
        {
            samples.add(heap.table().capacity(), page, Sample { address: new, size: new_size, ..sample });
        }
    } else if is_due(heap, new_size.saturating_sub(old_size)) {
        let interval = current().countdown.next();
        if !PAUSED.get() {
            // As if it had been allocated with that size: the bytes up to the old one were counted before.
            paused(|| keep(heap, new, new_size, interval));
        }
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
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_countdown_whose_samples_come_soon_yields_and_its_estimate_is_right_all_the_same() {
        let countdown = Countdown::new();
        let (size, times) = (1 << 20, 300_000);
        let (mut sampled, mut estimated) = (0, 0.0);
        for _ in 0..times {
            if countdown.is_due(size) {
                let interval = countdown.next();
                sampled += 1;
                estimated += -1.0 / (-(size as f64) / interval as f64).exp_m1();
            }
        }
        // The interval is a half of the size: but for the first few, it does not stay at that.
        assert!(sampled < times / 10, "{sampled} of {times} sampled");
        let error = (estimated - f64::from(times)) / f64::from(times);
        assert!(error.abs() < 0.06, "estimated {estimated} of {times}, from {sampled} samples");
        thread::sleep(Duration::from_millis(5));
        countdown.next();
        assert_eq!(countdown.interval(), USUAL_INTERVAL);
    }

    #[test]
    fn distances_are_as_long_as_asked_for_on_average() {
        let countdown = Countdown::new();
        let drawn = 100_000;
        let sum: f64 = (0..drawn)
            .map(|_| {
                countdown.draw();
                countdown.left.get() as f64
            })
            .sum();
        let mean = sum / f64::from(drawn);
        assert!((mean / USUAL_INTERVAL as f64 - 1.0).abs() < 0.02, "{mean}");
    }
}
