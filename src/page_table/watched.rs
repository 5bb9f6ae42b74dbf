//! Which pages in use a pass has to look at: a bit for each, apart from the headers, so that those of the others need not be
//! touched.

use super::PageTable;
use crate::size_class::Geometry;
use crate::units::{PageCount, PageIndex};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Pages to a word.
const WATCHED: usize = usize::BITS as usize;

/// Bytes of the bits of `capacity` pages.
pub(super) fn bytes(capacity: PageCount) -> usize {
    capacity.get().div_ceil(WATCHED) * size_of::<AtomicUsize>()
}

impl<G: Geometry> PageTable<G> {
    /// The word that tells whether `page` is watched, and its bit there.
    fn watched(&self, page: PageIndex) -> (&AtomicUsize, usize) {
        assert!(page.0 < self.capacity.0, "a page of another arena");
        // SAFETY: the page is one of the arena's, which all have a bit.
        let word = unsafe { self.watched.add(page.get() / WATCHED).as_ref() };
        (word, 1 << (page.get() % WATCHED))
    }

    /// The first page that is watched, from `from` to before `end`. A page that is not watched was not used since what it could
    /// give back went back, or since there was nothing: so one need not look at it again. May be asked at any time, in one
    /// order with whatever else is `SeqCst`.
    pub fn next_watched(&self, from: PageIndex, end: PageIndex) -> Option<PageIndex> {
        let mut at = from;
        while at < end {
            let (word, bit) = self.watched(at);
            let rest = word.load(Ordering::SeqCst) & bit.wrapping_neg();
            let first = at.get() / WATCHED * WATCHED;
            if rest != 0 {
                let page = PageIndex((first + rest.trailing_zeros() as usize) as u32);
                return (page < end).then_some(page);
            }
            at = PageIndex((first + WATCHED).min(end.get()) as u32);
        }
        None
    }

    /// Has `page`, which is used, watched. The caller has it, so that nobody has it [let be](Self::let_be) meanwhile.
    pub(super) fn watch(&self, page: PageIndex) {
        let (word, bit) = self.watched(page);
        if word.load(Ordering::SeqCst) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Has `page` watched no more.
    pub(super) fn let_be(&self, page: PageIndex) {
        let (word, bit) = self.watched(page);
        if word.load(Ordering::Relaxed) & bit != 0 {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}
