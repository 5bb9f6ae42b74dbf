//! How a thread gets its cache, and what becomes of that when the thread ends.

use super::registry::{CALLS, Registry, registry};
#[cfg(not(feature = "hardened"))]
use super::runs::KeptRuns;
use super::size::CACHE_BYTES;
use super::stacks::{Stacks, classes};
use super::words::Words;
use super::{ABSENT, EMPTY, Gate, ThreadCache, current};
use crate::component::Family;
use crate::decay;
#[cfg(feature = "hardened")]
use crate::hardened;
use crate::heap::Heap;
use crate::lock::Once;
use crate::metadata;
use crate::page_table::Tag;
use crate::profile::Countdown;
use crate::size_class::BuildGeometry;
use crate::size_class::built::CLASS_COUNT;
use crate::sys;
use crate::tls;
use crate::units::{ClassIndex, ShardIndex};
use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;

impl ThreadCache {
    /// An empty cache, of no registry.
    fn new(heap: &Heap<BuildGeometry>, shard: ShardIndex, most_bytes: usize) -> ThreadCache {
        let table = heap.table();
        ThreadCache {
            base: table.base(),
            pages: table.capacity().get(),
            tags: table.tags(),
            countdown: Countdown::new(),
            expected: core::array::from_fn(|class| match class {
                0 => Tag::NONE,
                class => Tag::new(shard, ClassIndex(class as u8)),
            }),
            shard_bits: Tag::new(shard, ClassIndex::NONE).bits(),
            local: Stacks::NONE,
            remote: Stacks::NONE,
            #[cfg(not(feature = "hardened"))]
            kept: KeptRuns::NONE,
            shard,
            words: Words::NONE,
            slot_bytes: Cell::new(0),
            most_bytes,
            calls: Cell::new(CALLS.load(Relaxed)),
            was_empty: [const { Cell::new(false) }; CLASS_COUNT],
            passes: Cell::new(decay::passes()),
            looked_at: Cell::new(decay::passes()),
            gate: Gate::new(),
            raised: Cell::new(false),
            #[cfg(feature = "hardened")]
            random: hardened::Random::new(),
            owner: sys::this_thread(),
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
            family: Cell::new(ptr::null()),
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
    if !tls::AVAILABLE || !ptr::eq(cache, &raw const EMPTY.0) {
        return None;
    }
    make(heap, of_freed)
}

#[cold]
#[inline(never)]
fn make<'a>(heap: &'static Heap<BuildGeometry>, of_freed: Option<ShardIndex>) -> Option<&'a ThreadCache> {
    tls::set(&raw const ABSENT.0);
    let made = (|| {
        let key = exit_key()?;
        // A signal handler may have come before it was kept from making one.
        if let Some(cache) = NonNull::new(sys::thread_value(key).cast::<ThreadCache>()) {
            // SAFETY: the value is this thread's cache, which lives until the thread ends.
            return Some((key, unsafe { cache.as_ref() }));
        }
        let cache = create(heap, CACHE_BYTES, |registry| {
            let shard = registry.join(of_freed);
            heap.use_shard(shard);
            shard
        })?;
        Some((key, cache))
    })();
    let Some((key, cache)) = made else {
        tls::set(&raw const EMPTY.0);
        return None;
    };
    // The cache is in place before the key is set: that may allocate.
    tls::set(cache);
    let value = ptr::from_ref(cache).cast_mut().cast();
    // SAFETY: `exit_key` made the key, which is never deleted; its function, `at_exit`, may be called with this value.
    if !unsafe { sys::set_thread_value(key, value) } {
        // Nobody would flush it: better none.
        // SAFETY: the cache was just made by this thread.
        unsafe { at_exit(value) };
        return None;
    }
    Some(cache)
}

/// Makes a cache of the calling thread, in the registry, which serves `shard`, with slots for up to `most_bytes` bytes of
/// blocks beyond the first few of each class; `None` without memory for it.
fn create<'a>(
    heap: &Heap<BuildGeometry>,
    most_bytes: usize,
    shard: impl FnOnce(&mut Registry) -> ShardIndex,
) -> Option<&'a ThreadCache> {
    let piece = metadata::alloc(size_of::<ThreadCache>())?.cast::<ThreadCache>();
    let rest = metadata::usable_size(size_of::<ThreadCache>()) - size_of::<ThreadCache>();
    let mut registry = registry();
    let shard = shard(&mut registry);
    // SAFETY: the piece is long enough, and aligned, as it is larger than the alignment; what is behind the cache is zeros.
    // `retire` takes it out.
    unsafe {
        piece.write(ThreadCache::new(heap, shard, most_bytes));
        piece.as_ref().words.begin_with(piece.add(1).cast(), rest / size_of::<usize>());
        registry.insert(piece.as_ref());
        Some(piece.as_ref())
    }
}

/// The key whose destructor flushes the cache of a thread that ends. If the system has none, it is not asked again: all threads
/// would ask, each time that they need a cache.
pub(crate) fn exit_key() -> Option<sys::ThreadKey> {
    static KEY: Once<Option<sys::ThreadKey>> = Once::new();
    *KEY.call_once(|| sys::new_thread_key(at_exit))
}

/// Flushes and frees the cache of the calling thread, which ends.
///
/// # Safety
/// `cache` is the calling thread's.
unsafe extern "C" fn at_exit(cache: *mut core::ffi::c_void) {
    let Some(heap) = crate::global::heap() else { return };
    // SAFETY: the key's value is the cache that this thread made.
    let cache = unsafe { &*cache.cast::<ThreadCache>() };
    tls::set(&raw const ABSENT.0);
    // SAFETY: nothing leads to the thread's caches any more, but one to the other.
    unsafe {
        Family::retire(cache.family.get(), heap);
        retire(cache, heap);
    }
    decay::tick_freed(heap);
}

/// Flushes and frees a cache.
///
/// # Safety
/// It is the calling thread's, and nothing leads to it any more but the registry.
pub(crate) unsafe fn retire(cache: &ThreadCache, heap: &Heap<BuildGeometry>) {
    cache.alone(|| {
        for stacks in [&cache.local, &cache.remote] {
            stacks.flush(heap);
            classes().for_each(|class| stacks.drop_words(class, &cache.words));
        }
        // SAFETY: no stack has any words left.
        unsafe { cache.words.free_chunks() };
        cache.give_up_runs(heap);
        // Behind the gate: whoever closes it finds the cache in the registry.
        // SAFETY: it was put there when it was made.
        unsafe { registry().remove(cache) };
    });
    // SAFETY: the cache was allocated with this size; nothing leads to it any more.
    unsafe { metadata::free(NonNull::from(cache).cast(), size_of::<ThreadCache>()) };
}

/// One more cache for the calling thread, which serves `shard`.
pub(crate) fn make_another<'a>(
    heap: &Heap<BuildGeometry>,
    shard: ShardIndex,
    most_bytes: usize,
) -> Option<&'a ThreadCache> {
    create(heap, most_bytes, |_| shard)
}
