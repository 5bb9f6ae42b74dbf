//! The process heap in six figures, under the names and meanings that jemalloc has for them.

use crate::global::PageAllocator;
use crate::guarded;
use crate::heap::Heap;
use crate::size_class::{BuildGeometry, Geometry as _};
use crate::thread_cache;
use crate::units::PageCount;
use core::fmt;

/// What jemalloc's users read as `stats.allocated` and so on, through `tikv-jemalloc-ctl` for example. All in bytes.
///
/// `allocated <= active <= mapped`, and `active + metadata <= resident`. There is nothing to refresh first, no `epoch`:
/// each is read when it is asked for.
///
/// ```
/// use page_memory_allocator::{PageAllocator, Usage};
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     let Usage { allocated, active, mapped, .. } = HEAP.usage();
///     assert!(allocated <= active && active <= mapped);
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Usage {
    /// In blocks and runs that the program holds: what it asked for, rounded up to blocks and pages.
    pub allocated: usize,
    /// In pages that hold them, or hold blocks that wait in thread caches.
    pub active: usize,
    /// In the page table, the bins, and the thread caches themselves; untouched parts of them have no memory.
    pub metadata: usize,
    /// The most that can be resident of the heap: active pages, metadata, and free pages whose memory did not go back
    /// to the system. Of these, what was never touched is not in fact resident. Not counted are free pages that were never
    /// used, but lie in a huge page with others: [`purge`](PageAllocator::purge) gives back what they have.
    pub resident: usize,
    /// In active pages and metadata.
    pub mapped: usize,
    /// In free pages without memory but for such: addresses that are kept for reuse. What was never used of the arena is not counted.
    pub retained: usize,
}

impl PageAllocator {
    /// Sums the process heap up under the names that jemalloc has for the figures. The page table is read, as for
    /// [`summary`](Self::summary).
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     let megabyte = vec![1u8; 1 << 20];
    ///     let usage = HEAP.usage();
    ///     assert!(usage.allocated >= megabyte.len() && usage.resident >= usage.active);
    ///     println!("{usage}");
    /// }
    /// ```
    pub fn usage(&self) -> Usage {
        self.heap().map_or_else(Usage::default, usage)
    }
}

fn usage(heap: &Heap<BuildGeometry>) -> Usage {
    let summary = heap.summary().with_caches();
    let bytes = |pages: PageCount| pages.bytes(BuildGeometry.page_shift());
    let active = bytes(summary.divided_pages) + bytes(summary.multi_pages) + guarded::held_bytes();
    let unpurged = bytes(heap.runs().dirty_free_pages()) + bytes(thread_cache::kept_pages());
    let metadata = summary.table_bytes;
    Usage {
        allocated: summary.live_bytes + guarded::live_bytes(),
        active,
        metadata,
        resident: active + unpurged + metadata,
        mapped: active + metadata,
        retained: (summary.committed_bytes + guarded::held_bytes()).saturating_sub(active + unpurged),
    }
}

/// One line: `allocated 1048576, active 1114112, …`, in bytes.
impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage { allocated, active, metadata, resident, mapped, retained } = self;
        write!(
            f,
            "allocated {allocated}, active {active}, metadata {metadata}, resident {resident}, mapped {mapped}, \
             retained {retained}"
        )
    }
}
