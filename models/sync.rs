//! The module of this name in the library, made of loom's types: every order of what threads do to them is tried.

use super::{is_broken, sys};
use core::fmt;
use core::sync::atomic::Ordering;

pub(crate) use loom::hint::spin_loop;
pub(crate) use loom::lazy_static as lazy;

/// A broken model has no order between threads; or none that an exchange makes in both directions.
fn order(order: Ordering) -> Ordering {
    let is_broken = is_broken("order") || (is_broken("look") && order == Ordering::SeqCst);
    if is_broken { Ordering::Relaxed } else { order }
}

macro_rules! atomic {
    ($name:ident $(<$of:ident>)?, $loom:ty, $value:ty) => {
        #[derive(Debug)]
        pub(crate) struct $name $(<$of>)? ($loom);

        #[allow(dead_code)] // not all of them are used with all types
        impl $(<$of>)? $name $(<$of>)? {
            pub(crate) fn new(value: $value) -> Self {
                $name(<$loom>::new(value))
            }
            pub(crate) fn load(&self, at: Ordering) -> $value {
                sys::between_instructions();
                self.0.load(order(at))
            }
            /// As an exchange: of plain stores to one place, loom does not keep an order that those who exchange agree to.
            pub(crate) fn store(&self, value: $value, at: Ordering) {
                sys::between_instructions();
                self.0.swap(value, order(at));
            }
            pub(crate) fn swap(&self, value: $value, at: Ordering) -> $value {
                sys::between_instructions();
                self.0.swap(value, order(at))
            }
            pub(crate) fn compare_exchange(
                &self, old: $value, new: $value, done: Ordering, not: Ordering,
            ) -> Result<$value, $value> {
                sys::between_instructions();
                self.0.compare_exchange(old, new, order(done), order(not))
            }
        }
    };
}

atomic!(AtomicBool, loom::sync::atomic::AtomicBool, bool);
atomic!(AtomicU8, loom::sync::atomic::AtomicU8, u8);
atomic!(AtomicU32, loom::sync::atomic::AtomicU32, u32);
atomic!(AtomicU64, loom::sync::atomic::AtomicU64, u64);
atomic!(AtomicUsize, loom::sync::atomic::AtomicUsize, usize);
atomic!(AtomicPtr<T>, loom::sync::atomic::AtomicPtr<T>, *mut T);

impl AtomicU32 {
    pub(crate) fn fetch_add(&self, value: u32, at: Ordering) -> u32 {
        sys::between_instructions();
        self.0.fetch_add(value, order(at))
    }
}

/// A cell each access to which is to be ordered with all others.
pub(crate) struct UnsafeCell<T> {
    accesses: loom::cell::UnsafeCell<()>,
    value: core::cell::UnsafeCell<T>,
}

impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell { accesses: loom::cell::UnsafeCell::new(()), value: core::cell::UnsafeCell::new(value) }
    }

    pub(crate) fn get(&self) -> *mut T {
        self.accesses.with_mut(|_| ());
        self.value.get()
    }

    /// The value as of now, to be read by many.
    pub(crate) fn read(&self) -> &T {
        self.accesses.with(|_| ());
        // SAFETY: loom has seen that nobody writes to it meanwhile.
        unsafe { &*self.value.get() }
    }
}

pub(crate) trait RelaxStrategy {
    fn relax();
}

/// As spin's, which is not made of loom's types.
pub(crate) struct Once<T, R> {
    /// 0, 1 while the value is made, 2.
    state: AtomicU32,
    value: UnsafeCell<Option<T>>,
    strategy: core::marker::PhantomData<R>,
}

// SAFETY: that nobody reads what another writes is what loom verifies.
unsafe impl<T: Send + Sync, R> Sync for Once<T, R> {}

impl<T, R: RelaxStrategy> Once<T, R> {
    pub(crate) fn new() -> Once<T, R> {
        Once { state: AtomicU32::new(0), value: UnsafeCell::new(None), strategy: core::marker::PhantomData }
    }

    pub(crate) fn try_call_once<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let mut make = Some(make);
        loop {
            match self.state.compare_exchange(0, 1, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => {
                    let made = make.take().expect("a value is made once")();
                    let is_made = made.is_ok();
                    // SAFETY: one thread gets here at a time.
                    let made = made.map(|value| unsafe { *self.value.get() = Some(value) });
                    self.state.store(if is_made { 2 } else { 0 }, Ordering::Release);
                    made?;
                }
                Err(2) => return Ok(self.value.read().as_ref().expect("it was made")),
                Err(_) => R::relax(),
            }
        }
    }
}

impl<T, R> fmt::Debug for Once<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("state", &self.state).finish_non_exhaustive()
    }
}

macro_rules! shared {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => {
        $crate::sync::lazy! { $($(#[$attribute])* static ref $name: $type = $value;)* }
    };
}
pub(crate) use shared;
