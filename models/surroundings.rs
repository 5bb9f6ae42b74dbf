//! What the files of the library that are modelled find around them: just enough to see them go wrong.

use super::sync::{AtomicU32, UnsafeCell, shared};
use core::sync::atomic::Ordering::Relaxed;

pub(crate) mod sys {
    use super::super::{first_use, is_broken, sync::AtomicU32};
    use super::{HANDLERS, KERNEL, Options, SLEEPERS};
    use core::cell::Cell;
    use core::ffi::c_void;
    use core::sync::atomic::Ordering::{Relaxed, SeqCst};
    use loom::sync::atomic::fence;

    pub(crate) const TELLS_THREADS: bool = true;
    pub(crate) enum Stream {
        Error,
    }

    loom::thread_local! {
        static NAME: Cell<usize> = Cell::new(10);
        static FENCES_SEEN: Cell<Option<u32>> = Cell::new(None);
    }
    loom::lazy_static! {
        static ref FENCES_WANTED: loom::sync::atomic::AtomicU32 = loom::sync::atomic::AtomicU32::new(0);
        /// The last fence that was executed.
        static ref FENCED: loom::sync::atomic::AtomicU32 = loom::sync::atomic::AtomicU32::new(0);
    }
    const AT_REST: u32 = u32::MAX;

    pub(crate) fn stay_loaded() {}

    /// The kernel's part in a fence in all threads. A thread that calls this between any two instructions executes a fence
    /// there if one was asked for; or later, before it comes to rest.
    pub(crate) fn between_instructions() {
        let Some(seen) = FENCES_SEEN.with(Cell::get) else { return };
        let wanted = FENCES_WANTED.load(Relaxed);
        if wanted != seen {
            execute_fence(wanted);
        }
    }
    fn execute_fence(wanted: u32) {
        fence(SeqCst);
        FENCES_SEEN.with(|seen| seen.set(Some(wanted)));
        FENCED.store(wanted, Relaxed);
    }
    /// Has the calling thread be the one that executes fences of others; they are made by one other.
    pub(crate) fn begin_to_run() {
        FENCES_SEEN.with(|seen| seen.set(Some(0)));
    }
    /// From here on the thread has executed any fence.
    pub(crate) fn come_to_rest() {
        FENCES_SEEN.with(|seen| seen.set(None));
        fence(SeqCst);
        FENCED.store(AT_REST, Relaxed);
    }
    pub(crate) fn fence_all_threads() -> bool {
        let wanted = FENCES_WANTED.load(Relaxed) + 1;
        if is_broken("fence") || (is_broken("second fence") && wanted == 2) {
            return true;
        }
        fence(SeqCst);
        FENCES_WANTED.store(wanted, Relaxed);
        while ![wanted, AT_REST].contains(&FENCED.load(Relaxed)) {
            loom::thread::yield_now();
        }
        fence(SeqCst);
        true
    }

    /// Has the calling thread be another than the first.
    pub(crate) fn be(name: usize) {
        NAME.with(|own| own.set(name));
    }
    pub(crate) fn this_thread() -> usize {
        NAME.with(Cell::get)
    }
    pub(crate) fn yield_now() {
        loom::thread::yield_now();
    }
    pub(crate) fn lock_streams() {}
    pub(crate) unsafe fn unlock_streams() {}
    pub(crate) unsafe fn reset_streams() {}

    pub(crate) fn sleep(_: u64) {
        loom::thread::yield_now();
    }
    pub(crate) fn milliseconds() -> u64 {
        0
    }
    pub(crate) fn write(_: Stream, line: &[u8]) {
        eprint!("{}", String::from_utf8_lossy(line));
    }
    pub(crate) fn abort() -> ! {
        panic!("the process ends")
    }

    /// The C library allocates to register them.
    pub(crate) fn at_fork(prepare: extern "C" fn(), in_parent: extern "C" fn(), _: extern "C" fn()) -> bool {
        assert!(first_use::make_heap(&Options::default()).is_some(), "it is served");
        assert!(first_use::heap().is_none(), "nobody finds the heap before forks are provided for");
        // SAFETY: one thread gets here.
        unsafe { *HANDLERS.0.get() = Some((prepare, in_parent)) };
        true
    }

    /// The models call what the thread does themselves.
    pub(crate) fn spawn(_: extern "C" fn(*mut c_void) -> *mut c_void) -> bool {
        true
    }
    /// The kernel compares, and has the thread sleep, in one step.
    pub(crate) fn wait(word: &AtomicU32, expected: u32) {
        let kernel = KERNEL.lock().unwrap();
        if word.load(Relaxed) == expected {
            drop(SLEEPERS.wait(kernel).unwrap());
        }
    }
    pub(crate) fn wake(_: &AtomicU32) {
        let _kernel = KERNEL.lock().unwrap();
        SLEEPERS.notify_one();
    }
}

pub(crate) type Handlers = Option<(extern "C" fn(), extern "C" fn())>;
struct Registered(UnsafeCell<Handlers>);
// SAFETY: that nobody reads what another writes is what loom verifies.
unsafe impl Sync for Registered {}

shared! {
    static HANDLERS: Registered = Registered(UnsafeCell::new(None));
    static KERNEL: loom::sync::Mutex<()> = loom::sync::Mutex::new(());
    static SLEEPERS: loom::sync::Condvar = loom::sync::Condvar::new();
    static HEAPS_MADE: AtomicU32 = AtomicU32::new(0);
}

/// The functions that are registered for forks, if they are.
pub(crate) fn handlers() -> &'static Handlers {
    HANDLERS.0.read()
}

#[derive(Default)]
pub(crate) struct Options {
    pub(crate) purge_after_ms: Option<u32>,
    pub(crate) background_purge: bool,
}

impl Options {
    pub(crate) fn with_environment(&self) -> Options {
        Options { ..*self }
    }
}

pub(crate) mod heap {
    use super::super::lock::{Guard, Lock};
    use super::super::progress::Progress;
    use super::super::units::PageIndex;
    use super::{HEAPS_MADE, Options, Relaxed, UnsafeCell};
    use core::marker::PhantomData;
    use core::mem;

    pub(crate) use super::super::progress::Most;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Unused {
        Idle,
    }

    pub(crate) struct Ledger;
    pub(crate) static LEDGER: Ledger = Ledger;

    impl Ledger {
        pub(crate) fn after_fork(&self) {}
    }

    /// The free runs: how many pages of them are dirty, and how often they were changed.
    #[derive(Default)]
    pub(crate) struct Runs {
        pub(crate) dirty: u32,
        pub(crate) changes: u32,
    }

    impl Runs {
        pub(crate) fn age(&mut self) {}
    }

    /// One bin, and the runs, with the locks of the library.
    pub(crate) struct Heap<G> {
        /// Written when it is made, without a lock.
        pub(crate) made: UnsafeCell<u32>,
        pub(crate) bin: Lock<u32>,
        runs: Lock<Runs>,
        geometry: PhantomData<G>,
    }

    // SAFETY: that nobody reads what another writes is what loom verifies.
    unsafe impl<G> Sync for Heap<G> {}

    impl<G> Heap<G> {
        pub(crate) fn for_process(_: &Options) -> Option<Heap<G>> {
            assert_eq!(HEAPS_MADE.fetch_add(1, Relaxed), 0, "the heap is made once");
            Some(Heap {
                made: UnsafeCell::new(1),
                bin: Lock::new(0),
                runs: Lock::new(Runs::default()),
                geometry: PhantomData,
            })
        }
        pub(crate) fn runs(&self) -> Guard<'_, Runs> {
            self.runs.lock()
        }
        pub(crate) fn lock_all(&self) {
            mem::forget(self.bin.lock());
            mem::forget(self.runs());
        }
        pub(crate) unsafe fn unlock_all(&self) {
            // SAFETY: as the caller says.
            unsafe {
                self.bin.unlock_leaked();
                self.runs.unlock_leaked();
            }
        }
        /// The runs, when all is locked.
        pub(crate) unsafe fn leaked_runs(&self) -> &mut Runs {
            // SAFETY: as the caller says.
            unsafe { self.runs.leaked() }
        }
        pub(crate) fn purge_free_pages(&self, _: Unused, _: PageIndex, _: Most) -> Progress {
            let mut progress = Progress::default();
            progress.count_call(mem::take(&mut self.runs().dirty) as usize, true);
            progress
        }
        pub(crate) fn purge_table(&self) {}

        pub(crate) fn purge_parts(&self, _: Unused, _: PageIndex, _: Most) -> Progress {
            Progress::default()
        }
    }
}

pub(crate) mod size_class {
    pub(crate) struct BuildGeometry;
}

pub(crate) mod thread_cache {
    pub(crate) fn exit_key() {}
    pub(crate) fn is_to_have_none() -> bool {
        false
    }
    pub(crate) fn lock_registry() {}
    pub(crate) unsafe fn unlock_registry() {}
    pub(crate) unsafe fn forget_other_threads() {}
    pub(crate) fn take_from_some<H>(_: &H, _: usize) {}
    pub(crate) fn take_from_all<H>(_: &H, _: super::heap::Unused) -> usize {
        0
    }
}

pub(crate) mod metadata {
    pub(crate) fn lock_pool() {}
    pub(crate) unsafe fn unlock_pool() {}
}

pub(crate) mod guarded {
    pub(crate) fn start(_: &super::Options) {}
    pub(crate) fn lock() {}
    pub(crate) unsafe fn unlock() {}
}

pub(crate) mod profile {
    pub(crate) fn start() {}
    pub(crate) fn lock() {}
    pub(crate) unsafe fn unlock() {}
}

pub(crate) mod report {
    pub(crate) fn start() {}
    pub(crate) fn is_to_start_thread() -> bool {
        false
    }
    pub(crate) fn start_thread() {}
    pub(crate) unsafe fn after_fork() {}
}
