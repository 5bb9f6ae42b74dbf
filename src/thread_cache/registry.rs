//! The registry of all thread caches: which there are, what they hold, and what is asked of all of them.

use super::idle::take_from_all;
use super::size::CACHE_BYTES;
use super::stacks::classes;
use super::{ThreadCache, apart, current, has_heap_lock};
use crate::component::Family;
use crate::heap::{Heap, Unused};
use crate::lock::{Guard, Lock};
use crate::shards::MOST_COMPONENTS;
use crate::size_class::{BuildGeometry, SizeClasses, built::CLASS_COUNT, built::SHARDS};
use crate::sys;
use crate::tls;
use crate::units::{PageCount, ShardIndex};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use static_assertions::const_assert;

/// The stacks of all caches together have slots for no more bytes of blocks than this, as long as there are no more caches
/// than leave each [`USEFUL_CACHE_BYTES`]. For more of them it is [`MANY_CACHES_BYTES`], until each has the least.
const ALL_CACHES_BYTES: usize = 16 << 20;
const USEFUL_CACHE_BYTES: usize = 1 << 20;
const MANY_CACHES_BYTES: usize = 64 << 20;
const LEAST_CACHE_BYTES: usize = 256 << 10;
/// Each shard keeps a page or more of every class that its threads use. Threads wait for each other while one holds a
/// class of their shard, and of those that run at once few do.
const SHARDS_PER_PROCESSOR: usize = 2;

const_assert!(LEAST_CACHE_BYTES <= USEFUL_CACHE_BYTES && USEFUL_CACHE_BYTES <= CACHE_BYTES);

/// Walks that there are at a time: one for [each](Unused) kind of what is taken.
const WALKS: usize = 2;

/// All caches, for those who want to know what they hold, or take it.
pub(super) struct Registry {
    first: *const ThreadCache,
    /// Caches alive, by shard.
    of_shard: [u32; SHARDS],
    /// Shards that threads are spread over; 0 before there is a second one.
    in_use: usize,
    /// Caches, of components, too.
    caches: usize,
    /// The next caches for those who [walk](Self::next_on_walk) over all of them.
    walks: [*const ThreadCache; WALKS],
}

// SAFETY: the registry holds addresses; who follows them holds its lock.
unsafe impl Send for Registry {}

/// Calls for all blocks of all caches so far: each cache hears them on its next slow path.
pub(super) static CALLS: AtomicU32 = AtomicU32::new(0);

/// What [`share`] returns: it is wanted more often than it changes.
static SHARE: AtomicUsize = AtomicUsize::new(ALL_CACHES_BYTES);

static REGISTRY: Lock<Registry> = Lock::new(Registry {
    first: ptr::null(),
    of_shard: [0; SHARDS],
    in_use: 0,
    caches: 0,
    walks: [ptr::null(); WALKS],
});

/// Whoever has it may close the gate of a cache, with the registry locked, and takes blocks from that cache.
pub(super) static TAKER: Lock<()> = Lock::new(());

/// Bytes of blocks that a cache may have slots for, where there are as many caches as there are now.
pub(super) fn share() -> usize {
    SHARE.load(Relaxed)
}

impl Registry {
    /// The shard for one more thread: the least used, the lowest of these. Where threads come and go, the next one
    /// goes on with the pages that the last one left half empty.
    ///
    /// A thread that begins by freeing a block has taken over somebody's data, and is to free more of it: it joins
    /// the shard of that block, unless that is crowded.
    pub(super) fn join(&mut self, of_freed: Option<ShardIndex>) -> ShardIndex {
        if self.in_use == 0 {
            // A program of one thread never asks how many processors there are.
            if self.of_shard[0] == 0 {
                self.of_shard[0] = 1;
                return ShardIndex(0);
            }
            self.in_use = (sys::processors() * SHARDS_PER_PROCESSOR).min(SHARDS);
        }
        let mut least = 0;
        for shard in 1..self.in_use {
            if self.of_shard[shard] < self.of_shard[least] {
                least = shard;
            }
        }
        if let Some(ShardIndex(shard)) = of_freed
            && (shard as usize) < self.in_use
            && self.of_shard[shard as usize] <= self.of_shard[least] + 1
        {
            least = shard as usize;
        }
        self.of_shard[least] += 1;
        ShardIndex(least as u8)
    }

    /// Takes a cache in.
    ///
    /// # Safety
    /// It is the calling thread's, in no registry, and alive until it is [taken out](Self::remove).
    pub(super) unsafe fn insert(&mut self, cache: &ThreadCache) {
        cache.next.set(self.first);
        cache.previous.set(ptr::null());
        // SAFETY: caches in the registry are alive while it is locked.
        if let Some(first) = unsafe { self.first.as_ref() } {
            first.previous.set(cache);
        }
        self.first = cache;
        self.set_count(self.caches + 1);
    }

    /// Takes a cache out, and its thread off the shard.
    ///
    /// # Safety
    /// It is in the registry, and the calling thread's.
    pub(super) unsafe fn remove(&mut self, cache: &ThreadCache) {
        if let Some(threads) = self.of_shard.get_mut(cache.shard.0 as usize) {
            *threads -= 1;
        }
        // SAFETY: neighbours in the registry are alive while it is locked.
        unsafe {
            match cache.previous.get().as_ref() {
                Some(previous) => previous.next.set(cache.next.get()),
                None => self.first = cache.next.get(),
            }
            if let Some(next) = cache.next.get().as_ref() {
                next.previous.set(cache.previous.get());
            }
        }
        for next in self.walks.iter_mut().filter(|next| ptr::eq(**next, cache)) {
            *next = cache.next.get();
        }
        self.set_count(self.caches - 1);
    }

    fn set_count(&mut self, caches: usize) {
        self.caches = caches;
        let caches = caches.max(1);
        let of_many = (MANY_CACHES_BYTES / caches).clamp(LEAST_CACHE_BYTES, USEFUL_CACHE_BYTES);
        SHARE.store(of_many.max(ALL_CACHES_BYTES / caches), Relaxed);
    }

    /// Has the walks of a kind begin anew. Several at a time are one: what any of them has come by, each has.
    pub(super) fn begin_walk(&mut self, kind: Unused) {
        self.walks[kind as usize] = self.first;
    }

    /// Where a walk goes on: at a cache that it has not come by; `None` at its end. Caches made meanwhile are left out.
    pub(super) fn next_on_walk(&mut self, kind: Unused) -> Option<&ThreadCache> {
        let next = &mut self.walks[kind as usize];
        // SAFETY: caches in the registry are alive while it is locked, and those taken out are next to nobody.
        let cache = unsafe { next.as_ref() }?;
        *next = cache.next.get();
        Some(cache)
    }

    fn caches(&self) -> impl Iterator<Item = &ThreadCache> {
        // SAFETY: caches in the registry are alive while it is locked.
        let follow = |cache: *const ThreadCache| unsafe { cache.as_ref() };
        core::iter::successors(follow(self.first), move |cache| follow(cache.next.get()))
    }
}

/// Gives back all blocks of the calling thread's caches, and of others what can be taken from them; calls for the rest.
pub(crate) fn call_for_blocks(heap: &Heap<BuildGeometry>) {
    CALLS.fetch_add(1, Relaxed);
    let cache = current();
    if !cache.is_sentinel() {
        Family::caches_of(cache, |cache| cache.give_up_blocks(heap));
    }
    take_from_all(heap, Unused::All);
}

/// The registry, locked.
pub(super) fn registry() -> Guard<'static, Registry> {
    REGISTRY.lock_before(has_heap_lock)
}

/// Locks the registry until [`unlock_registry`]. No shard comes into use meanwhile, and nobody takes blocks from caches.
pub(crate) fn lock_registry() {
    mem::forget(TAKER.lock());
    mem::forget(REGISTRY.lock());
}

/// Opens the registry again.
///
/// # Safety
/// This thread, or in a child process the one that forked, locked it.
pub(crate) unsafe fn unlock_registry() {
    // SAFETY: the caller's lock; no reference to the registry was kept.
    unsafe {
        REGISTRY.unlock_leaked();
        TAKER.unlock_leaked();
    }
}

/// Takes all caches but the calling thread's out of the registry. What they hold is lost.
///
/// # Safety
/// The registry is locked by [`lock_registry`], and no other thread exists.
pub(crate) unsafe fn forget_other_threads() {
    // SAFETY: the caller's lock.
    let registry = unsafe { REGISTRY.leaked() };
    let mut next = mem::replace(&mut registry.first, ptr::null());
    registry.walks = [ptr::null(); WALKS];
    registry.of_shard = [0; SHARDS];
    registry.set_count(0);
    // A signal handler that forks may have interrupted its thread where nothing else leads to its caches.
    // SAFETY: caches in the registry are alive while it is locked.
    while let Some(cache) = unsafe { next.as_ref() } {
        next = cache.next.get();
        if cache.owner == sys::this_thread() {
            // SAFETY: the caches of this thread are in no registry any more, and stay.
            unsafe { registry.insert(cache) };
            if let Some(threads) = registry.of_shard.get_mut(cache.shard.0 as usize) {
                *threads = 1;
            }
        }
    }
}

/// Pages of runs that all threads keep. Threads at work may change it meanwhile.
pub(crate) fn kept_pages() -> PageCount {
    PageCount(registry().caches().map(|cache| cache.kept_pages().0).sum())
}

/// Gives back all that waits in the calling thread's caches, and what can be taken from those of others, as far as another thread
/// has not taken it meanwhile: that does not tell whether there is more than before.
#[cold]
pub(crate) fn give_up_all(heap: &Heap<BuildGeometry>) {
    let cache = current();
    if !cache.is_sentinel() {
        Family::caches_of(cache, |cache| cache.flush(heap));
    }
    take_from_all(heap, Unused::All);
}

/// Counts the blocks that all caches hold, by class. Threads at work may change it meanwhile.
pub(crate) fn totals() -> [usize; CLASS_COUNT] {
    let mut totals = [0; CLASS_COUNT];
    for cache in registry().caches() {
        for class in classes() {
            totals[class.get()] += cache.local.held(class) + cache.remote.held(class);
        }
    }
    totals
}

/// Counts the bytes of blocks of each component that wait in thread caches: in its own, or, where they were freed elsewhere, to
/// go home. Threads at work may change it meanwhile; what waits to go home in the cache of one that is on a slow path is left out.
pub(crate) fn component_totals(heap: &Heap<BuildGeometry>, bytes: &mut [usize; MOST_COMPONENTS + 1]) {
    let own = tls::get();
    apart(|| {
        let _taker = TAKER.lock_before(has_heap_lock);
        for cache in registry().caches() {
            let held = classes().map(|class| cache.local.held(class) * SizeClasses::BUILD.block(class));
            bytes[cache.shard.component().0 as usize] += held.sum::<usize>();
            let is_own = ptr::eq(cache, own);
            if classes().all(|class| cache.remote.held(class) == 0) || !(is_own || cache.gate.close()) {
                continue;
            }
            for class in classes() {
                cache.remote.for_each_held(class, |address| {
                    if let Some(tag) = heap.tag_of(address).filter(|tag| tag.class() == class) {
                        bytes[tag.shard().component().0 as usize] += SizeClasses::BUILD.block(class);
                    }
                });
            }
            if !is_own {
                cache.gate.open();
            }
        }
    });
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::thread_cache::{SENTINEL, ThreadCache, apart};
    use core::alloc::{GlobalAlloc, Layout};

    #[test]
    fn a_walk_that_has_come_to_a_cache_goes_on_behind_it_when_that_is_gone() {
        let caches = [const { SENTINEL }; 4];
        let mut own = Registry {
            first: ptr::null(),
            of_shard: [0; SHARDS],
            in_use: 0,
            caches: 0,
            walks: [ptr::null(); WALKS],
        };
        for cache in caches.iter().rev() {
            own.of_shard[0] += 1;
            // SAFETY: the caches are in no other registry, and alive until the end.
            unsafe { own.insert(&cache.0) };
        }
        own.begin_walk(Unused::All);
        let come_by = |own: &mut Registry| own.next_on_walk(Unused::All).map(ptr::from_ref);
        assert_eq!(come_by(&mut own), Some(&raw const caches[0].0));
        // SAFETY: they are in this registry.
        unsafe {
            own.remove(&caches[1].0);
            own.remove(&caches[2].0);
        }
        assert_eq!(come_by(&mut own), Some(&raw const caches[3].0));
        assert_eq!((come_by(&mut own), own.caches, own.of_shard[0]), (None, 2, 2));
        // The share of a cache, which `own` has changed, is one for all registries.
        let mut all = registry();
        let count = all.caches;
        all.set_count(count);
    }

    #[test]
    fn a_thread_that_forks_out_of_a_slow_path_keeps_its_cache() {
        const ALLOCATOR: crate::PageAllocator = crate::PageAllocator::new();
        let layout = Layout::new::<[u8; 100]>();
        // SAFETY: the block is freed once, with its layout.
        unsafe { ALLOCATOR.dealloc(ALLOCATOR.alloc(layout), layout) };
        let own: *const ThreadCache = current();
        // The child does nothing but look at the registry, and ends.
        let child = apart(|| {
            // Walks that have begun, with which the child must not go on.
            for kind in [Unused::All, Unused::Idle] {
                registry().begin_walk(kind);
            }
            // SAFETY: as said.
            unsafe { libc::fork() }
        });
        if child == 0 {
            let registry = registry();
            let is_kept = registry.caches().map(ptr::from_ref).eq([own]);
            let is_alone = registry.walks.iter().all(|next| next.is_null())
                && registry.of_shard.iter().sum::<u32>() == 1;
            // SAFETY: there is nothing to be done at its end.
            unsafe { libc::_exit(if is_kept && is_alone { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: the status is written.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
