//! [`PageAllocator`] for callers that know no layouts, as those of C's `malloc` and `free`: the page table knows
//! the size of every block.

use crate::global::{PageAllocator, heap};
use crate::size_class::{BuildGeometry, GRANULE, Geometry, built::CLASS_OF};
use crate::thread_cache::{self, current};
use crate::units::ClassIndex;
use core::alloc::{GlobalAlloc, Layout};
use core::{ptr, slice};

/// The alignment of what [`PageAllocator::malloc`] returns, for sizes above 8 bytes: that of every C type.
const MALLOC_ALIGN: usize = 16;

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

impl PageAllocator {
    /// A block of at least `size` bytes, aligned for every C type that fits into it; null if that cannot be served.
    /// A size of zero is served as one byte.
    #[inline]
    pub fn malloc(&self, size: usize) -> *mut u8 {
        if let Some(&class) = MALLOC_CLASS_OF.get(size.wrapping_sub(1) / GRANULE) {
            let block = current().pop(ClassIndex(class));
            if !block.is_null() {
                return block;
            }
        }
        malloc_slow(size)
    }

    /// Frees a block of this allocator, however it was allocated; null is let pass. A pointer that the page table
    /// contradicts ends the process.
    ///
    /// # Safety
    /// `ptr` is null, or was allocated by this allocator and has not been freed since.
    #[inline]
    pub unsafe fn free(&self, ptr: *mut u8) {
        if !current().push_unsized(ptr.addr()) {
            free_slow(ptr);
        }
    }

    /// Bytes that the block at `ptr` has room for; 0 for null.
    ///
    /// # Safety
    /// `ptr` is null, or was allocated by this allocator and has not been freed since.
    #[inline]
    pub unsafe fn usable_size(&self, ptr: *const u8) -> usize {
        if ptr.is_null() {
            return 0;
        }
        heap().map_or(0, |heap| heap.usable_size(ptr.addr()))
    }

    /// Makes a block one of `new_size` bytes, where it stands or elsewhere, with the contents kept as far as both
    /// reach and the alignment of [`malloc`](Self::malloc). Null, and the block untouched, if that cannot be served.
    ///
    /// # Safety
    /// `ptr` was allocated by this allocator and has not been freed since.
    pub unsafe fn realloc_unsized(&self, ptr: *mut u8, new_size: usize) -> *mut u8 {
        let (Some(heap), Some(layout)) = (heap(), malloc_layout(new_size)) else { return ptr::null_mut() };
        let old_size = heap.usable_size(ptr.addr());
        let new_class = BuildGeometry.class_of(layout);
        let stays = match new_class {
            ClassIndex::NONE => {
                old_size >= BuildGeometry.page_size() && heap.resize_run(ptr.addr(), None, layout)
            }
            class => BuildGeometry.classes().block(class) == old_size,
        };
        if stays {
            return ptr;
        }
        let new = self.malloc(new_size);
        if !new.is_null() {
            // SAFETY: both blocks are live, differ, and are at least that long; the old one is given up.
            unsafe {
                ptr::copy_nonoverlapping(ptr, new, old_size.min(new_size));
                self.free(ptr);
            }
        }
        new
    }
}

/// The layout that `malloc` serves `size` with.
fn malloc_layout(size: usize) -> Option<Layout> {
    let align = if size <= GRANULE { GRANULE } else { MALLOC_ALIGN };
    Layout::from_size_align(size.max(1), align).ok()
}

#[cold]
#[inline(never)]
fn malloc_slow(size: usize) -> *mut u8 {
    match malloc_layout(size) {
        // SAFETY: the size is not zero.
        Some(layout) => unsafe { PageAllocator::new().alloc(layout) },
        None => ptr::null_mut(),
    }
}

#[cold]
#[inline(never)]
fn free_slow(ptr: *mut u8) {
    if ptr.is_null() {
        return;
    }
    let Some(heap) = heap() else { return };
    let mut address = ptr.addr();
    let Some(tag) = heap.tag_of(address) else { return heap.dealloc_run(address, None) };
    match thread_cache::current_or_made(heap) {
        Some(cache) => cache.dealloc_slow(heap, tag, address),
        None => heap.put_all(tag.class(), slice::from_mut(&mut address)),
    }
}
