//! A spin lock that gives way: it spins a little, then yields to the OS, then sleeps. And values that are made once,
//! for which one waits asleep.
//!
//! A thread that holds the lock may be preempted for a whole time slice. Spinning through that burns the time
//! the holder needs to go on, and with real-time priorities it never gets it; yielding alone does not help when
//! the waiter outranks the holder. Sleeping always does.

use crate::sys;
use spin::RelaxStrategy;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// Attempts with a pause instruction between them: about a microsecond.
const SPINS: u32 = 64;
/// Attempts after that with the processor given away between them.
const YIELDS: u32 = 16;
/// The first sleep; each is twice the one before it, up to the last.
const FIRST_SLEEP_NS: u64 = 10_000;
const LAST_SLEEP_NS: u64 = 1_000_000;

/// A value behind a spin lock.
#[derive(Debug)]
pub(crate) struct Lock<T> {
    mutex: SpinMutex<T>,
}

/// Access to the value for as long as it lives.
pub(crate) type Guard<'a, T> = SpinMutexGuard<'a, T>;

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Lock<T> {
        Lock { mutex: SpinMutex::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        match self.mutex.try_lock() {
            Some(guard) => guard,
            None => self.lock_slow(),
        }
    }

    /// The lock, if nobody holds it: for a second lock out of order.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        self.mutex.try_lock()
    }

    /// The value of a lock whose guard was forgotten.
    ///
    /// # Safety
    /// The caller forgot the guard, and holds no other reference to the value.
    #[allow(clippy::mut_from_ref)] // the lock is what makes it exclusive
    pub(crate) unsafe fn leaked(&self) -> &mut T {
        debug_assert!(self.mutex.is_locked());
        // SAFETY: the caller holds the lock.
        unsafe { &mut *self.mutex.as_mut_ptr() }
    }

    /// Opens a lock whose guard was forgotten.
    ///
    /// # Safety
    /// The caller, or in a child process the thread that forked, forgot the guard and uses the value no more.
    pub(crate) unsafe fn unlock_leaked(&self) {
        // SAFETY: the caller holds the lock.
        unsafe { self.mutex.force_unlock() };
    }

    #[cold]
    fn lock_slow(&self) -> Guard<'_, T> {
        let mut wait = Wait::default();
        loop {
            wait.relax();
            if !self.mutex.is_locked()
                && let Some(guard) = self.mutex.try_lock()
            {
                return guard;
            }
        }
    }
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
            core::hint::spin_loop();
        } else if self.attempts <= SPINS + YIELDS {
            sys::yield_now();
        } else {
            self.sleep_ns = (self.sleep_ns * 2).clamp(FIRST_SLEEP_NS, LAST_SLEEP_NS);
            sys::sleep(self.sleep_ns);
        }
    }
}

/// A value that is made by the first thread to want it; the others sleep meanwhile.
pub(crate) type Once<T> = spin::once::Once<T, Asleep>;

/// How a thread waits for a [`Once`].
#[derive(Debug)]
pub(crate) enum Asleep {}

impl RelaxStrategy for Asleep {
    fn relax() {
        // Many that outrank the one that makes it, and wake up more often, leave it no processor.
        sys::sleep(LAST_SLEEP_NS);
    }
}
