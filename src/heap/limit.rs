//! What the heap's limit allows for.

use super::Heap;
#[cfg(feature = "os")]
use crate::guarded;
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::PageCount;
use core::sync::atomic::Ordering::Relaxed;

impl<G: Geometry> Heap<G> {
    /// Whether the heap's limit allows for so many pages more.
    pub(super) fn may_use(&self, runs: &Runs, more: PageCount) -> bool {
        self.pages_in_use(runs) + more.get() <= self.limit.get()
    }

    /// Pages in use that count for the heap's limit.
    pub(super) fn pages_in_use(&self, runs: &Runs) -> usize {
        let used = runs.frontier().get() - runs.free_pages().get() - self.guards_in_use();
        used - self.moving.load(Relaxed) + self.guarded_pages()
    }

    /// The most pages that may be in use.
    #[cfg(feature = "profile")]
    pub(crate) fn limit(&self) -> PageCount {
        self.limit
    }

    /// Whether the heap's limit allows for so many bytes outside the arena.
    #[cfg(feature = "os")]
    pub(crate) fn has_room_for(&self, bytes: usize) -> bool {
        let pages = PageCount::holding(bytes, self.geometry().page_shift());
        pages.is_some_and(|pages| self.may_use(&self.runs(), pages))
    }

    /// As many pages as guarded blocks, which lie outside the arena, would have in it.
    fn guarded_pages(&self) -> usize {
        #[cfg(feature = "os")]
        if self.is_process_heap {
            return guarded::held_bytes().div_ceil(self.page_size());
        }
        0
    }
}
