//! Pages in use that are not Divided: Multi runs, those that were freed and wait, and guards.
//!
//! Their headers belong to the holder of [`Runs`], or to the thread that frees a run to its cache or takes it from there. Only
//! the head of a run has one with anything in it, but while the run waits: then each of its pages is marked.

use super::{Misuse, PageTable, State};
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{ComponentIndex, PageCount, PageIndex};
use core::mem;
use core::sync::atomic::Ordering::Relaxed;

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
        debug_assert_eq!(header.state.get(), State::None);
        header.run = count;
        header.state.set(State::MultiHead);
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
        match header.state.get() {
            State::MultiHead => Ok(header.run),
            State::Guard | State::Waiting | State::Cached => Err(Misuse::FreePage),
            _ => Err(Misuse::NotAtStart),
        }
    }

    /// Whether a Multi run begins at `head`, or one that waits.
    fn begins_run(&self, runs: &Runs, head: PageIndex) -> bool {
        // SAFETY: the header of a page that is not Divided belongs to the holder of `runs`.
        !runs.is_free(head) && !self.tag(head).is_divided() && unsafe { (*self.header(head)).run.0 } > 0
    }

    /// Makes a free page a guard.
    pub fn claim_guard(&self, runs: &mut Runs, page: PageIndex) {
        runs.claim(page, PageCount(1));
        // SAFETY: the page was free, so its header belongs to the holder of `runs`.
        unsafe { (*self.header(page)).state.set(State::Guard) };
    }

    /// Makes a guard Free.
    pub fn release_guard(&self, runs: &mut Runs, page: PageIndex) {
        debug_assert!(self.is_guard(runs, page));
        // SAFETY: the header of a guard belongs to the holder of `runs`.
        unsafe { (*self.header(page)).state.set(State::None) };
        runs.release(page, PageCount(1));
    }

    /// Whether `page` is a guard.
    pub fn is_guard(&self, _: &Runs, page: PageIndex) -> bool {
        // SAFETY: the page is not Divided, and does not become so, so its header belongs to the holder of `runs`.
        !self.tag(page).is_divided() && unsafe { (*self.header(page)).state.get() } == State::Guard
    }

    /// Has the Multi run at `head`, mapped as usual, wait: it is nobody's, and not free yet.
    pub fn retire_multi(&self, runs: &mut Runs, head: PageIndex) {
        debug_assert_eq!(self.mapping(runs, head), Mapping::Usual);
        // SAFETY: the page begins a Multi run, so its header belongs to the holder of `runs`.
        let header = unsafe { &mut *self.header(head) };
        header.owner = ComponentIndex::NONE;
        header.tail.store(0, Relaxed);
        let run = header.run;
        self.set_states(runs, head, run, State::Waiting);
    }

    /// Undoes [`retire_multi`](Self::retire_multi).
    pub fn revive_multi(&self, runs: &mut Runs, head: PageIndex) {
        // SAFETY: the page begins a run that waits, so its header belongs to the holder of `runs`.
        let header = unsafe { &*self.header(head) };
        debug_assert_eq!(header.state.get(), State::Waiting);
        let run = header.run;
        self.set_states(runs, head, run, State::None);
        // SAFETY: as above.
        unsafe { (*self.header(head)).state.set(State::MultiHead) };
    }

    /// Sets the states of all pages of a run.
    fn set_states(&self, _: &mut Runs, head: PageIndex, run: PageCount, state: State) {
        for page in (head.0..head.plus(run).0).map(PageIndex) {
            // SAFETY: the page is part of a Multi run, so its header belongs to the holder of `runs`.
            unsafe { (*self.header(page)).state.set(state) };
        }
    }

    /// Bytes at the end of the Multi run that begins at `head` that nobody asked for.
    pub fn multi_tail(&self, runs: &Runs, head: PageIndex) -> usize {
        debug_assert!(self.begins_run(runs, head));
        // SAFETY: the page begins a Multi run, so its header belongs to the holder of `runs`.
        unsafe { (*self.header(head)).tail.load(Relaxed) as usize }
    }

    /// Notes that so many bytes at the end of the Multi run that begins at `head`, less than a page, are not asked for.
    pub fn set_multi_tail(&self, runs: &mut Runs, head: PageIndex, bytes: usize) {
        debug_assert!(self.multi_run(runs, head).is_ok() && bytes < self.geometry.page_size());
        // SAFETY: as in `multi_tail`.
        let header = unsafe { &mut *self.header(head) };
        header.tail.store(bytes as u32, Relaxed);
        (header.busy, header.blank) = (true, false);
        self.watch(head);
    }

    /// Keeps the Multi run at `head` from going to a thread's cache until [`let_go_multi`](Self::let_go_multi). False if it
    /// is there.
    pub(crate) fn hold_multi(&self, _: &mut Runs, head: PageIndex) -> bool {
        // SAFETY: a header that is looked at by name of its state, which is atomic.
        unsafe { (*self.header(head)).state.exchange(State::MultiHead, State::Held) }
    }

    /// Undoes [`hold_multi`](Self::hold_multi).
    pub(crate) fn let_go_multi(&self, _: &mut Runs, head: PageIndex) {
        // SAFETY: as above.
        unsafe { (*self.header(head)).state.set(State::MultiHead) };
    }

    /// Takes the live Multi run at `head` from its owner, no component, for a thread's cache, if it is mapped as usual and
    /// `wanted` of its length. Without the lock of the runs: who holds that may look at the run meanwhile, and no more.
    /// Returns its length.
    #[cfg(not(feature = "hardened"))]
    pub(crate) fn cache_multi(
        &self,
        head: PageIndex,
        wanted: impl FnOnce(PageCount) -> bool,
    ) -> Option<PageCount> {
        let header = self.header(head);
        // SAFETY: no reference is made to more than a field. The state is atomic; the run is this thread's, whose it is to free,
        // and others change nothing of it. What it is of is asked first, as `check` counts by it.
        unsafe {
            if self.tag(head).is_divided()
                || (*header).owner != ComponentIndex::NONE
                || (*header).mapping != Mapping::Usual
            {
                return None;
            }
            let run = (*header).run;
            (wanted(run) && (*header).state.exchange(State::MultiHead, State::Cached)).then_some(run)
        }
    }

    /// Has a run that [waits in the calling thread's cache](Self::cache_multi) be a live one, with so many bytes at its end that
    /// are not asked for. Without the lock of the runs, as there.
    #[cfg(not(feature = "hardened"))]
    pub(crate) fn uncache_multi(&self, head: PageIndex, tail: usize) {
        let header = self.header(head);
        // SAFETY: as in `cache_multi`.
        unsafe {
            debug_assert_eq!((*header).state.get(), State::Cached);
            (*header).tail.store(tail as u32, Relaxed);
            ((*header).busy, (*header).blank) = (true, false);
            self.watch(head);
            (*header).state.set(State::MultiHead);
        }
    }

    /// Pages from `page` on, which is in nobody's use and not free, that are so for the same reason.
    pub(crate) fn unused_from(&self, _: &Runs, page: PageIndex) -> PageCount {
        // SAFETY: the page is not Divided, and does not become so, so its header belongs to the holder of `runs`.
        let header = unsafe { &*self.header(page) };
        if header.state.get() == State::Cached { header.run } else { PageCount(1) }
    }

    /// Bytes at the end of the Multi run that begins at `head` that nobody asked for and that may have memory; with
    /// `idle`, none is told of if the run was made or resized since this was last asked. A caller who gives their memory back to
    /// the system says so by [`note_multi_tail_purged`](Self::note_multi_tail_purged). Both have it [held](Self::hold_multi).
    pub(crate) fn unused_multi_tail(&self, runs: &mut Runs, head: PageIndex, idle: bool) -> Option<usize> {
        debug_assert!(self.begins_run(runs, head));
        // SAFETY: as in `multi_tail`.
        let header = unsafe { &mut *self.header(head) };
        let was_busy = mem::replace(&mut header.busy, false);
        let bytes = if header.blank { 0 } else { header.tail.load(Relaxed) as usize };
        (!idle || !was_busy).then_some(bytes)
    }

    /// Notes that what nobody asked for of the run has no memory, but for a part of an OS page: it is
    /// [watched](Self::next_watched) no more.
    pub(crate) fn note_multi_tail_purged(&self, runs: &mut Runs, head: PageIndex) {
        debug_assert!(self.begins_run(runs, head));
        // SAFETY: as in `multi_tail`.
        unsafe { (*self.header(head)).blank = true };
        self.let_be(head);
    }

    /// How the Multi run that begins at `head` is mapped.
    pub(crate) fn mapping(&self, runs: &Runs, head: PageIndex) -> Mapping {
        debug_assert!(self.begins_run(runs, head));
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
        debug_assert!(self.begins_run(runs, head));
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
        header.state.set(State::None);
        (header.owner, header.run) = (ComponentIndex::NONE, PageCount(0));
        header.tail.store(0, Relaxed);
        (header.busy, header.blank) = (false, false);
        self.let_be(head);
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
