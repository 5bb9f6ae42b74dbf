//! [`PageAllocator`]: the process heap behind thread caches, as a global allocator. Nothing but dispatch.

use crate::component;
use crate::decay;
use crate::fault::NoWayBack;
pub(crate) use crate::first_use::heap;
use crate::first_use::make_heap;
use crate::guarded;
use crate::heap::{Block, Heap, room_for};
use crate::options::Options;
use crate::page_table::{Census, Tag, Violation};
use crate::profile;
use crate::size_class::{BuildGeometry, GRANULE, Geometry, built::CLASS_OF, last_byte};
use crate::thread_cache::{self, ThreadCache, current};
use crate::units::{ClassIndex, ComponentIndex, ShardIndex};
use core::alloc::{GlobalAlloc, Layout};
use core::mem;
use core::ptr;

/// The allocator of a program: a page allocator over one heap for the whole process, with a cache for each thread.
///
/// ```
/// use page_memory_allocator::PageAllocator;
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     let words = vec!["all", "of", "this", "is", "in", "the", "page", "table"];
///     assert_eq!(words.concat().len(), 25);
///     HEAP.dump();
/// }
/// ```
///
/// Values of this type hold nothing but options: all of them are the same heap. It has the options of the value
/// through which it is first used, and those that the environment sets instead:
///
/// | variable | value | option |
/// |---|---|---|
/// | `PMA_PURGE_MS` | milliseconds, or `never` | [`purge_after_ms`](Self::purge_after_ms) |
/// | `PMA_BACKGROUND_PURGE` | `1` or `0` | [`background_purge`](Self::background_purge) |
/// | `PMA_HUGE_PAGES` | `1` or `0` | [`huge_pages`](Self::huge_pages) |
/// | `PMA_LIMIT` | bytes, or so many `K`, `M`, `G` of 1024; a page at least | [`limit`](Self::limit) |
/// | `PMA_GUARD_SAMPLE` | a number, 0 for off | [`guard_sample`](Self::guard_sample) |
/// | `PMA_ZERO_ON_FREE` | `1` or `0` | `zero_on_free`, with the feature `hardened` |
/// | `PMA_REPORT` | `exit` | when the process ends, what is still live is written to standard error, by class |
/// | `PMA_DUMP_SIGNAL` | `USR1`, `USR2`, `HUP` or `QUIT` | on that signal the heap is dumped to `pma-PROCESS-N.txt`, `.json` and `.html` |
/// | `PMA_DUMP_DIR` | a directory | where those files are; the working directory unless set |
/// | `PMA_PROFILE_BYTES` | bytes, or so many `K`, `M`, `G` | with the feature `profile`: bytes from one sample to the next, on average; 512 KiB unless set |
///
/// A value that cannot be read is reported once on standard error, and ignored. `{:?}` shows what the type says, not the
/// environment.
///
/// ```
/// use page_memory_allocator::PageAllocator;
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new().purge_after_ms(100).background_purge(true);
/// # fn main() { assert_eq!(vec![1, 2, 3].len(), 3) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct PageAllocator {
    options: Options,
    out_of_memory: Option<OutOfMemory>,
}

/// What is called when an allocation cannot be served: see [`PageAllocator::on_out_of_memory`].
///
/// ```
/// use page_memory_allocator::{OutOfMemory, PageAllocator};
/// use std::alloc::Layout;
///
/// /// Nothing here can be freed: the allocation is refused.
/// const GIVE_UP: OutOfMemory = |_: Layout| false;
/// static HEAP: PageAllocator = PageAllocator::new().on_out_of_memory(GIVE_UP);
/// # let _ = &HEAP;
/// ```
pub type OutOfMemory = fn(Layout) -> bool;

impl PageAllocator {
    /// The process heap's allocator, with the usual options.
    pub const fn new() -> PageAllocator {
        PageAllocator { options: Options::new(), out_of_memory: None }
    }

    /// Free memory goes back to the system once it has not been used for about so many milliseconds, and for at least
    /// half as many. 500 unless set. `u32::MAX` means never, except by [`purge`](Self::purge).
    ///
    /// It goes back a little at a time, when some thread comes by a slow path. In a process in which nobody allocates it
    /// therefore stays, unless there is a [background thread](Self::background_purge).
    #[must_use]
    pub const fn purge_after_ms(mut self, milliseconds: u32) -> PageAllocator {
        self.options.purge_after_ms = if milliseconds == u32::MAX { None } else { Some(milliseconds) };
        self
    }

    /// Whether a background thread gives free memory back, so that this does not depend on anybody's allocating. False
    /// unless set. The thread starts with the first allocation on a slow path, and in a child process, after `fork`, with the
    /// first one there. It sleeps until memory is freed; it has a small stack, and all signals blocked. There is none if
    /// free memory is [never](Self::purge_after_ms) to go back by itself.
    ///
    /// It also takes the blocks that wait in the caches of sleeping threads, as [`purge`](Self::purge) does, once their
    /// threads have not touched them for one to two periods. Once it sleeps, blocks that a thread frees without a slow path stay
    /// in its cache.
    #[must_use]
    pub const fn background_purge(mut self, thread: bool) -> PageAllocator {
        self.options.background_purge = thread;
        self
    }

    /// Whether the system may back large runs, and heaps of more than 16 MiB (32 with more than one shard in use), with huge pages, if it has any
    /// (`/sys/kernel/mm/transparent_hugepage/enabled` is `madvise` or `always`). True unless set.
    ///
    /// Blocks of more than an OS page are left out, unless the program is seen to touch them as a whole, and so are those of
    /// components: what is not touched of a huge page would be resident.
    ///
    /// So are runs below 4 MiB, 16 if they are to be zeroed, unless others of about their length are seen to be touched to the half. Of longer ones
    /// the first 1 to 3 MiB are left out, unless others are seen to be touched there; behind that, each part that is touched may have
    /// up to 2 MiB of memory. Those of 16 MiB and more that are to be zeroed are left out while their memory is fresh from the system: who
    /// asks for so many zeros may mean to use only a few of them.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new().huge_pages(false);
    ///
    /// fn main() {
    ///     let small_in_a_container = vec![1u8; 1 << 20];
    ///     assert_eq!(small_in_a_container.len(), 1 << 20);
    /// }
    /// ```
    #[must_use]
    pub const fn huge_pages(mut self, huge_pages: bool) -> PageAllocator {
        self.options.huge_pages = huge_pages;
        self
    }

    /// The most bytes that the pages in use may have together. An allocation that would need more is refused; and the free pages that
    /// keep their memory give it back, as far as the heap would else have more memory than that. Unless this
    /// is set, the only limit is the address space: twice the machine's memory and swap. With a limit, that is four times the limit at
    /// most.
    ///
    /// A run of less than 1 MiB that has to move counts twice until it is copied, as does one that shrinks to 32 KiB or less,
    /// or a longer one whose memory the system refuses to move; a block that shrinks may need a page more: at the limit, each
    /// may be refused. Free pages that were never used do not count, though they have memory where huge pages reach into them.
    ///
    /// A page is in use while it holds a live block, or one that waits in a thread's cache. Before anything is refused, what waits
    /// in caches goes back, as by [`purge`](Self::purge): that takes the longer the more threads there are. The page table
    /// does not count. Each size class and shard in use has a page at least, so with little more than a page hardly
    /// anything is served. With the feature `profile`, one page for
    /// each size class is in use from the beginning, for the blocks that are sampled, unless all of these would be more than a
    /// sixteenth of the limit; those without a block are given up when others are wanted, or all is purged.
    #[must_use]
    pub const fn limit(mut self, bytes: usize) -> PageAllocator {
        self.options.limit = bytes;
        self
    }

    /// Has about one allocation in `n` guarded: its end meets a page that cannot be touched, and once it is freed, the page
    /// that it is in cannot be touched either. So an overflow or a use after free of such a block is a SIGSEGV at the
    /// instruction that did it. One line on standard error says what was allocated there; then the signal takes its usual
    /// course. 0 is off, which is the default.
    ///
    /// It is meant for production, where one process or one request in many meets what tests do not: with 10,000, say. A
    /// guarded block costs a few system calls. There are up to 256 of them at a time, of up to 64 KiB each. Allocations are
    /// counted where a thread's cache does not serve them by itself; to refill a cache counts as many as the blocks that it
    /// gets. What is allocated inside a [component](crate::Component) is not guarded. The signal handler is installed with
    /// the first guarded block; a program that installs one later should call the former one from it, as crash handlers do.
    ///
    /// ```
    /// use page_memory_allocator::{GuardedStats, PageAllocator};
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new().guard_sample(20);
    ///
    /// fn main() {
    ///     let blocks: Vec<Box<[u8; 3000]>> = (0..1000).map(|_| Box::new([1; 3000])).collect();
    ///     // Some of them are guarded.
    ///     let guarded: GuardedStats = HEAP.stats().guarded;
    ///     assert!(guarded.live_blocks > 0 && guarded.live_bytes < blocks.len() * 3000);
    /// }
    /// ```
    #[must_use]
    pub const fn guard_sample(mut self, n: u32) -> PageAllocator {
        self.options.guard_sample = n;
        self
    }

    /// Whether all of what is freed is filled with zeros, and all of a freed block looked at when it is handed out,
    /// instead of its first 128 bytes. False unless set. The first 8 bytes of a block hold a mark while it is free;
    /// those of a run go back to the system.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new().zero_on_free(true);
    ///
    /// fn main() {
    ///     drop(String::from("a secret"));
    ///     assert!(HEAP.check().is_ok());
    /// }
    /// ```
    #[cfg(feature = "hardened")]
    #[must_use]
    pub const fn zero_on_free(mut self, zero: bool) -> PageAllocator {
        self.options.zero_on_free = zero;
        self
    }

    /// Has `hook` called when an allocation through this value cannot be served, whatever the reason; it is given the
    /// layout. If it returns true, the allocation is tried again, and the hook is called again if that fails: so it
    /// should return true only after it has freed something, or has reason to wait for others who will.
    ///
    /// The hook may free and allocate. For allocations of its own that fail it is called again, too. It must not unwind;
    /// that ends the process.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// static REFUSED: AtomicBool = AtomicBool::new(false);
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new().limit(64 << 20).on_out_of_memory(|_| {
    ///     REFUSED.store(true, Ordering::Relaxed);
    ///     false // nothing was freed: it is refused for good
    /// });
    ///
    /// fn main() {
    ///     assert!(Vec::<u8>::new().try_reserve(100 << 20).is_err());
    ///     assert!(REFUSED.load(Ordering::Relaxed));
    /// }
    /// ```
    #[must_use]
    pub const fn on_out_of_memory(mut self, hook: OutOfMemory) -> PageAllocator {
        self.out_of_memory = Some(hook);
        self
    }

    /// Gives all memory that is not in use back to the system, now: empties the calling thread's cache, then gives back
    /// all free pages, and the parts of other pages that hold no live block. Returns how many bytes of addresses that
    /// concerned; not all of them need have had memory. Pages that were never used, but lie in a huge page with others, go
    /// back, too, and are not counted.
    ///
    /// The caches of other threads are emptied, too, whether these are asleep or not. Two things stay: the cache of a thread
    /// that is inside the allocator at that moment, and one block of each size, which the thread may be about to take. What
    /// stays in a cache leaves it when its thread next comes by a slow path of that cache, and the memory that becomes free
    /// thereby goes back in the usual time. Where the system has no `membarrier`, or does not let the process use it, that is so for all
    /// that other threads' caches hold.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     drop(std::hint::black_box(vec![1u8; 64 << 20]));
    ///     assert!(HEAP.purge() >= 64 << 20);
    /// }
    /// ```
    pub fn purge(&self) -> usize {
        let Some(heap) = heap() else { return 0 };
        thread_cache::call_for_blocks(heap);
        heap.release_unused_pages();
        heap.purge()
    }

    /// The process heap, made at first use; `None` while the system refuses it.
    #[inline]
    pub(crate) fn heap(&self) -> Option<&'static Heap<BuildGeometry>> {
        heap().or_else(|| make_heap(&self.options))
    }

    /// The version of this crate.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// println!("page_memory_allocator {}", PageAllocator::version());
    /// assert!(PageAllocator::version().starts_with("0."));
    /// ```
    pub const fn version() -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// Bytes that a block for `layout` has room for, at least as many as were asked for; `None` for more than any heap
    /// has. It may be used up to there, and freed as a block of any size between the two. Where blocks may be
    /// [guarded](Self::guard_sample), it is just what was asked for.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    /// use std::alloc::Layout;
    ///
    /// let heap = PageAllocator::new();
    /// assert!(heap.room_for(Layout::new::<[u8; 1000]>()) >= Some(1000));
    /// ```
    #[inline]
    pub fn room_for(&self, layout: Layout) -> Option<usize> {
        let room = room_for(BuildGeometry, layout)?;
        Some(if guarded::are_off() { room } else { layout.size().max(1) })
    }

    /// Verifies every invariant of the page table, with the whole heap locked for as long as that takes. Blocks
    /// in thread caches count as live.
    ///
    /// # Errors
    /// The first invariant that does not hold, and the page it was seen at.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     let _held = vec![1u8; 1 << 20];
    ///     assert!(HEAP.check().is_ok());
    /// }
    /// ```
    pub fn check(&self) -> Result<Census, Violation> {
        heap().map_or(Ok(Census::default()), Heap::check)
    }
}

/// The class of a layout by table; `None` for sizes that the table does not have.
#[inline(always)]
fn class_of(layout: Layout) -> Option<ClassIndex> {
    CLASS_OF.get(last_byte(layout) / GRANULE).map(|&class| ClassIndex(class))
}

// SAFETY: blocks come from pages or runs that hold them whole, at addresses that the layout's alignment divides (see
// `size_class`), and belong to their owner until they are freed. Nothing here unwinds.
unsafe impl GlobalAlloc for PageAllocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(class) = class_of(layout) {
            let cache = current();
            let block = cache.pop(class).start;
            if !block.is_null() {
                let is_due = cache.countdown.is_due(layout.size());
                return if is_due { alloc_sampled(layout, block) } else { block };
            }
        }
        self.alloc_slow(layout, false)
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let cache = current();
        if !class_of(layout).is_some_and(|class| cache.push(class, ptr.addr())) {
            self.dealloc_slow(cache, ptr, layout);
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if let Some(class) = class_of(layout) {
            let cache = current();
            let block = cache.pop(class);
            if !block.start.is_null() {
                let is_due = cache.countdown.is_due(layout.size());
                let block = if is_due { alloc_sampled(layout, block.start).into() } else { block };
                // SAFETY: the block is the caller's to be, and at least as long as the layout.
                return unsafe { block.zeroed(layout.size()) };
            }
        }
        self.alloc_slow(layout, true)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller vouches for the new size.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        #[cfg(not(feature = "hardened"))]
        if let (Some(class), Some(new_class)) = (class_of(layout), class_of(new_layout)) {
            let cache = current();
            if cache.serves(class, ptr.addr()) {
                if class == new_class {
                    return ptr;
                }
                let mut new = cache.pop(new_class).start;
                if new.is_null() {
                    // SAFETY: the caller's block, and what is asked of it.
                    return unsafe { self.realloc_slow(ptr, layout, new_layout) };
                }
                if cache.countdown.is_due(new_size) {
                    new = alloc_sampled(new_layout, new);
                }
                // SAFETY: both blocks are live, and as long as their layouts; the old one is of a page that the cache serves.
                unsafe { self.move_served(cache, class, ptr, new, layout.size().min(new_size)) };
                return new;
            }
        }
        // SAFETY: as above.
        unsafe { self.realloc_slow(ptr, layout, new_layout) }
    }
}

/// What the program's hook says to an allocation that failed. It cannot unwind out of the allocator.
fn is_to_be_tried_again(hook: OutOfMemory, layout: Layout) -> bool {
    let no_way_back = NoWayBack;
    let again = hook(layout);
    mem::forget(no_way_back);
    again
}

impl PageAllocator {
    /// The same, for what is a part of a call: the hook is asked about that as a whole.
    pub(crate) fn without_hook(&self) -> PageAllocator {
        PageAllocator { out_of_memory: None, ..*self }
    }

    /// What the program's hook, if there is one, says to a call that failed.
    pub(crate) fn is_to_be_tried_again(&self, layout: Layout) -> bool {
        self.out_of_memory.is_some_and(|hook| is_to_be_tried_again(hook, layout))
    }

    /// [`realloc`](GlobalAlloc::realloc) of what no cache serves, or becomes what none does: in place if that can be.
    ///
    /// # Safety
    /// That of `realloc`.
    #[inline(never)]
    unsafe fn realloc_slow(&self, ptr: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
        #[cfg(feature = "hardened")]
        if let Some(heap) = heap()
            && !profile::is_sampled_run(ptr.addr())
            && !guarded::holds(ptr.addr())
        {
            crate::hardened::expect_live(heap, BuildGeometry.class_of(layout), ptr.addr());
        }
        let resized = || heap().and_then(|heap| resize(heap, ptr.addr(), layout, new_layout));
        // What the hook frees may be room where the block is: so it is asked about the call as a whole.
        let unhooked = self.without_hook();
        let moved = || {
            // SAFETY: the caller's block, and what is asked of it.
            let moved = unsafe { unhooked.move_to(ptr, layout, new_layout) };
            (!moved.is_null()).then_some(moved)
        };
        // Who gives memory up is not refused for the limit of a component: what is left then belongs to none.
        let gives_up =
            new_layout.size() < layout.size() && component::current_component() != ComponentIndex::NONE;
        loop {
            // Before it was refused to move it, what waited in caches went back: there may be room now where it is.
            let mut done = resized().or_else(moved).or_else(resized);
            if done.is_none() && gives_up {
                done = component::outside(moved);
            }
            if done.is_some() || !self.is_to_be_tried_again(new_layout) {
                return done.unwrap_or(ptr::null_mut());
            }
        }
    }

    /// Moves what is in a block to a new one, if there is one, and frees the old one.
    ///
    /// # Safety
    /// The block was allocated with `layout`. If null is returned, it still is; else it is gone.
    #[inline(never)]
    unsafe fn move_to(&self, ptr: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
        // SAFETY: the new block differs from the old one, which is given up; both are as long as their layouts.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                ptr::copy_nonoverlapping(ptr, new, layout.size().min(new_layout.size()));
                self.dealloc(ptr, layout);
            }
            new
        }
    }

    /// Moves `bytes` bytes to a new block, and frees the old one, of `class`, without asking again whether it is one that
    /// `cache`, the calling thread's, [serves](ThreadCache::serves).
    ///
    /// # Safety
    /// The blocks differ, are live and at least that long; the old one is gone afterwards.
    #[cfg(not(feature = "hardened"))]
    #[inline(always)]
    pub(crate) unsafe fn move_served(
        &self,
        cache: &ThreadCache,
        class: ClassIndex,
        old: *mut u8,
        new: *mut u8,
        bytes: usize,
    ) {
        // SAFETY: as the caller says.
        unsafe { ptr::copy_nonoverlapping(old, new, bytes) };
        if !cache.push_checked(class, old.addr()) {
            self.dealloc_served(class, old);
        }
    }

    /// Frees a block of `class`, of a page that the calling thread's cache serves, but has no room for.
    #[cfg(not(feature = "hardened"))]
    #[cold]
    #[inline(never)]
    fn dealloc_served(&self, class: ClassIndex, ptr: *mut u8) {
        if let Some(heap) = self.heap() {
            dealloc_tagged(heap, heap.tag_for_free(ptr.addr(), class), ptr.addr());
        }
    }

    /// A block or a run, whose bytes are zero if they are to be.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_slow(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        loop {
            let block = self.heap().map_or(ptr::null_mut(), |heap| alloc_from(heap, layout, zeroed));
            if !block.is_null() || !self.is_to_be_tried_again(layout) {
                return block;
            }
        }
    }

    /// Frees a block that `cache`, the calling thread's, does not take back. Here, what is to go home to the pages of another
    /// shard: by itself, and with the cache handed over, so that it takes no frame on the stack, and saves no register.
    #[cold]
    #[inline(never)]
    fn dealloc_slow(&self, cache: &ThreadCache, ptr: *mut u8, layout: Layout) {
        if !class_of(layout).is_some_and(|class| cache.push_remote(Some(class), ptr.addr())) {
            self.dealloc_otherwise(ptr, layout);
        }
    }

    #[cold]
    #[inline(never)]
    fn dealloc_otherwise(&self, ptr: *mut u8, layout: Layout) {
        let address = ptr.addr();
        let Some(heap) = self.heap() else { return };
        if guarded::holds(address) {
            return guarded::free(address, Some(layout));
        }
        let class = BuildGeometry.class_of(layout);
        let sampled = profile::forget_run(address);
        if class == ClassIndex::NONE || sampled {
            // A sampled run may have the layout of a block; it has a page then.
            return dealloc_run(heap, address, Some(layout));
        }
        dealloc_tagged(heap, heap.tag_for_free(address, class), address);
    }
}

/// Frees the block at `address`, in a page of that tag, which no stack has taken yet.
#[inline]
pub(crate) fn dealloc_tagged(heap: &'static Heap<BuildGeometry>, tag: Tag, address: usize) {
    if tag.shard().is_sampled() {
        return profile::free_block(heap, tag.class(), address);
    }
    match thread_cache::current_or_made(heap, Some(tag.shard())) {
        Some(cache) => cache.dealloc_slow(heap, tag, address),
        None => {
            thread_cache::dealloc_uncached(heap, tag.class(), address);
            decay::tick_freed(heap);
        }
    }
}

/// Frees the run at `address`, of which no sample is kept any more; with `layout`, only if that is what it was allocated
/// with. Then does what is due on a slow path.
#[inline]
pub(crate) fn dealloc_run(heap: &Heap<BuildGeometry>, address: usize, layout: Option<Layout>) {
    #[cfg(not(feature = "hardened"))]
    if thread_cache::keep_run(heap, address, layout) {
        return decay::tick_cached();
    }
    heap.dealloc_run(address, layout);
    thread_cache::give_up_blocks(heap);
    decay::tick_freed(heap);
}

/// [`Heap::resize`], within the limits of the run's component, with the profile told of it. A guarded block moves.
#[inline]
fn resize(heap: &Heap<BuildGeometry>, address: usize, old: Layout, new: Layout) -> Option<*mut u8> {
    if guarded::is_guarded(heap, address) {
        return None;
    }
    if BuildGeometry.class_of(old) != ClassIndex::NONE || BuildGeometry.class_of(new) != ClassIndex::NONE {
        return heap.resize(address, old, new);
    }
    resize_run(heap, address, (Some(old), old.size()), new)
}

/// [`Heap::resize_run`] of a run of which `old` is known: its layout, if that is, and its size. Within the limits of the run's
/// component, with the profile told of it; and if it frees pages, with what follows that.
pub(crate) fn resize_run(
    heap: &Heap<BuildGeometry>,
    address: usize,
    old: (Option<Layout>, usize),
    new: Layout,
) -> Option<*mut u8> {
    let (old, old_size) = old;
    #[cfg(not(feature = "hardened"))]
    if new.size() > old_size {
        thread_cache::make_way(heap);
    }
    let sample = profile::begin_resize(address);
    let run = component::resize_run_within_limits(heap, address, old, new, |run| match run {
        Some(run) => profile::end_resize(sample, old_size, run.addr(), new.size()),
        None => profile::end_resize(sample, old_size, address, old_size),
    })?;
    if run.addr() != address || new.size() < old_size {
        thread_cache::give_up_blocks(heap);
        decay::tick_freed(heap);
    }
    Some(run)
}

/// A sampled allocation for `layout`, instead of `block`; that one, if there is none.
#[cold]
#[inline(never)]
pub(crate) fn alloc_sampled(layout: Layout, block: *mut u8) -> *mut u8 {
    let Some(heap) = heap() else { return block };
    let Some(sampled) = profile::sample(heap, layout, false) else { return block };
    // SAFETY: the block was just allocated with this layout, and nobody has it.
    unsafe { PageAllocator::new().dealloc(block, layout) };
    sampled
}

fn alloc_from(heap: &'static Heap<BuildGeometry>, layout: Layout, zeroed: bool) -> *mut u8 {
    let apart = alloc_apart(heap, layout, zeroed);
    let class = BuildGeometry.class_of(layout);
    #[cfg(not(feature = "hardened"))]
    if class == ClassIndex::NONE
        && apart.is_none()
        && let Some(run) = thread_cache::take_run(heap, layout, zeroed)
    {
        return run;
    }
    decay::tick(heap);
    if let Some(block) = apart {
        return block;
    }
    let cuts = component::cuts();
    let block = alloc_unsampled(heap, class, layout, zeroed);
    // Blocks that wait in caches keep their pages from everybody. Within the limit of its component, the thread has given back what
    // counts there.
    if block.is_null() && heap.may_ever_serve(layout) && component::cuts() == cuts {
        thread_cache::give_up_all(heap);
        return alloc_unsampled(heap, class, layout, zeroed);
    }
    block
}

/// A sampled or a guarded block, if it is the turn of one.
#[inline]
fn alloc_apart(heap: &'static Heap<BuildGeometry>, layout: Layout, zeroed: bool) -> Option<*mut u8> {
    if profile::is_due(heap, layout.size())
        && let Some(sampled) = profile::sample(heap, layout, zeroed)
    {
        return Some(sampled);
    }
    if guarded::is_due() { guarded::alloc(heap, layout) } else { None }
}

/// A block of `class`, or a run, that is neither sampled nor guarded.
fn alloc_unsampled(
    heap: &'static Heap<BuildGeometry>,
    class: ClassIndex,
    layout: Layout,
    zeroed: bool,
) -> *mut u8 {
    match class {
        ClassIndex::NONE => {
            thread_cache::give_up_blocks(heap);
            component::run_within_limits(heap, layout, zeroed)
        }
        class => {
            let filled = |block: Block| match zeroed {
                // SAFETY: the block is the caller's to be, and at least as long as the layout.
                true => unsafe { block.zeroed(layout.size()) },
                false => block.start,
            };
            match thread_cache::current_or_made(heap, None) {
                Some(cache) => component::within_limits(heap, || filled(cache.alloc_slow(heap, class))),
                None => filled(thread_cache::alloc_uncached(heap, Tag::new(ShardIndex(0), class))),
            }
        }
    }
}
