//! Memory that nobody uses goes back to the system: free pages, the parts of Divided pages that hold no live block,
//! and what lies behind the end of runs.
//!
//! A page is locked while its memory is given back, and what is done under one lock is at most [`STEP`] bytes: a
//! thread that waits for it waits for a fraction of a millisecond. What went back is known to be zero.

use super::Heap;
use crate::arena::HUGE_PAGE;
use crate::size_class::Geometry;
use crate::sys;
use crate::units::{PageCount, PageIndex};
use core::ops::Range;

/// Bytes given back at a time: a huge page, so that none is split.
const STEP: usize = HUGE_PAGE;

/// Pages whose part of the table is looked at under one lock.
const TABLE_STEP: PageCount = PageCount(4096);

/// Where more than this part of the pages' memory goes back in parts, huge pages are of no use.
const PURGED_SHARE: usize = 8;

/// What of the memory that nobody uses is to go back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unused {
    /// All.
    All,
    /// What was not used since the last time either.
    Idle,
}

impl<G: Geometry> Heap<G> {
    /// Gives the memory of everything that is free back to the system, at once. Returns how many bytes of addresses
    /// that were; some of them may not have had memory. Free pages that were not used since they last went back are not
    /// counted: they have memory only if they lie in a huge page with others that were used.
    ///
    /// Free pages of this heap are otherwise kept for reuse. Heaps with pages smaller than those of the system keep
    /// them in any case.
    pub fn purge(&self) -> usize {
        self.empty_quarantine(&mut self.runs());
        let purged = self.purge_free_pages(Unused::All, usize::MAX, usize::MAX)
            + self.purge_parts(Unused::All, PageIndex(0)..self.frontier(), usize::MAX).0;
        self.purge_clean_pages();
        self.purge_table();
        purged
    }

    /// Gives back the memory of the parts of the page table that say nothing: those of free pages, and bitmaps of pages
    /// that have none, or another one.
    pub(crate) fn purge_table(&self) {
        if self.arena.is_given() {
            return;
        }
        let mut from = PageIndex(0);
        loop {
            let runs = self.runs();
            let to = from.plus(TABLE_STEP).min(runs.frontier());
            if from >= to {
                break;
            }
            self.table.for_each_unused_part(&runs, from..to, sys::page_size(), |start, bytes| {
                // SAFETY: the part holds zeros, and nobody writes to it while the runs are locked.
                unsafe { sys::purge(start, bytes) };
            });
            from = to;
        }
    }

    /// Pages from here on have never been used.
    pub(crate) fn frontier(&self) -> PageIndex {
        self.runs().frontier()
    }

    /// Whether the system can be told something about a page of the heap, without it concerning another.
    pub(super) fn has_whole_os_pages(&self) -> bool {
        !self.arena.is_given() && self.page_size() >= sys::page_size()
    }

    /// Pages in a huge page.
    fn step(&self) -> PageCount {
        PageCount((STEP / self.page_size()).max(1) as u32)
    }

    /// The first page that may have memory without having been used, as it may lie in a huge page with others.
    fn first_huge(&self) -> PageIndex {
        let page = self.arena.first_huge().div_ceil(self.page_size());
        PageIndex(page.min(self.pages().get()) as u32)
    }

    /// Gives back the memory of free pages, up to about `most` bytes, by at most `most_calls` system calls, of which some may
    /// be refused. With them goes what clean ones beside them have of the same huge page.
    pub(crate) fn purge_free_pages(&self, unused: Unused, most: usize, most_calls: usize) -> usize {
        if !self.has_whole_os_pages() {
            return 0;
        }
        let (step, first_huge) = (self.step(), self.first_huge());
        let (mut from, mut purged, mut calls) = (PageIndex(0), 0, 0);
        while purged < most && calls < most_calls {
            calls += 1;
            let mut runs = self.runs();
            let Some((start, count)) = runs.dirty_free_from(from, unused == Unused::Idle, step) else {
                break;
            };
            let shift = self.geometry().page_shift();
            let (first, all) =
                if start < first_huge { (start, count) } else { runs.with_clean(start, count, step) };
            // SAFETY: the pages are free, and stay so while the runs are locked.
            if unsafe { sys::purge(self.at(first), all.bytes(shift)) } {
                runs.clean(start, count);
                purged += count.bytes(shift);
            }
            from = start.plus(count);
        }
        purged
    }

    /// Gives back what free pages that are clean have of huge pages. Where others in these are in use, they are huge pages
    /// no more: so it is not done in passes.
    fn purge_clean_pages(&self) {
        if !self.has_whole_os_pages() {
            return;
        }
        let mut from = self.first_huge();
        loop {
            let runs = self.runs();
            let Some((start, count)) = runs.next_free(from, self.step()) else { break };
            // SAFETY: the pages are free, and stay so while the runs are locked.
            unsafe { sys::purge(self.at(start), count.bytes(self.geometry().page_shift())) };
            from = start.plus(count);
        }
    }

    /// Gives back the parts of pages in use, among `pages`, that hold no live block, and what lies behind the end of
    /// runs, by about `most_calls` system calls. Returns how many bytes that were, and the page to go on with.
    pub(crate) fn purge_parts(
        &self,
        unused: Unused,
        pages: Range<PageIndex>,
        most_calls: usize,
    ) -> (usize, PageIndex) {
        if !self.has_whole_os_pages() {
            return (0, pages.end);
        }
        let grain = sys::page_size();
        let bytes = (pages.end.get() - pages.start.get()) * self.page_size();
        let (mut purged, mut calls) = (0, 0);
        let mut next = pages.start;
        while next < pages.end && calls < most_calls {
            let page = next;
            next = page.plus(PageCount(1));
            let tag = self.table.tag(page);
            if !tag.is_divided() {
                let (bytes, passed) = self.purge_tail(page, unused, grain);
                purged += bytes;
                calls += usize::from(bytes > 0);
                next = page.plus(passed);
                continue;
            }
            let mut bin = self.bin(tag);
            if self.table.tag(page) != tag {
                continue;
            }
            let mut divided = self.table.divided(&mut bin, page);
            if !divided.was_idle() && unused == Unused::Idle {
                continue;
            }
            for (start, end) in divided.unused_parts(grain) {
                calls += 1;
                // SAFETY: no block there is live, and none is handed out while the bin is locked.
                if unsafe { sys::purge(self.at(page).add(start), end - start) } {
                    divided.note_purged(start, end, grain);
                    purged += end - start;
                }
            }
        }
        if purged > bytes / PURGED_SHARE {
            self.arena.no_more_huge_pages_below(pages.end.get() * self.page_size());
        }
        (purged, next.min(pages.end))
    }

    /// Gives back the OS pages behind the end of a run, if `page`, which is not Divided, begins one. Returns how many
    /// bytes these were, and in how many pages there is nothing else to give back.
    fn purge_tail(&self, page: PageIndex, unused: Unused, grain: usize) -> (usize, PageCount) {
        let mut runs = self.runs();
        let Ok(count) = self.table.multi_run(&runs, page) else {
            let free = runs.free_from(page, TABLE_STEP);
            return (0, free.max(PageCount(1)));
        };
        if !self.table.hold_multi(&mut runs, page) {
            return (0, count);
        }
        let bytes = self.table.unused_multi_tail(&mut runs, page, unused == Unused::Idle) & !(grain - 1);
        // SAFETY: nobody asked for these bytes, and the run stays while it is held.
        let purged = bytes > 0 && unsafe { sys::purge(self.at(page.plus(count)).sub(bytes), bytes) };
        if purged {
            self.table.note_multi_tail_purged(&mut runs, page);
        }
        self.table.let_go_multi(&mut runs, page);
        (if purged { bytes } else { 0 }, count)
    }
}
