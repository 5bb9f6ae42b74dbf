//! A spin lock that gives way: it spins a little, then yields to the OS, then sleeps. And values that are made once,
//! for which one waits asleep.
//!
//! A thread that holds the lock may be preempted for a whole time slice. Spinning through that burns the time
//! the holder needs to go on, and with real-time priorities it never gets it; yielding alone does not help when
//! the waiter outranks the holder. Sleeping always does.
//!
//! The lock knows which thread holds it. A thread that waits for itself was interrupted while it held the lock, by a
//! signal handler that allocates: nobody can go on from there, so the process ends, with a line that says so. Nor can anybody if
//! it waits for another, who waits for what it held then: so who waits for long looks whether it has a lock that is taken after
//! the one that it waits for.

use crate::sync::{self, AtomicUsize, RelaxStrategy, UnsafeCell};
use crate::sys;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// Attempts with a pause instruction between them: about a microsecond.
const SPINS: u32 = 64;
/// Attempts after that with the processor given away between them.
const YIELDS: u32 = 16;
/// The first sleep; each is twice the one before it, up to the last.
const FIRST_SLEEP_NS: u64 = 10_000;
const LAST_SLEEP_NS: u64 = 1_000_000;

/// So many sleeps, most of them the longest, are a long wait: others are preempted for less.
const LONG_WAIT: u32 = 100;

/// What holds an open lock: no thread.
const NOBODY: usize = 0;

/// A value behind a spin lock. Zeros are an open one, if they are a value.
pub(crate) struct Lock<T> {
    /// The thread that holds it, or [`NOBODY`].
    holder: AtomicUsize,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by whoever has the lock, one thread at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

/// Access to the value for as long as it lives.
pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

// SAFETY: to share it is to share the value.
unsafe impl<T: Sync> Sync for Guard<'_, T> {}

impl<T> Lock<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Lock<T> {
        Lock { holder: AtomicUsize::new(NOBODY), value: UnsafeCell::new(value) }
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Lock<T> {
        Lock { holder: AtomicUsize::new(NOBODY), value: UnsafeCell::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.lock_before(|| false)
    }

    /// [`lock`](Self::lock), where `has_later` says whether the calling thread has a lock that is taken after this one.
    #[inline]
    pub(crate) fn lock_before(&self, has_later: impl Fn() -> bool) -> Guard<'_, T> {
        match self.try_lock() {
            Some(guard) => guard,
            None => self.lock_slow(has_later),
        }
    }

    /// Whether the calling thread holds it.
    pub(crate) fn is_own(&self) -> bool {
        sys::TELLS_THREADS && self.holder.load(Relaxed) == sys::this_thread()
    }

    /// The lock, unless the calling thread holds it, which was interrupted then.
    pub(crate) fn lock_unless_own(&self) -> Option<Guard<'_, T>> {
        if self.is_own() { None } else { Some(self.lock()) }
    }

    /// The lock, if nobody holds it: for a second lock out of order.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        let taken = self.holder.compare_exchange(NOBODY, sys::this_thread(), Acquire, Relaxed);
        taken.is_ok().then(|| Guard { lock: self })
    }

    /// The value of a lock whose guard was forgotten.
    ///
    /// # Safety
    /// The caller forgot the guard, and holds no other reference to the value.
    #[allow(clippy::mut_from_ref)] // the lock is what makes it exclusive
    pub(crate) unsafe fn leaked(&self) -> &mut T {
        debug_assert!(self.holder.load(Relaxed) != NOBODY);
        // SAFETY: the caller holds the lock.
        unsafe { &mut *self.value.get() }
    }

    /// Opens a lock whose guard was forgotten.
    ///
    /// # Safety
    /// The caller, or in a child process the thread that forked, forgot the guard and uses the value no more.
    pub(crate) unsafe fn unlock_leaked(&self) {
        self.holder.store(NOBODY, Release);
    }

    #[cold]
    fn lock_slow(&self, has_later: impl Fn() -> bool) -> Guard<'_, T> {
        // Nobody else can have made this thread the holder.
        if self.is_own() && cfg!(not(pma_unchecked = "holder")) {
            end_interrupted();
        }
        let mut wait = Wait::default();
        loop {
            wait.relax_before(&has_later);
            if self.holder.load(Relaxed) == NOBODY
                && let Some(guard) = self.try_lock()
            {
                return guard;
            }
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard's owner has the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.holder.store(NOBODY, if cfg!(pma_unchecked = "release") { Relaxed } else { Release });
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("holder", &self.holder).finish_non_exhaustive()
    }
}

/// Ends the process, as the calling thread waits for what it holds. No handler is called for this: it would find the
/// lock closed, too.
#[cold]
#[inline(never)]
pub(crate) fn end_interrupted() -> ! {
    const LINE: &str = "page_memory_allocator: a signal handler allocated or freed while its thread was inside the allocator\n";
    sys::write(sys::Stream::Error, LINE.as_bytes());
    sys::abort()
}

/// One thread's wait for another.
#[derive(Default)]
pub(crate) struct Wait {
    attempts: u32,
    sleep_ns: u64,
}

impl Wait {
    pub(crate) fn relax(&mut self) {
        self.attempts += 1;
        if self.attempts <= SPINS {
            sync::spin_loop();
        } else if self.attempts <= SPINS + YIELDS {
            sys::yield_now();
        } else {
            self.sleep_ns = (self.sleep_ns * 2).clamp(FIRST_SLEEP_NS, LAST_SLEEP_NS);
            sys::sleep(self.sleep_ns);
        }
    }

    /// [`relax`](Self::relax). If the wait is long, and `has_later` says that the calling thread has what is only taken after
    /// what it waits for, it was interrupted, and the process ends.
    pub(crate) fn relax_before(&mut self, has_later: impl Fn() -> bool) {
        self.relax();
        if self.attempts == SPINS + YIELDS + LONG_WAIT && has_later() {
            end_interrupted();
        }
    }
}

/// A value that is made by the first thread to want it; the others sleep meanwhile.
pub(crate) type Once<T> = sync::Once<T, Asleep>;

/// How a thread waits for a [`Once`].
#[derive(Debug)]
pub(crate) enum Asleep {}

impl RelaxStrategy for Asleep {
    fn relax() {
        // Many that outrank the one that makes it, and wake up more often, leave it no processor.
        sys::sleep(LAST_SLEEP_NS);
    }
}
