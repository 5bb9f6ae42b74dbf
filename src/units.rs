//! Newtypes for what is counted, so that pages, classes and bytes cannot be mixed up.
//! A bare `usize` is bytes unless its name says what it counts (`live_blocks`, `class_count`).
//!
//! ```
//! use page_memory_allocator::units::{PageCount, PageIndex};
//!
//! let pages = PageCount::holding(10_000, 12).unwrap();
//! assert_eq!((pages, pages.bytes(12)), (PageCount(3), 12_288));
//! assert_eq!(PageIndex(4).plus(pages), PageIndex(7));
//! ```

use core::fmt;

/// Index of a page within its arena; page 0 is at the arena's lowest address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// The page `count` pages above this one.
    #[inline]
    pub const fn plus(self, count: PageCount) -> PageIndex {
        PageIndex(self.0 + count.0)
    }

    /// The index as a subscript.
    #[inline]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageCount(pub u32);

impl PageCount {
    /// Pages that hold `bytes`, or `None` when that is more than any arena has.
    #[inline]
    pub fn holding(bytes: usize, page_shift: u32) -> Option<PageCount> {
        let pages = (bytes >> page_shift) + usize::from(bytes & ((1 << page_shift) - 1) != 0);
        u32::try_from(pages).ok().map(PageCount)
    }

    /// Bytes in that many pages.
    #[inline]
    pub const fn bytes(self, page_shift: u32) -> usize {
        (self.0 as usize) << page_shift
    }

    /// The count as a `usize`.
    #[inline]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Index of a size class, from 1. Index 0 is no class, so that a zeroed table entry names none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClassIndex(pub u8);

impl ClassIndex {
    /// No size class.
    pub const NONE: ClassIndex = ClassIndex(0);

    /// The index as a subscript.
    #[inline]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Index of a shard: one of the groups of pages that threads are spread over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardIndex(pub u8);

/// Index of a component of the program, from 1. Index 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ComponentIndex(pub u8);

impl ComponentIndex {
    /// No component.
    pub const NONE: ComponentIndex = ComponentIndex(0);
}
