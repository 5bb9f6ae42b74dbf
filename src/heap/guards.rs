//! Pages that cannot be touched: before and behind every run, and at the end of every group of pages in which one is
//! Divided.
//!
//! A guard is a page of the process heap that is claimed for it, under the lock of the runs, as long as a neighbour or
//! its group wants it; two runs share the one between them. The system is told when it becomes a guard, and not told
//! that it is none any more before its page is claimed for something else: a run that takes the place of another one of
//! its length costs no system call.
//!
//! Linux 6.13 and newer keep a note of such pages in their page table. Elsewhere a guard is a mapping of its own, of
//! which a process may have only so many: up to [`MOST_MAPPED`] are made, and pages of guards beyond that can be touched.

use super::Heap;
use crate::hardened::{self, Cover};
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::sys;
use crate::units::{PageCount, PageIndex};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The last of so many pages is a guard while another of them is Divided, and is not Divided itself.
const GROUP: u32 = 16;
/// Guards with mappings of their own: each may cost two.
const MOST_MAPPED: usize = 4096;

/// Guards in the page table. The runs are locked when it changes.
static GUARDS: AtomicUsize = AtomicUsize::new(0);
/// Those with mappings of their own, pages that were guards included.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

impl<G: Geometry> Heap<G> {
    /// Whether the heap is the hardened one.
    pub(super) fn is_hardened(&self) -> bool {
        self.is_process_heap && hardened::is_prepared()
    }

    /// Whether there are guards. One that is a part of an OS page would hit the rest of it.
    fn has_guards(&self) -> bool {
        self.is_hardened() && self.has_whole_os_pages()
    }

    /// Guards among the pages in use.
    pub(super) fn guards_in_use(&self) -> usize {
        if self.has_guards() { GUARDS.load(Relaxed) } else { 0 }
    }

    /// Where a run of `count` pages is to begin, at an address that `align` divides, with guards around it: they are
    /// there, or their pages are free. None of the pages is claimed yet; commits memory if there are none.
    pub(super) fn find_guarded(
        &self,
        runs: &mut Runs,
        count: PageCount,
        align: usize,
        is_large: bool,
    ) -> Option<PageIndex> {
        if !self.has_guards() {
            return self.find_aligned(runs, count, align, is_large);
        }
        for guards in 0..=2 {
            let Some(start) = runs.find(PageCount(count.0 + guards)) else { break };
            let before = u32::from(start.0 == 0 || !self.is_guard(runs, PageIndex(start.0 - 1)));
            let head = start.plus(PageCount(before));
            let behind = u32::from(!self.is_guard(runs, head.plus(count)));
            if before + behind <= guards && self.table.address_of(head).is_multiple_of(align) {
                return Some(head);
            }
        }
        // Any run this much longer has an aligned one in it, with a page on either side.
        let slack = (align >> self.geometry().page_shift()).saturating_sub(1);
        let padded = PageCount(u32::try_from(count.get() + 2 + slack).ok()?);
        let first = self.find(runs, padded)?;
        let address = self.table.address_of(first.plus(PageCount(1))).next_multiple_of(align);
        self.table.page_of(address)
    }

    fn is_guard(&self, runs: &Runs, page: PageIndex) -> bool {
        page < runs.frontier() && self.table.is_guard(runs, page)
    }

    /// Has guards where they are wanted around `count` pages from `start` on, which were claimed or released, and
    /// nowhere else.
    pub(super) fn settle_guards(&self, runs: &mut Runs, start: PageIndex, count: PageCount) {
        if !self.has_guards() {
            return;
        }
        let end = start.plus(count);
        if start.0 > 0 {
            self.settle_guard(runs, PageIndex(start.0 - 1));
        }
        self.settle_guard(runs, end);
        // The last page of a group that the first, or the last, of these is in.
        for page in [start, PageIndex(end.0 - 1)] {
            self.settle_guard(runs, PageIndex(page.0 | (GROUP - 1)));
        }
    }

    /// Makes `page` a guard if it is free and should be one, or free if it is a guard and need not be one.
    fn settle_guard(&self, runs: &mut Runs, page: PageIndex) {
        if page >= runs.frontier() {
            return;
        }
        let is_guard = self.table.is_guard(runs, page);
        if !is_guard && !runs.is_free(page) {
            return;
        }
        let wanted = self.is_wanted(runs, page);
        if wanted && !is_guard {
            self.table.claim_guard(runs, page);
            GUARDS.fetch_add(1, Relaxed);
            self.cover(page);
        } else if is_guard && !wanted {
            self.table.release_guard(runs, page);
            GUARDS.fetch_sub(1, Relaxed);
        }
    }

    /// Whether a run is beside `page`, or a Divided page in the group that it ends.
    fn is_wanted(&self, runs: &Runs, page: PageIndex) -> bool {
        let is_of_run = |page: PageIndex| {
            page < runs.frontier()
                && !runs.is_free(page)
                && !self.table.tag(page).is_divided()
                && !self.table.is_guard(runs, page)
        };
        let first_of_group = page.0 & !(GROUP - 1);
        (page.0 > 0 && is_of_run(PageIndex(page.0 - 1)))
            || is_of_run(page.plus(PageCount(1)))
            || (ends_group(page)
                && (first_of_group..page.0).any(|page| self.table.tag(PageIndex(page)).is_divided()))
    }

    /// A free page to be divided, that is not to be a guard.
    pub(super) fn find_to_divide(&self, runs: &mut Runs, sparse: bool) -> Option<PageIndex> {
        loop {
            let page = self.find_page(runs, sparse)?;
            if !self.has_guards() {
                return Some(page);
            }
            if !ends_group(page) {
                return self.uncover(page, PageCount(1)).then_some(page);
            }
            // It is out of the way until one of its group is divided, or none is any more.
            self.table.claim_guard(runs, page);
            GUARDS.fetch_add(1, Relaxed);
            self.cover(page);
        }
    }

    /// Makes room behind a run that is to grow from `count` pages on, if a guard is there. One that its neighbour wants, or the run
    /// itself as it does not grow, is back once guards are settled.
    pub(super) fn open_end(&self, runs: &mut Runs, head: PageIndex, count: PageCount) {
        let end = head.plus(count);
        if self.has_guards() && self.is_guard(runs, end) {
            self.table.release_guard(runs, end);
            GUARDS.fetch_sub(1, Relaxed);
        }
    }

    /// Pages that have to be free behind the `count` pages of a run at `head`, beside those: one for its guard.
    pub(super) fn room_behind(&self, runs: &Runs, head: PageIndex, count: PageCount) -> PageCount {
        PageCount(u32::from(self.has_guards() && !self.is_guard(runs, head.plus(count))))
    }

    /// Has the system let nobody touch `page`, which is in nobody's use.
    fn cover(&self, page: PageIndex) {
        let cover = hardened::cover_of(page);
        if cover.load(Relaxed) != Cover::None as u8 {
            return;
        }
        let (start, bytes) = (self.at(page), self.page_size());
        // SAFETY: the page is committed, and nobody needs its contents.
        unsafe {
            if sys::guard(start, bytes) {
                cover.store(Cover::Noted as u8, Relaxed);
                return;
            }
            // It may have begun, where only a part is locked in memory.
            sys::unguard(start, bytes);
            if MAPPED.load(Relaxed) < MOST_MAPPED && sys::protect(start, bytes) {
                // As what is only reserved, so that the last guard and that may be one mapping.
                sys::advise_dump(start, bytes, false);
                MAPPED.fetch_add(1, Relaxed);
                cover.store(Cover::Mapped as u8, Relaxed);
            }
        }
    }

    /// Undoes [`cover`](Self::cover) for pages that were claimed, or are about to be. False if the system refuses.
    pub(super) fn uncover(&self, start: PageIndex, count: PageCount) -> bool {
        !self.has_guards()
            || (start.0..start.plus(count).0).map(PageIndex).all(|page| {
                let cover = hardened::cover_of(page);
                let (at, bytes) = (self.at(page), self.page_size());
                let touchable = match cover.load(Relaxed) {
                    noted if noted == Cover::Noted as u8 => {
                        // SAFETY: the page is part of the arena, and is to be as the others.
                        unsafe { sys::unguard(at, bytes) }
                    }
                    mapped if mapped == Cover::Mapped as u8 => {
                        // SAFETY: as above.
                        let touchable = unsafe {
                            let touchable = sys::commit(at, bytes);
                            sys::advise_dump(at, bytes, true);
                            touchable
                        };
                        MAPPED.fetch_sub(usize::from(touchable), Relaxed);
                        touchable
                    }
                    _ => return true,
                };
                if touchable {
                    cover.store(Cover::None as u8, Relaxed);
                }
                touchable
            })
    }
}

/// Whether `page` is the last of a group.
fn ends_group(page: PageIndex) -> bool {
    page.0 % GROUP == GROUP - 1
}
