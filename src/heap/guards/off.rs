//! Without the feature `hardened` there are no guards, and nothing of this is left in the program.

use super::Heap;
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{PageCount, PageIndex};

impl<G: Geometry> Heap<G> {
    #[inline(always)]
    pub(super) fn guards_in_use(&self) -> usize {
        0
    }

    #[inline(always)]
    pub(super) fn find_guarded(
        &self,
        runs: &mut Runs,
        count: PageCount,
        align: usize,
        is_large: bool,
    ) -> Option<PageIndex> {
        self.find_aligned(runs, count, align, is_large)
    }

    #[inline(always)]
    pub(super) fn find_to_divide(&self, runs: &mut Runs, sparse: bool) -> Option<PageIndex> {
        self.find_page(runs, sparse)
    }

    #[inline(always)]
    pub(super) fn uncover(&self, _: PageIndex, _: PageCount) -> bool {
        true
    }

    #[inline(always)]
    pub(super) fn settle_guards(&self, _: &mut Runs, _: PageIndex, _: PageCount) {}

    #[inline(always)]
    pub(super) fn open_end(&self, _: &mut Runs, _: PageIndex, _: PageCount) {}

    #[inline(always)]
    pub(super) fn room_behind(&self, _: &Runs, _: PageIndex, _: PageCount) -> PageCount {
        PageCount(0)
    }
}
