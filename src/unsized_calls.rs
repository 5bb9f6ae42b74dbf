//! [`PageAllocator`] for callers that know no layouts, as those of C's `malloc` and `free`: the page table knows
//! the size of every block.
//!
//! `malloc` and `free` are there as a whole and in parts, the fast `malloc_cached` and `free_cached`, and what is done `otherwise`,
//! for callers who have something of their own to do on the slow side, such as setting `errno`.

use crate::global::{PageAllocator, alloc_sampled, dealloc_run, dealloc_tagged, resize_run};
use crate::guarded;
use crate::heap::{Block, Heap};
use crate::page_table::Misuse;
use crate::profile;
use crate::size_class::{BuildGeometry, GRANULE, Geometry, built::CLASS_OF, built::LARGEST_CLASS};
use crate::thread_cache::current;
use crate::units::ClassIndex;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use static_assertions::const_assert;

/// The alignment of what [`PageAllocator::malloc`] returns, for sizes above 8 bytes: that of every C type.
const MALLOC_ALIGN: usize = 16;

const_assert!(MALLOC_ALIGN.is_power_of_two() && MALLOC_ALIGN >= GRANULE);
const_assert!(CLASS_OF.len().is_multiple_of(MALLOC_ALIGN / GRANULE)); // the last size rounded up is in the table

/// [`CLASS_OF`] with the alignment of `malloc`: blocks of more than 8 bytes are multiples of 16.
static MALLOC_CLASS_OF: [u8; CLASS_OF.len()] = {
    let mut classes = [0; CLASS_OF.len()];
    classes[0] = CLASS_OF[0];
    let mut granule = 1;
    while granule < classes.len() {
        classes[granule] = CLASS_OF[granule | (MALLOC_ALIGN / GRANULE - 1)];
        granule += 1;
    }
    classes
};

/// The class that `malloc` serves `size` from; `None` for zero and for sizes of runs.
#[inline(always)]
fn class_of(size: usize) -> Option<ClassIndex> {
    MALLOC_CLASS_OF.get(size.wrapping_sub(1) / GRANULE).map(|&class| ClassIndex(class))
}

/// The layout that `malloc` serves `size` with; `None` for more than `isize::MAX` bytes.
#[inline]
fn layout_of(size: usize) -> Option<Layout> {
    let align = if size <= GRANULE { GRANULE } else { MALLOC_ALIGN };
    Layout::from_size_align(size.max(1), align).ok()
}

/// A block of at least `size` bytes of the calling thread's cache, if that has one.
#[inline(always)]
fn pop_cached(size: usize) -> Block {
    let cache = current();
    let block = class_of(size).map_or(Block::NONE, |class| cache.pop(class));
    if !block.start.is_null()
        && cache.countdown.is_due(size)
        && let Some(layout) = layout_of(size)
    {
        return alloc_sampled(layout, block.start).into();
    }
    block
}

impl PageAllocator {
    /// A block of at least `size` bytes, aligned for every C type that fits into it; null if that cannot be served.
    /// A size of zero is served as one byte.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// static HEAP: PageAllocator = PageAllocator::new();
    /// let block = HEAP.malloc(100);
    /// assert!(!block.is_null());
    /// // SAFETY: the block is live until it is freed, and not used after that.
    /// unsafe {
    ///     assert!(HEAP.usable_size(block) >= 100);
    ///     let longer = HEAP.realloc_unsized(block, 1 << 20);
    ///     assert!(!longer.is_null());
    ///     HEAP.free(longer);
    /// }
    /// ```
    #[inline]
    pub fn malloc(&self, size: usize) -> *mut u8 {
        let block = self.malloc_cached(size);
        if block.is_null() { self.malloc_otherwise(size) } else { block }
    }

    /// [`malloc`](Self::malloc) for as long as the calling thread's cache has such a block; null if it has none.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// static HEAP: PageAllocator = PageAllocator::new();
    /// let mut block = HEAP.malloc_cached(100);
    /// if block.is_null() {
    ///     block = HEAP.malloc_otherwise(100); // and whatever there is to do on the slow side
    /// }
    /// // SAFETY: the block is live until it is freed, and not used after that.
    /// unsafe {
    ///     if !HEAP.free_cached(block) && !HEAP.free_cached_for_others(block) {
    ///         HEAP.free_otherwise(block);
    ///     }
    /// }
    /// ```
    #[inline(always)]
    pub fn malloc_cached(&self, size: usize) -> *mut u8 {
        pop_cached(size).start
    }

    /// [`malloc`](Self::malloc) without a first look at what [`malloc_cached`](Self::malloc_cached) has just found empty.
    #[cold]
    #[inline(never)]
    pub fn malloc_otherwise(&self, size: usize) -> *mut u8 {
        layout_of(size).map_or(ptr::null_mut(), |layout| self.alloc_slow(layout, false))
    }

    /// [`malloc_zeroed`](Self::malloc_zeroed) for as long as the calling thread's cache has such a block; null if it has none.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// static HEAP: PageAllocator = PageAllocator::new();
    /// let mut block = HEAP.malloc_zeroed_cached(100);
    /// if block.is_null() {
    ///     block = HEAP.malloc_zeroed(100);
    /// }
    /// // SAFETY: the block is live until it is freed, not used after that, and has at least 100 bytes.
    /// unsafe {
    ///     assert_eq!(block.add(99).read(), 0);
    ///     HEAP.free(block);
    /// }
    /// ```
    #[inline(always)]
    pub fn malloc_zeroed_cached(&self, size: usize) -> *mut u8 {
        // SAFETY: the block is the caller's to be, and at least that long.
        unsafe { pop_cached(size).zeroed(size) }
    }

    /// [`malloc`](Self::malloc), with `size` bytes of zeros.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// static HEAP: PageAllocator = PageAllocator::new();
    /// let block = HEAP.malloc_zeroed(100);
    /// // SAFETY: the block is live, and as long as that; it has at least 100 bytes when it is freed.
    /// unsafe {
    ///     assert_eq!(block.add(99).read(), 0);
    ///     HEAP.free_sized(block, 100);
    /// }
    /// ```
    #[inline]
    pub fn malloc_zeroed(&self, size: usize) -> *mut u8 {
        match layout_of(size) {
            // SAFETY: the size is not zero.
            Some(layout) => unsafe { self.alloc_zeroed(layout) },
            None => ptr::null_mut(),
        }
    }

    /// A block of at least `size` bytes at a multiple of `align`, a power of two, and of what
    /// [`malloc`](Self::malloc) would align it to; null if that cannot be served.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// static HEAP: PageAllocator = PageAllocator::new();
    /// let block = HEAP.malloc_aligned(100, 4096);
    /// assert_eq!(block.addr() % 4096, 0);
    /// // SAFETY: the block is live until it is freed.
    /// unsafe { HEAP.free(block) };
    /// ```
    #[inline]
    pub fn malloc_aligned(&self, size: usize, align: usize) -> *mut u8 {
        let layout = layout_of(size).and_then(|layout| layout.align_to(align).ok());
        match layout {
            // SAFETY: the size is not zero.
            Some(layout) => unsafe { self.alloc(layout) },
            None => ptr::null_mut(),
        }
    }

    /// Frees a block of this allocator, however it was allocated; null is let pass. A pointer that the page table
    /// contradicts ends the process.
    ///
    /// # Safety
    /// `ptr` is null, or was allocated by this allocator and has not been freed since.
    #[inline]
    pub unsafe fn free(&self, ptr: *mut u8) {
        // SAFETY: the caller's contract is the same.
        if !unsafe { self.free_cached(ptr) } {
            self.free_slow(ptr);
        }
    }

    /// [`free`](Self::free) for as long as the calling thread's cache takes the block. False, and nothing freed, if
    /// it does not, and for null.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    #[inline(always)]
    pub unsafe fn free_cached(&self, ptr: *mut u8) -> bool {
        current().push_unsized(ptr.addr())
    }

    /// [`free`](Self::free) for as long as the calling thread's cache has room for a block that is to go home to the pages
    /// of another thread. False, and nothing freed, if it has not, and for every other block.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    #[inline]
    pub unsafe fn free_cached_for_others(&self, ptr: *mut u8) -> bool {
        current().push_remote(None, ptr.addr())
    }

    /// [`free`](Self::free) of a block that neither [`free_cached`](Self::free_cached) nor
    /// [`free_cached_for_others`](Self::free_cached_for_others) has taken. Null is let pass.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    #[cold]
    #[inline(never)]
    pub unsafe fn free_otherwise(&self, ptr: *mut u8) {
        let Some(heap) = self.heap().filter(|_| !ptr.is_null()) else { return };
        let address = ptr.addr();
        match heap.tag_of(address) {
            None if guarded::holds(address) => guarded::free(address, None),
            None => {
                profile::forget_run(address);
                dealloc_run(heap, address, None);
            }
            Some(tag) => dealloc_tagged(heap, tag, address),
        }
    }

    /// [`free`](Self::free), for a caller who knows that the block has at least `size` bytes. If it has less, the
    /// process ends.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    #[inline]
    pub unsafe fn free_sized(&self, ptr: *mut u8, size: usize) {
        // The class that the size tells is most often that of the page, and the cache compares the two.
        if !class_of(size).is_some_and(|class| current().push(class, ptr.addr())) {
            self.free_sized_slow(ptr, size);
        }
    }

    /// Bytes that the block at `ptr` has room for, however it was allocated; 0 for null. They may all be used. For a
    /// block that was allocated with a layout, it is at least what [`room_for`](Self::room_for) says of that.
    ///
    /// # Safety
    /// `ptr` is null, or was allocated by this allocator and has not been freed since.
    #[inline]
    pub unsafe fn usable_size(&self, ptr: *const u8) -> usize {
        if ptr.is_null() {
            return 0;
        }
        self.heap().map_or(0, |heap| usable_size(heap, ptr.addr()))
    }

    /// Makes a block one of `new_size` bytes, where it stands or elsewhere, with the contents kept as far as both
    /// reach and the alignment of [`malloc`](Self::malloc). Null, and the block untouched, if that cannot be served;
    /// a block that is long enough is then returned as it is.
    ///
    /// # Safety
    /// `ptr` was allocated by this allocator, by a call that does not take a [`Layout`], and has not been freed since.
    pub unsafe fn realloc_unsized(&self, ptr: *mut u8, new_size: usize) -> *mut u8 {
        // With `hardened` it is asked first whether the block is live.
        #[cfg(not(feature = "hardened"))]
        if let Some(new_class) = class_of(new_size) {
            let cache = current();
            if let Some(class) = cache.class_at(ptr.addr()).filter(|&class| class != ClassIndex::NONE) {
                if class == new_class {
                    return ptr;
                }
                let old_size = BuildGeometry.classes().block(class);
                let new = self.malloc_cached(new_size);
                // SAFETY: the caller's block, which has so many bytes; it is of a page that the cache serves. The new one is live.
                return unsafe {
                    if new.is_null() {
                        return self.realloc_unsized_slow(ptr, new_size);
                    }
                    self.move_served(cache, class, ptr, new, old_size.min(new_size));
                    new
                };
            }
        }
        // SAFETY: the caller's block, and what is asked of it.
        unsafe { self.realloc_unsized_slow(ptr, new_size) }
    }

    /// [`realloc_unsized`](Self::realloc_unsized) of what no cache serves, or becomes what none has.
    ///
    /// # Safety
    /// As there.
    #[inline(never)]
    unsafe fn realloc_unsized_slow(&self, ptr: *mut u8, new_size: usize) -> *mut u8 {
        let (Some(heap), Some(layout)) = (self.heap(), layout_of(new_size)) else { return ptr::null_mut() };
        #[cfg(feature = "hardened")]
        if let Some(tag) = heap.tag_of(ptr.addr()) {
            crate::hardened::expect_live(heap, tag.class(), ptr.addr());
        }
        let old_size = usable_size(heap, ptr.addr());
        let resized = || match BuildGeometry.class_of(layout) {
            _ if guarded::is_guarded(heap, ptr.addr()) => None,
            ClassIndex::NONE if old_size > LARGEST_CLASS => {
                resize_run(heap, ptr.addr(), (None, old_size), layout)
            }
            class => (BuildGeometry.classes().block(class) == old_size).then_some(ptr),
        };
        // As in `realloc`. What is long enough stays where it is, if there is nothing else.
        let unhooked = self.without_hook();
        let moved = || {
            // SAFETY: the caller's block, which has so many bytes.
            let moved = unsafe { unhooked.move_unsized(ptr, old_size, new_size) };
            (!moved.is_null()).then_some(moved)
        };
        loop {
            let done = resized().or_else(moved).or_else(resized);
            if done.is_some() || !self.is_to_be_tried_again(layout) {
                return done.unwrap_or(ptr::null_mut());
            }
        }
    }
}

/// Bytes that the block at `address` has room for.
fn usable_size(heap: &Heap<BuildGeometry>, address: usize) -> usize {
    if guarded::is_guarded(heap, address) { guarded::usable_size(address) } else { heap.usable_size(address) }
}

impl PageAllocator {
    /// Moves what is in a block of `old_size` bytes to a new one, and frees it. If there is none, the old one is returned if it is
    /// long enough, and else null.
    ///
    /// # Safety
    /// That of [`realloc_unsized`](Self::realloc_unsized).
    unsafe fn move_unsized(&self, ptr: *mut u8, old_size: usize, new_size: usize) -> *mut u8 {
        let new = self.malloc(new_size);
        if new.is_null() {
            return if new_size <= old_size { ptr } else { new };
        }
        // SAFETY: both blocks are live, differ, and are at least that long; the old one is given up.
        unsafe {
            ptr::copy_nonoverlapping(ptr, new, old_size.min(new_size));
            self.free(ptr);
        }
        new
    }

    #[cold]
    #[inline(never)]
    fn free_slow(&self, ptr: *mut u8) {
        // SAFETY: the caller's block, or null.
        unsafe {
            if !self.free_cached_for_others(ptr) {
                self.free_otherwise(ptr);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn free_sized_slow(&self, ptr: *mut u8, size: usize) {
        if ptr.is_null() {
            return;
        }
        if let Some(heap) = self.heap()
            && usable_size(heap, ptr.addr()) < size
        {
            heap.refuse(Misuse::WrongLayout, ptr.addr());
        }
        self.free_slow(ptr);
    }
}
