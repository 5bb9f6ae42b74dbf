//! Freed runs: they are zeroed, if that is wanted, and wait in quarantine before their pages are used again.
//!
//! A run that is in quarantine is nobody's, and not free: a reader of the page table sees it as Free. Its guards stay where they
//! are, as runs are beside them still.

use super::Heap;
use crate::hardened;
use crate::lock::Lock;
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::sys;
use crate::units::{PageCount, PageIndex};

/// Freed runs that wait, and their pages.
const MOST_QUARANTINED: usize = 32;
const MOST_QUARANTINED_PAGES: PageCount = PageCount(64);
/// Longer runs do not wait.
const LONGEST_QUARANTINED: PageCount = PageCount(16);
/// A run that is freed is used again after so many others were freed.
const LEAST_QUARANTINED: usize = 4;

/// Locked while the runs are.
static QUARANTINE: Lock<Quarantine> =
    Lock::new(Quarantine { runs: [(PageIndex(0), PageCount(0)); MOST_QUARANTINED], len: 0 });

/// Freed runs, the one that was freed first in front.
struct Quarantine {
    runs: [(PageIndex, PageCount); MOST_QUARANTINED],
    len: usize,
}

impl Quarantine {
    fn remove(&mut self, at: usize) -> (PageIndex, PageCount) {
        let run = self.runs[at];
        self.runs.copy_within(at + 1..self.len, at);
        self.len -= 1;
        run
    }

    fn pages(&self) -> usize {
        self.runs[..self.len].iter().map(|(_, count)| count.get()).sum()
    }
}

impl<G: Geometry> Heap<G> {
    /// Has the run of `count` pages at `head`, which is freed, wait, and releases those that waited longest instead. False
    /// if it is not to wait. If it is `blank`, it has no memory.
    pub(super) fn quarantine(&self, runs: &mut Runs, head: PageIndex, count: PageCount, blank: bool) -> bool {
        if !self.is_hardened() || count > LONGEST_QUARANTINED {
            return false;
        }
        let mut quarantine = QUARANTINE.lock();
        while quarantine.len == MOST_QUARANTINED
            || quarantine.pages() + count.get() > MOST_QUARANTINED_PAGES.get()
        {
            let (head, count) = quarantine.remove(0);
            self.release_from_quarantine(runs, head, count);
        }
        self.table.retire_multi(runs, head);
        if !blank {
            runs.soil(head, count);
        }
        let len = quarantine.len;
        quarantine.runs[len] = (head, count);
        quarantine.len += 1;
        true
    }

    /// Claims a run of `count` pages that waited long enough, and whose address `align` divides.
    pub(super) fn take_from_quarantine(
        &self,
        runs: &mut Runs,
        count: PageCount,
        align: usize,
    ) -> Option<PageIndex> {
        if !self.is_hardened() {
            return None;
        }
        let mut quarantine = QUARANTINE.lock();
        let due = quarantine.len.saturating_sub(LEAST_QUARANTINED);
        let fits = |&(head, pages): &(PageIndex, PageCount)| {
            pages == count && self.table.address_of(head).is_multiple_of(align)
        };
        let at = quarantine.runs[..due].iter().position(fits)?;
        let (head, _) = quarantine.remove(at);
        self.table.revive_multi(runs, head);
        Some(head)
    }

    /// Releases all runs that wait. False if there are none.
    pub(super) fn empty_quarantine(&self, runs: &mut Runs) -> bool {
        if !self.is_hardened() {
            return false;
        }
        let mut quarantine = QUARANTINE.lock();
        let any = quarantine.len > 0;
        while quarantine.len > 0 {
            let (head, count) = quarantine.remove(0);
            self.release_from_quarantine(runs, head, count);
        }
        any
    }

    fn release_from_quarantine(&self, runs: &mut Runs, head: PageIndex, count: PageCount) {
        self.table.revive_multi(runs, head);
        self.table.release_multi(runs, head, count);
        self.settle_guards(runs, head, count);
    }

    /// Whether what is freed is to be zeroed.
    pub(super) fn zeroes_freed(&self) -> bool {
        self.is_hardened() && hardened::zeroes_freed()
    }

    /// Zeroes pages that their owner gives up. True if their memory went back to the system for that.
    pub(super) fn zero(&self, start: PageIndex, count: PageCount) -> bool {
        let (at, bytes) = (self.at(start), count.bytes(self.geometry().page_shift()));
        // SAFETY: the pages are the caller's, who needs nothing of them.
        unsafe {
            let purged = self.has_whole_os_pages() && sys::purge(at, bytes);
            if !purged {
                at.write_bytes(0, bytes);
            }
            purged
        }
    }
}
