//! Heaps over memory that somebody gave: a static array, a region that a linker script names, a mapping of one's own.
//! No operating system is asked for anything.
//!
//! The tables lie before the pages, or in memory of their own. Given memory may hold anything, so all of its pages
//! begin dirty: zeroed blocks are written, where those of a reservation are known to be zero.

use super::{Arena, Heap, HeapError, HeapOptions, LockedBin, TableMemory};
use crate::size_class::{CustomGeometry, Geometry};
use crate::units::{PageCount, PageIndex};
use core::ptr::NonNull;

/// Heaps over given memory have one shard: they have no thread caches.
const ONE_SHARD: usize = 1;

/// A range of memory.
type Region = NonNull<[u8]>;

/// The part of `region` from the first multiple of `align` on.
fn aligned(region: Region, align: usize) -> Option<Region> {
    let start = region.cast::<u8>();
    let before = start.addr().get().wrapping_neg() & (align - 1);
    let bytes = region.len().checked_sub(before)?;
    // SAFETY: no more than the region's length was cut off.
    Some(NonNull::slice_from_raw_parts(unsafe { start.add(before) }, bytes))
}

/// Bytes of the tables of a heap of `pages` pages.
fn tables_of(geometry: CustomGeometry, pages: PageCount) -> usize {
    Heap::bytes_of_tables(geometry, pages, ONE_SHARD)
}

/// The first of `most` numbers of pages, from the highest down, that fits.
fn most_that_fits(most: usize, fits: impl Fn(PageCount) -> bool) -> PageCount {
    let (mut low, mut high) = (0, most.min(u32::MAX as usize - 1) as u32);
    // What is known: `low` pages fit, and more than `high` do not.
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(PageCount(middle)) { low = middle } else { high = middle - 1 }
    }
    PageCount(low)
}

impl HeapOptions {
    /// Makes a heap of `memory`: the page table at its start, and behind that as many pages as it holds. The option
    /// [`capacity`](Self::capacity) does not matter.
    ///
    /// Nothing is asked of an operating system, so this is the way to a heap where there is none. The memory may hold
    /// anything. Pages begin at multiples of their size: memory that begins at one loses least.
    ///
    /// ```
    /// use page_memory_allocator::{HeapOptions, SizeClasses};
    /// use spin::mutex::{SpinMutex, SpinMutexGuard};
    ///
    /// #[repr(align(4096))]
    /// struct Memory([u8; 65536]);
    /// static MEMORY: SpinMutex<Memory> = SpinMutex::new(Memory([0; 65536]));
    ///
    /// // The array is lent out for good.
    /// let memory: &'static mut Memory = SpinMutexGuard::leak(MEMORY.lock());
    /// let heap = HeapOptions::new().page_size(4096).classes(SizeClasses::POWERS_OF_TWO).build_in(&mut memory.0)?;
    /// assert_eq!(heap.pages().get(), 15);
    /// # Ok::<(), page_memory_allocator::HeapError>(())
    /// ```
    ///
    /// # Errors
    /// [`HeapError::PageSize`]; [`HeapError::TooSmall`] for memory that does not hold a page and its tables.
    pub fn build_in(self, memory: &'static mut [u8]) -> Result<Heap, HeapError> {
        // SAFETY: whoever had the reference gave it away for good.
        unsafe { self.build_in_region(NonNull::from(memory)) }
    }

    /// [`build_in`](Self::build_in) with memory of their own for the tables: they may lie where it is fast, and
    /// `memory` is pages from its first multiple of the page size on. There are as many pages as both have room for;
    /// [`table_bytes`](Self::table_bytes) says how much tables take.
    ///
    /// ```
    /// use page_memory_allocator::units::PageCount;
    /// use page_memory_allocator::{HeapOptions, SizeClasses};
    ///
    /// let options = HeapOptions::new().page_size(512).classes(SizeClasses::POWERS_OF_TWO);
    /// // Memory that may be slow, and some that is fast; arrays that are leaked stand for both.
    /// let tables = vec![0; options.table_bytes(PageCount(31))? + 64];
    /// let heap = options.build_apart(vec![0; 16384].leak(), tables.leak())?;
    /// assert!((31..=32).contains(&heap.pages().get()));
    /// # Ok::<(), page_memory_allocator::HeapError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`build_in`](Self::build_in).
    pub fn build_apart(
        self,
        memory: &'static mut [u8],
        tables: &'static mut [u8],
    ) -> Result<Heap, HeapError> {
        // SAFETY: whoever had the references gave them away for good.
        unsafe { self.build_apart_in_regions(NonNull::from(memory), NonNull::from(tables)) }
    }

    /// [`build_in`](Self::build_in) for memory that no reference can be had of.
    ///
    /// ```
    /// use page_memory_allocator::{HeapOptions, SizeClasses};
    /// use std::ptr::NonNull;
    ///
    /// let options = HeapOptions::new().page_size(4096).classes(SizeClasses::POWERS_OF_TWO);
    /// let mut memory = vec![0u8; 65536];
    /// let region = NonNull::slice_from_raw_parts(NonNull::new(memory.as_mut_ptr()).unwrap(), memory.len());
    /// // SAFETY: nothing else uses the memory until the heap is gone.
    /// let heap = unsafe { options.build_in_region(region) }?;
    /// assert!(heap.pages().get() >= 14);
    /// drop(heap);
    /// drop(memory);
    /// # Ok::<(), page_memory_allocator::HeapError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`build_in`](Self::build_in).
    ///
    /// # Safety
    /// The region can be read and written, and nothing else uses it as long as the heap or a block of it is in use.
    pub unsafe fn build_in_region(self, memory: NonNull<[u8]>) -> Result<Heap, HeapError> {
        let geometry = self.geometry()?;
        let tables = aligned(memory, align_of::<LockedBin>()).ok_or(HeapError::TooSmall)?;
        let pages_behind = |bytes: usize| {
            // SAFETY: only as many bytes are cut off as there are.
            let behind = (bytes <= tables.len()).then(|| unsafe { tables.cast::<u8>().add(bytes) })?;
            aligned(NonNull::slice_from_raw_parts(behind, tables.len() - bytes), geometry.page_size())
        };
        let pages = most_that_fits(memory.len() >> geometry.page_shift(), |pages| {
            pages_behind(tables_of(geometry, pages))
                .is_some_and(|behind| behind.len() >= pages.bytes(geometry.page_shift()))
        });
        let arena = pages_behind(tables_of(geometry, pages)).ok_or(HeapError::TooSmall)?;
        // SAFETY: the tables lie before the pages, and both in the region, which is the caller's to give.
        unsafe { heap_over(geometry, pages, arena, tables) }
    }

    /// [`build_apart`](Self::build_apart) for memory that no references can be had of.
    ///
    /// ```
    /// use page_memory_allocator::{HeapOptions, SizeClasses};
    /// use std::ptr::NonNull;
    ///
    /// let options = HeapOptions::new().page_size(4096).classes(SizeClasses::POWERS_OF_TWO);
    /// let (mut memory, mut tables) = (vec![0u8; 65536], vec![0u8; 8192]);
    /// let region = |bytes: &mut Vec<u8>| {
    ///     NonNull::slice_from_raw_parts(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len())
    /// };
    /// // SAFETY: nothing else uses either until the heap is gone.
    /// let heap = unsafe { options.build_apart_in_regions(region(&mut memory), region(&mut tables)) }?;
    /// assert!(heap.pages().get() >= 15);
    /// drop(heap);
    /// drop((memory, tables));
    /// # Ok::<(), page_memory_allocator::HeapError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`build_in`](Self::build_in).
    ///
    /// # Safety
    /// As for [`build_in_region`](Self::build_in_region), of both regions; they do not overlap.
    pub unsafe fn build_apart_in_regions(
        self,
        memory: NonNull<[u8]>,
        tables: NonNull<[u8]>,
    ) -> Result<Heap, HeapError> {
        let geometry = self.geometry()?;
        let tables = aligned(tables, align_of::<LockedBin>()).ok_or(HeapError::TooSmall)?;
        let arena = aligned(memory, geometry.page_size()).ok_or(HeapError::TooSmall)?;
        let pages = most_that_fits(arena.len() >> geometry.page_shift(), |pages| {
            tables_of(geometry, pages) <= tables.len()
        });
        // SAFETY: pages and tables fit, and do not overlap, as the caller says.
        unsafe { heap_over(geometry, pages, arena, tables) }
    }

    /// Bytes that the tables of a heap of `pages` pages take, when they begin at a multiple of 64.
    ///
    /// ```
    /// use page_memory_allocator::units::PageCount;
    /// use page_memory_allocator::{HeapOptions, SizeClasses};
    ///
    /// let options = HeapOptions::new().page_size(4096).classes(SizeClasses::POWERS_OF_TWO);
    /// let (few, many) = (options.table_bytes(PageCount(10))?, options.table_bytes(PageCount(1010))?);
    /// assert!((many - few) / 1000 < 120); // bytes for each page
    /// # Ok::<(), page_memory_allocator::HeapError>(())
    /// ```
    ///
    /// # Errors
    /// [`HeapError::PageSize`].
    pub fn table_bytes(self, pages: PageCount) -> Result<usize, HeapError> {
        Ok(tables_of(self.geometry()?, pages))
    }
}

/// # Safety
/// `arena` and `tables` are aligned, long enough for `pages` pages, do not overlap, and are given away for as long as
/// the heap or a block of it is in use.
unsafe fn heap_over(
    geometry: CustomGeometry,
    pages: PageCount,
    arena: Region,
    tables: Region,
) -> Result<Heap, HeapError> {
    if pages.0 == 0 {
        return Err(HeapError::TooSmall);
    }
    let bytes = tables_of(geometry, pages);
    // SAFETY: the caller gave memory of that length, which may hold anything; the heap wants zeros.
    let heap = unsafe {
        tables.cast::<u8>().write_bytes(0, bytes);
        let arena = Arena::given(arena.cast(), pages.bytes(geometry.page_shift()));
        let tables = TableMemory { start: tables.cast(), bytes, given: true };
        Heap::assemble(geometry, pages, ONE_SHARD, arena, tables)
    };
    let mut runs = heap.runs();
    runs.grow(pages);
    runs.soil(PageIndex(0), pages);
    drop(runs);
    Ok(heap)
}
