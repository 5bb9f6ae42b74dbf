//! A heap: an arena, its page table, and the locks.
//!
//! Lock order: a bin, then the runs. A second bin is only tried for, never waited for, but by [`Heap::check`], which
//! takes all in order.

use crate::arena::Arena;
use crate::fault;
use crate::lock::{Guard, Lock};
use crate::page_table::{Bin, Census, Misuse, PageState, PageTable, Tag, Violation};
use crate::runs::Runs;
use crate::size_class::{BuildGeometry, CustomGeometry, Geometry, SizeClasses, built};
use crate::sys;
use crate::units::{ClassIndex, PageCount, PageIndex, ShardIndex};
use core::alloc::Layout;
use core::fmt;
use core::mem;
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Huge pages of the OS begin at multiples of this.
const HUGE_PAGE: usize = 2 << 20;
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

/// Why a heap could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HeapError {
    /// The page size is not a power of two from 512 bytes to 1 MiB.
    PageSize,
    /// The capacity is not a multiple of the page size, is zero, or has more than `u32::MAX - 1` pages.
    Capacity,
    /// The system refused the address space.
    Refused,
}

impl fmt::Display for HeapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeapError::PageSize => "the page size must be a power of two from 512 bytes to 1 MiB",
            HeapError::Capacity => "the capacity must be a positive multiple of the page size",
            HeapError::Refused => "the system refused the address space",
        })
    }
}

impl core::error::Error for HeapError {}

/// How a [`Heap`] is to be made.
#[derive(Clone, Copy, Debug)]
pub struct HeapOptions {
    capacity: usize,
    page_size: usize,
    classes: &'static SizeClasses,
}

impl HeapOptions {
    /// 64 MiB in pages of the build's page size, with the build's size classes.
    pub const fn new() -> HeapOptions {
        HeapOptions { capacity: 64 << 20, page_size: built::PAGE_SIZE, classes: SizeClasses::BUILD }
    }

    /// Bytes of address space to reserve: a multiple of the page size. They cost memory only once they are used.
    pub const fn capacity(mut self, bytes: usize) -> HeapOptions {
        self.capacity = bytes;
        self
    }

    /// Bytes in a page: a power of two from 512 to 1 MiB.
    pub const fn page_size(mut self, bytes: usize) -> HeapOptions {
        self.page_size = bytes;
        self
    }

    /// The sizes that pages are divided into; those above half a page are left out.
    pub const fn classes(mut self, classes: &'static SizeClasses) -> HeapOptions {
        self.classes = classes;
        self
    }

    /// Makes the heap.
    ///
    /// # Errors
    /// [`HeapError`] says which of the options cannot be, or that the system refused.
    pub fn build(self) -> Result<Heap, HeapError> {
        let geometry = CustomGeometry::new(self.page_size, self.classes).ok_or(HeapError::PageSize)?;
        let pages = self.capacity / self.page_size;
        if pages == 0 || !self.capacity.is_multiple_of(self.page_size) || pages >= u32::MAX as usize {
            return Err(HeapError::Capacity);
        }
        Heap::with_geometry(geometry, PageCount(pages as u32), 1, false).ok_or(HeapError::Refused)
    }
}

impl Default for HeapOptions {
    fn default() -> HeapOptions {
        HeapOptions::new()
    }
}

impl Heap<BuildGeometry> {
    /// The heap of the process: as much address space as its program can need and the system grants.
    pub(crate) fn for_process() -> Option<Heap<BuildGeometry>> {
        let usual = sys::physical_memory().saturating_mul(ARENA_TO_MEMORY).checked_next_power_of_two();
        let wanted = usual.filter(|&bytes| bytes > 0).unwrap_or(USUAL_RESERVATION);
        let mut bytes = wanted.clamp(LEAST_RESERVATION, built::ARENA_BYTES);
        while bytes >= LEAST_RESERVATION {
            let pages = PageCount((bytes / built::PAGE_SIZE).min(u32::MAX as usize - 1) as u32);
            if let Some(heap) = Heap::with_geometry(BuildGeometry, pages, built::SHARDS, true) {
                return Some(heap);
            }
            bytes /= 2;
        }
        None
    }
}

impl<G: Geometry> Heap<G> {
    fn with_geometry(geometry: G, pages: PageCount, shards: usize, keeps_last_page: bool) -> Option<Heap<G>> {
        let page_size = geometry.page_size();
        let bytes = pages.bytes(geometry.page_shift()).next_multiple_of(sys::page_size());
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { page_size };
        let arena = Arena::reserve(bytes, align)?;
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
            arena,
            tables,
        })
    }

    /// The page table.
    #[inline]
    pub(crate) fn table(&self) -> &PageTable<G> {
        &self.table
    }

    #[inline]
    fn geometry(&self) -> G {
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
        if self.resize_in_place(ptr.addr(), layout, new_layout) {
            return ptr;
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

    /// Whether the live block at `address` serves `new` as well as `old`, where it stands. A run is made longer or
    /// shorter for that if need be.
    pub(crate) fn resize_in_place(&self, address: usize, old: Layout, new: Layout) -> bool {
        match (self.geometry().class_of(old), self.geometry().class_of(new)) {
            (ClassIndex::NONE, ClassIndex::NONE) => self.resize_run(address, Some(old), new),
            (old, new) if old == new => {
                self.tag_for_free(address, old);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn alloc_block(&self, tag: Tag) -> *mut u8 {
        let mut slot = [0];
        match self.refill(tag, &mut slot) {
            0 => ptr::null_mut(),
            _ => self.pointer(slot[0]),
        }
    }

    /// The pointer to an address of the arena, with the provenance of the whole of it.
    #[inline]
    pub(crate) fn pointer(&self, address: usize) -> *mut u8 {
        self.arena.start().as_ptr().with_addr(address)
    }

    /// Takes blocks of one class and shard, from the fullest pages first, and writes their addresses to the end of
    /// `slots`, such that a stack that ends there pops neighbours in ascending order. Returns how many: fewer than
    /// asked for rather than begin a page while there are some, none if no page is to be had.
    pub(crate) fn refill(&self, tag: Tag, slots: &mut [usize]) -> usize {
        let mut bin = self.bin(tag);
        let mut taken = 0;
        while taken < slots.len() {
            let page = match bin.fullest() {
                Some(page) => page,
                None if taken > 0 => break,
                None => match self.adopt(&mut bin, tag).or_else(|| self.claim_divided(&mut bin, tag)) {
                    Some(page) => page,
                    None => break,
                },
            };
            let unfilled = slots.len() - taken;
            let mut divided = self.table.divided(&mut bin, page);
            taken += divided.take(&mut slots[..unfilled]);
            divided.settle();
        }
        taken
    }

    /// Moves a page that another shard can spare to `bin`. The blocks that a thread has left behind, or handed to
    /// others, are used up before memory is.
    fn adopt(&self, bin: &mut Bin, tag: Tag) -> Option<PageIndex> {
        let shards = self.shards_in_use();
        (1..shards).find_map(|distance| {
            let shard = (tag.shard().0 as usize + distance) % shards;
            // Out of order, so only if nobody has it.
            let mut other = self.locked_bin(Tag::new(ShardIndex(shard as u8), tag.class())).try_lock()?;
            let page = other.spare()?;
            self.table.transfer(&mut other, bin, tag, page);
            Some(page)
        })
    }

    fn claim_divided(&self, bin: &mut Bin, tag: Tag) -> Option<PageIndex> {
        let mut runs = self.runs();
        let page = self.find(&mut runs, PageCount(1))?;
        self.table.claim_divided(&mut runs, bin, tag, page);
        Some(page)
    }

    /// Gives blocks of `class` back to their pages, whichever shard those belong to; pages without live blocks
    /// become Free. A block that is not one, or is free already, ends the process. The order of `blocks` is lost.
    pub(crate) fn put_all(&self, class: ClassIndex, mut blocks: &mut [usize]) {
        while let Some(&first) = blocks.first() {
            let tag = self.tag_for_free(first, class);
            let done = self.put_shard(tag, blocks);
            blocks = &mut blocks[done..];
        }
    }

    /// Puts those of `blocks` that belong to pages of `tag`, the first among them, and moves the others to the end.
    /// Returns how many were put.
    fn put_shard(&self, tag: Tag, blocks: &mut [usize]) -> usize {
        let mut bin = self.bin(tag);
        let (mut at, mut others) = (0, blocks.len());
        while at < others {
            let Some(page) = self.table.page_of(blocks[at]).filter(|&page| self.table.tag(page) == tag)
            else {
                others -= 1;
                blocks.swap(at, others);
                continue;
            };
            let mut divided = self.table.divided(&mut bin, page);
            match divided.put(&blocks[at..others]) {
                Ok(put) => at += put,
                Err((put, misuse)) => {
                    let state = divided.state();
                    // Open, as somebody may handle the signal.
                    drop(bin);
                    fault::misuse(misuse, blocks[at + put], Some(state));
                }
            }
            let live = divided.live();
            divided.settle();
            if live == 0 && !(self.keeps_last_page && bin.pages() == 1) {
                self.table.release_divided(&mut self.runs(), &mut bin, page);
            }
        }
        others
    }

    /// The tag of the Divided page that `address` lies in, if it is in one.
    pub(crate) fn tag_of(&self, address: usize) -> Option<Tag> {
        let tag = self.table.tag(self.table.page_of(address)?);
        tag.is_divided().then_some(tag)
    }

    /// The tag of the page of a block of `class` that is being freed. Ends the process if there is no such page.
    pub(crate) fn tag_for_free(&self, address: usize, class: ClassIndex) -> Tag {
        let Some(page) = self.table.page_of(address) else {
            fault::misuse(Misuse::OutsideArena, address, None)
        };
        let tag = self.table.tag(page);
        if tag.class() == class {
            return tag;
        }
        let state = self.page_state(page);
        fault::misuse(
            if state == PageState::Free { Misuse::FreePage } else { Misuse::WrongLayout },
            address,
            Some(state),
        )
    }

    /// The lowest run of `count` free pages, of which none is claimed yet; commits memory if there is none.
    fn find(&self, runs: &mut Runs, count: PageCount) -> Option<PageIndex> {
        if let Some(start) = runs.find(count) {
            return Some(start);
        }
        let more = PageCount(count.0 - runs.free_below_frontier().0);
        if self.commit(runs, more) { runs.find(count) } else { None }
    }

    /// Commits at least `more` pages above the frontier; false if that cannot be.
    fn commit(&self, runs: &mut Runs, more: PageCount) -> bool {
        let shift = self.geometry().page_shift();
        if more > runs.unadded() {
            return false;
        }
        let committed = self.arena.commit(runs.frontier().get() << shift, more.bytes(shift));
        let Some(bytes) = committed else { return false };
        runs.grow(PageCount(((bytes >> shift) as u32).min(runs.unadded().0)));
        true
    }

    /// Pages of a run for `layout`; `None` for more than any arena has.
    fn pages_for(&self, layout: Layout) -> Option<PageCount> {
        PageCount::holding(layout.size().max(1), self.geometry().page_shift())
    }

    pub(crate) fn alloc_run(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        let shift = self.geometry().page_shift();
        let Some(count) = self.pages_for(layout).filter(|&count| count <= self.table.capacity()) else {
            return ptr::null_mut();
        };
        // Any run this much longer has an aligned one in it.
        let slack = (layout.align() >> shift).saturating_sub(1);
        let Some(padded) = u32::try_from(count.get() + slack).ok().map(PageCount) else {
            return ptr::null_mut();
        };
        let mut runs = self.runs();
        let Some(found) = self.find(&mut runs, padded) else { return ptr::null_mut() };
        let address = self.table.address_of(found).next_multiple_of(layout.align());
        let start = PageIndex(((address - self.table.base()) >> shift) as u32);
        self.table.claim_multi(&mut runs, start, count);
        let dirty = if zeroed { runs.dirty_within(start, count) } else { None };
        drop(runs);
        if let Some((first, pages)) = dirty {
            let start = self.pointer(self.table.address_of(first));
            let end = (address + layout.size()).min(start.addr() + pages.bytes(shift));
            // SAFETY: the range is part of the run, which nobody else has.
            unsafe { start.write_bytes(0, end.saturating_sub(start.addr())) };
        }
        self.pointer(address)
    }

    /// Frees the run at `address`; with `layout`, only if that is what it was allocated with.
    pub(crate) fn dealloc_run(&self, address: usize, layout: Option<Layout>) {
        let (mut runs, head, count) = self.expect_run(address, layout);
        self.table.release_multi(&mut runs, head, count);
    }

    /// Makes the run at `address` long enough for `new` where it stands, and no longer.
    pub(crate) fn resize_run(&self, address: usize, old: Option<Layout>, new: Layout) -> bool {
        let Some(new_count) = self.pages_for(new) else { return false };
        let (mut runs, head, count) = self.expect_run(address, old);
        if new_count > count {
            let more = PageCount(new_count.0 - count.0);
            let free = runs.free_from(head.plus(count), more);
            let up_to_frontier = head.plus(count).plus(free) == runs.frontier();
            if free < more && !(up_to_frontier && self.commit(&mut runs, PageCount(more.0 - free.0))) {
                return false;
            }
        }
        self.table.resize_multi(&mut runs, head, count, new_count)
    }

    /// The run at `address`, which was allocated with `layout` if one is given, and the lock it is under. Ends the
    /// process if there is none.
    fn expect_run(
        &self,
        address: usize,
        layout: Option<Layout>,
    ) -> (Guard<'_, Runs<'static>>, PageIndex, PageCount) {
        let Some(head) = self.table.page_of(address) else {
            fault::misuse(Misuse::OutsideArena, address, None)
        };
        let runs = self.runs();
        let misuse = match self.table.multi_run(&runs, head) {
            Err(misuse) => misuse,
            Ok(_) if self.table.address_of(head) != address => Misuse::NotAtStart,
            Ok(count) if layout.is_some_and(|layout| self.pages_for(layout) != Some(count)) => {
                Misuse::WrongLayout
            }
            Ok(count) => return (runs, head, count),
        };
        drop(runs);
        fault::misuse(misuse, address, Some(self.page_state(head)))
    }

    /// Bytes that the live block or run at `address` has room for. Ends the process if there is none.
    pub(crate) fn usable_size(&self, address: usize) -> usize {
        if let Some(tag) = self.tag_of(address) {
            return self.geometry().classes().block(tag.class());
        }
        let (_, _, count) = self.expect_run(address, None);
        count.bytes(self.geometry().page_shift())
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
