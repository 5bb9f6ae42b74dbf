//! Threads: those that there are, one that is started, how they wait for each other, and what they do when the process forks
//! or they end.

use super::{errno, page_size};
use core::ptr;
use core::slice;
use core::sync::atomic::{self, AtomicU32, Ordering};

/// Lets another thread run.
pub(crate) fn yield_now() {
    // SAFETY: the call has no preconditions.
    unsafe { libc::syscall(libc::SYS_sched_yield) };
}

/// Starts a thread that runs `body` for as long as the process lives, with a small stack and all signals blocked.
pub(crate) fn spawn(body: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void) -> bool {
    /// What `body` has, beside what the C library takes from the stack for the program's thread-local storage.
    const STACK: usize = 256 << 10;
    // SAFETY: attributes and signal sets are initialised before they are used; the thread is given nothing.
    unsafe {
        let mut attributes = core::mem::zeroed();
        let (mut all, mut before) = (core::mem::zeroed(), core::mem::zeroed());
        if libc::pthread_attr_init(&mut attributes) != 0 {
            return false;
        }
        let stack = STACK + thread_local_bytes().next_multiple_of(page_size());
        libc::pthread_attr_setstacksize(&mut attributes, stack);
        libc::pthread_attr_setdetachstate(&mut attributes, libc::PTHREAD_CREATE_DETACHED);
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let mut thread = core::mem::zeroed();
        let started = libc::pthread_create(&mut thread, &attributes, body, ptr::null_mut()) == 0;
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        libc::pthread_attr_destroy(&mut attributes);
        started
    }
}

/// Bytes of thread-local storage that the program and its libraries have, which each thread is given some of.
fn thread_local_bytes() -> usize {
    unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: usize, sum: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the loader's description of an object, with so many headers; and the sum, which nothing else uses meanwhile.
        let (headers, sum) = unsafe {
            let info = &*info;
            (slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()), &mut *sum.cast::<usize>())
        };
        let blocks = headers.iter().filter(|header| header.p_type == libc::PT_TLS);
        *sum += blocks.map(|block| (block.p_memsz + block.p_align) as usize).sum::<usize>();
        0
    }
    let mut sum = 0usize;
    // SAFETY: the callback has the type that it is to have, and is given the sum.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut sum).cast()) };
    sum
}

/// Sleeps until [`wake`] is called, unless `word` differs from `expected` at the start.
pub(crate) fn wait(word: &AtomicU32, expected: u32) {
    let (operation, no_time) = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, ptr::null::<libc::timespec>());
    // SAFETY: the kernel reads the word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, expected, no_time) };
}

/// Wakes whoever waits for `word`.
pub(crate) fn wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the address only names the waiters.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 1) };
}

/// Processors that the process may run on, at least 1.
pub(crate) fn processors() -> usize {
    // SAFETY: a set of processors is plain data, which the call writes at most as much of as it is told.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        match libc::syscall(libc::SYS_sched_getaffinity, 0, size_of::<libc::cpu_set_t>(), &raw mut set) {
            // More of them than the set has room for.
            ..0 => size_of::<libc::cpu_set_t>() * 8,
            _ => libc::CPU_COUNT(&set).max(1) as usize,
        }
    }
}

/// [`this_thread`] tells one thread from another.
pub(crate) const TELLS_THREADS: bool = true;

/// Identifies the calling thread among those alive: an address.
pub(crate) fn this_thread() -> usize {
    // SAFETY: pthread_self has no preconditions.
    unsafe { libc::pthread_self() as usize }
}

/// The number by which the system knows the calling thread.
pub(crate) fn thread_number() -> u32 {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Has functions called whenever the process forks: before it, and after it in the parent and in the child.
pub(crate) fn at_fork(
    prepare: extern "C" fn(),
    in_parent: extern "C" fn(),
    in_child: extern "C" fn(),
) -> bool {
    // SAFETY: the functions are there for as long as the program, or the library, is.
    unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) == 0 }
}

/// Takes the C library's lock of its list of streams. `fork` takes it too, after the handlers and before the locks of the C
/// library's own allocator: who holds it may wait for a stream, and who holds that may allocate.
#[cfg(target_env = "gnu")]
pub(crate) fn lock_streams() {
    // SAFETY: no preconditions; a thread may take it more than once.
    unsafe { _IO_list_lock() };
}

/// Opens what [`lock_streams`] locked, after a fork in the parent.
///
/// # Safety
/// This thread locked it.
#[cfg(target_env = "gnu")]
pub(crate) unsafe fn unlock_streams() {
    // SAFETY: as the caller says.
    unsafe { _IO_list_unlock() };
}

/// Opens what [`lock_streams`] locked, after a fork in the child, where the C library may have done so already.
///
/// # Safety
/// There is no other thread.
#[cfg(target_env = "gnu")]
pub(crate) unsafe fn reset_streams() {
    // SAFETY: as the caller says.
    unsafe { _IO_list_resetlock() };
}

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    fn _IO_list_lock();
    fn _IO_list_unlock();
    fn _IO_list_resetlock();
}

/// Streams of other C libraries do not allocate from this heap: `libpma.so` is for glibc.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn lock_streams() {}

/// # Safety
/// None is needed; with glibc it is.
#[cfg(not(target_env = "gnu"))]
pub(crate) unsafe fn unlock_streams() {}

/// # Safety
/// None is needed; with glibc it is.
#[cfg(not(target_env = "gnu"))]
pub(crate) unsafe fn reset_streams() {}

/// A fence in all threads: each executes one between two of its instructions, wherever it is, after the call and before it
/// returns; a thread that does not run has done so when it was stopped. What a thread wrote before its fence is read after the
/// call; what was written before the call is read by a thread after its fence. False if the system has none.
pub(crate) fn fence_all_threads() -> bool {
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    if cfg!(any(miri, pma_unchecked = "take")) {
        return false;
    }
    let membarrier = |command: libc::c_int| {
        // SAFETY: the call touches no memory of the process.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    };
    atomic::fence(Ordering::SeqCst);
    let fenced = membarrier(PRIVATE_EXPEDITED)
        // Once in a process, it is to be told that it will want them.
        || (errno() == libc::EPERM && membarrier(REGISTER_PRIVATE_EXPEDITED) && membarrier(PRIVATE_EXPEDITED));
    atomic::fence(Ordering::SeqCst);
    fenced
}

/// A value that each thread has of its own, with a function that is called on it when the thread ends.
pub(crate) type ThreadKey = libc::pthread_key_t;

pub(crate) fn new_thread_key(at_exit: unsafe extern "C" fn(*mut libc::c_void)) -> Option<ThreadKey> {
    let mut key = 0;
    // SAFETY: the key is written; the function is called with values set for the key only.
    (unsafe { libc::pthread_key_create(&mut key, Some(at_exit)) } == 0).then_some(key)
}

/// The calling thread's value; null unless it was set.
pub(crate) fn thread_value(key: ThreadKey) -> *mut libc::c_void {
    // SAFETY: the key was created and is never deleted.
    unsafe { libc::pthread_getspecific(key) }
}

/// Sets the calling thread's value.
///
/// # Safety
/// The key's function may be called with the value when the thread ends.
pub(crate) unsafe fn set_thread_value(key: ThreadKey, value: *mut libc::c_void) -> bool {
    // SAFETY: the key was created and is never deleted.
    unsafe { libc::pthread_setspecific(key, value) == 0 }
}
