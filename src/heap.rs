//! A heap: an arena, its page table, and the locks.
//!
//! Lock order: the ledger, a bin, then the runs. A second bin is only tried for, or waited for in order, as
//! [`Heap::check`] does, which takes all.

mod accounts;
mod blocks;
mod find;
mod given;
#[cfg(feature = "hardened")]
mod guards;
#[cfg(not(feature = "hardened"))]
#[path = "heap/guards/off.rs"]
mod guards;
mod large;
mod limit;
mod mapping;
mod options;
#[cfg(feature = "os")]
mod process;
mod progress;
mod purge;
#[cfg(feature = "hardened")]
mod quarantine;
#[cfg(not(feature = "hardened"))]
#[path = "heap/quarantine/off.rs"]
mod quarantine;
mod resize;

pub use options::{HeapError, HeapOptions};
#[cfg(feature = "os")]
pub(crate) use process::LEDGER;
#[cfg(feature = "os")]
pub(crate) use {progress::Most, purge::Unused};

use crate::arena::{Arena, HUGE_PAGE};
use crate::ledger::Ledger;
use crate::lock::{Guard, Lock};
use crate::page_table::{Bin, Census, PageState, PageTable, Tag, Violation};
use crate::runs::Runs;
use crate::shards::MOST_COMPONENTS;
use crate::size_class::{CustomGeometry, Geometry, built::SHARDS};
use crate::sys;
use crate::units::{ClassIndex, ComponentIndex, PageCount, PageIndex, ShardIndex};
#[cfg(feature = "os")]
pub(crate) use blocks::Block;
use core::alloc::{GlobalAlloc, Layout};
use core::fmt;
use core::mem;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicUsize, Ordering};

/// A bin on cache lines of its own, behind the lock of its class and shard.
#[repr(align(64))]
struct LockedBin(Lock<Bin>);

/// A page allocator over an arena of its own. All memory taken from it is given back when it is dropped.
///
/// The heap of a whole program is [`PageAllocator`](crate::PageAllocator); this type is for heaps beside it, made
/// by [`HeapOptions`]. It may be shared between threads.
///
/// ```
/// use core::alloc::{GlobalAlloc, Layout};
/// use page_memory_allocator::{HeapOptions, SizeClasses};
///
/// let heap = HeapOptions::new()
///     .capacity(32768)
///     .page_size(4096)
///     .classes(SizeClasses::POWERS_OF_TWO)
///     .build()
///     .expect("the system has 32 KiB of addresses");
/// let layout = Layout::new::<[u8; 200]>();
/// let block = heap.alloc(layout);
/// assert!(!block.is_null());
/// // SAFETY: the block is live and was allocated with this layout.
/// unsafe { heap.dealloc(block, layout) };
/// ```
///
/// With the feature `allocator-api2`, collections live in a heap, and are gone with it at once. None can be used after
/// that, as each of them borrows the heap:
///
#[cfg_attr(feature = "allocator-api2", doc = "```compile_fail,E0505")]
#[cfg_attr(not(feature = "allocator-api2"), doc = "```ignore")]
/// use allocator_api2::vec::Vec;
/// use page_memory_allocator::HeapOptions;
///
/// let heap = HeapOptions::new().build().unwrap();
/// let mut numbers = Vec::new_in(&heap);
/// numbers.push(1);
/// drop(heap);
/// numbers.push(2); // The heap is borrowed: this does not compile.
/// ```
///
/// In the other order it does:
///
#[cfg_attr(feature = "allocator-api2", doc = "```")]
#[cfg_attr(not(feature = "allocator-api2"), doc = "```ignore")]
/// use allocator_api2::vec::Vec;
/// use page_memory_allocator::HeapOptions;
///
/// let heap = HeapOptions::new().build().unwrap();
/// let mut numbers = Vec::new_in(&heap);
/// numbers.push(1);
/// numbers.push(2);
/// drop(numbers);
/// drop(heap);
/// ```
pub struct Heap<G: Geometry = CustomGeometry> {
    table: PageTable<G>,
    /// The page lock: which pages are free, and the headers of those that are not Divided.
    runs: Lock<Runs<'static>>,
    /// By shard, then class; behind them those of components, by class, then component: the class locks.
    bins: NonNull<LockedBin>,
    shards: usize,
    /// Shards, from the first one on, that may have pages. It only grows.
    shards_in_use: AtomicUsize,
    /// The accounts of the components, each of which has a shard beyond `shards`; none if the heap knows no components.
    ledger: Option<&'static Ledger>,
    /// Whether this is the heap of the process: then the last page of a class and shard stays Divided when its last
    /// block is freed, until there is a lack of pages, and guards are set if the build is hardened.
    is_process_heap: bool,
    /// Most pages in use at a time.
    limit: PageCount,
    /// Multi runs that have mappings of their own because they were advised otherwise than their neighbours: see [`mapping`].
    advised: AtomicUsize,
    /// Multi runs that have mappings of their own because they were moved, and places of runs that were lost to that.
    moved: AtomicUsize,
    /// Pages of runs that are being moved: what is in them is counted where it goes. Changed with the runs locked.
    moving: AtomicUsize,
    arena: Arena,
    /// The mapping that holds the table and the bins.
    tables: TableMemory,
}

// SAFETY: the bins are reached through their locks, and lie in memory that the heap owns.
unsafe impl<G: Geometry> Send for Heap<G> {}
// SAFETY: as above.
unsafe impl<G: Geometry> Sync for Heap<G> {}

/// Bytes that a block for `layout` has room for in a heap of that geometry. What a run has behind the bytes that were
/// asked for may be given back to the system.
#[inline]
pub(crate) fn room_for<G: Geometry>(geometry: G, layout: Layout) -> Option<usize> {
    match geometry.class_of(layout) {
        ClassIndex::NONE => {
            PageCount::holding(layout.size(), geometry.page_shift()).map(|_| layout.size().max(1))
        }
        class => Some(geometry.classes().block(class)),
    }
}

/// Memory of the tables, from the OS, reserved and zeroed where it is committed, unmapped when dropped; or given, all of
/// it there, and left alone.
struct TableMemory {
    start: NonNull<u8>,
    bytes: usize,
    given: bool,
}

impl TableMemory {
    fn reserve(bytes: usize) -> Option<TableMemory> {
        let bytes = bytes.next_multiple_of(sys::page_size());
        Some(TableMemory { start: sys::reserve_tables(bytes)?, bytes, given: false })
    }

    /// Has a range be there, in whole OS pages. False if the system refuses.
    fn commit(&self, range: Range<usize>) -> bool {
        let start = range.start & !(sys::page_size() - 1);
        let end = range.end.next_multiple_of(sys::page_size());
        // SAFETY: the range is within the memory; what is committed of it stays as it is.
        self.given || start >= end || unsafe { sys::commit_part(self.start, self.bytes, start..end) }
    }
}

impl Drop for TableMemory {
    fn drop(&mut self) {
        if !self.given {
            // SAFETY: the mapping is the owner's alone, who is gone.
            unsafe { sys::unmap(self.start, self.bytes) };
        }
    }
}

/// Bytes of a page table, such that bins may follow it.
fn bytes_of_table<G: Geometry>(geometry: G, pages: PageCount) -> usize {
    PageTable::storage(geometry, pages).next_multiple_of(align_of::<LockedBin>())
}

/// Shards of a heap that has so many beside those of the components that `ledger` may know.
fn all_shards(shards: usize, ledger: Option<&Ledger>) -> usize {
    shards + ledger.map_or(0, |_| MOST_COMPONENTS)
}

/// The first so many pages have their bitmaps from the beginning on.
const FIRST_BITMAPS: usize = 4096;

/// How many pages have their bitmaps when there are pages up to `frontier`. They are most of the tables, which are for
/// as many pages as the arena may have some day, and a system that counts memory may count what is committed.
fn bitmaps_for(frontier: usize, capacity: PageCount) -> usize {
    frontier.next_power_of_two().max(FIRST_BITMAPS).min(capacity.get())
}

impl<G: Geometry> Heap<G> {
    fn with_geometry(
        geometry: G,
        pages: PageCount,
        shards: usize,
        ledger: Option<&'static Ledger>,
        is_process_heap: bool,
        huge_pages: bool,
    ) -> Option<Heap<G>> {
        let page_size = geometry.page_size();
        let bytes = pages.bytes(geometry.page_shift()).next_multiple_of(sys::page_size());
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { page_size };
        let arena = Arena::reserve(bytes, align, huge_pages)?;
        let tables =
            TableMemory::reserve(Self::bytes_of_tables(geometry, pages, all_shards(shards, ledger)))?;
        let [tiny, short, long] = PageTable::bitmaps_in_storage(geometry, pages, 0..bitmaps_for(0, pages));
        let bins = bytes_of_table(geometry, pages)..tables.bytes;
        // In one piece they are one mapping, where these are short.
        if !([0..tiny.end, short, long, bins].into_iter().all(|part| part.is_empty() || tables.commit(part))
            || tables.commit(0..tables.bytes))
        {
            return None;
        }
        // SAFETY: mappings are aligned to an OS page, and the tables' is zeroed.
        let mut heap = unsafe { Heap::assemble(geometry, pages, shards, arena, tables) };
        (heap.ledger, heap.is_process_heap) = (ledger, is_process_heap);
        Some(heap)
    }

    /// Has the bitmaps of pages between two frontiers be there. False if the system refuses.
    fn commit_bitmaps(&self, frontiers: Range<usize>) -> bool {
        let capacity = self.table.capacity();
        let pages = bitmaps_for(frontiers.start, capacity)..bitmaps_for(frontiers.end, capacity);
        let mut parts = PageTable::bitmaps_in_storage(self.geometry(), capacity, pages).into_iter();
        parts.all(|part| part.is_empty() || self.tables.commit(part))
    }

    /// Bytes of the page table and, behind it, the bins.
    fn bytes_of_tables(geometry: G, pages: PageCount, shards: usize) -> usize {
        bytes_of_table(geometry, pages) + shards * geometry.class_count() * size_of::<LockedBin>()
    }

    /// The heap over `arena`, with `tables` for its page table and its bins.
    ///
    /// # Safety
    /// The arena has that many pages and begins at a multiple of their size. The tables are zeroed, as long as
    /// [`bytes_of_tables`](Self::bytes_of_tables) says, and aligned as a [`LockedBin`]. Of the bitmaps, those of the
    /// [first pages](bitmaps_for) are there.
    unsafe fn assemble(
        geometry: G,
        pages: PageCount,
        shards: usize,
        arena: Arena,
        tables: TableMemory,
    ) -> Heap<G> {
        let base = arena.start().addr().get();
        // SAFETY: the tables are zeroed, long enough, aligned, and live as long as the heap. Each class and shard has
        // one bin: the one in `bins`.
        let (table, runs) = unsafe { PageTable::new(geometry, base, pages, tables.start) };
        // SAFETY: the bins follow the table. Zeros are open locks of bins without pages.
        let bins = unsafe { tables.start.add(bytes_of_table(geometry, pages)).cast() };
        Heap {
            table,
            runs: Lock::new(runs),
            bins,
            shards,
            shards_in_use: AtomicUsize::new(1),
            ledger: None,
            is_process_heap: false,
            limit: pages,
            advised: AtomicUsize::new(0),
            moved: AtomicUsize::new(0),
            moving: AtomicUsize::new(0),
            arena,
            tables,
        }
    }

    /// The page table.
    #[inline]
    pub(crate) fn table(&self) -> &PageTable<G> {
        &self.table
    }

    /// Where `page` begins.
    fn at(&self, page: PageIndex) -> NonNull<u8> {
        // SAFETY: the page is one of the arena's.
        unsafe { self.arena.start().add(page.get() << self.geometry().page_shift()) }
    }

    #[inline]
    pub(crate) fn geometry(&self) -> G {
        self.table.geometry()
    }

    pub(crate) fn runs(&self) -> Guard<'_, Runs<'static>> {
        self.runs.lock()
    }

    #[inline]
    fn locked_bin(&self, tag: Tag) -> &Lock<Bin> {
        let (shard, class) = (tag.shard().0 as usize, tag.class().get());
        let classes = self.geometry().class_count();
        debug_assert!(shard < all_shards(self.shards, self.ledger));
        debug_assert!((1..classes).contains(&class));
        // Components are many, and use few classes each: those of one class lie side by side.
        let at = match shard.checked_sub(self.shards) {
            None => shard * classes + class,
            Some(component) => self.shards * classes + class * MOST_COMPONENTS + component,
        };
        // SAFETY: there is a bin for every shard and class, and tags name no others.
        unsafe { &self.bins.add(at).as_ref().0 }
    }

    #[inline]
    pub(crate) fn bin(&self, tag: Tag) -> Guard<'_, Bin> {
        self.locked_bin(tag).lock_before(|| self.has_lock_from(tag.shard().0 as usize + 1))
    }

    /// Whether the calling thread has the lock of the runs, or of a bin of that shard or a later one.
    #[cold]
    #[inline(never)]
    pub(crate) fn has_lock_from(&self, shard: usize) -> bool {
        let mut bins = self.tags(self.shards_in_use()).filter(|tag| tag.shard().0 as usize >= shard);
        self.runs.is_own() || bins.any(|tag| self.locked_bin(tag).is_own())
    }

    fn shards_in_use(&self) -> usize {
        self.shards_in_use.load(Ordering::Relaxed)
    }

    /// Every tag that a Divided page of the first `shards` shards, of sampled blocks, or of a component, can have.
    fn tags(&self, shards: usize) -> impl Iterator<Item = Tag> + use<G> {
        let classes = self.geometry().class_count();
        let of_threads = (0..shards.min(SHARDS)).map(|shard| ShardIndex(shard as u8));
        let of_samples = (SHARDS..self.shards).map(|shard| ShardIndex(shard as u8));
        let of_components = self.components().map(ComponentIndex::shard);
        of_threads
            .chain(of_samples)
            .chain(of_components)
            .flat_map(move |shard| (1..classes).map(move |class| Tag::new(shard, ClassIndex(class as u8))))
    }

    /// Allocates a block for `layout`; null if that cannot be served. A size of zero is served as one byte.
    ///
    /// ```
    /// # #[cfg(feature = "os")]
    /// # {
    /// use page_memory_allocator::HeapOptions;
    /// use std::alloc::Layout;
    ///
    /// let heap = HeapOptions::new().build().unwrap();
    /// let layout = Layout::new::<[u64; 10]>();
    /// let block = heap.alloc(layout);
    /// assert!(!block.is_null() && heap.summary().live_blocks == 1);
    /// // SAFETY: the block is live, and has this layout.
    /// unsafe { heap.dealloc(block, layout) };
    /// assert!(heap.summary().live_blocks == 0 && heap.check().is_ok());
    /// # }
    /// ```
    pub fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.geometry().class_of(layout) {
            ClassIndex::NONE => self.alloc_run(ComponentIndex::NONE, layout, false),
            class => self.alloc_block(Tag::new(ShardIndex(0), class)).start,
        }
    }

    /// [`alloc`](Self::alloc), with all bytes zero.
    ///
    /// ```
    /// # #[cfg(feature = "os")]
    /// # {
    /// use page_memory_allocator::HeapOptions;
    /// use std::alloc::Layout;
    ///
    /// let heap = HeapOptions::new().build().unwrap();
    /// let layout = Layout::new::<[u64; 10]>();
    /// let numbers = heap.alloc_zeroed(layout).cast::<[u64; 10]>();
    /// // SAFETY: the block is live, has this layout, and zeros are numbers.
    /// unsafe {
    ///     assert_eq!(*numbers, [0; 10]);
    ///     heap.dealloc(numbers.cast(), layout);
    /// }
    /// # }
    /// ```
    pub fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.geometry().class_of(layout) {
            ClassIndex::NONE => self.alloc_run(ComponentIndex::NONE, layout, true),
            // SAFETY: the block is the caller's to be, and at least as long as the layout.
            class => unsafe { self.alloc_block(Tag::new(ShardIndex(0), class)).zeroed(layout.size()) },
        }
    }

    /// Frees a block. A pointer or layout that the page table contradicts ends the process.
    /// [`alloc`](Self::alloc) has an example.
    ///
    /// # Safety
    /// `ptr` was allocated from this heap with `layout` and has not been freed since.
    pub unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        match self.geometry().class_of(layout) {
            ClassIndex::NONE => self.dealloc_run(ptr.addr(), Some(layout)),
            class => self.put_all(class, slice::from_mut(&mut ptr.addr())),
        }
    }

    /// Makes a block of `layout` one of `new_size` bytes, where it stands or elsewhere, with the contents kept as
    /// far as both reach. Null, and the block untouched, if that cannot be served.
    ///
    /// ```
    /// # #[cfg(feature = "os")]
    /// # {
    /// use page_memory_allocator::HeapOptions;
    /// use std::alloc::Layout;
    ///
    /// let heap = HeapOptions::new().build().unwrap();
    /// let (short, long) = (Layout::new::<[u8; 100]>(), Layout::new::<[u8; 100_000]>());
    /// let block = heap.alloc(short);
    /// // SAFETY: the block is live, with the layout that it has at each time.
    /// unsafe {
    ///     block.write_bytes(7, 100);
    ///     let longer = heap.realloc(block, short, long.size());
    ///     assert!(!longer.is_null() && longer.add(99).read() == 7);
    ///     heap.dealloc(longer, long);
    /// }
    /// # }
    /// ```
    ///
    /// # Safety
    /// As for [`dealloc`](Self::dealloc); `new_size` rounded up to the layout's alignment does not exceed
    /// `isize::MAX`.
    pub unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller vouches for the new size.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if let Some(resized) = self.resize(ptr.addr(), layout, new_layout) {
            return resized;
        }
        let new = self.alloc(new_layout);
        if !new.is_null() {
            // SAFETY: both blocks are live, differ, and are as long as their layouts; the old one is given up.
            unsafe {
                ptr::copy_nonoverlapping(ptr, new, layout.size().min(new_size));
                self.dealloc(ptr, layout);
            }
        }
        new
    }

    /// Makes the live block at `address` one for `new` without copying it: it may serve `new` as well as `old`; a run
    /// is made longer or shorter, or its memory is moved to another. `None`, and nothing done, if that cannot be.
    #[inline]
    pub(crate) fn resize(&self, address: usize, old: Layout, new: Layout) -> Option<*mut u8> {
        match (self.geometry().class_of(old), self.geometry().class_of(new)) {
            (ClassIndex::NONE, ClassIndex::NONE) => self.resize_run(address, Some(old), new),
            (old, new) if old == new => {
                #[cfg(feature = "profile")]
                if self.is_process_heap && crate::profile::is_sampled_run(address) {
                    // A run, though the layout is that of a block: it moves.
                    return None;
                }
                self.tag_for_free(address, old);
                Some(self.pointer(address))
            }
            _ => None,
        }
    }

    /// Bytes that a block for `layout` has room for, at least as many as were asked for; `None` for more than any heap
    /// has. It may be used up to there, and freed as a block of any size between the two.
    #[inline]
    pub fn room_for(&self, layout: Layout) -> Option<usize> {
        room_for(self.geometry(), layout)
    }

    /// What `page` is at this moment.
    ///
    /// ```
    /// # #[cfg(feature = "os")]
    /// # {
    /// use page_memory_allocator::HeapOptions;
    /// use page_memory_allocator::page_table::PageState;
    /// use page_memory_allocator::units::PageIndex;
    /// use std::alloc::Layout;
    ///
    /// let heap = HeapOptions::new().page_size(4096).build().unwrap();
    /// assert_eq!(heap.page_state(PageIndex(0)), PageState::Free);
    /// heap.alloc(Layout::new::<[u8; 100]>());
    /// assert!(matches!(heap.page_state(PageIndex(0)), PageState::Divided { live_blocks: 1, .. }));
    /// # }
    /// ```
    ///
    /// # Panics
    /// If the heap has no such page.
    pub fn page_state(&self, page: PageIndex) -> PageState {
        self.span_at(page).state
    }

    /// Verifies every invariant of the page table, with the whole heap locked for as long as that takes.
    ///
    /// # Errors
    /// The first invariant that does not hold, and the page it was seen at.
    pub fn check(&self) -> Result<Census, Violation> {
        let _frozen = self.ledger.map(Ledger::freeze);
        for tag in self.tags(self.shards) {
            mem::forget(self.bin(tag));
        }
        let runs = self.runs();
        let mut listed = 0;
        let mut broken = None;
        for tag in self.tags(self.shards) {
            // SAFETY: the lock is held by this thread, which leaked its guard above, and no other reference to the bin
            // is alive.
            let bin = unsafe { self.locked_bin(tag).leaked() };
            match self.table.check_bin(bin, tag) {
                Ok(pages) => listed += pages,
                Err(violation) => broken = broken.or(Some(violation)),
            }
        }
        // SAFETY: all bins and the runs are locked by this thread.
        let mut census = unsafe { self.table.check(&runs) };
        if census.is_ok() {
            // SAFETY: as above.
            census = unsafe { self.check_accounts(&runs) }.and(census);
        }
        for tag in self.tags(self.shards) {
            // SAFETY: as above; the lock is not used after this.
            unsafe { self.locked_bin(tag).unlock_leaked() };
        }
        // The runs come last: who locks only some of the bins, and then the runs, finds the others open.
        drop(runs);
        let census = census?;
        match broken {
            Some(violation) => Err(violation),
            None if listed != census.listed_pages => {
                Err(Violation { what: "a page with free blocks is in no list", page: PageIndex(0) })
            }
            None => Ok(census),
        }
    }

    /// Bytes of address space in the arena.
    ///
    /// ```
    /// # #[cfg(feature = "os")]
    /// # {
    /// use page_memory_allocator::HeapOptions;
    ///
    /// let heap = HeapOptions::new().capacity(1 << 20).build().unwrap();
    /// assert_eq!(heap.reserved_bytes(), heap.pages().get() * heap.page_size());
    /// assert_eq!((heap.committed_bytes(), heap.start().addr() % heap.page_size()), (0, 0));
    /// # }
    /// ```
    pub fn reserved_bytes(&self) -> usize {
        self.table.capacity().bytes(self.geometry().page_shift())
    }

    /// Bytes of the arena that are committed: the system may back them with memory.
    pub fn committed_bytes(&self) -> usize {
        self.frontier().get() << self.geometry().page_shift()
    }

    /// Bytes of the page table for the committed pages, and of the bins.
    pub(crate) fn table_bytes(&self) -> usize {
        let frontier = self.frontier();
        let shards = self.shards_in_use() + self.shards.saturating_sub(SHARDS);
        let bins = (shards + self.components().count()) * self.geometry().class_count();
        PageTable::storage(self.geometry(), PageCount(frontier.0)) + bins * size_of::<LockedBin>()
    }

    /// Where the page table for the committed pages is, and the bins: start and length in bytes, upward.
    pub(crate) fn tables_in_use(&self) -> [(usize, usize); 6] {
        let frontier = self.frontier();
        let [headers, indices, tiny_bitmaps, short_bitmaps, long_bitmaps] =
            self.table.storage_in_use(frontier);
        let shards = all_shards(self.shards, self.ledger);
        let bins = shards * self.geometry().class_count() * size_of::<LockedBin>();
        [headers, indices, tiny_bitmaps, short_bitmaps, long_bitmaps, (self.bins.addr().get(), bins)]
    }

    /// Whether the page table shares its OS pages with whatever lies beside it, as somebody gave the memory.
    pub(crate) fn has_given_tables(&self) -> bool {
        self.tables.given
    }

    /// Address of the arena's first byte.
    pub fn start(&self) -> *mut u8 {
        self.arena.start().as_ptr()
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> usize {
        self.geometry().page_size()
    }

    /// Pages in the arena.
    pub fn pages(&self) -> PageCount {
        self.table.capacity()
    }
}

// SAFETY: blocks come from pages or runs that hold them whole, at addresses that the layout's alignment divides, and
// belong to their owner until they are freed or the heap is dropped. Nothing here unwinds.
unsafe impl<G: Geometry> GlobalAlloc for Heap<G> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Heap::alloc(self, layout)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { Heap::dealloc(self, block, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Heap::alloc_zeroed(self, layout)
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        unsafe { Heap::realloc(self, block, layout, new_size) }
    }
}

impl<G: Geometry> fmt::Debug for Heap<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap")
            .field("start", &self.start())
            .field("pages", &self.pages())
            .field("page_size", &self.page_size())
            .field("tables", &self.tables.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "os"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_knows_which_locks_of_a_heap_it_has() {
        let heap = HeapOptions::new().build().unwrap();
        assert!(!heap.has_lock_from(0));
        let runs = heap.runs();
        assert!(heap.has_lock_from(0) && heap.has_lock_from(1));
        drop(runs);
        let bin = heap.bin(Tag::new(ShardIndex(0), ClassIndex(1)));
        assert!(heap.has_lock_from(0) && !heap.has_lock_from(1));
        drop(bin);
        assert!(!heap.has_lock_from(0));
    }
}
