//! Without the feature `hardened` no freed run waits, none is zeroed, and nothing of this is left in the program.

use super::Heap;
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{PageCount, PageIndex};

impl<G: Geometry> Heap<G> {
    #[inline(always)]
    pub(super) fn quarantine(&self, _: &mut Runs, _: PageIndex, _: PageCount, _: bool) -> bool {
        false
    }

    #[inline(always)]
    pub(super) fn take_from_quarantine(&self, _: &mut Runs, _: PageCount, _: usize) -> Option<PageIndex> {
        None
    }

    #[inline(always)]
    pub(super) fn empty_quarantine(&self, _: &mut Runs) -> bool {
        false
    }

    #[inline(always)]
    pub(super) fn zeroes_freed(&self) -> bool {
        false
    }

    #[inline(always)]
    pub(super) fn zero(&self, _: PageIndex, _: PageCount) -> bool {
        false
    }
}
