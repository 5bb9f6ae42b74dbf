//! The allocator trait of collections: that of the crate `allocator-api2`, which stable Rust has, and the standard one,
//! which is unstable. One text serves both.
//!
//! A heap implements it by value, and so does a reference to it: each collection holds one or the other. A collection
//! that holds a reference borrows the heap, so in safe code the heap outlives it.

use crate::heap::Heap;
use crate::size_class::Geometry;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

/// What the trait's methods are made of.
trait Source: GlobalAlloc {
    /// Bytes that a block for `layout` has room for.
    fn room(&self, layout: Layout) -> usize;
}

impl<G: Geometry> Source for Heap<G> {
    #[inline]
    fn room(&self, layout: Layout) -> usize {
        self.room_for(layout).unwrap_or(layout.size())
    }
}

#[cfg(feature = "os")]
impl Source for crate::PageAllocator {
    #[inline]
    fn room(&self, layout: Layout) -> usize {
        self.room_for(layout).unwrap_or(layout.size())
    }
}

/// `len` bytes at `block`, unless that is null.
#[inline]
fn slice(block: *mut u8, len: usize) -> Option<NonNull<[u8]>> {
    NonNull::new(block).map(|block| NonNull::slice_from_raw_parts(block, len))
}

/// A block of no bytes: an address that is aligned, and nothing else.
#[inline]
fn nothing(layout: Layout) -> Option<NonNull<[u8]>> {
    slice(ptr::without_provenance_mut(layout.align()), 0)
}

#[inline]
fn allocate(source: &impl Source, layout: Layout) -> Option<NonNull<[u8]>> {
    if layout.size() == 0 {
        return nothing(layout);
    }
    // SAFETY: the size is not zero.
    slice(unsafe { source.alloc(layout) }, source.room(layout))
}

/// Only the bytes that were asked for are zero, so only those are shown.
#[inline]
fn allocate_zeroed(source: &impl Source, layout: Layout) -> Option<NonNull<[u8]>> {
    if layout.size() == 0 {
        return nothing(layout);
    }
    // SAFETY: the size is not zero.
    slice(unsafe { source.alloc_zeroed(layout) }, layout.size())
}

/// # Safety
/// The block was allocated from `source`; `layout` fits it.
#[inline]
unsafe fn deallocate(source: &impl Source, block: NonNull<u8>, layout: Layout) {
    if layout.size() > 0 {
        // SAFETY: the caller's. Sizes up to the block's room have its class, or its number of pages.
        unsafe { source.dealloc(block.as_ptr(), layout) };
    }
}

/// # Safety
/// The block was allocated from `source`; `old` fits it.
#[inline]
unsafe fn resize(
    source: &impl Source,
    block: NonNull<u8>,
    old: Layout,
    new: Layout,
) -> Option<NonNull<[u8]>> {
    if old.size() > 0 && new.size() > 0 && old.align() == new.align() {
        // SAFETY: the caller's; sizes of layouts are not too large.
        return slice(unsafe { source.realloc(block.as_ptr(), old, new.size()) }, source.room(new));
    }
    let moved = allocate(source, new)?;
    // SAFETY: both blocks are at least that long, and differ unless that is zero; the old one is given up.
    unsafe {
        ptr::copy_nonoverlapping(block.as_ptr(), moved.cast().as_ptr(), old.size().min(new.size()));
        deallocate(source, block, old);
    }
    Some(moved)
}

/// # Safety
/// As for [`resize`]; `new` is not shorter than `old`.
#[inline]
unsafe fn grow_zeroed(
    source: &impl Source,
    block: NonNull<u8>,
    old: Layout,
    new: Layout,
) -> Option<NonNull<[u8]>> {
    // SAFETY: the caller's.
    let grown = unsafe { resize(source, block, old, new) }?.cast::<u8>();
    // SAFETY: the block is as long as `new`, which `old` does not exceed.
    unsafe { grown.add(old.size()).write_bytes(0, new.size() - old.size()) };
    slice(grown.as_ptr(), new.size())
}

/// Implements the trait of `$api` for `$type`.
macro_rules! implement {
    ($($api:ident)::+, $type:ty $(, $geometry:ident)?) => {
        // SAFETY: blocks stay where they are, and their owner's, until they are freed or the heap is dropped; to move
        // the heap does not move its blocks. They are at least as long as the slices that are shown.
        unsafe impl$(<$geometry: Geometry>)? $($api)::+::Allocator for $type {
            #[inline]
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, $($api)::+::AllocError> {
                allocate(self, layout).ok_or($($api)::+::AllocError)
            }

            #[inline]
            fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, $($api)::+::AllocError> {
                allocate_zeroed(self, layout).ok_or($($api)::+::AllocError)
            }

            #[inline]
            unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
                // SAFETY: the caller's contract is the same.
                unsafe { deallocate(self, block, layout) };
            }

            #[inline]
            unsafe fn grow(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $($api)::+::AllocError> {
                // SAFETY: the caller's contract is the same.
                unsafe { resize(self, block, old, new) }.ok_or($($api)::+::AllocError)
            }

            #[inline]
            unsafe fn grow_zeroed(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $($api)::+::AllocError> {
                // SAFETY: the caller's contract is the same.
                unsafe { grow_zeroed(self, block, old, new) }.ok_or($($api)::+::AllocError)
            }

            #[inline]
            unsafe fn shrink(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $($api)::+::AllocError> {
                // SAFETY: the caller's contract is the same.
                unsafe { resize(self, block, old, new) }.ok_or($($api)::+::AllocError)
            }
        }
    };
}

#[cfg(feature = "nightly")]
implement!(core::alloc, Heap<G>, G);
#[cfg(all(feature = "nightly", feature = "os"))]
implement!(core::alloc, crate::PageAllocator);

// With `nightly` the crate `allocator-api2` may show the standard trait as its own; there are no two for one type.
#[cfg(all(feature = "allocator-api2", not(feature = "nightly")))]
implement!(allocator_api2::alloc, Heap<G>, G);
#[cfg(all(feature = "allocator-api2", not(feature = "nightly"), feature = "os"))]
implement!(allocator_api2::alloc, crate::PageAllocator);
