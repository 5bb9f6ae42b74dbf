//! Thread caches: per thread and class a stack of block addresses.
//!
//! The [stacks] have the fast paths; the [registry] knows all caches; [lifetime] is about how threads get and leave theirs,
//! [size] about how large they may be. Here is what a cache is, and its slow paths.
//!
//! A cache serves and takes blocks of one shard's pages, to which it is assigned when it is made; blocks of other
//! shards that its thread frees wait in stacks of their own until they go home. On the fast path nothing is locked
//! and nothing is atomic in more than name: the tops are `AtomicPtr` because [`totals`] reads them from other
//! threads, and relaxed loads and stores are plain ones. Slow paths go through a [gate], which others close who take what
//! waits in the cache while its thread [sleeps](idle).
//!
//! A thread starts on [`EMPTY`], whose stacks are all empty and all full: its first call misses, and the slow path
//! makes the real cache. It ends on [`ABSENT`], which looks the same but is never replaced: what a thread frees or
//! allocates after its cache was flushed goes to the heap directly.
//!
//! # Signals
//! A handler that allocates may interrupt its thread anywhere. While a slow path changes the cache, the thread is on
//! [`ABSENT`], too: the handler is served by the heap, or finds a lock that its own thread holds, which ends
//! the process (`lock.rs`). The fast paths have no such provision, but an order: a pop takes the block off the stack before
//! it wipes the mark out, and a push marks it before it puts it there. So whatever a handler allocates and frees again, the
//! last first, leaves both as they were. What remains is said in `SECURITY.md`.

mod fast;
mod gate;
mod idle;
mod lifetime;
mod raise;
#[cfg(feature = "hardened")]
mod random;
mod registry;
#[cfg(not(feature = "hardened"))]
mod runs;
mod size;
mod stacks;
mod words;

pub(crate) use idle::{take_from_all, take_from_some};
pub(crate) use lifetime::{current_or_made, exit_key, make_another, retire};
pub(crate) use registry::{
    call_for_blocks, component_totals, forget_other_threads, give_up_all, kept_pages, lock_registry, totals,
    unlock_registry,
};

use crate::component::Family;
use crate::decay;
use crate::first_use;
use crate::guarded;
#[cfg(feature = "hardened")]
use crate::hardened;
use crate::heap::{Block, Heap};
use crate::metadata;
use crate::page_table::{Contents, Misuse, Tag};
use crate::profile::Countdown;
use crate::size_class::built::CLASS_COUNT;
use crate::size_class::{BuildGeometry, Geometry, may_begin_at};
use crate::tls;
use crate::units::{ClassIndex, ComponentIndex, PageCount, ShardIndex};
use core::cell::Cell;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicU16, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};
use fast::{UNMARKED, ZEROS, mark};
use gate::Gate;
use registry::CALLS;
#[cfg(not(feature = "hardened"))]
use runs::KeptRuns;
#[cfg(not(feature = "hardened"))]
pub(crate) use runs::{keep_run, make_way, take_run};
use size::{ALIASING_SLOTS, USUAL_WORDS};
use stacks::{Stacks, put_slots};
use static_assertions::const_assert;
use words::Words;

const_assert!(size_of::<ThreadCache>() <= metadata::MOST); // else raise that

/// One thread's cache. See the [module](self).
#[repr(C, align(64))]
pub(crate) struct ThreadCache {
    // What a fast path needs of the heap; no pages in the empty cache.
    base: usize,
    pages: usize,
    tags: *const AtomicU16,
    /// To the next byte that the profile samples.
    pub(crate) countdown: Countdown,
    /// The tag of each class in the cache's shard.
    expected: [Tag; CLASS_COUNT],
    /// What the tags of the cache's shard have beside the class.
    shard_bits: u16,
    local: Stacks,
    remote: Stacks,
    #[cfg(not(feature = "hardened"))]
    kept: KeptRuns,
    shard: ShardIndex,
    /// Where the stacks are from.
    words: Words,
    /// Bytes of blocks that the stacks have slots for.
    slot_bytes: Cell<usize>,
    /// The most that may be, beyond the first few slots of each class.
    most_bytes: usize,
    /// The last call for all blocks that was heard.
    calls: Cell<u32>,
    /// Whether the local stack of a class was empty since it last overflowed.
    was_empty: [Cell<bool>; CLASS_COUNT],
    /// The last pass of [`decay`] that its thread has seen.
    passes: Cell<u32>,
    /// The last pass in which others have looked for what is idle in it.
    looked_at: Cell<u32>,
    /// Whoever is behind it, or has closed it, is alone in the cache, but for pushes and pops: its thread on slow paths, or
    /// another that takes what is idle. With the feature `hardened` pushes and pops go through it, too.
    gate: Gate,
    /// Whether others have [raised](raise) the bottoms of stacks.
    raised: Cell<bool>,
    #[cfg(feature = "hardened")]
    random: hardened::Random,
    /// The thread that it is for.
    owner: usize,
    /// Neighbours in the registry, which guards them.
    next: Cell<*const ThreadCache>,
    previous: Cell<*const ThreadCache>,
    /// The thread's caches for components; null until it enters one.
    pub(crate) family: Cell<*const Family>,
}

/// A static cache that serves nothing.
#[repr(transparent)]
pub(crate) struct Sentinel(pub(crate) ThreadCache);

// SAFETY: nothing of a sentinel is ever changed.
unsafe impl Sync for Sentinel {}

#[allow(clippy::declare_interior_mutable_const)] // to be written down once, for two statics
const SENTINEL: Sentinel = Sentinel(ThreadCache {
    base: 0,
    pages: 0,
    tags: ptr::null(),
    countdown: Countdown::NONE,
    expected: [Tag::NONE; CLASS_COUNT],
    shard_bits: 0,
    local: Stacks::NONE,
    remote: Stacks::UNUSED,
    #[cfg(not(feature = "hardened"))]
    kept: KeptRuns::NONE,
    shard: ShardIndex(0),
    words: Words::NONE,
    slot_bytes: Cell::new(0),
    most_bytes: 0,
    calls: Cell::new(0),
    was_empty: [const { Cell::new(false) }; CLASS_COUNT],
    passes: Cell::new(0),
    looked_at: Cell::new(0),
    gate: Gate::new(),
    raised: Cell::new(false),
    #[cfg(feature = "hardened")]
    random: hardened::Random::NONE,
    owner: 0,
    next: Cell::new(ptr::null()),
    previous: Cell::new(ptr::null()),
    family: Cell::new(ptr::null()),
});

/// The cache of a thread that has none yet.
pub(crate) static EMPTY: Sentinel = SENTINEL;
/// The cache of a thread that had one; and for those who interrupt a thread while it makes or changes its own.
pub(crate) static ABSENT: Sentinel = SENTINEL;

/// A block from its page without a cache, or null.
pub(crate) fn alloc_uncached(heap: &Heap<BuildGeometry>, tag: Tag) -> Block {
    let block = heap.alloc_block(tag);
    if !block.start.is_null() {
        #[cfg(feature = "hardened")]
        hardened::hand_out(heap.start().addr(), tag.class(), block.start.addr(), false);
        // SAFETY: the block is the caller's to be, and no block is shorter.
        unsafe { block.start.cast::<u64>().write(0) };
    }
    block
}

/// Gives a block back to its page without a cache.
pub(crate) fn dealloc_uncached(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize) {
    if !may_begin_at(class, address) {
        heap.refuse(Misuse::NotAtStart, address);
    }
    #[cfg(feature = "hardened")]
    hardened::take_back(heap.start().addr(), class, address);
    put_taken(heap, class, address);
}

/// Gives a block that was taken back from the program to its page.
fn put_taken(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize) {
    mark(address);
    heap.put_all(class, slice::from_mut(&mut { address }));
}

/// The calling thread's cache, or a sentinel.
#[inline(always)]
pub(crate) fn current<'a>() -> &'a ThreadCache {
    // SAFETY: the pointer leads to a sentinel or to this thread's cache, which lives until the thread's exit sets
    // another; no reference is kept across that.
    unsafe { &*tls::get() }
}

/// Whether the calling thread has had its cache, as it ends, or allocates while the loader relocates the program, or was
/// interrupted while it changed its cache: then it can start no other.
#[inline]
pub(crate) fn is_to_have_none() -> bool {
    ptr::eq(tls::get(), &raw const ABSENT.0)
}

/// Does `work` on the calling thread's cache; who interrupts it meanwhile finds none.
#[inline]
pub(crate) fn apart<R>(work: impl FnOnce() -> R) -> R {
    let cache = tls::get();
    tls::set(&raw const ABSENT.0);
    compiler_fence(SeqCst);
    let result = work();
    compiler_fence(SeqCst);
    tls::set(cache);
    result
}

/// Whether the calling thread has a lock of the process heap.
fn has_heap_lock() -> bool {
    first_use::heap().is_some_and(|heap| heap.has_lock_from(0))
}

impl ThreadCache {
    /// Does `work` on the calling thread's cache while nobody takes anything from it, and all bottoms are where the words of
    /// their stacks begin. Who interrupts it finds no cache.
    #[inline]
    fn alone<R>(&self, work: impl FnOnce() -> R) -> R {
        apart(|| {
            let _inside = self.gate.enter(has_heap_lock);
            if self.raised.replace(false) {
                self.local.lower();
                self.remote.lower();
            }
            work()
        })
    }

    /// A block of `class`, or none if the stack is empty.
    #[cfg(not(feature = "hardened"))]
    #[inline(always)]
    pub(crate) fn pop(&self, class: ClassIndex) -> Block {
        self.local.pop(class)
    }

    #[cfg(not(feature = "hardened"))]
    #[inline]
    fn pop_inside(&self, class: ClassIndex) -> Block {
        self.local.pop(class)
    }

    /// Takes the block at `address` back if it is one of `class` and of this shard, and there is room for it.
    #[inline(always)]
    pub(crate) fn push(&self, class: ClassIndex, address: usize) -> bool {
        if !self.serves(class, address) {
            // Said once more here: left to itself, the compiler turns round which way it holds for likely.
            fast::cold();
            return false;
        }
        self.push_checked(class, address)
    }

    /// Whether the page table says that `address` is in a page of blocks of `class`, and of this shard.
    #[inline(always)]
    pub(crate) fn serves(&self, class: ClassIndex, address: usize) -> bool {
        debug_assert!(class.get() < CLASS_COUNT);
        // SAFETY: every class has an expected tag.
        let expected = unsafe { *self.expected.get_unchecked(class.get()) };
        self.tag_of(address) == Some(expected) || cfg!(pma_unchecked = "tag")
    }

    /// Puts a block of a page that the cache [serves](Self::serves) on the stack of its class, if there is room.
    #[inline(always)]
    pub(crate) fn push_checked(&self, class: ClassIndex, address: usize) -> bool {
        #[cfg(not(feature = "hardened"))]
        return self.local.push_warm(class, address);
        #[cfg(feature = "hardened")]
        apart(|| {
            let Some(_inside) = self.gate.try_enter() else { return false };
            if !may_begin_at(class, address) || !self.local.has_room(class) {
                return false;
            }
            hardened::take_back(self.base, class, address);
            self.local.push_warm(class, address)
        })
    }

    /// [`push`](Self::push) for a block whose class only the page table knows.
    #[inline(always)]
    pub(crate) fn push_unsized(&self, address: usize) -> bool {
        // The stack of no class is always full.
        self.class_at(address).is_some_and(|class| self.push_checked(class, address))
    }

    /// The class of the page that `address` lies in, if that is of this shard. It may be none: pages that are not Divided
    /// have the tag of no class in shard 0.
    #[inline(always)]
    pub(crate) fn class_at(&self, address: usize) -> Option<ClassIndex> {
        // More than any class if the page is not of this shard.
        let class = self.tag_of(address)?.bits() ^ self.shard_bits;
        (class < CLASS_COUNT as u16).then_some(ClassIndex(class as u8))
    }

    /// Puts a block of a page of another shard, and of `class` if one is given, on the stack of those that go home, if
    /// there is room.
    #[inline(always)]
    pub(crate) fn push_remote(&self, class: Option<ClassIndex>, address: usize) -> bool {
        !cfg!(feature = "hardened")
            && self.tag_of(address).is_some_and(|tag| {
                class.is_none_or(|class| tag.class() == class)
                    && tag.shard() != self.shard
                    && !tag.shard().is_sampled()
                    && may_begin_at(tag.class(), address)
                    && self.remote.push(tag.class(), address)
            })
    }

    /// The tag of the page that `address` lies in, if that is in the arena.
    #[inline(always)]
    fn tag_of(&self, address: usize) -> Option<Tag> {
        let page = address.wrapping_sub(self.base) >> BuildGeometry.page_shift();
        if page >= self.pages {
            return None;
        }
        // SAFETY: every page of the arena has a tag.
        Some(Tag::from_bits(unsafe { (*self.tags.add(page)).load(Relaxed) }))
    }

    pub(crate) fn is_sentinel(&self) -> bool {
        self.tags.is_null()
    }

    /// A block of `class` after the stack was found empty: fills it first. None if the heap has none.
    pub(crate) fn alloc_slow(&self, heap: &Heap<BuildGeometry>, class: ClassIndex) -> Block {
        self.alone(|| self.refill(heap, class))
    }

    fn refill(&self, heap: &Heap<BuildGeometry>, class: ClassIndex) -> Block {
        let block = self.pop_inside(class);
        if !block.start.is_null() {
            return block;
        }
        #[cfg(not(feature = "hardened"))]
        if let (slots, used @ 1..) = self.local.slots(class) {
            heap.refuse(Misuse::UsedSinceFreed, slots[used - 1]);
        }
        self.give_up(heap);
        self.grow(&self.local, class, self.bound_when_empty(class));
        let (slots, used) = self.local.slots(class);
        let tag = self.expected[class.get()];
        if slots.is_empty() {
            return alloc_uncached(heap, tag);
        }
        let most = slots.len().div_ceil(2) - used;
        // Inside a component nothing is guarded.
        let is_of_component = self.component() != ComponentIndex::NONE;
        let batch = used + if is_of_component { most } else { guarded::before_next(most) };
        let taken = heap.refill(tag, &mut slots[used..batch], |slots, holds| {
            let flags = if holds == Contents::Zeros { UNMARKED | ZEROS } else { UNMARKED };
            slots.iter_mut().for_each(|slot| *slot |= flags);
        });
        guarded::count(taken.saturating_sub(1));
        if taken < batch - used {
            slots.copy_within(batch - taken..batch, used);
        }
        self.local.set_used(class, used + taken);
        #[cfg(not(feature = "hardened"))]
        return self.local.pop(class);
        // What stayed behind has its turn, or would be looked at never.
        #[cfg(feature = "hardened")]
        slots[..used + taken].rotate_left(used);
        #[cfg(feature = "hardened")]
        return self.pop_at_random(class, 0);
    }

    /// Takes back a block that [`push`](Self::push) refused, after the page table was asked whose it is.
    pub(crate) fn dealloc_slow(&self, heap: &Heap<BuildGeometry>, tag: Tag, address: usize) {
        self.alone(|| self.make_room(heap, tag, address));
    }

    fn make_room(&self, heap: &Heap<BuildGeometry>, tag: Tag, address: usize) {
        let stacks = if tag.shard() == self.shard { &self.local } else { &self.remote };
        let class = tag.class();
        if !may_begin_at(class, address) {
            heap.refuse(Misuse::NotAtStart, address);
        }
        #[cfg(feature = "hardened")]
        hardened::take_back(self.base, class, address);
        if stacks.push(class, address) {
            return;
        }
        self.give_up(heap);
        if !self.grow(stacks, class, self.bound_on_overflow(tag)) {
            let (slots, used) = stacks.slots(class);
            // The older half goes; what was freed last is warm. Blocks for other shards go all at once, as none of them is
            // handed out here. Where there was no memory for a stack, there is none.
            if used > 0 {
                let going = if tag.shard() != self.shard {
                    used
                } else {
                    used.div_ceil(2) + if used >= USUAL_WORDS / 2 { ALIASING_SLOTS } else { 0 }
                };
                put_slots(heap, class, &mut slots[..going]);
                slots.copy_within(going..used, 0);
                stacks.set_used(class, used - going);
            }
        }
        if !stacks.push(class, address) {
            put_taken(heap, class, address);
        }
        decay::tick_freed(heap);
    }

    /// Gives back what others have called for since the last slow path, or what was not used for a whole period.
    #[inline]
    pub(crate) fn give_up_blocks(&self, heap: &Heap<BuildGeometry>) {
        if self.is_to_give_up() {
            self.alone(|| self.give_up(heap));
        }
    }

    #[inline]
    fn is_to_give_up(&self) -> bool {
        self.calls.get() != CALLS.load(Relaxed) || self.passes.get() != decay::passes()
    }

    /// [`give_up_blocks`](Self::give_up_blocks) of who is [alone](Self::alone) in the cache.
    fn give_up(&self, heap: &Heap<BuildGeometry>) {
        if self.calls.get() != CALLS.load(Relaxed) {
            self.calls.set(CALLS.load(Relaxed));
            self.local.flush(heap);
            self.remote.flush(heap);
            self.give_up_runs(heap);
        }
        if self.passes.get() != decay::passes() {
            self.passes.set(decay::passes());
            self.give_up_runs(heap);
            self.shrink(heap);
        }
    }

    /// Gives the runs back that its thread keeps. Returns how many bytes they had.
    fn give_up_runs(&self, heap: &Heap<BuildGeometry>) -> usize {
        #[cfg(not(feature = "hardened"))]
        return self.kept.give_up(heap);
        #[cfg(feature = "hardened")]
        let _ = heap;
        #[cfg(feature = "hardened")]
        0
    }

    /// Pages of runs that its thread keeps, as another may count them.
    fn kept_pages(&self) -> PageCount {
        #[cfg(not(feature = "hardened"))]
        return self.kept.pages();
        #[cfg(feature = "hardened")]
        PageCount(0)
    }

    /// The component that the cache serves.
    pub(crate) fn component(&self) -> ComponentIndex {
        self.shard.component()
    }

    /// Gives every block back to its page.
    pub(crate) fn flush(&self, heap: &Heap<BuildGeometry>) {
        self.alone(|| {
            self.local.flush(heap);
            self.remote.flush(heap);
            self.give_up_runs(heap);
        });
    }

    /// Gives every block of another shard back to its page.
    pub(crate) fn flush_remote(&self, heap: &Heap<BuildGeometry>) {
        self.alone(|| self.remote.flush(heap));
    }
}

/// What a slow path does that is not one of the cache: has the calling thread's cache
/// [give back](ThreadCache::give_up_blocks) what it should.
#[inline]
pub(crate) fn give_up_blocks(heap: &Heap<BuildGeometry>) {
    let cache = current();
    if !cache.is_sentinel() {
        cache.give_up_blocks(heap);
    }
}
