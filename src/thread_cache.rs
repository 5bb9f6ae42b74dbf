//! Thread caches: per thread and class a stack of block addresses.
//!
//! The [stacks] have the fast paths; the [registry] knows all caches; [lifetime] is about how threads get and leave theirs.
//! Here is what a cache is, and its slow paths.
//!
//! A cache serves and takes blocks of one shard's pages, to which it is assigned when it is made; blocks of other
//! shards that its thread frees wait in stacks of their own until they go home. On the fast path nothing is locked
//! and nothing is atomic in more than name: the tops are `AtomicPtr` because [`totals`] reads them from other
//! threads, and relaxed loads and stores are plain ones. Slow paths go through a [gate], which others close who take what
//! waits in the cache while its thread [sleeps](idle).
//!
//! A thread starts on [`EMPTY`], whose stacks are all empty and all full: its first call misses, and the slow path
//! makes the real cache. It ends on [`GONE`], which looks the same but is never replaced: what a thread frees or
//! allocates after its cache was flushed goes to the heap directly.
//!
//! # Signals
//! A handler that allocates may interrupt its thread anywhere. While a slow path changes the cache, the thread is on
//! [`BUSY`], which is like `GONE`: the handler is served by the heap, or finds a lock that its own thread holds, which ends
//! the process (`lock.rs`). The fast paths have no such provision, but an order: a pop takes the block off the stack before
//! it wipes the mark out, and a push marks it before it puts it there. So whatever a handler allocates and frees again, the
//! last first, leaves both as they were. What remains is said in `SECURITY.md`.

mod fast;
mod gate;
mod idle;
mod lifetime;
mod raise;
mod registry;
mod stacks;

pub(crate) use idle::{take_from_all, take_from_some};
pub(crate) use lifetime::{current_or_made, exit_key, make_another, retire};
pub(crate) use registry::{
    call_for_blocks, component_totals, forget_other_threads, lock_registry, totals, unlock_registry,
};

use crate::component::Family;
use crate::decay;
use crate::guarded;
#[cfg(feature = "hardened")]
use crate::hardened;
use crate::heap::Heap;
use crate::metadata;
use crate::page_table::Tag;
use crate::profile::Countdown;
use crate::size_class::built::CLASS_COUNT;
use crate::size_class::{BuildGeometry, Geometry, SizeClasses, may_begin_at};
use crate::tls;
use crate::units::{ClassIndex, ComponentIndex, ShardIndex};
use core::cell::Cell;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicU16, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};
#[cfg(feature = "hardened")]
use fast::FREED;
use fast::{UNMARKED, mark};
use gate::Gate;
use idle::IDLE;
use registry::{CALLS, share};
use stacks::{Stacks, classes, put_slots};
use static_assertions::const_assert;

/// A stack holds no more bytes of blocks than this, nor more slots than [`USUAL_WORDS`] leaves.
const USUAL_BYTES: usize = 64 << 10;
/// The same for a stack of blocks for other shards: a thread that only takes over and frees what others allocate fills
/// them all, and has no use for what is in them.
const REMOTE_BYTES: usize = 8 << 10;
/// The same for a stack of small blocks that was empty since it last overflowed, and overflows again, with [`MOST_WORDS`]:
/// its thread takes and frees more of them in turn than the stack holds.
const MOST_BYTES: usize = 1 << 20;
const SMALL: usize = 1024;
/// All stacks of a cache together have slots for no more bytes of blocks than this, beside the first few of each small
/// class.
const CACHE_BYTES: usize = 3 << 20;
/// The first slots of a class are not too many if they are for no more bytes, nor ever for a component.
const FREE_BYTES: usize = 4 << 10;
/// Words of a stack, the two at its ends included: powers of two.
const FIRST_WORDS: usize = 8;
const LEAST_WORDS: usize = 4;
const USUAL_WORDS: usize = 512;
const MOST_WORDS: usize = 2048;
/// So many slots more than half of a stack go, because half of a large one are a multiple of 4 KiB: processors take the
/// words that stay, which are copied over that distance, for the ones that they have just written.
const APART: usize = 16;
/// Words that a stack of blocks for other shards grows to on account of components.
const COMPONENT_WORDS: usize = 32;
/// Of a stack, this part stays behind, so that a block that was freed last is not the next to be handed out.
#[cfg(feature = "hardened")]
const LEAST_CHOICE: usize = 4;
/// The next block is one of so many on top of the stack. More of them would have to be fetched from further away.
#[cfg(feature = "hardened")]
const MOST_CHOICE: usize = 16;

const_assert!(LEAST_WORDS <= FIRST_WORDS && FIRST_WORDS <= COMPONENT_WORDS && COMPONENT_WORDS <= USUAL_WORDS);
const_assert!(USUAL_WORDS <= MOST_WORDS && MOST_WORDS < IDLE as usize);
const_assert!(MOST_WORDS * size_of::<usize>() <= metadata::MOST);
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
    shard: ShardIndex,
    /// Bytes of blocks that the stacks have slots for, and to which they may have.
    slot_bytes: Cell<usize>,
    most_bytes: usize,
    /// The last call for all blocks that was heard.
    calls: Cell<u32>,
    /// Whether the local stack of a class was empty since it last overflowed.
    was_empty: [Cell<bool>; CLASS_COUNT],
    /// The last pass of [`decay`] that was seen, and the last with which others have looked for what is idle.
    passes: Cell<u32>,
    looked_at: Cell<u32>,
    /// Whoever is behind it, or has closed it, is alone in the cache, but for pushes and pops: its thread on slow paths, or
    /// another that takes what is idle. With the feature `hardened` pushes and pops go through it, too.
    gate: Gate,
    /// Whether others have [raised](raise) the bottoms of stacks.
    raised: Cell<bool>,
    #[cfg(feature = "hardened")]
    random: hardened::Random,
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
    shard: ShardIndex(0),
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
    next: Cell::new(ptr::null()),
    previous: Cell::new(ptr::null()),
    family: Cell::new(ptr::null()),
});

/// The cache of a thread that has none yet.
pub(crate) static EMPTY: Sentinel = SENTINEL;
/// The cache of a thread that had one.
pub(crate) static GONE: Sentinel = SENTINEL;
/// The cache of a thread for those who interrupt it while it makes or changes its own.
pub(crate) static BUSY: Sentinel = SENTINEL;

/// A block from its page without a cache, or null.
pub(crate) fn take(heap: &Heap<BuildGeometry>, tag: Tag) -> *mut u8 {
    let block = heap.alloc_block(tag);
    if !block.is_null() {
        #[cfg(feature = "hardened")]
        hardened::hand_out(heap.start().addr(), tag.class(), block.addr(), false);
        // SAFETY: the block is the caller's to be, and no block is shorter.
        unsafe { block.cast::<u64>().write(0) };
    }
    block
}

/// Gives a block back to its page without a cache.
pub(crate) fn put(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize) {
    if !may_begin_at(class, address) {
        heap.refuse_middle(address);
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

/// The most words a stack of `class` grows to, as it holds no more than so many bytes of blocks, nor more words.
fn most_words(class: ClassIndex, bytes: usize, words: usize) -> usize {
    let slots = bytes / SizeClasses::BUILD.block(class);
    (1 << (slots + 2).ilog2()).clamp(LEAST_WORDS, words)
}

/// The calling thread's cache, or a sentinel.
#[inline(always)]
pub(crate) fn current<'a>() -> &'a ThreadCache {
    // SAFETY: the pointer leads to a sentinel or to this thread's cache, which lives until the thread's exit sets
    // another; no reference is kept across that.
    unsafe { &*tls::get() }
}

/// Does `work` on the calling thread's cache; who interrupts it meanwhile finds none.
#[inline]
pub(crate) fn apart<R>(work: impl FnOnce() -> R) -> R {
    let cache = tls::get();
    tls::set(&raw const BUSY.0);
    compiler_fence(SeqCst);
    let result = work();
    compiler_fence(SeqCst);
    tls::set(cache);
    result
}

impl ThreadCache {
    /// A block of `class`, or null if the stack is empty.
    #[cfg(not(feature = "hardened"))]
    #[inline(always)]
    pub(crate) fn pop(&self, class: ClassIndex) -> *mut u8 {
        self.local.pop(class)
    }

    /// A block of `class`, or null if its stack has none to give.
    #[cfg(feature = "hardened")]
    #[inline]
    pub(crate) fn pop(&self, class: ClassIndex) -> *mut u8 {
        if self.is_sentinel() {
            return ptr::null_mut();
        }
        apart(|| self.gate.try_enter().map(|_inside| self.pop_inside(class))).unwrap_or(ptr::null_mut())
    }

    #[cfg(not(feature = "hardened"))]
    #[inline]
    fn pop_inside(&self, class: ClassIndex) -> *mut u8 {
        self.local.pop(class)
    }

    /// Any block near the top of the stack, or null if that has too few for it to be hard to guess which.
    #[cfg(feature = "hardened")]
    #[inline]
    fn pop_inside(&self, class: ClassIndex) -> *mut u8 {
        let (_, words) = self.local.words(class);
        self.pop_at_random(class, (words / LEAST_CHOICE).min(MOST_CHOICE))
    }

    /// A block of `class`, any near the top of the stack, or null if that has no more than `left`.
    #[cfg(feature = "hardened")]
    #[inline]
    fn pop_at_random(&self, class: ClassIndex, left: usize) -> *mut u8 {
        let (start, top) = (self.local.words(class).0, self.local.top(class));
        if start.is_null() {
            return ptr::null_mut();
        }
        let slot = top.load(Relaxed);
        // SAFETY: `top` leads to a slot in use, or to the bottom, which is where the words start; all between are in use.
        let value = unsafe {
            let used = slot.offset_from_unsigned(start);
            if used <= left {
                return ptr::null_mut();
            }
            let chosen = slot.sub(self.random.below(used.min(MOST_CHOICE)));
            let value = (*chosen).load(Relaxed);
            (*chosen).store((*slot).load(Relaxed), Relaxed);
            top.store(slot.sub(1), Relaxed);
            value
        };
        let block = ptr::with_exposed_provenance_mut::<u64>(value & !UNMARKED);
        // SAFETY: the block is the caller's to be, and no block is shorter.
        if value & UNMARKED == 0 && unsafe { block.replace(0) } != FREED {
            hardened::refuse_to_hand_out(block.addr());
        }
        hardened::hand_out(self.base, class, block.addr(), value & UNMARKED == 0);
        block.cast()
    }

    /// Takes the block at `address` back if the page table says that it is one of `class` and of this shard, and
    /// there is room for it.
    #[inline(always)]
    pub(crate) fn push(&self, class: ClassIndex, address: usize) -> bool {
        debug_assert!(class.get() < CLASS_COUNT);
        // SAFETY: every class has an expected tag.
        let expected = unsafe { *self.expected.get_unchecked(class.get()) };
        (self.tag_of(address) == Some(expected) || cfg!(pma_unchecked = "tag"))
            && self.push_checked(class, address)
    }

    /// Puts a block on the stack of its class, if there is room.
    #[inline(always)]
    fn push_checked(&self, class: ClassIndex, address: usize) -> bool {
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
        let Some(tag) = self.tag_of(address) else { return false };
        // The class if the page is of this shard, else more than any class. The stack of class 0, which pages that
        // are not Divided have in shard 0, is always full.
        let class = tag.bits() ^ self.shard_bits;
        class < CLASS_COUNT as u16 && self.push_checked(ClassIndex(class as u8), address)
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

    /// A block of `class` after the stack was found empty: fills it first. Null if the heap has none.
    pub(crate) fn alloc_slow(&self, heap: &Heap<BuildGeometry>, class: ClassIndex) -> *mut u8 {
        self.alone(|| self.refill(heap, class))
    }

    fn refill(&self, heap: &Heap<BuildGeometry>, class: ClassIndex) -> *mut u8 {
        let block = self.pop_inside(class);
        if !block.is_null() {
            return block;
        }
        #[cfg(not(feature = "hardened"))]
        if let (slots, used @ 1..) = self.local.slots(class) {
            heap.refuse_unmarked(slots[used - 1]);
        }
        self.give_up(heap);
        self.was_empty[class.get()].set(true);
        self.grow(&self.local, class, most_words(class, USUAL_BYTES, USUAL_WORDS));
        let (slots, used) = self.local.slots(class);
        let tag = self.expected[class.get()];
        if slots.is_empty() {
            return take(heap, tag);
        }
        let batch = used + guarded::before_next(slots.len().div_ceil(2) - used);
        let taken = heap.refill(tag, &mut slots[used..batch], |slots| {
            slots.iter_mut().for_each(|slot| *slot |= UNMARKED);
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
            heap.refuse_middle(address);
        }
        #[cfg(feature = "hardened")]
        hardened::take_back(self.base, class, address);
        if stacks.push(class, address) {
            return;
        }
        self.give_up(heap);
        if !self.grow(stacks, class, self.most_words(tag)) {
            let (slots, used) = stacks.slots(class);
            // The older half goes; what was freed last is warm. Blocks for other shards go all at once, as none of them is
            // handed out here. Where there was no memory for a stack, there is none.
            if used > 0 {
                let going = if tag.shard() != self.shard {
                    used
                } else {
                    used.div_ceil(2) + if used >= USUAL_WORDS / 2 { APART } else { 0 }
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

    /// The most words of the stack that a block of `tag` goes to, which overflows: that it does is taken note of. Blocks of
    /// components that wait to go home are held by them all the while, so they do not wait for many others.
    fn most_words(&self, tag: Tag) -> usize {
        let class = tag.class();
        if tag.shard() != self.shard {
            let of_component = tag.shard().component() != ComponentIndex::NONE;
            most_words(class, REMOTE_BYTES, if of_component { COMPONENT_WORDS } else { USUAL_WORDS })
        } else if self.was_empty[class.get()].replace(false)
            && SizeClasses::BUILD.block(class) <= SMALL
            // What is to be guarded is chosen among those that are not in the cache.
            && guarded::are_off()
        {
            most_words(class, MOST_BYTES, MOST_WORDS)
        } else {
            most_words(class, USUAL_BYTES, USUAL_WORDS)
        }
    }

    /// Doubles the stack of a class, up to `most` words, if the bound of the cache allows.
    fn grow(&self, stacks: &Stacks, class: ClassIndex, most: usize) -> bool {
        let (_, old) = stacks.words(class);
        let new = if old == 0 { FIRST_WORDS.min(most) } else { old * 2 };
        let more = (new - old) * SizeClasses::BUILD.block(class);
        if new > most
            || ((old != 0 || (more > FREE_BYTES && self.component() == ComponentIndex::NONE))
                && self.slot_bytes.get() + more > self.most_bytes.min(share()))
            || !stacks.move_to(class, new)
        {
            return false;
        }
        self.slot_bytes.set(self.slot_bytes.get() + more);
        debug_assert_eq!(self.slot_bytes.get(), self.bytes_of_slots());
        true
    }

    /// What [`slot_bytes`](Self::slot_bytes) is to be; the words at the ends of stacks are counted as slots.
    fn bytes_of_slots(&self) -> usize {
        let both = classes().flat_map(|class| [(&self.local, class), (&self.remote, class)]);
        both.map(|(stacks, class)| stacks.words(class).1 * SizeClasses::BUILD.block(class)).sum()
    }

    /// Gives back what others have called for since the last slow path, or what was not used for a whole period.
    #[inline]
    pub(crate) fn give_up_blocks(&self, heap: &Heap<BuildGeometry>) {
        if self.calls.get() != CALLS.load(Relaxed) || self.passes.get() != decay::passes() {
            self.alone(|| self.give_up(heap));
        }
    }

    /// [`give_up_blocks`](Self::give_up_blocks) of who is [alone](Self::alone) in the cache.
    fn give_up(&self, heap: &Heap<BuildGeometry>) {
        if self.calls.get() != CALLS.load(Relaxed) {
            self.calls.set(CALLS.load(Relaxed));
            self.local.flush(heap);
            self.remote.flush(heap);
        }
        if self.passes.get() != decay::passes() {
            self.passes.set(decay::passes());
            self.shrink(heap);
        }
    }

    /// Empties the stacks that are as full as they were a period ago, which were hardly used meanwhile, and gives
    /// their words back. If the others have slots for more bytes than the cache may have by now, as there are more
    /// caches, so it does with those of the largest blocks.
    #[cold]
    fn shrink(&self, heap: &Heap<BuildGeometry>) {
        for stacks in [&self.local, &self.remote] {
            for class in classes() {
                let held = stacks.slots(class).1 as u16;
                let then = stacks.held_then[class.get()].replace(held);
                // Who has looked from outside has noted what was idle.
                if then == IDLE || (then == held && self.looked_at.get() != self.passes.get()) {
                    self.empty(stacks, class, heap);
                }
            }
        }
        let most = self.most_bytes.min(share());
        let both = classes().rev().flat_map(|class| [(&self.remote, class), (&self.local, class)]);
        for (stacks, class) in both {
            if self.slot_bytes.get() <= most {
                break;
            }
            self.empty(stacks, class, heap);
        }
    }

    /// Gives the blocks of a stack back to their pages, and its words.
    fn empty(&self, stacks: &Stacks, class: ClassIndex, heap: &Heap<BuildGeometry>) {
        let (slots, used) = stacks.slots(class);
        if !slots.is_empty() {
            let bytes = (slots.len() + 2) * SizeClasses::BUILD.block(class);
            put_slots(heap, class, &mut slots[..used]);
            stacks.drop_words(class);
            stacks.held_then[class.get()].set(0);
            self.slot_bytes.set(self.slot_bytes.get() - bytes);
            debug_assert_eq!(self.slot_bytes.get(), self.bytes_of_slots());
        }
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
