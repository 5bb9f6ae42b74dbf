//! Pages in use that are not Divided: Multi runs, those that were freed and wait, and guards.
//!
//! Their headers belong to the holder of [`Runs`]. Only the head of a run has one with anything in it, but while the run
//! waits: then each of its pages is marked.

use super::{Misuse, PageTable, State};
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{ComponentIndex, PageCount, PageIndex};
use core::mem;

/// How the memory of a Multi run is mapped, where that is not as in the rest of the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Mapping {
    /// As the rest.
    Usual = 0,
    /// With huge pages where there are none otherwise, or without where there are.
    Advised,
    /// It was moved here from elsewhere, and the system keeps it apart.
    Moved,
}

impl<G: Geometry> PageTable<G> {
    /// Makes `count` free pages from `start` on one Multi run, which is asked for as a whole.
    pub fn claim_multi(&self, runs: &mut Runs, start: PageIndex, count: PageCount) {
        runs.claim(start, count);
        // SAFETY: the page was free, so its header belongs to the holder of `runs`.
        let header = unsafe { &mut *self.header(start) };
        debug_assert_eq!(header.state, State::None);
        (header.state, header.run) = (State::MultiHead, count);
    }

    /// Length of the Multi run that begins at `head`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn multi_run(&self, runs: &Runs, head: PageIndex) -> Result<PageCount, Misuse> {
        if runs.is_free(head) {
            return Err(Misuse::FreePage);
        }
        if self.tag(head).is_divided() {
            return Err(Misuse::WrongLayout);
        }
        // SAFETY: the page is part of a Multi run, so its header belongs to the holder of `runs`.
        let header = unsafe { &*self.header(head) };
        match header.state {
            State::MultiHead => Ok(header.run),
            State::Guard | State::Waiting => Err(Misuse::FreePage),
            _ => Err(Misuse::NotAtStart),
        }
    }

    /// Makes a free page a guard.
    pub fn claim_guard(&self, runs: &mut Runs, page: PageIndex) {
        runs.claim(page, PageCount(1));
        // SAFETY: the page was free, so its header belongs to the holder of `runs`.
        unsafe { (*self.header(page)).state = State::Guard };
    }

    /// Makes a guard Free.
    pub fn release_guard(&self, runs: &mut Runs, page: PageIndex) {
        debug_assert!(self.is_guard(runs, page));
        // SAFETY: the header of a guard belongs to the holder of `runs`.
        unsafe { (*self.header(page)).state = State::None };
        runs.release(page, PageCount(1));
    }

    /// Whether `page` is a guard.
    pub fn is_guard(&self, _: &Runs, page: PageIndex) -> bool {
        // SAFETY: the page is not Divided, and does not become so, so its header belongs to the holder of `runs`.
        !self.tag(page).is_divided() && unsafe { (*self.header(page)).state } == State::Guard
    }

    /// Has the Multi run at `head`, mapped as usual, wait: it is nobody's, and not free yet.
    pub fn retire_multi(&self, runs: &mut Runs, head: PageIndex) {
        debug_assert_eq!(self.mapping(runs, head), Mapping::Usual);
        // SAFETY: the page begins a Multi run, so its header belongs to the holder of `runs`.
        let header = unsafe { &mut *self.header(head) };
        (header.owner, header.tail) = (ComponentIndex::NONE, 0);
        let run = header.run;
        self.set_states(runs, head, run, State::Waiting);
    }

    /// Undoes [`retire_multi`](Self::retire_multi).
    pub fn revive_multi(&self, runs: &mut Runs, head: PageIndex) {
        // SAFETY: the page begins a run that waits, so its header belongs to the holder of `runs`.
        let header = unsafe { &*self.header(head) };
        debug_assert_eq!(header.state, State::Waiting);
        let run = header.run;
        self.set_states(runs, head, run, State::None);
        // SAFETY: as above.
        unsafe { (*self.header(head)).state = State::MultiHead };
    }

    /// Sets the states of all pages of a run.
    fn set_states(&self, _: &mut Runs, head: PageIndex, run: PageCount, state: State) {
        for page in (head.0..head.plus(run).0).map(PageIndex) {
            // SAFETY: the page is part of a Multi run, so its header belongs to the holder of `runs`.
            unsafe { (*self.header(page)).state = state };
        }
    }

    /// Bytes at the end of the Multi run that begins at `head` that nobody asked for.
    pub fn multi_tail(&self, runs: &Runs, head: PageIndex) -> usize {
        debug_assert!(self.multi_run(runs, head).is_ok());
        // SAFETY: the page begins a Multi run, so its header belongs to the holder of `runs`.
        unsafe { (*self.header(head)).tail as usize }
    }

    /// Notes that so many bytes at the end of the Multi run that begins at `head`, less than a page, are not asked for.
    pub fn set_multi_tail(&self, runs: &mut Runs, head: PageIndex, bytes: usize) {
        debug_assert!(self.multi_run(runs, head).is_ok() && bytes < self.geometry.page_size());
        // SAFETY: as in `multi_tail`.
        let header = unsafe { &mut *self.header(head) };
        (header.tail, header.busy, header.blank) = (bytes as u32, true, false);
    }

    /// Bytes at the end of the Multi run that begins at `head` that nobody asked for and that may have memory; with
    /// `idle`, none if the run was made or resized since this was last asked. A caller who gives their memory back to the
    /// system says so by [`note_multi_tail_purged`](Self::note_multi_tail_purged).
    pub(crate) fn unused_multi_tail(&self, runs: &mut Runs, head: PageIndex, idle: bool) -> usize {
        debug_assert!(self.multi_run(runs, head).is_ok());
        // SAFETY: as in `multi_tail`.
        let header = unsafe { &mut *self.header(head) };
        let was_busy = mem::replace(&mut header.busy, false);
        if header.blank || (idle && was_busy) { 0 } else { header.tail as usize }
    }

    /// Notes that what nobody asked for of the run has no memory, but for a part of an OS page.
    pub(crate) fn note_multi_tail_purged(&self, runs: &mut Runs, head: PageIndex) {
        debug_assert!(self.multi_run(runs, head).is_ok());
        // SAFETY: as in `multi_tail`.
        unsafe { (*self.header(head)).blank = true };
    }

    /// How the Multi run that begins at `head` is mapped.
    pub(crate) fn mapping(&self, runs: &Runs, head: PageIndex) -> Mapping {
        debug_assert!(self.multi_run(runs, head).is_ok());
        // SAFETY: the page begins a Multi run, so its header belongs to the holder of `runs`.
        unsafe { (*self.header(head)).mapping }
    }

    /// Notes how the Multi run that begins at `head` is mapped.
    pub(crate) fn set_mapping(&self, runs: &mut Runs, head: PageIndex, mapping: Mapping) {
        debug_assert!(self.multi_run(runs, head).is_ok());
        // SAFETY: as in `mapping`.
        unsafe { (*self.header(head)).mapping = mapping };
    }

    /// The component that holds the Multi run at `head`.
    pub fn owner(&self, runs: &Runs, head: PageIndex) -> ComponentIndex {
        debug_assert!(self.multi_run(runs, head).is_ok());
        // SAFETY: the page begins a Multi run, so its header belongs to the holder of `runs`.
        unsafe { (*self.header(head)).owner }
    }

    /// Has `owner` hold the Multi run at `head`, which no component holds when it is claimed.
    pub fn set_owner(&self, runs: &mut Runs, head: PageIndex, owner: ComponentIndex) {
        debug_assert!(self.multi_run(runs, head).is_ok());
        // SAFETY: as in `owner`.
        unsafe { (*self.header(head)).owner = owner };
    }

    /// Makes the Multi run of `count` pages that begins at `head`, mapped as usual, Free.
    pub fn release_multi(&self, runs: &mut Runs, head: PageIndex, count: PageCount) {
        debug_assert_eq!(self.multi_run(runs, head), Ok(count));
        debug_assert_eq!(self.mapping(runs, head), Mapping::Usual);
        // SAFETY: the page begins a Multi run, so its header belongs to the holder of `runs`.
        let header = unsafe { &mut *self.header(head) };
        (header.state, header.owner) = (State::None, ComponentIndex::NONE);
        (header.run, header.tail) = (PageCount(0), 0);
        (header.busy, header.blank) = (false, false);
        runs.release(head, count);
    }

    /// Changes the length of the Multi run at `head` from `old` to `new` pages where it stands: gives back its
    /// tail, or takes the free pages behind it. False if those are not all free.
    pub fn resize_multi(&self, runs: &mut Runs, head: PageIndex, old: PageCount, new: PageCount) -> bool {
        debug_assert_eq!(self.multi_run(runs, head), Ok(old));
        if new < old {
            runs.release(head.plus(new), PageCount(old.0 - new.0));
        } else if new > old {
            let more = PageCount(new.0 - old.0);
            if runs.free_from(head.plus(old), more) < more {
                return false;
            }
            runs.claim(head.plus(old), more);
        }
        // SAFETY: as in `release_multi`.
        unsafe { (*self.header(head)).run = new };
        true
    }
}
