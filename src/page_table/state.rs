//! What a page is, in one byte that may be looked at any time: a run goes to a thread's cache and comes from there without a
//! lock, by an exchange of it.

use crate::sync::AtomicU8;
use core::fmt;
use core::sync::atomic::{Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum State {
    /// Free or Multi tail.
    None = 0,
    Divided,
    MultiHead,
    /// In nobody's use, and not to be: a reader sees it as Free.
    Guard,
    /// Of a run that was freed, and is not used again yet: a reader sees it as Free.
    Waiting,
    /// The first page of a run that was freed, and waits in a thread's cache: a reader sees the run as Free.
    Cached,
    /// The first page of a Multi run whose end goes back to the system: it does not go to a cache meanwhile. Only while the
    /// runs are locked.
    Held,
}

const ALL: [State; 7] =
    [State::None, State::Divided, State::MultiHead, State::Guard, State::Waiting, State::Cached, State::Held];

/// A [`State`] of which others take note. Zero is [`State::None`].
pub(super) struct AtomicState(AtomicU8);

impl AtomicState {
    #[cfg(loom)]
    pub(super) fn new(state: State) -> AtomicState {
        AtomicState(AtomicU8::new(state as u8))
    }

    pub(super) fn get(&self) -> State {
        ALL[usize::from(self.0.load(Relaxed))]
    }

    /// For who holds the lock that the page is under, or has the run.
    pub(super) fn set(&self, state: State) {
        self.0.store(state as u8, Release);
    }

    /// Makes `from` `to`; false, and nothing done, if it is something else.
    pub(super) fn exchange(&self, from: State, to: State) -> bool {
        self.0.compare_exchange(from as u8, to as u8, Acquire, Relaxed).is_ok()
    }
}

impl fmt::Debug for AtomicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
