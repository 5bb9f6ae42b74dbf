//! Thread caches: per thread and class a stack of block addresses. The blocks themselves are never touched.
//!
//! A cache serves and takes blocks of one shard's pages, to which it is assigned when it is made; blocks of other
//! shards that its thread frees wait in stacks of their own until they go home. On the fast path nothing is locked
//! and nothing is atomic in more than name: the tops are `AtomicPtr` because [`totals`] reads them from other
//! threads, and relaxed loads and stores are plain ones.
//!
//! A thread starts on [`EMPTY`], whose stacks are all empty and all full: its first call misses, and the slow path
//! makes the real cache. It ends on [`GONE`], which looks the same but is never replaced: what a thread frees or
//! allocates after its cache was flushed goes to the heap directly.

use crate::decay;
use crate::heap::Heap;
use crate::lock::Lock;
use crate::metadata;
use crate::page_table::Tag;
use crate::size_class::{BuildGeometry, Geometry, SizeClasses, built::CLASS_COUNT, built::SHARDS};
use crate::sys;
use crate::tls;
use crate::units::{ClassIndex, ShardIndex};
use core::cell::Cell;
use core::mem;
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU16, AtomicU32, AtomicUsize, Ordering::Relaxed};
use static_assertions::const_assert;

/// A stack holds no more bytes of blocks than this, nor more slots than [`MOST_WORDS`] leaves.
const MOST_BYTES: usize = 64 << 10;
/// All stacks of a cache together have slots for no more bytes of blocks than this.
const CACHE_BYTES: usize = 2 << 20;
/// Words of a stack, the two at its ends included: powers of two.
const FIRST_WORDS: usize = 16;
const LEAST_WORDS: usize = 4;
const MOST_WORDS: usize = 512;

/// Lies below the lowest slot of a stack: what `pop` finds there says that the stack is empty.
const BOTTOM: usize = 0;
/// Lies above the highest slot of a stack: what `push` finds there says that the stack is full. No block is at
/// this address, and no free slot holds this value.
const LID: usize = 1;

/// The stack of every class that has none yet: empty and full.
static NO_STACK: [AtomicUsize; 2] = [AtomicUsize::new(BOTTOM), AtomicUsize::new(LID)];

const_assert!(FIRST_WORDS <= MOST_WORDS && LEAST_WORDS <= FIRST_WORDS);
const_assert!(size_of::<ThreadCache>() <= metadata::MOST); // else raise that

/// Where a stack's words are: `BOTTOM`, slots, `LID`.
struct Words {
    start: AtomicPtr<usize>,
    len: AtomicU32,
}

/// A stack of addresses for each class.
struct Stacks {
    /// The highest slot in use, or `BOTTOM`.
    tops: [AtomicPtr<usize>; CLASS_COUNT],
    words: [Words; CLASS_COUNT],
}

/// One thread's cache. See the [module](self).
#[repr(C, align(64))]
pub(crate) struct ThreadCache {
    // What a fast path needs of the heap; no pages in the empty cache.
    base: usize,
    pages: usize,
    tags: *const AtomicU16,
    /// The tag of each class in the cache's shard.
    expected: [Tag; CLASS_COUNT],
    /// What the tags of the cache's shard have beside the class.
    shard_bits: u16,
    local: Stacks,
    remote: Stacks,
    shard: ShardIndex,
    /// Bytes of blocks that the stacks have slots for.
    slot_bytes: Cell<usize>,
    /// The last call for all blocks that was heard.
    calls: Cell<u32>,
    /// The last pass of [`decay`] that was seen, and how many blocks each local stack had then.
    passes: Cell<u32>,
    held_then: [Cell<u16>; CLASS_COUNT],
    /// Neighbours in the registry, which guards them.
    next: Cell<*const ThreadCache>,
    previous: Cell<*const ThreadCache>,
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
    expected: [Tag::NONE; CLASS_COUNT],
    shard_bits: 0,
    local: Stacks::NONE,
    remote: Stacks::NONE,
    shard: ShardIndex(0),
    slot_bytes: Cell::new(0),
    calls: Cell::new(0),
    passes: Cell::new(0),
    held_then: [const { Cell::new(0) }; CLASS_COUNT],
    next: Cell::new(ptr::null()),
    previous: Cell::new(ptr::null()),
});

/// The cache of a thread that has none yet.
pub(crate) static EMPTY: Sentinel = SENTINEL;
/// The cache of a thread that had one.
pub(crate) static GONE: Sentinel = SENTINEL;

/// All caches, for those who want to know what they hold.
struct Registry {
    first: *const ThreadCache,
    /// Caches alive, by shard.
    of_shard: [u32; SHARDS],
}

// SAFETY: the registry holds addresses; who follows them holds its lock.
unsafe impl Send for Registry {}

/// Calls for all blocks of all caches so far: each cache hears them on its next slow path.
static CALLS: AtomicU32 = AtomicU32::new(0);

static REGISTRY: Lock<Registry> = Lock::new(Registry { first: ptr::null(), of_shard: [0; SHARDS] });

impl Registry {
    /// The shard for one more thread: the least used, the lowest of these. Where threads come and go, the next one
    /// goes on with the pages that the last one left half empty.
    ///
    /// A thread that begins by freeing a block has taken over somebody's data, and is to free more of it: it joins
    /// the shard of that block, unless that is crowded.
    fn join(&mut self, of_freed: Option<ShardIndex>) -> ShardIndex {
        let mut least = 0;
        for shard in 1..SHARDS {
            if self.of_shard[shard] < self.of_shard[least] {
                least = shard;
            }
        }
        if let Some(ShardIndex(shard)) = of_freed
            && self.of_shard[shard as usize] <= self.of_shard[least] + 1
        {
            least = shard as usize;
        }
        self.of_shard[least] += 1;
        ShardIndex(least as u8)
    }
}

/// What all thread caches hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CacheTotals {
    pub(crate) threads: usize,
    /// Blocks, by class.
    pub(crate) blocks: [usize; CLASS_COUNT],
}

/// Starts to fetch the cache line of a block that was freed: it is the next to be handed out, and written to. No
/// instruction waits for it, so a cold block costs the one who frees it nothing.
#[inline(always)]
fn prefetch_for_writing(address: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which touches no memory and never faults.
    unsafe {
        core::arch::asm!("prefetchw [{address}]", address = in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{address}]", address = in(reg) address, options(nostack, preserves_flags, readonly));
    }
    let _ = address;
}

/// The most words a stack of `class` grows to.
fn most_words(class: ClassIndex) -> usize {
    let slots = MOST_BYTES / SizeClasses::BUILD.block(class);
    (1 << (slots + 2).ilog2()).clamp(LEAST_WORDS, MOST_WORDS)
}

impl Stacks {
    #[allow(clippy::declare_interior_mutable_const)] // copied into each cache
    const NONE: Stacks = Stacks {
        tops: [const { AtomicPtr::new(&raw const NO_STACK as *mut usize) }; CLASS_COUNT],
        words: [const { Words { start: AtomicPtr::new(ptr::null_mut()), len: AtomicU32::new(0) } };
            CLASS_COUNT],
    };

    #[inline(always)]
    fn top(&self, class: ClassIndex) -> &AtomicPtr<usize> {
        debug_assert!(class.get() < CLASS_COUNT);
        // SAFETY: class indices are below the number of classes: the tables that yield them say so.
        unsafe { self.tops.get_unchecked(class.get()) }
    }

    /// The address on top, which is removed, or `BOTTOM`.
    #[inline(always)]
    fn pop(&self, class: ClassIndex) -> usize {
        let top = self.top(class);
        let slot = top.load(Relaxed);
        // SAFETY: `top` leads to a slot in use or to `BOTTOM`; below the former there is a slot or `BOTTOM`.
        unsafe {
            let address = slot.read();
            if address != BOTTOM {
                top.store(slot.sub(1), Relaxed);
            }
            address
        }
    }

    /// Puts `address` on top; false if there is no room.
    #[inline(always)]
    fn push(&self, class: ClassIndex, address: usize) -> bool {
        let top = self.top(class);
        // SAFETY: above a slot in use, and above `BOTTOM`, there is a slot or `LID`.
        unsafe {
            let slot = top.load(Relaxed).add(1);
            if slot.read() == LID {
                return false;
            }
            slot.write(address);
            top.store(slot, Relaxed);
        }
        true
    }

    /// [`push`](Self::push) of a block that this thread is to hand out again.
    #[inline(always)]
    fn push_warm(&self, class: ClassIndex, address: usize) -> bool {
        let pushed = self.push(class, address);
        if pushed {
            prefetch_for_writing(address);
        }
        pushed
    }

    /// The slots of a class, from the bottom up, and how many of them are in use.
    #[allow(clippy::mut_from_ref)] // the slots are this thread's alone, and it uses them one function at a time
    fn slots(&self, class: ClassIndex) -> (&mut [usize], usize) {
        let words = &self.words[class.get()];
        let (start, len) = (words.start.load(Relaxed), words.len.load(Relaxed) as usize);
        if len == 0 {
            return (&mut [], 0);
        }
        // SAFETY: the words are this thread's; the reference ends before they are used otherwise. `top` lies within.
        unsafe {
            let used = self.top(class).load(Relaxed).offset_from_unsigned(start);
            (slice::from_raw_parts_mut(start.add(1), len - 2), used)
        }
    }

    fn set_used(&self, class: ClassIndex, used: usize) {
        debug_assert!(used < self.words[class.get()].len.load(Relaxed) as usize);
        let start = self.words[class.get()].start.load(Relaxed);
        // SAFETY: `used` is at most the number of slots, which follow `BOTTOM`.
        self.top(class).store(unsafe { start.add(used) }, Relaxed);
    }

    /// Moves the stack of a class to `len` words, at least as many as it has.
    fn move_to(&self, class: ClassIndex, len: usize) -> bool {
        let Some(new) = metadata::alloc(len * size_of::<usize>()) else { return false };
        let new = new.cast::<usize>().as_ptr();
        let (old, used) = self.slots(class);
        // SAFETY: the new words are zeroed, so `BOTTOM` is in place and no free slot holds `LID`; the slots in use fit.
        unsafe {
            new.add(len - 1).write(LID);
            new.add(1).copy_from_nonoverlapping(old.as_ptr(), used);
        }
        self.drop_words(class);
        self.words[class.get()].start.store(new, Relaxed);
        self.words[class.get()].len.store(len as u32, Relaxed);
        self.set_used(class, used);
        true
    }

    /// Gives the words of a class back, whatever is in them.
    fn drop_words(&self, class: ClassIndex) {
        let words = &self.words[class.get()];
        let (start, len) = (words.start.load(Relaxed), words.len.load(Relaxed) as usize);
        self.top(class).store(&raw const NO_STACK as *mut usize, Relaxed);
        words.len.store(0, Relaxed);
        if let Some(start) = NonNull::new(start.cast()) {
            // SAFETY: the words were allocated with this length, and nothing leads to them any more.
            unsafe { metadata::free(start, len * size_of::<usize>()) };
        }
        words.start.store(ptr::null_mut(), Relaxed);
    }

    /// Blocks held, as another thread may count them: near the truth while the owner is at work.
    fn held(&self, class: ClassIndex) -> usize {
        let words = &self.words[class.get()];
        let (start, len) = (words.start.load(Relaxed).addr(), words.len.load(Relaxed) as usize);
        let used = self.top(class).load(Relaxed).addr().wrapping_sub(start) / size_of::<usize>();
        if start != 0 && used < len { used } else { 0 }
    }
}

/// All classes.
fn classes() -> impl Iterator<Item = ClassIndex> {
    (1..CLASS_COUNT).map(|class| ClassIndex(class as u8))
}

/// The calling thread's cache, or a sentinel.
#[inline(always)]
pub(crate) fn current<'a>() -> &'a ThreadCache {
    // SAFETY: the pointer leads to a sentinel or to this thread's cache, which lives until the thread's exit sets
    // another; no reference is kept across that.
    unsafe { &*tls::get() }
}

impl ThreadCache {
    /// A block of `class`, or null if the stack is empty.
    #[inline(always)]
    pub(crate) fn pop(&self, class: ClassIndex) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.local.pop(class))
    }

    /// Takes the block at `address` back if the page table says that it is one of `class` and of this shard, and
    /// there is room for it.
    #[inline(always)]
    pub(crate) fn push(&self, class: ClassIndex, address: usize) -> bool {
        debug_assert!(class.get() < CLASS_COUNT);
        // SAFETY: every class has an expected tag.
        let expected = unsafe { *self.expected.get_unchecked(class.get()) };
        self.tag_of(address) == Some(expected) && self.local.push_warm(class, address)
    }

    /// [`push`](Self::push) for a block whose class only the page table knows.
    #[inline(always)]
    pub(crate) fn push_unsized(&self, address: usize) -> bool {
        let Some(tag) = self.tag_of(address) else { return false };
        // The class if the page is of this shard, else more than any class. The stack of class 0, which pages that
        // are not Divided have in shard 0, is always full.
        let class = tag.bits() ^ self.shard_bits;
        class < CLASS_COUNT as u16 && self.local.push_warm(ClassIndex(class as u8), address)
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

    fn is_sentinel(&self) -> bool {
        self.tags.is_null()
    }

    /// A block of `class` after the stack was found empty: fills it first. Null if the heap has none.
    pub(crate) fn alloc_slow(&self, heap: &Heap<BuildGeometry>, class: ClassIndex) -> *mut u8 {
        let block = self.pop(class);
        if !block.is_null() {
            return block;
        }
        self.give_up_blocks(heap);
        self.grow(&self.local, class);
        let (slots, _) = self.local.slots(class);
        let tag = self.expected[class.get()];
        if slots.is_empty() {
            let mut slot = [0];
            return if heap.refill(tag, &mut slot) == 1 { heap.pointer(slot[0]) } else { ptr::null_mut() };
        }
        let batch = slots.len().div_ceil(2);
        let taken = heap.refill(tag, &mut slots[..batch]);
        slots.copy_within(batch - taken..batch, 0);
        self.local.set_used(class, taken);
        self.pop(class)
    }

    /// Takes back a block that [`push`](Self::push) refused, after the page table was asked whose it is.
    pub(crate) fn dealloc_slow(&self, heap: &Heap<BuildGeometry>, tag: Tag, address: usize) {
        let stacks = if tag.shard() == self.shard { &self.local } else { &self.remote };
        let class = tag.class();
        if stacks.push(class, address) {
            return;
        }
        decay::tick(heap);
        self.give_up_blocks(heap);
        if !self.grow(stacks, class) {
            let (slots, used) = stacks.slots(class);
            // The older half goes; what was freed last is warm. Where there was no memory for a stack, there is none.
            if used > 0 {
                let going = used.div_ceil(2);
                heap.put_all(class, &mut slots[..going]);
                slots.copy_within(going..used, 0);
                stacks.set_used(class, used - going);
            }
        }
        if !stacks.push(class, address) {
            heap.put_all(class, slice::from_mut(&mut { address }));
        }
    }

    /// Doubles the stack of a class if its bound and that of the cache allow.
    fn grow(&self, stacks: &Stacks, class: ClassIndex) -> bool {
        let old = stacks.words[class.get()].len.load(Relaxed) as usize;
        let most = most_words(class);
        let new = if old == 0 { FIRST_WORDS.min(most) } else { old * 2 };
        let more = (new - old) * SizeClasses::BUILD.block(class);
        if new > most
            || (old != 0 && self.slot_bytes.get() + more > CACHE_BYTES)
            || !stacks.move_to(class, new)
        {
            return false;
        }
        self.slot_bytes.set(self.slot_bytes.get() + more);
        true
    }

    /// Gives back what others have called for since the last slow path, or what was not used for a whole period.
    #[inline]
    fn give_up_blocks(&self, heap: &Heap<BuildGeometry>) {
        if self.calls.get() != CALLS.load(Relaxed) {
            self.calls.set(CALLS.load(Relaxed));
            self.flush(heap);
        }
        if self.passes.get() != decay::passes() {
            self.passes.set(decay::passes());
            self.shrink(heap);
        }
    }

    /// Empties the stacks that are as full as they were a period ago, which were hardly used meanwhile, and gives
    /// their words back.
    #[cold]
    fn shrink(&self, heap: &Heap<BuildGeometry>) {
        for class in classes() {
            let (slots, used) = self.local.slots(class);
            let then = self.held_then[class.get()].replace(used as u16);
            if usize::from(then) == used && !slots.is_empty() {
                let bytes = (slots.len() + 2) * SizeClasses::BUILD.block(class);
                heap.put_all(class, &mut slots[..used]);
                self.local.drop_words(class);
                self.slot_bytes.set(self.slot_bytes.get() - bytes);
                self.held_then[class.get()].set(0);
            }
        }
    }

    /// Gives every block back to its page.
    fn flush(&self, heap: &Heap<BuildGeometry>) {
        for stacks in [&self.local, &self.remote] {
            for class in classes() {
                let (slots, used) = stacks.slots(class);
                heap.put_all(class, &mut slots[..used]);
                if used > 0 {
                    stacks.set_used(class, 0);
                }
            }
        }
    }
}

/// The calling thread's cache, made if it has none; `None` if it is to have none. `of_freed` is the shard of the
/// block that the thread frees, if that is what it is about to do.
#[inline]
pub(crate) fn current_or_made<'a>(
    heap: &'static Heap<BuildGeometry>,
    of_freed: Option<ShardIndex>,
) -> Option<&'a ThreadCache> {
    let cache = current();
    if !cache.is_sentinel() {
        return Some(cache);
    }
    if !tls::AVAILABLE || ptr::eq(cache, &raw const GONE.0) {
        return None;
    }
    make(heap, of_freed)
}

#[cold]
#[inline(never)]
fn make<'a>(heap: &'static Heap<BuildGeometry>, of_freed: Option<ShardIndex>) -> Option<&'a ThreadCache> {
    let key = exit_key()?;
    let piece = metadata::alloc(size_of::<ThreadCache>())?.cast::<ThreadCache>();
    let table = heap.table();
    let mut registry = REGISTRY.lock();
    let shard = registry.join(of_freed);
    heap.use_shard(shard);
    // SAFETY: the piece is long enough and aligned, as it is larger than the alignment; the registry is locked.
    let cache = unsafe {
        piece.write(ThreadCache {
            base: table.base(),
            pages: table.capacity().get(),
            tags: table.tags(),
            expected: core::array::from_fn(|class| match class {
                0 => Tag::NONE,
                class => Tag::new(shard, ClassIndex(class as u8)),
            }),
            shard_bits: Tag::new(shard, ClassIndex::NONE).bits(),
            local: Stacks::NONE,
            remote: Stacks::NONE,
            shard,
            slot_bytes: Cell::new(0),
            calls: Cell::new(CALLS.load(Relaxed)),
            passes: Cell::new(decay::passes()),
            held_then: [const { Cell::new(0) }; CLASS_COUNT],
            next: Cell::new(registry.first),
            previous: Cell::new(ptr::null()),
        });
        if let Some(first) = registry.first.as_ref() {
            first.previous.set(piece.as_ptr());
        }
        piece.as_ref()
    };
    registry.first = cache;
    drop(registry);
    // The cache is in place before the key is set: that may allocate.
    tls::set(cache);
    // SAFETY: the key is valid; the value is handed to `at_exit`.
    if !unsafe { sys::set_thread_value(key, piece.as_ptr().cast()) } {
        // Nobody would flush it: better none.
        // SAFETY: the cache was just made by this thread.
        unsafe { at_exit(piece.as_ptr().cast()) };
        return None;
    }
    Some(cache)
}

/// Gives back all blocks of the calling thread's cache, and calls for those of all others.
pub(crate) fn call_for_blocks(heap: &Heap<BuildGeometry>) {
    CALLS.fetch_add(1, Relaxed);
    let cache = current();
    if !cache.is_sentinel() {
        cache.give_up_blocks(heap);
    }
}

/// The key whose destructor flushes the cache of a thread that ends.
pub(crate) fn exit_key() -> Option<sys::ThreadKey> {
    static KEY: spin::Once<sys::ThreadKey> = spin::Once::new();
    KEY.try_call_once(|| sys::new_thread_key(at_exit).ok_or(())).ok().copied()
}

/// Flushes and frees the cache of the calling thread, which ends.
///
/// # Safety
/// `cache` is the calling thread's.
unsafe extern "C" fn at_exit(cache: *mut core::ffi::c_void) {
    let Some(heap) = crate::global::heap() else { return };
    // SAFETY: the key's value is the cache that this thread made.
    let cache = unsafe { &*cache.cast::<ThreadCache>() };
    tls::set(&raw const GONE.0);
    cache.flush(heap);
    for stacks in [&cache.local, &cache.remote] {
        classes().for_each(|class| stacks.drop_words(class));
    }
    {
        let mut registry = REGISTRY.lock();
        registry.of_shard[cache.shard.0 as usize] -= 1;
        // SAFETY: neighbours in the registry are alive while it is locked.
        unsafe {
            match cache.previous.get().as_ref() {
                Some(previous) => previous.next.set(cache.next.get()),
                None => registry.first = cache.next.get(),
            }
            if let Some(next) = cache.next.get().as_ref() {
                next.previous.set(cache.previous.get());
            }
        }
    }
    // SAFETY: the cache was allocated with this size; nothing leads to it any more.
    unsafe { metadata::free(NonNull::from(cache).cast(), size_of::<ThreadCache>()) };
}

/// Locks the registry until [`unlock_registry`]. No shard comes into use meanwhile.
pub(crate) fn lock_registry() {
    mem::forget(REGISTRY.lock());
}

/// Opens the registry again.
///
/// # Safety
/// This thread, or in a child process the one that forked, locked it.
pub(crate) unsafe fn unlock_registry() {
    // SAFETY: the caller's lock; no reference to the registry was kept.
    unsafe { REGISTRY.unlock_leaked() };
}

/// Takes all caches but the calling thread's out of the registry. What they hold is lost.
///
/// # Safety
/// The registry is locked by [`lock_registry`], and no other thread exists.
pub(crate) unsafe fn forget_other_threads() {
    // SAFETY: the caller's lock.
    let registry = unsafe { REGISTRY.leaked() };
    registry.first = ptr::null();
    registry.of_shard = [0; SHARDS];
    let cache = current();
    if !cache.is_sentinel() {
        registry.first = cache;
        registry.of_shard[cache.shard.0 as usize] = 1;
        cache.next.set(ptr::null());
        cache.previous.set(ptr::null());
    }
}

/// Counts what all caches hold. Threads at work may change it meanwhile.
pub(crate) fn totals() -> CacheTotals {
    let registry = REGISTRY.lock();
    let mut totals = CacheTotals { threads: 0, blocks: [0; CLASS_COUNT] };
    let mut next = registry.first;
    // SAFETY: caches in the registry are alive while it is locked.
    while let Some(cache) = unsafe { next.as_ref() } {
        totals.threads += 1;
        for class in classes() {
            totals.blocks[class.get()] += cache.local.held(class) + cache.remote.held(class);
        }
        next = cache.next.get();
    }
    totals
}
