//! Memory that nobody uses goes back to the system: free pages, the parts of Divided pages that hold no live block,
//! and what lies behind the end of runs.
//!
//! A page is locked while its memory is given back, and what is done under one lock is at most [`STEP`] bytes: a
//! thread that waits for it waits for a fraction of a millisecond. But who allocates where the heap has as much memory as its limit
//! allows gives back as much as it takes. What went back is known to be zero.

use super::Heap;
use super::progress::{Most, Progress};
use crate::arena::HUGE_PAGE;
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::sys;
use crate::units::{PageCount, PageIndex};

/// Bytes given back at a time: a huge page, so that none is split.
const STEP: usize = HUGE_PAGE;

/// Pages whose part of the table is looked at under one lock.
const TABLE_STEP: PageCount = PageCount(4096);

/// Where more than one part in so many of the pages' memory goes back in parts, huge pages are of no use.
const PURGED_SHARE: usize = 8;

/// Of fewer pages that says nothing, unless there are no more.
const LEAST_PASSED: PageCount = PageCount(1024);

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
        let purged = self.purge_free_pages(Unused::All, PageIndex(0), Most::ALL).bytes
            + self.purge_parts(Unused::All, PageIndex(0), Most::ALL).bytes;
        self.purge_clean_pages();
        self.purge_table();
        purged
    }

    /// Gives back the memory of the parts of the page table that say nothing: those of free pages, and bitmaps that are
    /// longer than what pages are divided into needs.
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

    /// Gives back the memory of free pages, from `from` on, about as much as `most` allows. With them goes what clean ones beside
    /// them have of the same huge page.
    pub(crate) fn purge_free_pages(&self, unused: Unused, mut from: PageIndex, most: Most) -> Progress {
        let mut progress = Progress::default();
        if !self.has_whole_os_pages() {
            return progress;
        }
        loop {
            let mut runs = self.runs();
            let Some((start, count)) = runs.dirty_free_from(from, unused == Unused::Idle, self.step()) else {
                break;
            };
            if progress.has_done(most) {
                progress.next = Some(start);
                break;
            }
            let purged = self.purge_free(&mut runs, start, count);
            progress.count_call(count.bytes(self.geometry().page_shift()), purged);
            from = start.plus(count);
        }
        progress
    }

    /// Gives back the memory of `count` dirty free pages, of one huge page at most.
    fn purge_free(&self, runs: &mut Runs, start: PageIndex, count: PageCount) -> bool {
        let is_huge = start >= self.first_huge();
        let (first, all) = if is_huge { runs.with_clean(start, count, self.step()) } else { (start, count) };
        // SAFETY: the pages are free, and stay so while the runs are locked.
        let purged = unsafe { sys::purge(self.at(first), all.bytes(self.geometry().page_shift())) };
        if purged {
            runs.clean(start, count);
        }
        purged
    }

    /// After pages up to `end` were claimed, gives back the memory of so many free ones that these and the pages in use keep
    /// to the heap's limit together: those above first, as low pages are the first to be claimed again.
    #[inline]
    pub(super) fn keep_to_limit(&self, runs: &mut Runs, end: PageIndex) {
        if self.limit < self.table.capacity() && self.has_whole_os_pages() {
            self.purge_beyond_limit(runs, end);
        }
    }

    #[cold]
    fn purge_beyond_limit(&self, runs: &mut Runs, end: PageIndex) {
        let exceeds =
            |runs: &Runs| self.pages_in_use(runs) + runs.dirty_free_pages().get() > self.limit.get();
        for from in [end, PageIndex(0)] {
            while exceeds(runs)
                && let Some((start, count)) = runs.dirty_free_from(from, false, self.step())
                && self.purge_free(runs, start, count)
            {}
        }
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

    /// Gives back the parts of pages in use, from `from` on, that hold no live block, and what lies behind the end of runs, about
    /// as much as `most` allows.
    pub(crate) fn purge_parts(&self, unused: Unused, from: PageIndex, most: Most) -> Progress {
        let mut progress = Progress::default();
        if !self.has_whole_os_pages() {
            return progress;
        }
        let (mut at, end) = (from, self.frontier());
        while let Some(page) = self.table.next_watched(at, end) {
            if progress.has_done(most) {
                progress.next = Some(page);
                break;
            }
            progress.count_look();
            self.purge_parts_of(page, unused, &mut progress);
            at = page.plus(PageCount(1));
        }
        let to = progress.next.unwrap_or(end).max(from.plus(LEAST_PASSED).min(end)).get();
        if progress.bytes > to.saturating_sub(from.get()) * self.page_size() / PURGED_SHARE {
            self.arena.no_more_huge_pages_below(to * self.page_size());
        }
        progress
    }

    /// [`purge_parts`](Self::purge_parts), of one page, which is watched no more once all of it that is unused went back.
    fn purge_parts_of(&self, page: PageIndex, unused: Unused, progress: &mut Progress) {
        let grain = sys::page_size();
        let tag = self.table.tag(page);
        if !tag.is_divided() {
            return self.purge_tail(page, unused, grain, progress);
        }
        let mut bin = self.bin(tag);
        if self.table.tag(page) != tag {
            return;
        }
        let mut divided = self.table.divided(&mut bin, page);
        if !divided.was_idle() && unused == Unused::Idle {
            return;
        }
        let mut is_done = true;
        for (start, end) in divided.unused_parts(grain) {
            // SAFETY: no block there is live, and none is handed out while the bin is locked.
            let purged = unsafe { sys::purge(self.at(page).add(start), end - start) };
            if purged {
                divided.note_purged(start, end, grain);
            } else {
                // The system may have taken what lies before the locked part of it.
                divided.note_lost(start, end);
            }
            progress.count_call(end - start, purged);
            is_done &= purged;
        }
        if is_done {
            divided.let_be();
        }
    }

    /// Gives back the OS pages behind the end of a run, if `page`, which is not Divided, begins one.
    fn purge_tail(&self, page: PageIndex, unused: Unused, grain: usize, progress: &mut Progress) {
        let mut runs = self.runs();
        // What was watched may be another page by now.
        let Ok(count) = self.table.multi_run(&runs, page) else { return };
        if !self.table.hold_multi(&mut runs, page) {
            return;
        }
        if let Some(bytes) = self.table.unused_multi_tail(&mut runs, page, unused == Unused::Idle) {
            let bytes = bytes & !(grain - 1);
            // SAFETY: nobody asked for these bytes, and the run stays while it is held.
            let purged = bytes == 0 || unsafe { sys::purge(self.at(page.plus(count)).sub(bytes), bytes) };
            if purged {
                self.table.note_multi_tail_purged(&mut runs, page);
            }
            if bytes > 0 {
                progress.count_call(bytes, purged);
            }
        }
        self.table.let_go_multi(&mut runs, page);
    }
}

#[cfg(all(test, feature = "os"))]
mod tests {
    use super::*;
    use crate::heap::HeapOptions;
    use crate::size_class::SizeClasses;
    use core::alloc::Layout;
    use core::ops::Range;
    use std::vec::Vec;

    const OPTIONS: HeapOptions = HeapOptions::new().page_size(64 << 10).classes(SizeClasses::POWERS_OF_TWO);

    #[test]
    fn free_pages_go_back_a_little_at_a_time_and_pages_in_use_are_looked_at_until_all_went() {
        let heap = OPTIONS.capacity(32 << 20).build().unwrap();
        if !heap.has_whole_os_pages() {
            return;
        }
        let (run, end) = (Layout::new::<[u8; 12 << 20]>(), Layout::new::<[u8; (64 << 10) + 1]>());
        let (first, stays) = (heap.alloc(run), heap.alloc(end));
        let block = Layout::new::<[u8; 16 << 10]>();
        let blocks = [heap.alloc(block), heap.alloc(block)];
        // SAFETY: these are live.
        unsafe {
            heap.dealloc(first, run);
            heap.dealloc(blocks[0], block);
        }
        let some = Most { bytes: 4 << 20, ..Most::ALL };
        let few_calls = Most { calls: 2, ..Most::ALL };
        let mut from = PageIndex(0);
        for (most, bytes) in [(some, 4 << 20), (few_calls, 4 << 20)] {
            let progress = heap.purge_free_pages(Unused::All, from, most);
            assert_eq!((progress.bytes, progress.goes_on()), (bytes, true));
            from = progress.next.unwrap();
        }
        let progress = heap.purge_free_pages(Unused::All, from, Most::ALL);
        assert_eq!((progress.bytes, progress.next), (4 << 20, None));
        let is_watched = || heap.table.next_watched(PageIndex(0), heap.frontier()).is_some();
        assert!(is_watched());
        heap.purge();
        assert!(!is_watched());
        // SAFETY: as above.
        unsafe {
            heap.dealloc(stays, end);
            heap.dealloc(blocks[1], block);
        }
    }

    #[test]
    fn huge_pages_are_forgone_for_many_pages_that_go_back_in_parts_not_for_a_few() {
        const PAGES: usize = 1100;
        if sys::page_size() > 16 << 10 {
            return; // pages do not go back in parts
        }
        let layout = Layout::new::<[u8; 4096]>();
        let heap = OPTIONS.capacity(128 << 20).build().unwrap();
        let geometry = heap.geometry();
        let blocks = PAGES * geometry.capacity(geometry.class_of(layout));
        let blocks: Vec<*mut u8> = (0..blocks).map(|_| heap.alloc(layout)).collect();
        assert!(blocks.iter().all(|block| !block.is_null()));
        let page_of = |block: *mut u8| heap.table.page_of(block.addr()).unwrap().get();
        // One block of each page stays.
        let free_in = |pages: Range<usize>| {
            let last = |block: *mut u8| block.addr() % heap.page_size() + layout.size() == heap.page_size();
            let going = blocks.iter().filter(|&&block| pages.contains(&page_of(block)) && !last(block));
            // SAFETY: the blocks are live until here, and each is in one of these ranges of pages.
            going.for_each(|&block| unsafe { heap.dealloc(block, layout) });
        };
        // Where huge pages may be.
        let first = (16 << 20) / heap.page_size();
        let is_forgone = || !heap.arena.may_be_huge(first * heap.page_size());
        assert!(!is_forgone());
        free_in(first..first + 20);
        let few = Most { looks: 20, ..Most::ALL };
        let progress = heap.purge_parts(Unused::All, PageIndex(first as u32), few);
        assert!(progress.bytes > 20 * heap.page_size() / PURGED_SHARE && progress.next.is_some());
        assert!(!is_forgone());
        free_in(0..first);
        free_in(first + 20..PAGES);
        assert!(heap.purge_parts(Unused::All, PageIndex(0), Most::ALL).next.is_none());
        assert!(is_forgone());
    }
}
