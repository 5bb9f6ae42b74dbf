//! Whether memory that is to be handed out will be touched as a whole, by what became of some that was.

use crate::units::PageIndex;
use core::num::NonZeroU32;

/// What is expected of pages of one kind. All zeros until something is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expectation {
    /// 1 + the page that is to tell how much is touched: it had no memory when it was handed out, and gets it as it is
    /// touched.
    sample: Option<NonZeroU32>,
    /// So many times memory is handed out in the belief that it will be touched as a whole, before some is to tell again.
    trust: u8,
    /// How many of these are left.
    left: u8,
}

/// The most trust. It doubles with each sample that was touched as a whole, and is gone with one that was not.
pub(crate) const MOST_TRUST: u8 = 32;

impl Expectation {
    /// That nothing is known, and that little will be touched.
    pub(crate) const NONE: Expectation = Expectation { sample: None, trust: 0, left: 0 };

    /// The page that is to tell how much is touched, if there is one.
    pub(crate) fn sample(&self) -> Option<PageIndex> {
        self.sample.map(|page| PageIndex(page.get() - 1))
    }

    /// [`sample`](Self::sample), which is asked once.
    pub(crate) fn take_sample(&mut self) -> Option<PageIndex> {
        let sample = self.sample();
        self.sample = None;
        sample
    }

    /// Whether memory that is to be handed out will be touched as a whole, by what the [sample](Self::take_sample) tells;
    /// `None` if that tells nothing. After one that was, there is at least so much trust.
    pub(crate) fn expects_whole(&mut self, is_whole: Option<bool>, least_trust: u8) -> bool {
        if let Some(is_whole) = is_whole {
            self.trust = if is_whole { (self.trust * 2).clamp(least_trust, MOST_TRUST) } else { 0 };
            self.left = self.trust;
        }
        self.left > 0
    }

    /// Notes that memory from `page` on, which the system has yet to give, is handed out, and whether it is to tell how much
    /// of it is touched.
    pub(crate) fn note_fresh(&mut self, page: PageIndex, tells: bool) {
        if tells {
            self.sample = NonZeroU32::new(page.0 + 1);
        } else {
            self.left = self.left.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_tells_holds_for_those_that_are_handed_out_next() {
        let mut expectation = Expectation::NONE;
        assert_eq!((expectation.take_sample(), expectation.expects_whole(None, 4)), (None, false));
        expectation.note_fresh(PageIndex(0), true);
        assert_eq!(expectation.take_sample(), Some(PageIndex(0)));
        for trust in [4, 8, 16, 32, 32] {
            assert!(expectation.expects_whole(Some(true), 4));
            for _ in 0..trust {
                assert!(expectation.take_sample().is_none() && expectation.expects_whole(None, 4));
                expectation.note_fresh(PageIndex(1), false);
            }
            assert!(expectation.take_sample().is_none() && !expectation.expects_whole(None, 4));
        }
        for (told, expected) in [(Some(true), true), (None, true), (Some(false), false), (None, false)] {
            assert_eq!(expectation.expects_whole(told, 4), expected);
        }
    }
}
