//! A gate to a thread's cache, which its thread goes through on slow paths, and which another closes.
//!
//! To go through costs the thread a store before, a load, and a store after, without order between the first two: whoever
//! closes the gate has a [fence in all threads](crate::sys::fence_all_threads) between *its* store and load. If the
//! thread's fence comes before its load, it finds the gate closed; if it comes after, its store comes before, and
//! whoever closes finds the thread inside, and opens the gate again.

use crate::lock::Wait;
use crate::sync::AtomicBool;
use crate::sys;
use core::sync::atomic::{
    Ordering::Acquire, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst, compiler_fence,
};

#[derive(Debug)]
pub(super) struct Gate {
    inside: AtomicBool,
    closed: AtomicBool,
}

/// The thread of the gate is inside as long as this lives.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

impl Gate {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Gate {
        Gate { inside: AtomicBool::new(false), closed: AtomicBool::new(false) }
    }

    #[cfg(loom)]
    pub(super) fn new() -> Gate {
        Gate { inside: AtomicBool::new(false), closed: AtomicBool::new(false) }
    }

    /// Enters, if the gate is not closed. For its thread, who is not inside.
    #[inline]
    pub(super) fn try_enter(&self) -> Option<Inside<'_>> {
        self.inside.store(true, Relaxed);
        let inside = Inside(self);
        compiler_fence(SeqCst);
        if self.closed.load(Acquire) { None } else { Some(inside) }
    }

    /// Enters, once the gate is not closed. For its thread, who is not inside; `has_lock` says whether it has one of those that
    /// are taken behind the gate.
    #[inline]
    pub(super) fn enter(&self, has_lock: impl Fn() -> bool) -> Inside<'_> {
        self.try_enter().unwrap_or_else(|| self.enter_slow(has_lock))
    }

    #[cold]
    fn enter_slow(&self, has_lock: impl Fn() -> bool) -> Inside<'_> {
        let mut wait = Wait::default();
        loop {
            wait.relax_before(&has_lock);
            if !self.closed.load(Relaxed)
                && let Some(inside) = self.try_enter()
            {
                return inside;
            }
        }
    }

    /// Closes it; false if that cannot be, or if its thread is inside. For one thread at a time.
    pub(super) fn close(&self) -> bool {
        if self.inside.load(Relaxed) {
            return false;
        }
        self.closed.store(true, Relaxed);
        let closed = sys::fence_all_threads() && !self.inside.load(Acquire);
        if !closed {
            self.open();
        }
        closed
    }

    /// Opens it after it was closed.
    pub(super) fn open(&self) {
        self.closed.store(false, Release);
    }
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.inside.store(false, Release);
    }
}
