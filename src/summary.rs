//! What a heap's memory is used for, counted from the page table.

#[cfg(feature = "os")]
use crate::global::PageAllocator;
use crate::heap::Heap;
use crate::human::{Bytes, Count};
#[cfg(feature = "os")]
use crate::metadata;
use crate::page_table::PageState;
use crate::size_class::Geometry;
#[cfg(feature = "os")]
use crate::size_class::built::BLOCK_SIZES;
use crate::spans::Span;
#[cfg(feature = "os")]
use crate::thread_cache;
use crate::units::PageCount;
use core::fmt;

/// What the pages of a heap, and the bytes in them, are used for.
///
/// Every byte of the arena is counted once, in either of two ways:
///
/// > `free_pages + divided_pages + multi_pages = reserved_bytes / page_size`
/// >
/// > `live_bytes + cached_bytes + free_block_bytes + tail_bytes + free_pages * page_size = reserved_bytes`
///
/// While threads allocate, each page is counted as it was when it was looked at, and the figures as a whole are near
/// the truth; the sums hold all the same.
///
/// [`Display`](fmt::Display) writes a line for each.
///
/// ```
/// # #[cfg(feature = "os")]
/// # {
/// use page_memory_allocator::{HeapOptions, Summary};
///
/// let heap = HeapOptions::new().page_size(4096).capacity(1 << 20).build().unwrap();
/// let summary: Summary = heap.summary();
/// assert_eq!((summary.free_pages.get(), summary.live_blocks, summary.reserved_bytes), (256, 0, 1 << 20));
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Bytes in a page.
    pub page_size: usize,
    /// Pages not in use, those that were never committed included.
    pub free_pages: PageCount,
    /// Pages that are divided into blocks.
    pub divided_pages: PageCount,
    /// Pages of runs.
    pub multi_pages: PageCount,
    /// Blocks of Divided pages that the program holds; those in thread caches are not among them.
    pub live_blocks: usize,
    /// Runs of pages: each is one allocation.
    pub live_runs: usize,
    /// Bytes in those blocks and runs: what the program asked for, rounded up to blocks and pages.
    pub live_bytes: usize,
    /// Blocks that wait in thread caches.
    pub cached_blocks: usize,
    /// Bytes in those blocks.
    pub cached_bytes: usize,
    /// Blocks of Divided pages that are free.
    pub free_blocks: usize,
    /// Bytes in those blocks.
    pub free_block_bytes: usize,
    /// Bytes behind the last whole block of Divided pages.
    pub tail_bytes: usize,
    /// Bytes of address space in the arena.
    pub reserved_bytes: usize,
    /// Bytes of the arena that are committed: the system may back them with memory.
    pub committed_bytes: usize,
    /// Bytes of the allocator's own tables that serve the committed pages, and of its thread caches. Untouched
    /// parts of them are not backed by memory.
    pub table_bytes: usize,
}

impl Summary {
    /// A summary of no pages yet.
    pub(crate) fn of_pages(page_size: usize) -> Summary {
        Summary { page_size, ..Summary::default() }
    }

    /// Counts the pages of `span`.
    pub(crate) fn add(&mut self, span: &Span) {
        let pages = span.pages;
        match span.state {
            PageState::Free => self.free_pages.0 += pages.0,
            PageState::Divided { block, free_blocks, live_blocks, .. } => {
                self.divided_pages.0 += pages.0;
                self.live_blocks += live_blocks;
                self.live_bytes += live_blocks * block;
                self.free_blocks += free_blocks;
                self.free_block_bytes += free_blocks * block;
                self.tail_bytes += self.page_size - (live_blocks + free_blocks) * block;
            }
            PageState::MultiHead { .. } | PageState::MultiTail => {
                self.multi_pages.0 += pages.0;
                self.live_runs += usize::from(span.state != PageState::MultiTail);
                self.live_bytes += pages.get() * self.page_size;
            }
        }
    }

    /// Adds what is known of the heap as a whole, after all of its pages were counted.
    pub(crate) fn finish<G: Geometry>(mut self, heap: &Heap<G>) -> Summary {
        self.reserved_bytes = heap.reserved_bytes();
        self.committed_bytes = heap.committed_bytes();
        self.table_bytes = heap.table_bytes();
        self
    }

    /// Tells the blocks in thread caches, which the page table takes for live, from those that the program holds.
    #[cfg(feature = "os")]
    pub(crate) fn with_caches(mut self) -> Summary {
        let cached = thread_cache::totals();
        // The caches are counted after the pages. More than was live then cannot be told apart.
        let sizes = BLOCK_SIZES.iter().zip(cached);
        let bytes: usize = sizes.map(|(&block, blocks)| block as usize * blocks).sum();
        self.cached_blocks = cached.iter().sum::<usize>().min(self.live_blocks);
        self.cached_bytes = bytes.min(self.live_bytes);
        self.live_blocks -= self.cached_blocks;
        self.live_bytes -= self.cached_bytes;
        self.add_tables_beside_the_page_table();
        self
    }

    /// Counts the tables that only the process heap has.
    #[cfg(feature = "os")]
    pub(crate) fn add_tables_beside_the_page_table(&mut self) {
        self.table_bytes += metadata::mapped_bytes();
        #[cfg(feature = "hardened")]
        {
            self.table_bytes += crate::hardened::table_bytes(self.committed_bytes);
        }
    }
}

impl<G: Geometry> Heap<G> {
    /// Counts what the heap is used for, from the page table. Nothing is allocated, and no lock is held for longer
    /// than it takes to look at one page or run.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::of_pages(self.page_size());
        self.spans().for_each(|span| summary.add(&span));
        summary.finish(self)
    }
}

#[cfg(feature = "os")]
impl PageAllocator {
    /// Counts what the process heap is used for. Blocks in thread caches are told from live ones. Nothing is
    /// allocated, and no lock is held for longer than it takes to look at one page or run; but threads begin and end before or
    /// after their caches are counted.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     let megabyte = vec![1u8; 1 << 20];
    ///     let summary = HEAP.summary();
    ///     assert!(summary.live_runs >= 1 && summary.live_bytes >= megabyte.len());
    ///     println!("{summary}");
    /// }
    /// ```
    pub fn summary(&self) -> Summary {
        self.heap().map_or_else(Summary::default, |heap| heap.summary().with_caches())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = Count(self.live_runs, "run");
        let pages = |count: PageCount| (Bytes(count.get() * self.page_size), Count(count.get(), "page"));
        let (free_bytes, free) = pages(self.free_pages);
        let (divided_bytes, divided) = pages(self.divided_pages);
        let (multi_bytes, multi) = pages(self.multi_pages);
        writeln!(f, "Free pages:    {free_bytes:10} {free:>10}")?;
        writeln!(f, "Divided pages: {divided_bytes:10} {divided:>10}")?;
        writeln!(f, "Multi pages:   {multi_bytes:10} {multi:>10} in {runs}")?;
        let blocks = |bytes: usize, count: usize| (Bytes(bytes), Count(count, "block"));
        let (live_bytes, live) = blocks(self.live_bytes, self.live_blocks);
        let (cached_bytes, cached) = blocks(self.cached_bytes, self.cached_blocks);
        let (free_bytes, free) = blocks(self.free_block_bytes, self.free_blocks);
        writeln!(f, "Live:          {live_bytes:10} {live:>10} and {runs}")?;
        writeln!(f, "Cached:        {cached_bytes:10} {cached:>10}")?;
        writeln!(f, "Free blocks:   {free_bytes:10} {free:>10}")?;
        writeln!(f, "Page tails:    {:10}", Bytes(self.tail_bytes))?;
        writeln!(f, "Reserved:      {:10}", Bytes(self.reserved_bytes))?;
        writeln!(f, "Committed:     {:10}", Bytes(self.committed_bytes))?;
        write!(f, "Own tables:    {:10}", Bytes(self.table_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ComponentIndex, PageIndex};

    #[test]
    fn a_tail_that_is_seen_apart_from_its_head_is_no_run_of_its_own() {
        let mut summary = Summary::of_pages(4096);
        let run = PageCount(2);
        let (owner, unasked) = (ComponentIndex::NONE, 0);
        let head = PageState::MultiHead { run };
        summary.add(&Span { first: PageIndex(5), pages: run, state: head, owner, unasked });
        let state = PageState::MultiTail;
        summary.add(&Span { first: PageIndex(7), pages: PageCount(1), state, owner, unasked });
        assert_eq!((summary.multi_pages, summary.live_runs), (PageCount(3), 1));
        assert_eq!(summary.live_bytes, 3 * 4096);
    }
}
