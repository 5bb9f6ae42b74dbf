//! Without the feature `profile` nothing is sampled, and nothing of this is left in the program.

use crate::heap::Heap;
use crate::size_class::BuildGeometry;
use crate::units::ClassIndex;
use core::alloc::Layout;

pub(crate) fn start() {}

pub(crate) struct Countdown;

impl Countdown {
    pub(crate) const NONE: Countdown = Countdown;

    pub(crate) fn new() -> Countdown {
        Countdown
    }

    #[inline(always)]
    pub(crate) fn is_due(&self, _: usize) -> bool {
        false
    }
}

#[inline(always)]
pub(crate) fn is_due(_: &'static Heap<BuildGeometry>, _: usize) -> bool {
    false
}

#[inline(always)]
pub(crate) fn sample(_: &'static Heap<BuildGeometry>, _: Layout, _: bool) -> Option<*mut u8> {
    None
}

#[inline(always)]
pub(crate) fn forget_run(_: usize) -> bool {
    false
}

#[inline(always)]
pub(crate) fn free_block(_: &Heap<BuildGeometry>, _: ClassIndex, _: usize) {}

#[cfg(feature = "hardened")]
#[inline(always)]
pub(crate) fn is_sampled_run(_: usize) -> bool {
    false
}

/// What is known of a sample: there is none.
pub(crate) struct Sample;

#[inline(always)]
pub(crate) fn begin_resize(_: usize) -> Sample {
    Sample
}

#[inline(always)]
pub(crate) fn end_resize(_: Sample, _: usize, _: usize, _: usize) {}

#[inline(always)]
pub(crate) fn lock() {}

#[inline(always)]
pub(crate) unsafe fn unlock() {}
