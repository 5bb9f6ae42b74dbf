//! How much is given back at a time, and how far that came.

use crate::units::PageIndex;

/// What is to be done at most before others go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    /// Bytes given back.
    pub(crate) bytes: usize,
    /// System calls.
    pub(crate) calls: usize,
    /// Pages in use that are looked at.
    pub(crate) looks: usize,
}

impl Most {
    pub(crate) const ALL: Most = Most { bytes: usize::MAX, calls: usize::MAX, looks: usize::MAX };
}

/// What was done, and what is left.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Progress {
    /// Bytes given back. Some may not have had memory.
    pub(crate) bytes: usize,
    calls: usize,
    looks: usize,
    /// Where there is more to do; `None` if that was all.
    pub(crate) next: Option<PageIndex>,
}

impl Progress {
    /// Counts a page in use that is looked at.
    pub(crate) fn count_look(&mut self) {
        self.looks += 1;
    }

    /// Counts a system call that was to give `bytes` back.
    pub(crate) fn count_call(&mut self, bytes: usize, purged: bool) {
        self.calls += 1;
        self.bytes += if purged { bytes } else { 0 };
    }

    /// Whether `most` is done.
    pub(crate) fn has_done(&self, most: Most) -> bool {
        self.bytes >= most.bytes || self.calls >= most.calls || self.looks >= most.looks
    }

    /// Whether there is more to do, and the system does not refuse all of it.
    pub(crate) fn goes_on(&self) -> bool {
        self.next.is_some() && (self.calls == 0 || self.bytes > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_refuses_is_not_tried_again_and_again() {
        let mut progress = Progress { next: Some(PageIndex(1)), ..Progress::default() };
        assert!(progress.goes_on());
        progress.count_call(4096, false);
        assert!(!progress.goes_on());
        progress.count_call(4096, true);
        assert!(progress.goes_on());
        progress.next = None;
        assert!(!progress.goes_on());
    }
}
