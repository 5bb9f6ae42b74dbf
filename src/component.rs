//! Components: parts of the program whose memory is kept apart, counted, and limited.
//!
//! A component has a shard of pages to itself, beyond those that the threads are spread over. A thread that is inside
//! one has another cache, which serves that shard: to enter is to exchange the thread's pointer to its cache, so
//! nothing is added to the path of an allocation, inside or outside. A block is found again by the tag of its page, like
//! any other: one of a component that is freed outside it is a block of another shard. A run has its component in the
//! header of its first page.

mod caches;
mod future;
mod stats;

#[cfg(feature = "profile")]
pub(crate) use caches::sampled_run;
pub(crate) use caches::{
    Family, current_component, cuts, outside, resize_run_within_limits, run_within_limits, within_limits,
};
pub use future::InComponent;
pub use stats::ComponentStats;

use crate::heap::LEDGER;
use crate::ledger::{Account, SoftLimitListener};
use crate::thread_cache::ThreadCache;
use crate::units::ComponentIndex;
use core::fmt;
use core::sync::atomic::{AtomicU16, Ordering::Acquire, Ordering::Release};

/// A part of the program with memory of its own in the process heap: counted, shown, and limited if that is wanted.
///
/// What is allocated inside [`enter`](Self::enter) comes from pages of the component. It may be used and freed anywhere.
///
/// ```
/// use page_memory_allocator::{Component, PageAllocator};
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// static CACHE: Component = Component::new("cache").limit(16 << 20);
///
/// fn main() {
///     let page = CACHE.enter(|| vec![0u8; 100_000]);
///     assert!(CACHE.held_bytes() >= 100_000);
///     // More than the limit is refused: `try_reserve` is told, others end the program.
///     CACHE.enter(|| assert!(Vec::<u8>::new().try_reserve(17 << 20).is_err()));
///     drop(page);
///     println!("{}", CACHE.stats());
/// }
/// ```
///
/// # What counts
/// The bytes of blocks, which are sizes rounded up to those of size classes, and of runs, which are whole pages. Blocks
/// of the component that wait in thread caches count, too: to be refused, a thread has first given back all that waits
/// in its own. Other threads' caches hold the first few blocks of each class (6, fewer of large ones) and 8 KiB more. What
/// a page has left between its blocks does not count.
///
/// # What it costs
/// Outside components, nothing. To enter one and to leave it takes a few loads and stores. In memory, each component has
/// a page that is not full for each size class that it uses, and for each thread that was ever inside, an OS page for
/// another cache, with the blocks that wait in it.
///
/// # How many
/// There can be 256 components less the shards of the build: 240, or with the feature `profile` one less. Those of the
/// same name are one component, with the limits of the one that is used first. They are never given up: a component is for a
/// part of the program, not for a request.
///
/// # What it needs
/// Memory must come from [`PageAllocator`](crate::PageAllocator), with thread caches. It need not be the global
/// allocator, but collections allocate from that one only, and what is entered before it was first used is
/// outside. Without thread caches (a build with neither `std` nor
/// `initial-exec`), or when there is no room for one more component, everything is outside.
pub struct Component {
    name: &'static str,
    limit: Option<usize>,
    soft_limit: Option<(usize, SoftLimitListener)>,
    /// [`UNKNOWN`], [`REFUSED`], or the index.
    index: AtomicU16,
}

const UNKNOWN: u16 = 0;
/// No index: that is a byte.
const REFUSED: u16 = 1 << 8;

impl Component {
    /// The component of that name, without limits.
    pub const fn new(name: &'static str) -> Component {
        Component { name, limit: None, soft_limit: None, index: AtomicU16::new(UNKNOWN) }
    }

    /// The most bytes that the component may hold. Allocations beyond that are refused: they return null, which most
    /// collections answer by `handle_alloc_error`.
    #[must_use]
    pub const fn limit(mut self, bytes: usize) -> Component {
        self.limit = Some(bytes);
        self
    }

    /// Has `listener` called, each time that the component comes to hold more than `bytes` bytes, by the thread whose
    /// allocation did that, when that is done. No lock is held: the listener may allocate and free, and is not called
    /// for what it does itself. It runs outside the component, and must not unwind; that ends the process.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     use page_memory_allocator::Component;
    ///     use std::sync::atomic::{AtomicUsize, Ordering};
    ///     static HELD: AtomicUsize = AtomicUsize::new(0);
    ///     static CACHE: Component = Component::new("cache")
    ///         .soft_limit(1 << 20, |exceeded| HELD.store(exceeded.held_bytes, Ordering::Relaxed));
    ///     let held = CACHE.enter(|| vec![0u8; 2 << 20]);
    ///     assert!(HELD.load(Ordering::Relaxed) >= held.len());
    /// }
    /// ```
    #[must_use]
    pub const fn soft_limit(mut self, bytes: usize, listener: SoftLimitListener) -> Component {
        self.soft_limit = Some((bytes, listener));
        self
    }

    /// The component's name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Does `work` inside the component. It may enter others in turn, and leaves this one whatever happens.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        let _inside = self.inside();
        work()
    }

    /// Enters the component until the value is dropped. In asynchronous code it must not be held across an `.await`,
    /// which the compiler refuses where tasks move between threads: see [`wrap`](Self::wrap).
    ///
    /// ```
    /// use page_memory_allocator::Component;
    ///
    /// static INDEX: Component = Component::new("index");
    /// let words = {
    ///     let _inside = INDEX.inside();
    ///     vec![String::from("one"), String::from("two")]
    /// };
    /// # let _ = words;
    /// ```
    #[must_use = "the component is left when this is dropped"]
    pub fn inside(&self) -> Inside {
        let outer = self.index().map_or(core::ptr::null(), caches::switch_to);
        Inside { outer }
    }

    /// The future, polled inside the component: what it allocates between one `.await` and the next, on whichever
    /// thread, is the component's. It is dropped wherever its owner drops it.
    ///
    /// ```
    /// use page_memory_allocator::Component;
    ///
    /// static REQUESTS: Component = Component::new("requests");
    /// async fn handle() -> String {
    ///     String::from("an answer")
    /// }
    /// let future = REQUESTS.wrap(handle());
    /// # let _ = future;
    /// ```
    pub fn wrap<F>(&self, future: F) -> InComponent<'_, F> {
        InComponent::new(self, future)
    }

    /// Bytes that the component holds: in blocks and runs that the program has, and in blocks that wait in thread
    /// caches. A load from memory.
    pub fn held_bytes(&self) -> usize {
        self.account().map_or(0, Account::held)
    }

    /// Sets the limit anew. What is held already stays.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     static CACHE: page_memory_allocator::Component = page_memory_allocator::Component::new("cache");
    ///     CACHE.set_limit(1 << 20);
    ///     assert!(CACHE.enter(|| Vec::<u8>::new().try_reserve(2 << 20)).is_err());
    ///     assert_eq!((CACHE.name(), CACHE.stats().refusals > 0), ("cache", true));
    /// }
    /// ```
    pub fn set_limit(&self, bytes: usize) {
        if let Some(account) = self.account() {
            account.set_limit(bytes);
        }
    }

    /// What the component holds, from its account and the page table.
    pub fn stats(&self) -> ComponentStats {
        self.index().map_or(ComponentStats { name: self.name, ..ComponentStats::default() }, stats::of)
    }

    /// The component's index, under which it is made known at first; `None` if there are too many.
    fn index(&self) -> Option<ComponentIndex> {
        match self.index.load(Acquire) {
            UNKNOWN => self.make_known(),
            REFUSED => None,
            index => Some(ComponentIndex(index as u8)),
        }
    }

    #[cold]
    fn make_known(&self) -> Option<ComponentIndex> {
        let index = LEDGER.find_or_open(self.name, |account| {
            if let Some(bytes) = self.limit {
                account.set_limit(bytes);
            }
            if let Some((bytes, listener)) = self.soft_limit {
                account.set_soft_limit(bytes, listener);
            }
        });
        // With the limits.
        self.index.store(index.map_or(REFUSED, |index| index.0.into()), Release);
        index
    }

    fn account(&self) -> Option<&'static Account> {
        LEDGER.account(self.index()?)
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The calling thread is inside a component until this is dropped. Several are to be dropped in reverse order, as
/// variables are: else the thread is in a component that it should have left.
///
/// ```
/// use page_memory_allocator::{Component, Inside};
///
/// static INDEX: Component = Component::new("index");
/// let inside: Inside = INDEX.inside();
/// // A panic here would leave the component, too.
/// drop(inside);
/// ```
#[must_use = "the component is left when this is dropped"]
#[derive(Debug)]
pub struct Inside {
    /// The cache that the thread had before; null if it has the same still.
    outer: *const ThreadCache,
}

impl Drop for Inside {
    fn drop(&mut self) {
        // SAFETY: null, or a cache of the thread that entered. That is this one: a value that holds a pointer is not
        // `Send`.
        unsafe { caches::switch_back(self.outer) };
    }
}
