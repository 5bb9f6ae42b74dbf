//! A thread's caches: the one it begins with, and one for each component that it has been in.

use super::LEDGER;
use crate::fault::NoWayBack;
use crate::global;
use crate::heap::Heap;
use crate::ledger::{Account, SoftLimitExceeded};
use crate::metadata;
use crate::shards::MOST_COMPONENTS;
use crate::size_class::BuildGeometry;
#[cfg(feature = "profile")]
use crate::size_class::built;
use crate::thread_cache::{self, ThreadCache, current};
use crate::tls;
use crate::units::ComponentIndex;
use core::alloc::Layout;
use core::cell::Cell;
#[cfg(feature = "std")]
use core::hint;
use core::mem;
use core::ptr::{self, NonNull};
use static_assertions::const_assert;

/// Bytes of blocks that a component's cache has slots for, beyond the first few of each class: there may be many
/// such caches.
const SLOT_BYTES: usize = 8 << 10;

/// All caches of one thread. Each of them leads here.
pub(crate) struct Family {
    /// The cache that the thread has outside components.
    main: *const ThreadCache,
    /// By component, from the first one on; null where the thread has never been.
    of_components: [Cell<*const ThreadCache>; MOST_COMPONENTS],
}

const_assert!(size_of::<Family>() <= metadata::MOST); // else raise that

impl Family {
    /// The family of `cache`, the calling thread's, made if it has none; `None` without memory for it.
    fn of(cache: &ThreadCache) -> Option<&Family> {
        // SAFETY: null, or the family, which `Family::retire` frees when the thread ends, before the cache.
        if let Some(family) = unsafe { cache.family.get().as_ref() } {
            return Some(family);
        }
        let piece = metadata::alloc(size_of::<Family>())?.cast::<Family>();
        // SAFETY: the piece is long enough and aligned, as it is larger than the alignment. Zeros are null pointers.
        let family = unsafe {
            (&raw mut (*piece.as_ptr()).main).write(cache);
            piece.as_ref()
        };
        cache.family.set(family);
        Some(family)
    }

    /// The cache for a component, made if there is none yet; `None` without memory for it.
    fn cache(&self, heap: &Heap<BuildGeometry>, component: ComponentIndex) -> Option<&ThreadCache> {
        let place = &self.of_components[component.0 as usize - 1];
        // SAFETY: null, or a cache, which `Family::retire` frees together with the family.
        if let Some(cache) = unsafe { place.get().as_ref() } {
            return Some(cache);
        }
        let cache = thread_cache::make_another(heap, component.shard(), SLOT_BYTES)?;
        cache.family.set(self);
        place.set(cache);
        Some(cache)
    }

    /// Calls `each` with all caches of the calling thread, of which `cache` is one and no sentinel.
    pub(crate) fn caches_of(cache: &ThreadCache, mut each: impl FnMut(&ThreadCache)) {
        // SAFETY: null, or the family of the cache, which `Family::retire` frees with its caches when the thread ends.
        unsafe {
            match cache.family.get().as_ref() {
                None => each(cache),
                Some(family) => {
                    each(&*family.main);
                    family.of_components.iter().filter_map(|place| place.get().as_ref()).for_each(each);
                }
            }
        }
    }

    /// Flushes and frees all caches of a family but the main one, and the family, if there is one.
    ///
    /// # Safety
    /// It is null or the calling thread's, and none of these caches is in use.
    pub(crate) unsafe fn retire(family: *const Family, heap: &Heap<BuildGeometry>) {
        let Some(piece) = NonNull::new(family.cast_mut()) else { return };
        // SAFETY: as the caller says; the piece was allocated with this size.
        unsafe {
            for place in &piece.as_ref().of_components {
                if let Some(cache) = place.get().as_ref() {
                    thread_cache::retire(cache, heap);
                }
            }
            metadata::free(piece.cast(), size_of::<Family>());
        }
    }
}

/// The process heap, if it is not made yet and the program's global allocator is the one to make it: a component may be entered
/// before anything was allocated.
#[cold]
fn make_heap() -> Option<&'static Heap<BuildGeometry>> {
    #[cfg(feature = "std")]
    {
        std::thread_local! {
            /// Whether the thread is here already: the global allocator may be one that enters a component itself.
            static MAKING: Cell<bool> = const { Cell::new(false) };
        }
        if MAKING.replace(true) {
            return None;
        }
        let layout = Layout::new::<u8>();
        // SAFETY: the layout has a size; the block, if there is one, is freed as it was allocated.
        unsafe {
            let block = hint::black_box(std::alloc::alloc(layout));
            if !block.is_null() {
                std::alloc::dealloc(block, layout);
            }
        }
        MAKING.set(false);
    }
    global::heap()
}

/// Gives the calling thread its cache for `component`, and returns the one that it had; null if it keeps that.
pub(super) fn switch_to(component: ComponentIndex) -> *const ThreadCache {
    let switched = || {
        let heap = global::heap().or_else(make_heap)?;
        let outer = thread_cache::current_or_made(heap, None)?;
        tls::set(thread_cache::apart(|| Family::of(outer)?.cache(heap, component))?);
        Some(ptr::from_ref(outer))
    };
    switched().unwrap_or(ptr::null())
}

/// Gives the calling thread the cache back that it had before [`switch_to`].
///
/// # Safety
/// `outer` is null, or a cache of the calling thread's: these live until the thread ends.
pub(super) unsafe fn switch_back(outer: *const ThreadCache) {
    // A thread that has come to its end has no cache any more.
    if !outer.is_null() && !current().is_sentinel() {
        tls::set(outer);
    }
}

/// The component that the calling thread is in.
pub(crate) fn current_component() -> ComponentIndex {
    current().component()
}

/// Times that the limit of the component that the calling thread is in granted less than was asked for; 0 outside.
pub(crate) fn cuts() -> usize {
    LEDGER.account(current_component()).map_or(0, Account::cuts)
}

/// A run for `layout`, of the component that the calling thread is in, within its limits.
pub(crate) fn run_within_limits(heap: &Heap<BuildGeometry>, layout: Layout, zeroed: bool) -> *mut u8 {
    within_limits(heap, || heap.alloc_run(current_component(), layout, zeroed))
}

/// A run for a sample of the component that the thread is in, or null. A block that is sampled has a page, and all of that is
/// charged for: so none is where a limit has few pages, or an eighth of it at most is left to the program. A refusal is none of
/// the program's.
#[cfg(feature = "profile")]
pub(crate) fn sampled_run(heap: &Heap<BuildGeometry>, layout: Layout, zeroed: bool) -> *mut u8 {
    const LEAST_LIMIT: usize = 64 * built::PAGE_SIZE;
    const LEFT_SHARE: usize = 8;
    let component = current_component();
    let account = LEDGER.account(component);
    let is_scarce = |account: &Account| {
        let limit = account.limit();
        limit.min(account.soft_limit()) < LEAST_LIMIT
            || limit.saturating_sub(account.held()) < limit / LEFT_SHARE + built::PAGE_SIZE
    };
    if layout.size() <= built::LARGEST_CLASS && account.is_some_and(is_scarce) {
        return ptr::null_mut();
    }
    let run = heap.alloc_run(component, layout, zeroed);
    if !run.is_null()
        && let Some(account) = account
    {
        tell(component, account);
    }
    run
}

/// Does `alloc`, once more if it is refused after all that waits in this thread's caches is back in its pages; then
/// tells the listener if the component exceeds its soft limit. Outside components, does `alloc`.
pub(crate) fn within_limits(heap: &Heap<BuildGeometry>, alloc: impl Fn() -> *mut u8) -> *mut u8 {
    let component = current_component();
    let Some(account) = LEDGER.account(component) else { return alloc() };
    let cuts = account.cuts();
    let mut block = alloc();
    if block.is_null() {
        give_back(heap, component);
        block = alloc();
    }
    if block.is_null() && account.cuts() != cuts {
        account.count_refusal();
    }
    tell(component, account);
    block
}

/// [`Heap::resize_run`], within the limits of the component that the run belongs to, whichever the thread is in: once
/// more if it is refused for the limit after all that waits in this thread's caches is back in its pages. `resized` is
/// told of the run's new place, or that it has none, and then the listener if the component exceeds its soft limit.
pub(crate) fn resize_run_within_limits(
    heap: &Heap<BuildGeometry>,
    address: usize,
    old: Option<Layout>,
    new: Layout,
    resized: impl FnOnce(Option<*mut u8>),
) -> Option<*mut u8> {
    let owner = heap.owner_of_run(address);
    let account = LEDGER.account(owner);
    let cuts = account.map_or(0, Account::cuts);
    let mut run = heap.resize_run(address, old, new);
    if run.is_none() && account.is_some_and(|account| account.cuts() != cuts) {
        give_back(heap, owner);
        run = heap.resize_run(address, old, new);
    }
    resized(run);
    let run = run?;
    if let Some(account) = account {
        tell(owner, account);
    }
    Some(run)
}

/// Gives back what waits in this thread's caches and `component` holds.
fn give_back(heap: &Heap<BuildGeometry>, component: ComponentIndex) {
    let cache = current();
    if cache.is_sentinel() {
        return;
    }
    Family::caches_of(cache, |cache| {
        if cache.component() == component {
            cache.flush(heap);
        } else {
            cache.flush_remote(heap);
        }
    });
}

/// Tells the listener of a component if that exceeds its soft limit, and nobody has been told.
fn tell(component: ComponentIndex, account: &Account) {
    account.tell(|listener| {
        let told = SoftLimitExceeded {
            name: LEDGER.name(component),
            held_bytes: account.held(),
            soft_limit: account.soft_limit(),
        };
        let no_way_back = NoWayBack;
        outside(|| listener(&told));
        mem::forget(no_way_back);
    });
}

/// Does `work` outside all components.
pub(crate) fn outside<R>(work: impl FnOnce() -> R) -> R {
    let inside = current();
    // SAFETY: null for who was never in a component, or the family, which lives until the thread ends.
    let Some(family) = (unsafe { inside.family.get().as_ref() }) else { return work() };
    tls::set(family.main);
    let done = work();
    // SAFETY: `inside` was current at the start, and a thread's caches live until it ends.
    unsafe { switch_back(inside) };
    done
}
