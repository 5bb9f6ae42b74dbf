//! What each component of the program holds of a heap, and how much it may.
//!
//! An account counts bytes in blocks and runs that were taken from pages and not put back: what the program holds, and
//! what waits in thread caches. Only who takes a batch from pages, or puts one back, writes to it, so a block that is
//! allocated and freed through a thread's cache costs nothing here. An account changes while the bin, or the runs,
//! that the blocks come from are locked: who has locked all sees sums that agree with the page table.

use crate::lock::{Guard, Lock};
use crate::shards::MOST_COMPONENTS;
use crate::sys;
use crate::units::ComponentIndex;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize};
use core::sync::atomic::{Ordering::Acquire, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst};

/// What is called when a component exceeds its soft limit.
///
/// ```
/// use page_memory_allocator::{Component, SoftLimitExceeded, SoftLimitListener};
///
/// const LISTENER: SoftLimitListener = |exceeded: &SoftLimitExceeded| {
///     eprintln!("{} holds {} bytes, more than {}", exceeded.name, exceeded.held_bytes, exceeded.soft_limit);
/// };
/// static CACHE: Component = Component::new("cache").soft_limit(48 << 20, LISTENER);
/// # let _ = &CACHE;
/// ```
pub type SoftLimitListener = fn(&SoftLimitExceeded);

/// The state of a component whose soft limit was exceeded: what a [`SoftLimitListener`] is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SoftLimitExceeded {
    /// The component's name.
    pub name: &'static str,
    /// Bytes that it holds.
    pub held_bytes: usize,
    /// The limit that it exceeded, in bytes.
    pub soft_limit: usize,
}

/// Bytes that are not to be exceeded, in complement: no limit is zero, so that accounts nobody uses take no room in
/// the program's file.
#[derive(Debug)]
struct Limit(AtomicUsize);

impl Limit {
    #[allow(clippy::declare_interior_mutable_const)] // copied into each account
    const NONE: Limit = Limit(AtomicUsize::new(0));

    /// The limit; `usize::MAX` if there is none.
    fn get(&self) -> usize {
        !self.0.load(Acquire)
    }

    /// Who sees the limit sees what was written before.
    fn set(&self, bytes: usize) {
        self.0.store(!bytes, Release);
    }
}

/// No thread.
const NOBODY: usize = 0;

const WITHIN: usize = 0;
const TOLD: usize = usize::MAX;

/// What one component holds, and may hold, in bytes.
#[derive(Debug)]
#[repr(align(64))] // components do not slow each other down
pub(crate) struct Account {
    held: AtomicUsize,
    peak: AtomicUsize,
    limit: Limit,
    soft_limit: Limit,
    /// Times that the limit granted less than was asked for, attempts that were made again included.
    cuts: AtomicUsize,
    /// Times that the limit made a batch smaller, or an allocation fail.
    refusals: AtomicUsize,
    /// [`WITHIN`] the soft limit; or the thread that exceeded it, and nobody has been told; or somebody was [`TOLD`].
    state: AtomicUsize,
    /// The thread that is telling somebody, or [`NOBODY`].
    teller: AtomicUsize,
    /// Whom to tell: null, or a `SoftLimitListener`.
    listener: AtomicPtr<()>,
}

impl Account {
    const fn new() -> Account {
        Account {
            held: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            limit: Limit::NONE,
            soft_limit: Limit::NONE,
            cuts: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            state: AtomicUsize::new(WITHIN),
            teller: AtomicUsize::new(NOBODY),
            listener: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Charges it with `count` pieces of `bytes` bytes, or as many of them as the limit leaves. Returns how many. What of them
    /// is not used is credited, and then the account [settled](Self::settle).
    pub(crate) fn charge(&self, count: usize, bytes: usize) -> usize {
        let limit = self.limit.get();
        let granted = |held: usize| count.min(limit.saturating_sub(held) / bytes);
        let charged = self.held.fetch_update(Relaxed, Relaxed, |held| Some(held + granted(held) * bytes));
        let (Ok(before) | Err(before)) = charged;
        if granted(before) < count {
            self.cuts.fetch_add(1, Relaxed);
            if granted(before) > 0 {
                self.count_refusal();
            }
        }
        granted(before)
    }

    /// Notes what is held after it was charged.
    pub(crate) fn settle(&self) {
        let held = self.held();
        if held > self.peak() {
            self.peak.fetch_max(held, Relaxed);
        }
        if held > self.soft_limit() {
            let me = sys::this_thread();
            if self.exchange(WITHIN, me) && self.held() <= self.soft_limit() {
                // It was credited meanwhile, by who saw it within.
                self.exchange(me, WITHIN);
            }
        }
    }

    /// Credits it with `bytes` bytes, which are not held any more.
    pub(crate) fn credit(&self, bytes: usize) {
        let held = self.held.fetch_sub(bytes, SeqCst) - bytes;
        if held <= self.soft_limit() && self.state.load(SeqCst) != WITHIN {
            self.state.store(WITHIN, Relaxed);
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(SeqCst)
    }

    /// Most bytes held at a time.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.get()
    }

    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit.set(bytes);
    }

    pub(crate) fn soft_limit(&self) -> usize {
        self.soft_limit.get()
    }

    /// Has `listener` told when more than `bytes` bytes are held.
    pub(crate) fn set_soft_limit(&self, bytes: usize, listener: SoftLimitListener) {
        self.listener.store(listener as *mut (), SeqCst);
        self.soft_limit.set(bytes);
    }

    /// Times that the limit granted less than was asked for, whatever became of that.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Relaxed)
    }

    /// Counts an allocation that is refused for the limit: by who has given up on it.
    pub(crate) fn count_refusal(&self) {
        self.refusals.fetch_add(1, Relaxed);
    }

    /// Batches that the limit made smaller, and allocations that were refused for it.
    pub(crate) fn refusals(&self) -> usize {
        self.refusals.load(Relaxed)
    }

    /// Calls `tell` with the listener each time that the soft limit was exceeded: not twice at a time, but once more by who
    /// is telling already; and not of what a listener does.
    pub(crate) fn tell(&self, mut tell: impl FnMut(SoftLimitListener)) {
        while self.untold().is_some() {
            let me = sys::this_thread();
            if self.teller.compare_exchange(NOBODY, me, SeqCst, SeqCst).is_err() {
                // Who it is looks again.
                return;
            }
            while let Some(by) = self.untold()
                && self.exchange(by, TOLD)
            {
                let listener = self.listener.load(SeqCst);
                if !listener.is_null() {
                    // SAFETY: what is not null is a function of that type.
                    tell(unsafe { mem::transmute::<*mut (), SoftLimitListener>(listener) });
                }
                // What the listener did itself.
                self.exchange(me, TOLD);
            }
            self.teller.store(NOBODY, SeqCst);
        }
    }

    /// The thread that exceeded the soft limit, if nobody has been told of that yet.
    fn untold(&self) -> Option<usize> {
        let state = self.state.load(SeqCst);
        (state != WITHIN && state != TOLD).then_some(state)
    }

    /// Makes the state `to` if it is `from`.
    fn exchange(&self, from: usize, to: usize) -> bool {
        self.state.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    /// Goes on in a child process, where nobody is telling but the thread that forked. What is as it should be is not written:
    /// the child shares that memory with its parent.
    fn after_fork(&self) {
        if ![NOBODY, sys::this_thread()].contains(&self.teller.load(SeqCst)) {
            self.teller.store(NOBODY, SeqCst);
        }
    }
}

type Names = [Option<&'static str>; MOST_COMPONENTS];

/// The accounts of all components of a heap.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Names of the components, in the order in which they were opened; beyond their number, nothing. Nobody opens one
    /// while this is locked.
    names: Lock<Names>,
    opened: AtomicUsize,
    accounts: [Account; MOST_COMPONENTS],
}

impl Ledger {
    pub(crate) const fn new() -> Ledger {
        Ledger {
            names: Lock::new([None; MOST_COMPONENTS]),
            opened: AtomicUsize::new(0),
            accounts: [const { Account::new() }; MOST_COMPONENTS],
        }
    }

    /// Keeps the number of components as it is.
    pub(crate) fn freeze(&self) -> Guard<'_, Names> {
        self.names.lock()
    }

    /// Opens what [`freeze`](Self::freeze) closed, if that guard was forgotten.
    ///
    /// # Safety
    /// This thread, or in a child process the one that forked, forgot the guard.
    pub(crate) unsafe fn thaw(&self) {
        // SAFETY: the caller's lock; no reference to the names was kept.
        unsafe { self.names.unlock_leaked() };
    }

    /// Goes on in a child process, which has no thread but the one that forked.
    pub(crate) fn after_fork(&self) {
        self.accounts[..self.opened.load(Relaxed)].iter().for_each(Account::after_fork);
    }

    /// The component of that name, opened by `open` if there is none; `None` if there is no room for one more.
    pub(crate) fn find_or_open(
        &self,
        name: &'static str,
        open: impl FnOnce(&Account),
    ) -> Option<ComponentIndex> {
        let mut names = self.names.lock();
        let opened = self.opened.load(Relaxed);
        if let Some(at) = names[..opened].iter().position(|&known| known == Some(name)) {
            return Some(ComponentIndex(at as u8 + 1));
        }
        *names.get_mut(opened)? = Some(name);
        open(&self.accounts[opened]);
        self.opened.store(opened + 1, Relaxed);
        Some(ComponentIndex(opened as u8 + 1))
    }

    /// Components that were opened.
    pub(crate) fn components(&self) -> impl DoubleEndedIterator<Item = ComponentIndex> + use<> {
        (0..self.opened.load(Relaxed)).map(|at| ComponentIndex(at as u8 + 1))
    }

    pub(crate) fn name(&self, component: ComponentIndex) -> &'static str {
        let names = self.names.lock();
        component.0.checked_sub(1).and_then(|at| names[at as usize]).unwrap_or_default()
    }

    /// The account of a component; `None` for what belongs to no component.
    #[inline]
    pub(crate) fn account(&self, component: ComponentIndex) -> Option<&Account> {
        self.accounts.get((component.0 as usize).checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_grants_whole_pieces_up_to_its_limit() {
        let account = Account::new();
        account.set_limit(1000);
        assert_eq!(account.charge(3, 300), 3);
        assert_eq!(account.charge(2, 60), 1);
        account.settle();
        assert_eq!((account.held(), account.refusals(), account.peak()), (960, 1, 960));
        assert_eq!(account.charge(1, 41), 0);
        account.credit(900);
        assert_eq!(account.charge(1, 940), 1);
        account.settle();
        assert_eq!((account.held(), account.peak()), (1000, 1000));
        account.set_limit(10);
        assert_eq!(account.charge(1, 1), 0);
    }

    #[test]
    fn a_soft_limit_is_told_once_each_time_that_it_is_exceeded() {
        let account = Account::new();
        account.set_soft_limit(100, |_| ());
        let told = || {
            let mut told = 0;
            // What a listener does is not told in turn.
            account.tell(|_| {
                account.credit(account.held());
                assert_eq!(account.charge(1, 101), 1);
                account.settle();
                account.tell(|_| told += 100);
                told += 1;
            });
            told
        };
        for (bytes, expected) in [(100, 0), (1, 1), (50, 0)] {
            assert_eq!(account.charge(1, bytes), 1);
            account.settle();
            assert_eq!(told(), expected, "after {bytes} more");
        }
        account.credit(51);
        // More than is used in the end does not count.
        assert_eq!(account.charge(2, 1), 2);
        account.credit(2);
        account.settle();
        assert_eq!(told(), 0);
        assert_eq!(account.charge(1, 1), 1);
        account.settle();
        assert_eq!((told(), told()), (1, 0));
    }

    #[cfg(feature = "os")] // which tells threads apart
    #[test]
    fn what_another_thread_exceeds_while_it_is_told_is_told_after_that() {
        let account = Account::new();
        account.set_soft_limit(100, |_| ());
        let exceed = || {
            assert_eq!(account.charge(1, 101), 1);
            account.settle();
        };
        exceed();
        let mut told = 0;
        account.tell(|_| {
            told += 1;
            if told == 1 {
                account.credit(101);
                let other = || {
                    exceed();
                    account.tell(|_| panic!("twice at a time"));
                };
                std::thread::scope(|scope| scope.spawn(other).join().unwrap());
            }
        });
        assert_eq!(told, 2);
        // A thread that was telling is not there in a child process.
        account.credit(101);
        account.teller.store(1, SeqCst);
        exceed();
        account.tell(|_| panic!("another thread is telling"));
        account.after_fork();
        account.tell(|_| told += 1);
        assert_eq!(told, 3);
        // Once, although others come by while it is told.
        account.credit(101);
        exceed();
        account.tell(|_| {
            told += 1;
            let other = || account.tell(|_| panic!("twice at a time"));
            std::thread::scope(|scope| scope.spawn(other).join().unwrap());
        });
        assert_eq!(told, 4);
    }

    #[test]
    fn a_name_is_one_component_and_only_so_many_are_opened() {
        static NAMES: [&str; 4] = ["a", "b", "a", "c"];
        let ledger = std::boxed::Box::new(Ledger::new());
        let opened = NAMES.map(|name| ledger.find_or_open(name, |account| account.set_limit(5)).unwrap().0);
        assert_eq!(opened, [1, 2, 1, 3]);
        let names: std::vec::Vec<_> = ledger.components().map(|component| ledger.name(component)).collect();
        assert_eq!(names, ["a", "b", "c"]);
        for number in 3..MOST_COMPONENTS {
            let name = std::format!("{number}").leak();
            assert!(ledger.find_or_open(name, |_| ()).is_some());
        }
        assert_eq!(ledger.find_or_open("one more", |_| ()), None);
        assert_eq!(ledger.find_or_open("b", |_| ()), Some(ComponentIndex(2)));
    }
}
