//! Runs that grow and shrink: where they stand, or, from 1 MiB on, by moving their memory to another place without a copy.

use super::Heap;
use super::large::LARGE;
use crate::lock::Guard;
use crate::page_table::Mapping;
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::sys::{self, Remapped};
use crate::units::{ComponentIndex, PageCount, PageIndex};
use core::alloc::Layout;
use core::sync::atomic::Ordering::Relaxed;

/// Runs of so many bytes are moved by remapping.
const REMAPPED: usize = 1 << 20;

impl<G: Geometry> Heap<G> {
    /// Makes the run at `address` long enough for `new`, and no longer: where it stands, or by moving its memory to
    /// another one. `None`, and the run untouched, if that cannot be.
    pub(crate) fn resize_run(&self, address: usize, old: Option<Layout>, new: Layout) -> Option<*mut u8> {
        let new_count = self.pages_for(new)?;
        let (mut runs, head, count) = self.expect_run(address, old);
        if new_count > count && self.is_process_heap && !self.may_use(&runs, PageCount(new_count.0 - count.0))
        {
            drop(runs);
            self.release_unused_pages();
            runs = self.expect_run(address, old).0;
        }
        if new_count < count {
            runs = self.shrink_run(runs, head, count, new_count);
        } else if new_count > count && !self.grow_run(&mut runs, head, count, new_count) {
            drop(runs);
            return self.move_run(head, count, new);
        }
        self.table.set_multi_tail(&mut runs, head, self.tail(new_count, new));
        Some(self.pointer(address))
    }

    fn grow_run(&self, runs: &mut Runs, head: PageIndex, count: PageCount, new_count: PageCount) -> bool {
        let more = PageCount(new_count.0 - count.0);
        let owner = self.table.owner(runs, head);
        if !self.may_use(runs, more) || !self.charge_pages(owner, more) {
            return false;
        }
        self.open_end(runs, head, count);
        let room = PageCount(more.0 + self.room_behind(runs, head, new_count).0);
        let free = runs.free_from(head.plus(count), room);
        let up_to_frontier = head.plus(count).plus(free) == runs.frontier();
        let mut grown = (free == room || (up_to_frontier && self.commit(runs, PageCount(room.0 - free.0))))
            && self.table.resize_multi(runs, head, count, new_count);
        if grown && !self.uncover(head.plus(count), more) {
            self.table.resize_multi(runs, head, new_count, count);
            grown = false;
        }
        self.settle_guards(runs, head, if grown { new_count } else { count });
        if grown {
            self.settle_account(owner);
            self.keep_to_limit(runs, head.plus(new_count));
        } else {
            self.credit_pages(owner, more);
        }
        grown
    }

    fn shrink_run<'h>(
        &'h self,
        runs: Guard<'h, Runs<'static>>,
        head: PageIndex,
        count: PageCount,
        new_count: PageCount,
    ) -> Guard<'h, Runs<'static>> {
        let (tail, tail_count) = (head.plus(new_count), PageCount(count.0 - new_count.0));
        let (mut runs, blank) = self.give_up_pages(runs, head, tail, tail_count);
        self.table.resize_multi(&mut runs, head, count, new_count);
        self.credit_pages(self.table.owner(&runs, head), tail_count);
        match blank {
            Some(true) => runs.clean(tail, tail_count),
            Some(false) => {}
            // A run of its own, and nobody's, which counts as moved for good, so that there are few of them.
            None => {
                self.table.claim_multi(&mut runs, tail, tail_count);
                self.moved.fetch_add(1, Relaxed);
            }
        }
        self.settle_guards(&mut runs, head, new_count);
        self.settle_guards(&mut runs, tail, tail_count);
        runs
    }

    /// Moves the memory of a run of `count` pages to a new one for `new`, and frees the old one.
    fn move_run(&self, head: PageIndex, count: PageCount, new: Layout) -> Option<*mut u8> {
        let bytes = count.bytes(self.geometry().page_shift());
        // Nobody knows what lies behind the arena.
        let is_last = head.plus(count).get() == self.table.capacity().get();
        if bytes < REMAPPED || is_last || !self.has_whole_os_pages() || !self.count_apart(Mapping::Moved) {
            return None;
        }
        let owner = {
            let mut runs = self.runs();
            // While its memory is there.
            self.ask_freed_run(&mut runs, head, count);
            self.moving.fetch_add(count.get(), Relaxed);
            self.table.owner(&runs, head)
        };
        let claimed = self.claim_run(owner, Some((head, count)), new, LARGE);
        let claimed = claimed.map(|(_, start, new_count)| (start, new_count));
        let remapped = claimed.map(|(start, new_count)| {
            // SAFETY: both runs are the caller's, and differ; pages follow the old one.
            (start, new_count, unsafe { sys::remap(self.at(head), self.at(start), bytes) })
        });
        // If somebody else freed it meanwhile, the process ends, as in `give_up_pages`.
        let mut runs = self.expect_run(self.table.address_of(head), None).0;
        self.moving.fetch_sub(count.get(), Relaxed);
        let Some((start, new_count, remapped)) = remapped else {
            self.moved.fetch_sub(1, Relaxed);
            return None;
        };
        if remapped != Remapped::Moved {
            self.table.set_owner(&mut runs, head, owner);
            self.table.set_owner(&mut runs, start, ComponentIndex::NONE);
            self.credit_pages(owner, PageCount(new_count.0 - count.0));
        }
        match remapped {
            Remapped::Moved => self.table.set_mapping(&mut runs, start, Mapping::Moved),
            Remapped::Refused => {
                self.moved.fetch_sub(1, Relaxed);
                self.free_run(runs, start, new_count);
                return None;
            }
            Remapped::MappedAnew => {
                self.table.set_mapping(&mut runs, start, Mapping::Moved);
                self.free_run(runs, start, new_count);
                return None;
            }
            Remapped::Lost => {
                self.arena.note_hole();
                // As in `free_run`, with no end to purge. It goes on counting as mapped apart, so there are few of them.
                self.table.set_multi_tail(&mut runs, start, 0);
                return None;
            }
        }
        // What is left of the old run has no memory.
        let mapping = self.table.mapping(&runs, head);
        if mapping == Mapping::Usual {
            if !self.quarantine(&mut runs, head, count, true) {
                self.release_run(&mut runs, head, count, true);
            }
        } else {
            self.mapped(mapping).fetch_sub(1, Relaxed);
            self.moved.fetch_add(1, Relaxed);
            self.table.set_mapping(&mut runs, head, Mapping::Moved);
            self.free_run(runs, head, count);
        }
        Some(self.pointer(self.table.address_of(start)))
    }
}
