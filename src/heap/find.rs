//! Where free pages are found: dense ones and sparse ones.
//!
//! Of a block that is longer than an OS page a program may touch only the beginning, and the rest of it is not to be
//! resident. So, beyond where huge pages begin, pages of large blocks are *sparse*: they lie in stretches of their own,
//! whole ranges of huge pages, which the system is advised to back without. A stretch is an eighth of those there are:
//! so they are few, and so are the mappings that it takes to tell them from the rest.
//!
//! But programs that fill their blocks go faster with huge pages. So a page of large blocks that had no memory when it
//! was divided is looked at when the next one is: if nearly all of it was touched, the next ones are dense, as all others.
//! Runs of up to a megabyte are treated alike, by their lengths, and longer ones have mappings of their own instead, large
//! ones for their beginnings: one that had no memory when it was handed out tells when it is freed, or when the next one gets memory
//! anew. How long that holds is said in `expectation.rs`.
//! The pages of components are sparse in any case: of many parts each has pages that are not full. So are runs that are
//! aligned to more than their length: what lies between them may stay free.
//!
//! Pages of either kind serve for the other where they have memory already, or where there are no others.

use super::Heap;
use crate::arena::HUGE_PAGE;
use crate::expectation::MOST_TRUST;
use crate::page_table::{Bin, Mapping, Tag};
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::sys::{self, resident};
use crate::units::{ComponentIndex, PageCount, PageIndex};
use core::sync::atomic::Ordering::Relaxed;

/// The pages that are made sparse next are one part in so many of those that are.
const STRETCH_SHARE: u32 = 8;
/// Blocks count as touched as a whole if no more than one part in so many is not.
const UNTOUCHED_SHARE: usize = 8;
/// Longer runs are not sparse, but have mappings of their own where they are to do without huge pages: sparse ranges stay.
const LONGEST_SPARSE: usize = HUGE_PAGE / 2;
/// A run counts as touched as a whole if at least one part in so many is. What grows by doubling touches as much.
const TOUCHED_OF_RUNS: usize = 2;
/// So many runs follow the first that was touched, before another is to tell: each may have 2 MiB.
const TRUST_IN_RUNS: u8 = 4;

impl<G: Geometry> Heap<G> {
    /// A low run of `count` free pages, of which none is claimed yet; commits memory if there is none.
    pub(super) fn find(&self, runs: &mut Runs, count: PageCount) -> Option<PageIndex> {
        let has_memory = |&start: &PageIndex| runs.dirty_within(start, count).is_some();
        runs.find(count)
            .or_else(|| runs.find_sparse(count).filter(has_memory))
            .or_else(|| self.find_dense(runs, count))
            .or_else(|| runs.find_sparse(count))
            .or_else(
                || if self.forgo_sparse_pages(runs, count) { self.find_dense(runs, count) } else { None },
            )
    }

    /// A free page to be divided, dense or `sparse`, that is not claimed yet.
    pub(super) fn find_page(&self, runs: &mut Runs, sparse: bool) -> Option<PageIndex> {
        let one = PageCount(1);
        if !sparse {
            return self.find(runs, one);
        }
        let lowest = runs.find(one);
        lowest
            .filter(|&page| !self.may_be_huge(page))
            .or_else(|| runs.find_sparse(one))
            .or_else(|| lowest.filter(|&page| runs.dirty_within(page, one).is_some()))
            .or_else(|| if self.add_sparse_pages(runs, one) { runs.find_sparse(one) } else { None })
            .or_else(|| self.find(runs, one))
    }

    /// A low run of `count` free pages without huge pages, if there is one, not claimed yet.
    pub(super) fn find_apart(&self, runs: &Runs, count: PageCount) -> Option<PageIndex> {
        let lowest = runs.find(count);
        lowest.filter(|start| !self.may_be_huge(start.plus(count))).or_else(|| runs.find_sparse(count))
    }

    /// A low run of `count` free pages of which few are to be claimed, as an aligned run is among them: sparse ones where
    /// there may be huge pages.
    pub(super) fn find_spacious(&self, runs: &mut Runs, count: PageCount) -> Option<PageIndex> {
        self.find_apart(runs, count)
            .or_else(|| if self.add_sparse_pages(runs, count) { runs.find_sparse(count) } else { None })
            .or_else(|| self.find(runs, count))
    }

    /// Whether the next page of `bin`, which is that of `tag`, is to be sparse.
    pub(super) fn is_to_be_sparse(&self, bin: &mut Bin, tag: Tag) -> bool {
        if self.component_of(tag) != ComponentIndex::NONE {
            return true;
        }
        let block = self.geometry().classes().block(tag.class());
        if block <= sys::page_size() || !self.may_be_huge(self.frontier()) {
            return false;
        }
        let is_whole =
            bin.expectation.take_sample().filter(|&page| self.table.tag(page) == tag).map(|page| {
                let blocks = self.geometry().capacity(tag.class()) * block;
                resident::bytes_with_memory(self.at(page), self.page_size())
                    >= blocks - blocks / UNTOUCHED_SHARE
            });
        !bin.expectation.expects_whole(is_whole, MOST_TRUST)
    }

    /// Notes that a free page is to be divided for `bin`. It tells how much of it is touched if it has no memory yet, and
    /// gets no more than that.
    pub(super) fn note_divided(&self, runs: &Runs, bin: &mut Bin, page: PageIndex) {
        let one = PageCount(1);
        if runs.dirty_within(page, one).is_none() {
            bin.expectation.note_fresh(page, self.has_small_pages(runs, page, one));
        }
    }

    /// A low run of `count` free pages of which much or little may be touched, as is expected; not claimed yet.
    pub(super) fn find_run(&self, runs: &mut Runs, count: PageCount) -> Option<PageIndex> {
        let bytes = count.bytes(self.geometry().page_shift());
        let is_short = (sys::page_size() + 1..=LONGEST_SPARSE).contains(&bytes);
        if !is_short || !self.has_whole_os_pages() || !self.may_be_huge(runs.frontier()) {
            return self.find(runs, count);
        }
        let has_memory = |&start: &PageIndex| {
            let dirty = runs.dirty_within(start, count);
            dirty.is_some_and(|(_, pages)| pages.0 > count.0 / 2)
        };
        let lowest = runs.find(count);
        lowest
            .filter(|start| !self.may_be_huge(start.plus(PageCount(count.0 - 1))))
            .or_else(|| lowest.filter(has_memory))
            .or_else(|| runs.find_sparse(count).filter(has_memory))
            .or_else(|| {
                if self.expects_whole_runs(runs, count) {
                    self.find(runs, count)
                } else {
                    self.find_spacious(runs, count)
                }
            })
    }

    /// Whether a run that is claimed where there are huge pages, and has no memory yet, is to do without them by itself.
    pub(super) fn is_to_be_apart(&self, runs: &mut Runs, head: PageIndex, count: PageCount) -> bool {
        count.bytes(self.geometry().page_shift()) > LONGEST_SPARSE
            && self.has_whole_os_pages()
            && !self.has_small_pages(runs, head, count)
            && !self.expects_whole_runs(runs, count)
    }

    /// Whether a run of `count` pages will be touched as a whole, or nearly so.
    pub(super) fn expects_whole_runs(&self, runs: &mut Runs, count: PageCount) -> bool {
        self.ask_sample(runs, count);
        runs.expectation(count).expects_whole(None, TRUST_IN_RUNS)
    }

    /// Has the run that is to tell what becomes of runs of `count` pages do so, if there is one.
    fn ask_sample(&self, runs: &mut Runs, count: PageCount) {
        let sample = runs.expectation(count).take_sample();
        let is_whole = sample.and_then(|head| {
            let run = self.table.multi_run(runs, head).ok()?;
            Some(self.is_touched_as_whole(runs, head, run))
        });
        runs.expectation(count).expects_whole(is_whole, TRUST_IN_RUNS);
    }

    /// Whether the run at `head` was touched as a whole, or nearly so. One that was asked for less of its pages, as it is aligned to
    /// more than its length, never is: in a huge page the rest would be resident, too.
    fn is_touched_as_whole(&self, runs: &Runs, head: PageIndex, count: PageCount) -> bool {
        let all = count.bytes(self.geometry().page_shift());
        let asked = all - self.table.multi_tail(runs, head);
        let seen = asked.next_multiple_of(sys::page_size()).min(resident::WINDOW * sys::page_size());
        asked >= all / TOUCHED_OF_RUNS
            && resident::bytes_with_memory(self.at(head), seen) >= seen / TOUCHED_OF_RUNS
    }

    /// Has a run that is about to be freed tell how much of it was touched, if it is to.
    pub(super) fn ask_freed_run(&self, runs: &mut Runs, head: PageIndex, count: PageCount) {
        if runs.expectation(count).sample() == Some(head) {
            runs.expectation(count).take_sample();
            let is_whole = self.is_touched_as_whole(runs, head, count);
            runs.expectation(count).expects_whole(Some(is_whole), TRUST_IN_RUNS);
        }
    }

    /// Notes that a run is claimed that has no memory yet.
    pub(super) fn note_fresh_run(&self, runs: &mut Runs, head: PageIndex, count: PageCount) {
        if self.arena.has_huge_pages() {
            self.ask_sample(runs, count);
            let tells = self.has_small_pages(runs, head, count);
            runs.expectation(count).note_fresh(head, tells);
        }
    }

    /// Whether pages get no more memory than is touched of them.
    fn has_small_pages(&self, runs: &Runs, start: PageIndex, count: PageCount) -> bool {
        !self.may_be_huge(start.plus(PageCount(count.0 - 1)))
            || runs.alike_from(start, count) == (true, count)
    }

    /// Whether `page` is beyond where huge pages begin.
    fn may_be_huge(&self, page: PageIndex) -> bool {
        self.arena.may_be_huge(page.get() * self.page_size())
    }

    /// The lowest run of `count` free pages that are dense; commits memory if there is none.
    fn find_dense(&self, runs: &mut Runs, count: PageCount) -> Option<PageIndex> {
        if let Some(start) = runs.find(count) {
            return Some(start);
        }
        let more = PageCount(count.0 - runs.free_below_frontier().0);
        if self.commit(runs, more) { runs.find(count) } else { None }
    }

    /// Makes the next stretch of pages sparse, at least `least` of them. False if there are none, or there are no huge pages
    /// yet.
    fn add_sparse_pages(&self, runs: &mut Runs, least: PageCount) -> bool {
        if !self.may_be_huge(runs.frontier()) {
            return false;
        }
        let range = PageCount((HUGE_PAGE / self.page_size()) as u32);
        let share = runs.sparse_pages().0 / STRETCH_SHARE;
        let count = PageCount((share - share % range.0).max(least.0.next_multiple_of(range.0)));
        // Any run this much longer has whole ranges in it.
        let lowest = runs.find(count).filter(|start| start.0.is_multiple_of(range.0));
        let found = lowest.or_else(|| self.find_dense(runs, PageCount(count.0 + range.0 - 1)));
        let Some(found) = found else { return false };
        let start = PageIndex(found.0.next_multiple_of(range.0));
        runs.make_sparse(start, count);
        self.arena.advise_huge(self.range(start, count), false);
        true
    }

    /// Makes all sparse pages dense, and has no huge pages any more but for large runs, if a run of `count` pages may be
    /// had by that: what is free of either kind may lie side by side. False if not.
    #[cold]
    fn forgo_sparse_pages(&self, runs: &mut Runs, count: PageCount) -> bool {
        let unadded = Some(runs.unadded()).filter(|&unadded| unadded < count).unwrap_or_default();
        if runs.sparse_pages().0 == 0 || runs.free_pages().get() + unadded.get() < count.get() {
            return false;
        }
        runs.make_dense();
        self.arena.forgo_huge_pages(runs.frontier().get() * self.page_size());
        true
    }

    /// Commits at least `more` pages above the frontier; false if that cannot be.
    pub(super) fn commit(&self, runs: &mut Runs, more: PageCount) -> bool {
        if more > runs.unadded() {
            return false;
        }
        if self.try_to_commit(runs, more) {
            return true;
        }
        // It may be that the process has all the mappings that it may have.
        let is_mixed = self.may_be_huge(runs.frontier())
            || runs.sparse_pages().0 > 0
            || self.mapped(Mapping::Advised).load(Relaxed) > 0;
        is_mixed
            && self.arena.do_without_huge_pages(runs.frontier().get() * self.page_size())
            && self.try_to_commit(runs, more)
    }

    /// [`commit`](Self::commit), if the system grants it at once.
    fn try_to_commit(&self, runs: &mut Runs, more: PageCount) -> bool {
        let shift = self.geometry().page_shift();
        let committed = self.arena.commit(runs.frontier().get() << shift, more.bytes(shift));
        let Some(bytes) = committed else { return false };
        let added = PageCount(((bytes >> shift) as u32).min(runs.unadded().0));
        let new = runs.frontier().get()..runs.frontier().plus(added).get();
        #[cfg(feature = "hardened")]
        if self.is_hardened() && !crate::hardened::commit(new.clone()) {
            return false;
        }
        if !self.commit_bitmaps(new) {
            return false;
        }
        runs.grow(added);
        true
    }
}

#[cfg(all(test, feature = "os"))]
mod tests {
    use super::*;
    use crate::heap::HeapOptions;
    use crate::size_class::SizeClasses;
    use core::alloc::Layout;
    use std::vec::Vec;

    #[test]
    fn pages_that_were_set_apart_are_no_reason_to_refuse_a_run() {
        const BYTES: usize = 40 << 20;
        let options = HeapOptions::new().page_size(64 << 10).classes(SizeClasses::POWERS_OF_TWO);
        let heap = options.capacity(BYTES).build().unwrap();
        let run = |bytes: usize| Layout::from_size_align(bytes, 8).unwrap();
        // Beyond where huge pages begin, pages of such blocks are sparse.
        let (below, block) = (heap.alloc(run(20 << 20)), Layout::new::<[u8; 16 << 10]>());
        let blocks: Vec<*mut u8> = (0..100).map(|_| heap.alloc(block)).collect();
        assert!(heap.runs().sparse_pages().0 > 0 || sys::page_size() >= block.size());
        // SAFETY: these are live, and have these layouts.
        unsafe {
            heap.dealloc(below, run(20 << 20));
            blocks.into_iter().for_each(|at| heap.dealloc(at, block));
        }
        assert!(!heap.alloc(run(BYTES)).is_null());
        heap.check().unwrap();
    }
}
