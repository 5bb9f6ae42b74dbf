//! A walk over the page table, for those who read it: dumps and statistics.
//!
//! For every step the walk takes the one lock that the pages it looks at are under, and it holds none between
//! steps. What it says of a page was true at one moment; of different pages, at different moments. Whoever walks
//! may take as long as they like, and may even allocate from the heap they walk over.

use crate::heap::Heap;
use crate::page_table::{DividedPage, PageState};
use crate::size_class::Geometry;
use crate::units::{ComponentIndex, PageCount, PageIndex};

/// Free pages are counted up to so many at a time, so that the lock is held for a microsecond or two.
const LONGEST_COUNT: PageCount = PageCount(1 << 16);

/// Neighbouring pages, seen in one state at one moment: one Divided page, a whole Multi run, or Free pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) first: PageIndex,
    pub(crate) pages: PageCount,
    /// The state of the first page. Of a run, the others are its tail; or the first itself is a tail, when the run
    /// came to reach that far after the pages before were seen.
    pub(crate) state: PageState,
    /// The component that holds the pages.
    pub(crate) owner: ComponentIndex,
    /// Of a whole run, bytes at its end that nobody asked for.
    pub(crate) unasked: usize,
}

/// The spans of a heap, upward: each page is in exactly one.
pub(crate) struct Spans<'h, G: Geometry> {
    heap: &'h Heap<G>,
    next: PageIndex,
}

impl<G: Geometry> Iterator for Spans<'_, G> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        if self.next.get() >= self.heap.pages().get() {
            return None;
        }
        let span = self.heap.span_at(self.next);
        self.next = span.first.plus(span.pages);
        Some(span)
    }
}

impl<G: Geometry> Heap<G> {
    pub(crate) fn spans(&self) -> Spans<'_, G> {
        Spans { heap: self, next: PageIndex(0) }
    }

    /// What the pages from `first` on are at this moment.
    pub(crate) fn span_at(&self, first: PageIndex) -> Span {
        self.span_with(first, |_| {})
    }

    /// [`span_at`](Self::span_at); if the page is Divided, `look` sees it in that state, with its bin locked.
    pub(crate) fn span_with(&self, first: PageIndex, look: impl FnOnce(&mut DividedPage<'_, G>)) -> Span {
        let table = self.table();
        loop {
            // The tag says which lock to take. If the page is something else by then, it is looked at again.
            let tag = table.tag(first);
            if tag.is_divided() {
                let mut bin = self.bin(tag);
                if table.tag(first) == tag {
                    let mut divided = table.divided(&mut bin, first);
                    let state = divided.state();
                    look(&mut divided);
                    let owner = self.component_of(tag);
                    return Span { first, pages: PageCount(1), state, owner, unasked: 0 };
                }
                continue;
            }
            let runs = self.runs();
            let Some(state) = table.undivided_state(&runs, first) else { continue };
            let (mut owner, mut unasked) = (ComponentIndex::NONE, 0);
            let pages = match state {
                PageState::MultiHead { run } => {
                    owner = table.owner(&runs, first);
                    unasked = self.table().multi_tail(&runs, first);
                    run
                }
                PageState::Free => {
                    let added = runs.free_from(first, LONGEST_COUNT);
                    // Pages from the frontier on are all free.
                    let unadded = if first.plus(added) >= runs.frontier() {
                        table.capacity().0 - first.plus(added).0
                    } else {
                        0
                    };
                    // One that is not free, and still in nobody's use, is a guard or waits.
                    match PageCount(added.0 + unadded) {
                        PageCount(0) => table.unused_from(&runs, first),
                        free => free,
                    }
                }
                _ => PageCount(1),
            };
            return Span { first, pages, state, owner, unasked };
        }
    }
}
