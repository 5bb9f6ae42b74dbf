//! How the process heap is made by whoever needs it first, and found by all others.

use crate::decay;
use crate::fork;
use crate::guarded;
use crate::heap::Heap;
use crate::lock::{self, Once};
use crate::options::Options;
use crate::profile;
use crate::report;
use crate::size_class::BuildGeometry;
use crate::sync::{AtomicPtr, AtomicUsize, shared};
use crate::sys;
use crate::thread_cache;
use core::ptr;
use core::sync::atomic::Ordering;

shared! {
    /// The process heap.
    static MADE: Once<Heap<BuildGeometry>> = Once::new();
    /// The thread that makes it, or 0. It does not use it meanwhile, but in a signal handler, which would wait for ever.
    static MAKER: AtomicUsize = AtomicUsize::new(0);
    /// The process heap, for everyone to find: null until forks are provided for.
    static HEAP: AtomicPtr<Heap<BuildGeometry>> = AtomicPtr::new(ptr::null_mut());
}

/// The process heap, if it has been made.
#[inline]
pub(crate) fn heap() -> Option<&'static Heap<BuildGeometry>> {
    // SAFETY: null, or the heap in `MADE`, which stays there.
    unsafe { HEAP.load(Ordering::Acquire).as_ref() }
}

/// Makes the process heap, or waits for the thread that does; `None` if the system refuses it memory.
#[cold]
#[inline(never)]
pub(crate) fn make_heap(options: &Options) -> Option<&'static Heap<BuildGeometry>> {
    let this_thread = sys::this_thread();
    if MAKER.load(Ordering::Relaxed) == this_thread {
        lock::end_interrupted();
    }
    let heap = MADE
        .try_call_once(|| {
            MAKER.store(this_thread, Ordering::Relaxed);
            let options = options.with_environment();
            let heap = Heap::for_process(&options).ok_or(())?;
            #[cfg(feature = "hardened")]
            if !crate::hardened::prepare(&heap, &options) {
                return Err(());
            }
            decay::start(&options);
            guarded::start(&options);
            Ok::<_, ()>(heap)
        })
        .ok();
    // While a thread makes the key, a child forked by another would wait for it for ever. So it is made before forks
    // are provided for, as the heap is.
    if heap.is_some() {
        thread_cache::exit_key();
    }
    let _ = MAKER.compare_exchange(this_thread, 0, Ordering::Relaxed, Ordering::Relaxed);
    let heap = heap?;
    if fork::register() {
        let made = ptr::from_ref(heap).cast_mut();
        if HEAP.swap(made, Ordering::AcqRel).is_null() {
            sys::stay_loaded();
            profile::start();
            report::start();
        }
    }
    Some(heap)
}
