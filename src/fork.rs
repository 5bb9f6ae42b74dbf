//! Forks of a process whose other threads are at work in the heap.
//!
//! A child process has a copy of all memory, but only the thread that forked. What another thread had locked would
//! stay locked there for ever, and half changed. So the thread that forks takes every lock of the process heap first,
//! in the order of `lib.rs`. Parent and child open them again. Heaps made by [`HeapOptions`](crate::HeapOptions) are
//! their owners' concern.
//!
//! The caches of the threads that the child lacks are forgotten there, and the blocks in them lost, and the runs that they keep: at
//! most what a cache has slots for and 2 MiB, mostly far less. To flush them would not be safe. No lock keeps a
//! thread from its own cache, and the other threads go on while the system copies the address space, one OS page after
//! another: a block that was on its way from one thread to another may be in both of their caches, or in use and
//! in a cache. What the locks guard is copied while it stands still.
//!
//! The handlers are registered when the heap is complete and before anyone finds it, so there is no fork that they
//! miss. The C library may allocate to register them, from this very heap: see [`register`].

use crate::decay;
use crate::first_use::heap;
use crate::guarded;
use crate::heap::{Heap, LEDGER};
use crate::lock::Wait;
use crate::metadata;
use crate::profile;
use crate::report;
use crate::size_class::BuildGeometry;
use crate::sync::{AtomicBool, AtomicPtr, AtomicUsize, shared};
use crate::sys;
use crate::thread_cache;
use core::ptr;
use core::sync::atomic::Ordering;

shared! {
    /// [`UNREGISTERED`], [`REGISTERED`], or the thread that is about to register the handlers.
    static REGISTRAR: AtomicUsize = AtomicUsize::new(UNREGISTERED);
    /// Whether this process, or one that it is a copy of, has forked.
    static FORKED: AtomicBool = AtomicBool::new(false);
    /// The heap whose locks the thread that forks has taken; null if there was none yet.
    static LOCKED: AtomicPtr<Heap<BuildGeometry>> = AtomicPtr::new(ptr::null_mut());
}

const UNREGISTERED: usize = 0;
/// No address of a thread.
const REGISTERED: usize = 1;

/// Whether another process may be a copy of this one, or this of another: they then share what neither has changed.
pub(crate) fn has_forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Registers the handlers, if no thread has done it, and returns when they are in place. False to the calls that
/// registering itself gives rise to: the calling thread may use the heap all the same, but not publish it.
pub(crate) fn register() -> bool {
    let this_thread = sys::this_thread();
    let mut wait = Wait::default();
    loop {
        let registrar =
            REGISTRAR.compare_exchange(UNREGISTERED, this_thread, Ordering::Acquire, Ordering::Acquire);
        match registrar {
            Ok(_) => {
                // Without memory for three pointers there is no help; forks are then as safe as they can be.
                if cfg!(not(pma_unchecked = "atfork")) {
                    sys::at_fork(prepare, in_parent, in_child);
                }
                REGISTRAR.store(REGISTERED, Ordering::Release);
                return true;
            }
            Err(REGISTERED) => return true,
            Err(registrar) if registrar == this_thread => return false,
            Err(_) => wait.relax(),
        }
    }
}

/// Before the fork: takes all locks, in the order of `lib.rs`.
extern "C" fn prepare() {
    FORKED.store(true, Ordering::Relaxed);
    sys::lock_streams();
    thread_cache::lock_registry();
    let heap = heap();
    LOCKED.store(heap.map_or(ptr::null_mut(), |heap| ptr::from_ref(heap).cast_mut()), Ordering::Relaxed);
    if let Some(heap) = heap {
        heap.lock_all();
    }
    metadata::lock_pool();
    profile::lock();
    guarded::lock();
}

/// After the fork, in the parent.
extern "C" fn in_parent() {
    // SAFETY: `prepare` was called by this thread before.
    unsafe {
        unlock();
        sys::unlock_streams();
    }
}

/// After the fork, in the child.
extern "C" fn in_child() {
    // SAFETY: `prepare` was called by the thread that this one is the copy of. There is no other in this process.
    unsafe {
        thread_cache::forget_other_threads();
        // The thread that has registered the handlers may be about to say so.
        REGISTRAR.store(REGISTERED, Ordering::Relaxed);
        unlock();
        sys::reset_streams();
        LEDGER.after_fork();
        decay::after_fork();
        report::after_fork();
    }
}

/// Opens what [`prepare`] locked.
///
/// # Safety
/// The locks are held by this thread.
unsafe fn unlock() {
    // SAFETY: as the caller says; the registry comes last, as it keeps shards from coming into use.
    unsafe {
        guarded::unlock();
        profile::unlock();
        metadata::unlock_pool();
        // Another may have come to be found since.
        if let Some(heap) = LOCKED.load(Ordering::Relaxed).as_ref() {
            heap.unlock_all();
        }
        thread_cache::unlock_registry();
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::page_table::Tag;
    use crate::units::{ClassIndex, ShardIndex};
    use core::alloc::{GlobalAlloc, Layout};

    #[test]
    fn who_forks_has_all_locks_that_another_may_have() {
        const ALLOCATOR: crate::PageAllocator = crate::PageAllocator::new();
        let layout = Layout::new::<[u8; 100]>();
        // SAFETY: the block is freed once, with its layout.
        unsafe { ALLOCATOR.dealloc(ALLOCATOR.alloc(layout), layout) };
        // Who waits for a lock of its own ends the process.
        let takes: &[fn()] = &[
            || _ = thread_cache::kept_pages(),
            || _ = heap().map(Heap::frontier),
            || _ = heap().map(|heap| heap.alloc_block(Tag::new(ShardIndex(0), ClassIndex(1))).start),
            #[cfg(feature = "profile")]
            profile::lock,
            || drop(LEDGER.freeze()),
            || _ = metadata::mapped_bytes(),
            guarded::lock,
        ];
        for (number, take) in takes.iter().enumerate() {
            // SAFETY: the child does no more than this, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                prepare();
                take();
                // SAFETY: there is nothing to be done at its end.
                unsafe { libc::_exit(0) };
            }
            let mut status = 0;
            // SAFETY: the status is written.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
            assert_eq!(signal, Some(libc::SIGABRT), "lock {number}");
        }
    }
}
