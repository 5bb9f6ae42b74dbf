//! How the memory of runs is mapped: as their neighbours' is, or otherwise.
//!
//! For a run that was moved by remapping its memory the system keeps a mapping of its own, as it does for one that is
//! backed by huge pages where its neighbours are not. Processes may have only so many mappings: so there are at most
//! [`MOST_APART`] such runs of each kind, and before one is freed, its pages are mapped as all others.

use super::Heap;
use crate::arena::HUGE_PAGE;
use crate::lock::Guard;
use crate::page_table::Mapping;
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::sys;
use crate::units::{PageCount, PageIndex};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Most runs at a time that were moved, and most that are backed otherwise than their neighbours: each may cost three
/// mappings, and one that was moved several times up to nine.
const MOST_APART: usize = 256;

impl<G: Geometry> Heap<G> {
    /// Has the system back a new run with small pages up to the offset `huge_from`, and with huge ones from there on, where it
    /// would do otherwise.
    pub(super) fn advise(
        &self,
        mut runs: Guard<'_, Runs<'static>>,
        head: PageIndex,
        count: PageCount,
        huge_from: usize,
    ) {
        let run = self.range(head, count);
        let sparse = runs.alike_from(head, PageCount(1)).0;
        let parts = [(run.start..huge_from, false), (huge_from..run.end, true)]
            .map(|(part, huge)| Some((self.arena.backed_otherwise(part, sparse, huge)?, huge)));
        if self.has_whole_os_pages()
            && parts.iter().any(Option::is_some)
            && self.count_apart(Mapping::Advised)
        {
            self.table.set_mapping(&mut runs, head, Mapping::Advised);
            if huge_from > run.start {
                runs.expectation(count).note_fresh(head, true);
            }
            drop(runs);
            for (part, huge) in parts.into_iter().flatten() {
                self.arena.advise_huge(part, huge);
            }
        }
    }

    /// Where huge pages are to begin in a new run of at least [`LARGE`](super::large::LARGE) bytes, as an offset: where it does, if
    /// such runs are touched as a whole. If not, or if that is not known yet, its beginning may be all that is touched.
    pub(super) fn huge_from(&self, runs: &mut Runs, head: PageIndex, count: PageCount) -> usize {
        let start = self.range(head, count).start;
        if self.expects_whole_runs(runs, count) {
            runs.expectation(count).note_fresh(head, false);
            return start;
        }
        (start + HUGE_PAGE / 2).next_multiple_of(HUGE_PAGE)
    }

    /// How many runs are mapped so.
    pub(super) fn mapped(&self, mapping: Mapping) -> &AtomicUsize {
        debug_assert!(mapping != Mapping::Usual);
        if mapping == Mapping::Advised { &self.advised } else { &self.moved }
    }

    /// Counts one more run that is mapped so; false if there are too many.
    pub(super) fn count_apart(&self, mapping: Mapping) -> bool {
        self.mapped(mapping)
            .fetch_update(Relaxed, Relaxed, |runs| (runs < MOST_APART).then_some(runs + 1))
            .is_ok()
    }

    /// Maps pages of a run again as their neighbours are. False if the system refuses: then they are not to be used.
    pub(super) fn map_as_usual(&self, start: PageIndex, count: PageCount, mapping: Mapping) -> bool {
        let range = self.range(start, count);
        if mapping == Mapping::Moved {
            // Should the system refuse to map them, nobody may touch them again; at least they have no memory then.
            // SAFETY: the caller has the pages, and needs none of their contents.
            let mapped = unsafe {
                sys::purge(self.at(start), range.len());
                sys::map_over(self.at(start), range.len())
            };
            if !mapped {
                self.arena.note_hole();
                return false;
            }
        }
        let (mut page, end) = (start, start.plus(count));
        while mapping != Mapping::Usual && page < end {
            let (sparse, alike) = self.runs().alike_from(page, PageCount(end.0 - page.0));
            self.arena.advise_as_usual(self.range(page, alike), sparse);
            page = page.plus(alike);
        }
        true
    }
}
