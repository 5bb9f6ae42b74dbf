//! Freed runs that a thread keeps for itself: of a few pages each, and of a length that it is seen to free and to want again.
//!
//! The page table knows them as [cached](crate::page_table): they are freed to there and taken from there without a lock. What
//! is done here is done behind the [gate](super::gate), by the thread itself or by who takes what it leaves idle.

use super::registry::share;
use super::{ThreadCache, current};
use crate::decay::{self, Pace};
use crate::heap::Heap;
use crate::size_class::{BuildGeometry, Geometry};
use crate::units::{ComponentIndex, PageCount, PageIndex};
use core::alloc::Layout;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Runs that are kept at a time.
const MOST: usize = 32;
/// Longer ones are not kept.
const LONGEST: PageCount = PageCount(8);
/// The most bytes that all of them have together. It is half of what stacks may have, where that is less.
const MOST_BYTES: usize = 2 << 20;

/// The runs, what was kept first in front.
pub(super) struct KeptRuns {
    runs: [Cell<(PageIndex, PageCount)>; MOST],
    len: Cell<usize>,
    /// Pages in them: others look.
    pages: AtomicU32,
    /// Lengths of which a run was freed, and was not kept, since all were last given up: a bit each.
    freed: Cell<u32>,
    /// Lengths of which one was wanted after that: from then on they are kept.
    wanted: Cell<u32>,
    pace: Pace,
}

fn bit(count: PageCount) -> u32 {
    1 << count.0
}

impl KeptRuns {
    #[allow(clippy::declare_interior_mutable_const)] // copied into each cache
    pub(super) const NONE: KeptRuns = KeptRuns {
        runs: [const { Cell::new((PageIndex(0), PageCount(0))) }; MOST],
        len: Cell::new(0),
        pages: AtomicU32::new(0),
        freed: Cell::new(0),
        wanted: Cell::new(0),
        pace: Pace::NEW,
    };

    /// Pages that are kept, as another thread may count them.
    pub(super) fn pages(&self) -> PageCount {
        PageCount(self.pages.load(Relaxed))
    }

    /// The most pages that are kept.
    fn most() -> PageCount {
        PageCount((MOST_BYTES.min(share() / 2) >> BuildGeometry.page_shift()) as u32)
    }

    /// Whether one more run of `count` pages is to be kept. If not, it is noted that one was freed.
    fn wants(&self, count: PageCount) -> bool {
        if count > LONGEST || count > Self::most() {
            return false;
        }
        let wanted = self.wanted.get() & bit(count) != 0;
        if !wanted {
            self.freed.set(self.freed.get() | bit(count));
        }
        wanted
    }

    /// Keeps a run, and gives back those that were kept first, if there is no room for it beside them.
    fn push(&self, heap: &Heap<BuildGeometry>, head: PageIndex, count: PageCount) {
        let most = Self::most();
        while self.len.get() == MOST || (self.len.get() > 0 && self.pages().0 + count.0 > most.0) {
            heap.free_cached_run(self.remove(0).0);
        }
        self.runs[self.len.get()].set((head, count));
        self.len.set(self.len.get() + 1);
        self.pages.store(self.pages().0 + count.0, Relaxed);
    }

    /// The run of `count` pages that was kept last and `fits`.
    fn take(&self, count: PageCount, fits: impl Fn(PageIndex) -> bool) -> Option<PageIndex> {
        let is_it = |run: &Cell<(PageIndex, PageCount)>| run.get().1 == count && fits(run.get().0);
        match self.runs[..self.len.get()].iter().rposition(is_it) {
            Some(at) => Some(self.remove(at).0),
            None => {
                if count <= LONGEST && self.freed.get() & bit(count) != 0 {
                    self.wanted.set(self.wanted.get() | bit(count));
                }
                None
            }
        }
    }

    fn remove(&self, at: usize) -> (PageIndex, PageCount) {
        let (run, last) = (self.runs[at].get(), self.len.get() - 1);
        (at..last).for_each(|at| self.runs[at].set(self.runs[at + 1].get()));
        self.len.set(last);
        self.pages.store(self.pages().0 - run.1.0, Relaxed);
        run
    }

    /// Gives all runs back.
    fn empty(&self, heap: &Heap<BuildGeometry>) {
        while self.len.get() > 0 {
            heap.free_cached_run(self.remove(0).0);
        }
    }

    /// Gives all runs back, and forgets what was wanted. Returns how many bytes they had.
    pub(super) fn give_up(&self, heap: &Heap<BuildGeometry>) -> usize {
        let bytes = self.pages().bytes(BuildGeometry.page_shift());
        self.empty(heap);
        self.freed.set(0);
        self.wanted.set(0);
        bytes
    }
}

/// The calling thread's cache, if it keeps runs: not while it is inside a component.
fn keeper<'a>() -> Option<&'a ThreadCache> {
    Some(current()).filter(|cache| !cache.is_sentinel() && cache.component() == ComponentIndex::NONE)
}

/// Gives the runs back that the calling thread keeps, as another is to grow: it may be into them.
#[inline]
pub(crate) fn make_way(heap: &Heap<BuildGeometry>) {
    if let Some(cache) = keeper().filter(|cache| cache.kept.pages().0 > 0) {
        cache.alone(|| cache.kept.empty(heap));
    }
}

/// A run for `layout` that the calling thread kept, and has not to give up, with zeros if they are wanted.
#[inline]
pub(crate) fn take_run(heap: &Heap<BuildGeometry>, layout: Layout, zeroed: bool) -> Option<*mut u8> {
    let cache = keeper().filter(|cache| !cache.is_to_give_up())?;
    let count = heap.pages_for(layout)?;
    // A power of two, which the compiler does not know.
    let fits = |head| heap.table().address_of(head) & (layout.align() - 1) == 0;
    let head = cache.alone(|| cache.kept.take(count, fits))?;
    let run = heap.uncache_run(head, count, layout, zeroed);
    decay::tick_at(&cache.kept.pace, heap);
    Some(run)
}

/// Keeps the run at `address`, which is being freed, if it is one that the calling thread wants; with `layout`, only if it
/// may have been allocated with that.
#[inline]
pub(crate) fn keep_run(heap: &Heap<BuildGeometry>, address: usize, layout: Option<Layout>) -> bool {
    keeper().is_some_and(|cache| {
        cache.alone(|| {
            let run = heap.cache_run(address, layout, |count| cache.kept.wants(count));
            run.is_some_and(|(head, count)| {
                cache.kept.push(heap, head, count);
                true
            })
        })
    })
}
