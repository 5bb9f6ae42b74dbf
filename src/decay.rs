//! When the process heap gives memory back by itself.
//!
//! Time goes by in periods of half the time after which free memory is to go back. At the end of each, a *pass* gives
//! back what was free at its beginning and has not been used since. Passes are made on the slow paths of whichever
//! thread comes by first, a little at a time; or, if the program wants it, by a background thread, so that memory goes
//! back although nobody allocates. That thread sleeps while there is nothing to do.
//!
//! With each period, blocks that waited in a thread's cache for a whole one are taken from it, if that thread has not
//! come by a slow path meanwhile: it may be asleep. Then begins a walk over the pages in use that were used, for what of them
//! is unused; in a large heap it may take longer than a period.

use crate::first_use;
use crate::heap::{Heap, Most, Unused};
use crate::options::Options;
use crate::report;
use crate::size_class::BuildGeometry;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, shared};
use crate::sys;
use crate::thread_cache;
use crate::units::PageIndex;
#[cfg(not(feature = "hardened"))]
use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};

/// What a pass on a slow path does at most before the thread goes on: about a millisecond's worth.
const MOST: Most = Most { bytes: 16 << 20, calls: 256, looks: 1024 };
/// Caches of other threads that it looks at, at most.
const MOST_CACHES: usize = 32;
/// Milliseconds until the pass goes on.
const PAUSE: u64 = 4;
/// After so many passes that had nothing to do, and nobody came by meanwhile, the background thread waits until memory is freed. More
/// than one, as some of what is freed is given back by the second pass after that.
pub(crate) const IDLE_PASSES: u32 = 4;

const NEVER: u64 = u64::MAX;

shared! {
    /// Milliseconds from pass to pass.
    static PERIOD: AtomicU32 = AtomicU32::new(0);
    /// When a pass is due, or goes on, on a slow path; `NEVER` while that is done, too.
    static DUE: AtomicU64 = AtomicU64::new(NEVER);
    /// When the period ends, as long as there is no background thread.
    static PERIOD_END: AtomicU64 = AtomicU64::new(0);
    /// Where the free pages are gone on with; 0 if that was all. What the system refuses to take, as it is locked, is not in the
    /// way of what lies behind it.
    static NEXT_FREE: AtomicU32 = AtomicU32::new(0);
    /// Where the walk over the pages in use goes on; 0 if it is over.
    static NEXT_PAGE: AtomicU32 = AtomicU32::new(0);
    /// Passes so far.
    static PASSES: AtomicU32 = AtomicU32::new(0);
    /// The background thread: one of the following.
    static THREAD: AtomicU32 = AtomicU32::new(UNWANTED);
    /// Whether somebody came by a slow path since the thread last looked, and may have freed something.
    static CAME_BY: AtomicBool = AtomicBool::new(false);
}

const UNWANTED: u32 = 0;
/// It is to be started when something is freed.
const WANTED: u32 = 1;
const AT_WORK: u32 = 2;
/// It sleeps until there is something to do.
const WAITING: u32 = 3;

/// Begins to count time, before the heap is in use.
pub(crate) fn start(options: &Options) {
    let Some(after) = options.purge_after_ms else { return };
    let period = (after / 2).max(1);
    PERIOD.store(period, Relaxed);
    let end = sys::milliseconds() + u64::from(period);
    PERIOD_END.store(end, Relaxed);
    DUE.store(end, Relaxed);
    if options.background_purge {
        THREAD.store(WANTED, Relaxed);
    }
}

/// The number of the pass that is next: it grows by one a period, as long as slow paths are taken.
#[inline]
pub(crate) fn passes() -> u32 {
    PASSES.load(Relaxed)
}

/// To be called now and then, where something is allocated on a slow path, without locks. Threads are started here alone: the C
/// library frees with the list of its threads' stacks locked, which it locks to start one; it does not allocate so.
#[inline]
pub(crate) fn tick(heap: &Heap<BuildGeometry>) {
    start_wanted_threads();
    tick_freed(heap);
}

/// [`tick`] where a run was allocated that the thread's cache kept. To look at the clock would take as long as all else that is
/// done there, so it is looked at as the thread's `pace` says.
#[cfg(not(feature = "hardened"))]
#[inline]
pub(crate) fn tick_at(pace: &Pace, heap: &Heap<BuildGeometry>) {
    tell_thread();
    if pace.is_to_look() {
        start_wanted_threads();
        pace.note(look_at_clock(heap));
    }
}

#[inline]
fn start_wanted_threads() {
    if report::is_to_start_thread() || THREAD.load(Relaxed) == WANTED {
        start_threads();
    }
}

#[cold]
fn start_threads() {
    if first_use::heap().is_some() && !thread_cache::is_to_have_none() {
        report::start_thread();
        start_thread();
    }
}

/// [`tick`] where blocks or runs have just been freed.
#[inline]
pub(crate) fn tick_freed(heap: &Heap<BuildGeometry>) {
    tell_thread();
    look_at_clock(heap);
}

/// Makes a pass, or a part of one, if that is due. Returns what the clock says; 0 if nothing will be due.
#[inline]
fn look_at_clock(heap: &Heap<BuildGeometry>) -> u64 {
    let due = DUE.load(Relaxed);
    if due == NEVER {
        return 0;
    }
    let now = sys::milliseconds();
    if now >= due {
        pass(heap, due);
    }
    now
}

/// [`tick_freed`] where that went no further than the thread's cache: the clock is looked at when it leaves that, or somebody
/// allocates.
#[cfg(not(feature = "hardened"))]
#[inline]
pub(crate) fn tick_cached() {
    tell_thread();
}

/// How often a thread looks at the clock where it may come by very often: each time, until the clock was seen to say the same for
/// [`SKIPPED`](Self::SKIPPED) times in turn.
#[cfg(not(feature = "hardened"))]
pub(crate) struct Pace {
    /// What the clock said, and how often it has said the same since.
    said: Cell<(u64, u8)>,
    /// Times until it is looked at again.
    to_skip: Cell<u8>,
}

#[cfg(not(feature = "hardened"))]
impl Pace {
    #[allow(clippy::declare_interior_mutable_const)] // copied into each cache
    pub(crate) const NEW: Pace = Pace { said: Cell::new((0, 0)), to_skip: Cell::new(0) };

    /// Times that are skipped then. However seldom the thread comes by after that, a pass waits for no more of them.
    const SKIPPED: u8 = 8;

    #[inline]
    fn is_to_look(&self) -> bool {
        let to_skip = self.to_skip.get();
        self.to_skip.set(to_skip.saturating_sub(1));
        to_skip == 0
    }

    /// Notes what the clock says.
    #[inline]
    fn note(&self, now: u64) {
        let (before, again) = self.said.get();
        let again = if now == before { again.saturating_add(1) } else { 0 };
        self.said.set((now, again));
        if again >= Self::SKIPPED {
            self.to_skip.set(Self::SKIPPED);
        }
    }
}

/// Has the background thread, if there is one, know that somebody came by.
#[inline]
fn tell_thread() {
    if THREAD.load(Relaxed) >= AT_WORK {
        come_by();
    }
}

/// Has the background thread make the passes, if it can be started.
#[cold]
fn start_thread() {
    if THREAD.compare_exchange(WANTED, AT_WORK, Relaxed, Relaxed).is_ok() {
        DUE.store(NEVER, Relaxed);
        if !sys::spawn(background) {
            THREAD.store(UNWANTED, Relaxed);
            DUE.store(PERIOD_END.load(Relaxed), Relaxed);
        }
    }
}

/// Has the thread know that there may be something to do. Either it sees that when it looks again, or its sleep is seen here:
/// the one exchange of the flag that comes second knows what was written before the other. Who finds the flag set need not
/// set it: the thread will look, and takes the locks of what was freed after that. Which pages are watched it sees without
/// one: so these are set and looked at, as the flag is, in one order for all threads.
#[inline]
fn come_by() {
    if !CAME_BY.load(SeqCst) {
        CAME_BY.swap(true, SeqCst);
    }
    if THREAD.load(Relaxed) == WAITING {
        wake();
    }
}

/// Whether somebody came by since this was last asked.
fn somebody_came_by() -> bool {
    CAME_BY.swap(false, SeqCst)
}

#[cold]
fn wake() {
    if THREAD.compare_exchange(WAITING, AT_WORK, Relaxed, Relaxed).is_ok() {
        sys::wake(&THREAD);
    }
}

#[cold]
fn pass(heap: &Heap<BuildGeometry>, due: u64) {
    if DUE.compare_exchange(due, NEVER, Relaxed, Relaxed).is_err() {
        return;
    }
    let goes_on = some_of_pass(heap, sys::milliseconds());
    let next = if goes_on { sys::milliseconds() + PAUSE } else { PERIOD_END.load(Relaxed) };
    DUE.store(next, Relaxed);
}

/// Does a little of a pass; returns whether there is more to do before the next one.
fn some_of_pass(heap: &Heap<BuildGeometry>, now: u64) -> bool {
    let is_over = now >= PERIOD_END.load(Relaxed);
    if is_over {
        let free = heap.purge_free_pages(Unused::Idle, PageIndex(NEXT_FREE.load(Relaxed)), MOST);
        NEXT_FREE.store(free.next.map_or(0, |page| page.0), Relaxed);
        if free.goes_on() {
            return true;
        }
        begin_period(heap);
        thread_cache::take_from_some(heap, MOST_CACHES);
        PERIOD_END.store(now + u64::from(PERIOD.load(Relaxed)), Relaxed);
    }
    // Another walk over the pages in use begins with a period, unless the last one is not over.
    let from = NEXT_PAGE.load(Relaxed);
    if !is_over && from == 0 {
        return false;
    }
    let parts = heap.purge_parts(Unused::Idle, PageIndex(from), MOST);
    NEXT_PAGE.store(parts.next.map_or(0, |page| page.0), Relaxed);
    parts.goes_on()
}

fn begin_period(heap: &Heap<BuildGeometry>) {
    heap.runs().age();
    PASSES.fetch_add(1, Relaxed);
}

/// The background thread. It never allocates.
extern "C" fn background(_: *mut core::ffi::c_void) -> *mut core::ffi::c_void {
    let Some(heap) = first_use::heap() else { return ptr::null_mut() };
    let mut idle = 0;
    loop {
        sys::sleep(u64::from(PERIOD.load(Relaxed)) * 1_000_000);
        idle = pass_of_thread(heap, idle);
    }
}

/// What the background thread does at the end of a period, after so many passes that had nothing to do; returns how many by then.
pub(crate) fn pass_of_thread(heap: &Heap<BuildGeometry>, idle: u32) -> u32 {
    // Who was at a pass when the thread was started has said since when to go on.
    DUE.store(NEVER, Relaxed);
    let came_by = somebody_came_by();
    let purged = heap.purge_free_pages(Unused::Idle, PageIndex(0), Most::ALL).bytes
        + heap.purge_parts(Unused::Idle, PageIndex(0), Most::ALL).bytes;
    begin_period(heap);
    let taken = thread_cache::take_from_all(heap, Unused::Idle);
    let idle = if came_by || purged + taken > 0 { 0 } else { idle + 1 };
    if idle < IDLE_PASSES {
        return idle;
    }
    heap.purge_table();
    THREAD.store(WAITING, Relaxed);
    // Who came by before that found nobody to wake.
    if somebody_came_by() {
        THREAD.store(AT_WORK, Relaxed);
        return 0;
    }
    while THREAD.load(Relaxed) == WAITING {
        sys::wait(&THREAD, WAITING);
    }
    0
}

/// Goes on in a child process, which has no thread but the one that forked.
pub(crate) fn after_fork() {
    if THREAD.load(Relaxed) != UNWANTED {
        THREAD.store(WANTED, Relaxed);
    }
    if PERIOD.load(Relaxed) != 0 {
        DUE.store(sys::milliseconds(), Relaxed);
    }
}
