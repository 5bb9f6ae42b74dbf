//! A heap: an arena, its page table, and the locks.
//!
//! Lock order: a bin, then the runs. A second bin is only tried for, never waited for, but by [`Heap::check`], which
//! takes all in order.

mod blocks;
mod large;
mod options;
mod purge;

pub use options::{HeapError, HeapOptions};
pub(crate) use purge::Unused;

use crate::arena::{Arena, HUGE_PAGE};
use crate::lock::{Guard, Lock};
use crate::options::Options;
use crate::page_table::{Bin, Census, PageState, PageTable, Tag, Violation};
use crate::runs::Runs;
use crate::size_class::{BuildGeometry, CustomGeometry, Geometry, built};
use crate::sys;
use crate::units::{ClassIndex, PageCount, PageIndex, ShardIndex};
use core::alloc::Layout;
use core::fmt;
use core::mem;
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicUsize, Ordering};

/// The process heap reserves so many times the machine's memory: free runs may be scattered.
const ARENA_TO_MEMORY: usize = 2;
/// What it tries to reserve when the machine does not say how much memory it has.
const USUAL_RESERVATION: usize = 64 << 30;
/// It gives up when even so little is refused.
const LEAST_RESERVATION: usize = 4 << 20;

/// A bin on cache lines of its own, behind the lock of its class and shard.
#[repr(align(64))]
struct LockedBin(Lock<Bin>);

/// A page allocator over an arena of its own. All memory taken from it is given back when it is dropped.
///
/// The heap of a whole program is [`PageAllocator`](crate::PageAllocator); this type is for heaps beside it, made
/// by [`HeapOptions`]. It may be shared between threads.
///
/// ```
/// use core::alloc::Layout;
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
pub struct Heap<G: Geometry = CustomGeometry> {
    table: PageTable<G>,
    /// The page lock: which pages are free, and the headers of those that are not Divided.
    runs: Lock<Runs<'static>>,
    /// By shard, then class: the class locks.
    bins: NonNull<LockedBin>,
    shards: usize,
    /// Shards, from the first one on, that may have pages. It only grows.
    shards_in_use: AtomicUsize,
    /// Whether the last page of a class and shard stays Divided when its last block is freed.
    keeps_last_page: bool,
    /// Most pages in use at a time.
    limit: PageCount,
    /// Multi runs in mappings of their own: see [`large`].
    mapped_apart: AtomicUsize,
    arena: Arena,
    /// The mapping that holds the table and the bins.
    tables: Mapping,
}

// SAFETY: the bins are reached through their locks, and lie in memory that the heap owns.
unsafe impl<G: Geometry> Send for Heap<G> {}
// SAFETY: as above.
unsafe impl<G: Geometry> Sync for Heap<G> {}

/// Zeroed memory from the OS, unmapped when dropped.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Option<Mapping> {
        let bytes = bytes.next_multiple_of(sys::page_size());
        sys::map_zeroed(bytes).map(|start| Mapping { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is the owner's alone, who is gone.
        unsafe { sys::unmap(self.start, self.bytes) };
    }
}

impl Heap<BuildGeometry> {
    /// The heap of the process: as much address space as its program can need and the system grants.
    pub(crate) fn for_process(options: &Options) -> Option<Heap<BuildGeometry>> {
        let usual = sys::physical_memory().saturating_mul(ARENA_TO_MEMORY).checked_next_power_of_two();
        let wanted = usual.filter(|&bytes| bytes > 0).unwrap_or(USUAL_RESERVATION);
        let mut bytes = wanted.clamp(LEAST_RESERVATION, built::ARENA_BYTES);
        while bytes >= LEAST_RESERVATION {
            let pages = PageCount((bytes / built::PAGE_SIZE).min(u32::MAX as usize - 1) as u32);
            let heap = Heap::with_geometry(BuildGeometry, pages, built::SHARDS, true, options.huge_pages);
            if let Some(mut heap) = heap {
                heap.limit = PageCount(pages.get().min(options.limit / built::PAGE_SIZE) as u32);
                return Some(heap);
            }
            bytes /= 2;
        }
        None
    }
}

impl<G: Geometry> Heap<G> {
    fn with_geometry(
        geometry: G,
        pages: PageCount,
        shards: usize,
        keeps_last_page: bool,
        huge_pages: bool,
    ) -> Option<Heap<G>> {
        let page_size = geometry.page_size();
        let bytes = pages.bytes(geometry.page_shift()).next_multiple_of(sys::page_size());
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { page_size };
        let arena = Arena::reserve(bytes, align, huge_pages)?;
        let bins = shards * geometry.class_count();
        let table_bytes = PageTable::storage(geometry, pages).next_multiple_of(align_of::<LockedBin>());
        let tables = Mapping::new(table_bytes + bins * size_of::<LockedBin>())?;
        // SAFETY: the mapping is zeroed, long enough, aligned to an OS page, and lives as long as the heap. Each class
        // and shard has one bin: the one in `bins`.
        let (table, runs) =
            unsafe { PageTable::new(geometry, arena.start().addr().get(), pages, tables.start) };
        // SAFETY: the bins follow the table. Zeros are open locks of bins without pages.
        let bins = unsafe { tables.start.add(table_bytes).cast() };
        Some(Heap {
            table,
            runs: Lock::new(runs),
            bins,
            shards,
            shards_in_use: AtomicUsize::new(1),
            keeps_last_page,
            limit: pages,
            mapped_apart: AtomicUsize::new(0),
            arena,
            tables,
        })
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
        debug_assert!(shard < self.shards && (1..self.geometry().class_count()).contains(&class));
        // SAFETY: there is a bin for every shard and class, and tags name no others.
        unsafe { &self.bins.add(shard * self.geometry().class_count() + class).as_ref().0 }
    }

    #[inline]
    pub(crate) fn bin(&self, tag: Tag) -> Guard<'_, Bin> {
        self.locked_bin(tag).lock()
    }

    /// Lets `shard` have pages, as threads are about to use it. Not while all is locked.
    pub(crate) fn use_shard(&self, shard: ShardIndex) {
        self.shards_in_use.fetch_max(shard.0 as usize + 1, Ordering::Relaxed);
    }

    fn shards_in_use(&self) -> usize {
        self.shards_in_use.load(Ordering::Relaxed)
    }

    /// Every tag that a Divided page of the first `shards` shards can have.
    fn tags(&self, shards: usize) -> impl Iterator<Item = Tag> + use<G> {
        let classes = self.geometry().class_count();
        (0..shards).flat_map(move |shard| {
            (1..classes).map(move |class| Tag::new(ShardIndex(shard as u8), ClassIndex(class as u8)))
        })
    }

    /// Locks all bins, then the runs, until [`unlock_all`](Self::unlock_all).
    ///
    /// The caller sees to it that no shard comes into use meanwhile. Bins of shards that are not in use are left out:
    /// nobody has them.
    pub(crate) fn lock_all(&self) {
        for tag in self.tags(self.shards_in_use()) {
            mem::forget(self.bin(tag));
        }
        mem::forget(self.runs());
    }

    /// Opens what [`lock_all`](Self::lock_all) locked.
    ///
    /// # Safety
    /// This thread, or in a child process the one that forked, locked it.
    pub(crate) unsafe fn unlock_all(&self) {
        // SAFETY: the caller's locks; no reference to what they guard was kept.
        unsafe {
            self.tags(self.shards_in_use()).for_each(|tag| self.locked_bin(tag).unlock_leaked());
            self.runs.unlock_leaked();
        }
    }

    /// Allocates a block for `layout`; null if that cannot be served. A size of zero is served as one byte.
    pub fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.geometry().class_of(layout) {
            ClassIndex::NONE => self.alloc_run(layout, false),
            class => self.alloc_block(Tag::new(ShardIndex(0), class)),
        }
    }

    /// [`alloc`](Self::alloc), with all bytes zero.
    pub fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.geometry().class_of(layout) {
            ClassIndex::NONE => self.alloc_run(layout, true),
            class => {
                let block = self.alloc_block(Tag::new(ShardIndex(0), class));
                if !block.is_null() {
                    // SAFETY: the block is the caller's to be, and at least as long as the layout.
                    unsafe { block.write_bytes(0, layout.size()) };
                }
                block
            }
        }
    }

    /// Frees a block. A pointer or layout that the page table contradicts ends the process.
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
                self.tag_for_free(address, old);
                Some(self.pointer(address))
            }
            _ => None,
        }
    }

    /// What `page` is at this moment.
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
        let census = unsafe { self.table.check(&runs) };
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
    pub fn reserved_bytes(&self) -> usize {
        self.table.capacity().bytes(self.geometry().page_shift())
    }

    /// Bytes of the arena that are committed: the system may back them with memory.
    pub fn committed_bytes(&self) -> usize {
        self.runs().frontier().get() << self.geometry().page_shift()
    }

    /// Bytes of the page table for the committed pages, and of the bins.
    pub(crate) fn table_bytes(&self) -> usize {
        let frontier = self.runs().frontier();
        let bins = self.shards_in_use() * self.geometry().class_count();
        PageTable::storage(self.geometry(), PageCount(frontier.0)) + bins * size_of::<LockedBin>()
    }

    /// Where the page table for the committed pages is, and the bins: start and length in bytes, upward.
    pub(crate) fn tables_in_use(&self) -> [(usize, usize); 4] {
        let frontier = self.runs().frontier();
        let [headers, indices, bitmaps] = self.table.storage_in_use(frontier);
        let bins = self.shards * self.geometry().class_count() * size_of::<LockedBin>();
        [headers, indices, bitmaps, (self.bins.addr().get(), bins)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_heap_keeps_to_the_parameters_of_the_build() {
        let heap = Heap::for_process(&Options::new()).expect("the system grants some address space");
        assert!(heap.reserved_bytes() <= built::ARENA_BYTES);
        assert_eq!((heap.page_size(), heap.shards), (built::PAGE_SIZE, built::SHARDS));
        heap.check().expect("a new heap is in order");
    }
}
