//! Runs of pages: large allocations, and where pages come from at all.

use super::Heap;
use crate::fault;
use crate::lock::Guard;
use crate::page_table::Misuse;
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{PageCount, PageIndex};
use core::alloc::Layout;
use core::ptr;

impl<G: Geometry> Heap<G> {
    /// The lowest run of `count` free pages, of which none is claimed yet; commits memory if there is none.
    pub(super) fn find(&self, runs: &mut Runs, count: PageCount) -> Option<PageIndex> {
        if let Some(start) = runs.find(count) {
            return Some(start);
        }
        let more = PageCount(count.0 - runs.free_below_frontier().0);
        if self.commit(runs, more) { runs.find(count) } else { None }
    }

    /// Commits at least `more` pages above the frontier; false if that cannot be.
    fn commit(&self, runs: &mut Runs, more: PageCount) -> bool {
        let shift = self.geometry().page_shift();
        if more > runs.unadded() {
            return false;
        }
        let committed = self.arena.commit(runs.frontier().get() << shift, more.bytes(shift));
        let Some(bytes) = committed else { return false };
        runs.grow(PageCount(((bytes >> shift) as u32).min(runs.unadded().0)));
        true
    }

    /// Pages of a run for `layout`; `None` for more than any arena has.
    fn pages_for(&self, layout: Layout) -> Option<PageCount> {
        PageCount::holding(layout.size().max(1), self.geometry().page_shift())
    }

    pub(crate) fn alloc_run(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        let shift = self.geometry().page_shift();
        let Some(count) = self.pages_for(layout).filter(|&count| count <= self.table.capacity()) else {
            return ptr::null_mut();
        };
        // Any run this much longer has an aligned one in it.
        let slack = (layout.align() >> shift).saturating_sub(1);
        let Some(padded) = u32::try_from(count.get() + slack).ok().map(PageCount) else {
            return ptr::null_mut();
        };
        let mut runs = self.runs();
        let Some(found) = self.find(&mut runs, padded) else { return ptr::null_mut() };
        let address = self.table.address_of(found).next_multiple_of(layout.align());
        let start = PageIndex(((address - self.table.base()) >> shift) as u32);
        self.table.claim_multi(&mut runs, start, count);
        let dirty = if zeroed { runs.dirty_within(start, count) } else { None };
        drop(runs);
        if let Some((first, pages)) = dirty {
            let start = self.pointer(self.table.address_of(first));
            let end = (address + layout.size()).min(start.addr() + pages.bytes(shift));
            // SAFETY: the range is part of the run, which nobody else has.
            unsafe { start.write_bytes(0, end.saturating_sub(start.addr())) };
        }
        self.pointer(address)
    }

    /// Frees the run at `address`; with `layout`, only if that is what it was allocated with.
    pub(crate) fn dealloc_run(&self, address: usize, layout: Option<Layout>) {
        let (mut runs, head, count) = self.expect_run(address, layout);
        self.table.release_multi(&mut runs, head, count);
    }

    /// Makes the run at `address` long enough for `new` where it stands, and no longer.
    pub(crate) fn resize_run(&self, address: usize, old: Option<Layout>, new: Layout) -> bool {
        let Some(new_count) = self.pages_for(new) else { return false };
        let (mut runs, head, count) = self.expect_run(address, old);
        if new_count > count {
            let more = PageCount(new_count.0 - count.0);
            let free = runs.free_from(head.plus(count), more);
            let up_to_frontier = head.plus(count).plus(free) == runs.frontier();
            if free < more && !(up_to_frontier && self.commit(&mut runs, PageCount(more.0 - free.0))) {
                return false;
            }
        }
        self.table.resize_multi(&mut runs, head, count, new_count)
    }

    /// The run at `address`, which was allocated with `layout` if one is given, and the lock it is under. Ends the
    /// process if there is none.
    fn expect_run(
        &self,
        address: usize,
        layout: Option<Layout>,
    ) -> (Guard<'_, Runs<'static>>, PageIndex, PageCount) {
        let Some(head) = self.table.page_of(address) else {
            fault::misuse(Misuse::OutsideArena, address, None)
        };
        let runs = self.runs();
        let misuse = match self.table.multi_run(&runs, head) {
            Err(misuse) => misuse,
            Ok(_) if self.table.address_of(head) != address => Misuse::NotAtStart,
            Ok(count) if layout.is_some_and(|layout| self.pages_for(layout) != Some(count)) => {
                Misuse::WrongLayout
            }
            Ok(count) => return (runs, head, count),
        };
        drop(runs);
        fault::misuse(misuse, address, Some(self.page_state(head)))
    }

    /// Bytes that the live block or run at `address` has room for. Ends the process if there is none.
    pub(crate) fn usable_size(&self, address: usize) -> usize {
        if let Some(tag) = self.tag_of(address) {
            return self.geometry().classes().block(tag.class());
        }
        let (_, _, count) = self.expect_run(address, None);
        count.bytes(self.geometry().page_shift())
    }
}
