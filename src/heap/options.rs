//! How heaps of one's own are made.

use super::Heap;
use crate::size_class::{CustomGeometry, SizeClasses, built};
use crate::units::PageCount;
use core::fmt;

/// Why a heap could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HeapError {
    /// The page size is not a power of two from 512 bytes to 1 MiB.
    PageSize,
    /// The capacity is not a multiple of the page size, is zero, or has more than `u32::MAX - 1` pages.
    Capacity,
    /// The system refused the address space, or there is none.
    Refused,
    /// The memory that was given does not hold a page and its tables.
    TooSmall,
}

impl fmt::Display for HeapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeapError::PageSize => "the page size must be a power of two from 512 bytes to 1 MiB",
            HeapError::Capacity => {
                "the capacity must be a positive multiple of the page size, and fewer than 2^32 - 1 pages"
            }
            HeapError::Refused if cfg!(not(feature = "os")) => {
                "there is no system to reserve memory: `build_in` takes some"
            }
            HeapError::Refused => "the system refused the address space",
            HeapError::TooSmall => "the memory given has no room for a page and its tables",
        })
    }
}

impl core::error::Error for HeapError {}

/// How a [`Heap`] is to be made.
///
/// ```
/// use page_memory_allocator::{HeapError, HeapOptions, SizeClasses};
/// # fn main() -> Result<(), HeapError> {
/// let options = HeapOptions::new().page_size(4096).classes(SizeClasses::POWERS_OF_TWO);
/// assert_eq!(options.capacity(5000).build().unwrap_err(), HeapError::Capacity);
/// # #[cfg(feature = "os")]
/// # {
/// let heap = options.capacity(1 << 20).build()?;
/// assert_eq!((heap.page_size(), heap.pages().get()), (4096, 256));
/// # }
/// # Ok(())
/// # }
/// ```
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
    #[must_use]
    pub const fn capacity(mut self, bytes: usize) -> HeapOptions {
        self.capacity = bytes;
        self
    }

    /// Bytes in a page: a power of two from 512 to 1 MiB.
    #[must_use]
    pub const fn page_size(mut self, bytes: usize) -> HeapOptions {
        self.page_size = bytes;
        self
    }

    /// The sizes that pages are divided into; those above half a page are left out.
    #[must_use]
    pub const fn classes(mut self, classes: &'static SizeClasses) -> HeapOptions {
        self.classes = classes;
        self
    }

    pub(super) fn geometry(self) -> Result<CustomGeometry, HeapError> {
        CustomGeometry::new(self.page_size, self.classes).ok_or(HeapError::PageSize)
    }

    /// Makes the heap, in address space that it reserves. Without the feature `os` there is none:
    /// [`build_in`](Self::build_in) makes a heap of given memory.
    ///
    /// # Errors
    /// [`HeapError`] says which of the options cannot be, or that the system refused.
    pub fn build(self) -> Result<Heap, HeapError> {
        let geometry = self.geometry()?;
        let pages = self.capacity / self.page_size;
        if pages == 0 || !self.capacity.is_multiple_of(self.page_size) || pages >= u32::MAX as usize {
            return Err(HeapError::Capacity);
        }
        Heap::with_geometry(geometry, PageCount(pages as u32), 1, None, false, true).ok_or(HeapError::Refused)
    }
}

impl Default for HeapOptions {
    fn default() -> HeapOptions {
        HeapOptions::new()
    }
}
