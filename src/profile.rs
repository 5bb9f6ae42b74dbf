//! A sampled profile of what is live: where it was allocated.
//!
//! Of the bytes that a thread allocates one in so many on average is picked, at random, and the allocation that it is
//! part of is sampled: its stack is kept until it is freed. The distances between picked bytes are exponentially
//! distributed, so an allocation of `size` bytes is sampled with probability `1 - exp(-size / interval)` whatever else
//! is allocated, and stands for the inverse of that many, whatever it shrinks to. Bytes are counted by each thread's cache,
//! and samples that would take too much of its time are left out: [`countdown`].
//!
//! A sampled block lies in a page of a shard of its own, which no thread's cache serves. That is what makes sampling
//! free for all others when they are freed: the tag of the page is not what the cache expects, so the free takes the
//! slow path by itself, and only there is the shard looked at. What remains on the fast path of an allocation is a
//! subtraction and a branch. A sampled run is marked by a bit of its first page; a block that is allocated inside a
//! component is sampled as a run, as pages have one component.
//!
//! Samples lie in a mapping of their own, behind one lock, which is held together with no other.

mod countdown;
mod pprof;
mod samples;
mod stacks;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod unwind;

pub(crate) use countdown::Countdown;
pub use stacks::Profile;

use crate::component::{self, current_component};
use crate::decay;
use crate::global::{PageAllocator, heap};
use crate::heap::Heap;
use crate::line::Line;
use crate::lock::Lock;
use crate::options;
use crate::page_table::Tag;
use crate::size_class::{BuildGeometry, Geometry as _, SizeClasses, built::CLASS_COUNT};
use crate::sys;
use crate::thread_cache::{self, current};
use crate::units::{ClassIndex, ComponentIndex, ShardIndex};
use core::alloc::Layout;
use core::cell::Cell;
use core::fmt::Write as _;
use core::mem;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use countdown::INTERVAL;
use samples::{Frames, MOST, MOST_FRAMES, Sample, Samples};

/// Whether intervals may double: nobody has asked for one.
static YIELDS: AtomicBool = AtomicBool::new(true);
static SAMPLES: Lock<Samples> = Lock::new(Samples::none());
/// Whether it was said that there was no room for a sample.
static TOLD: AtomicBool = AtomicBool::new(false);

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
    let mut samples = SAMPLES.lock();
    let is_kept = samples.add(heap.table().capacity(), run, sample);
    let are_full = samples.are_full();
    drop(samples);
    if !is_kept && are_full {
        tell_of_no_room();
    }
    is_kept
}

/// Says, the first time, that there was no room for a sample.
#[cold]
fn tell_of_no_room() {
    if !TOLD.swap(true, Relaxed) {
        let mut line = Line::new();
        let _ = writeln!(
            line,
            "page_memory_allocator: the profile is full, with {MOST} samples: other allocations are left out until sampled \
             ones are freed; a larger PMA_PROFILE_BYTES takes fewer"
        );
        line.report();
    }
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
