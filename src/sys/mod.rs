//! The operating system, and the only place where `libc` is used: memory, time, output, the end of the process.
//!
//! Sizes and addresses given to the memory calls are multiples of [`page_size`].

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

const PRIVATE_AND_UNCOUNTED: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Bytes in a page of the operating system (an *OS page*).
pub(crate) fn page_size() -> usize {
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    let known = SIZE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: sysconf has no preconditions; it allocates nothing for this name.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    SIZE.store(size, Ordering::Relaxed);
    size
}

/// Bytes of physical memory, or 0 if the system does not say.
pub(crate) fn physical_memory() -> usize {
    // `sysconf` would do, but in older C libraries it opens a file through buffers that it allocates.
    let mut info = core::mem::MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: sysinfo writes to the struct it is given, and zeros are a valid value of it.
    unsafe {
        if libc::sysinfo(info.as_mut_ptr()) != 0 {
            return 0;
        }
        let info = info.assume_init();
        (info.totalram as usize).saturating_mul(info.mem_unit as usize)
    }
}

/// Reserves address space that cannot be read or written and costs nothing.
pub(crate) fn reserve(bytes: usize) -> Option<NonNull<u8>> {
    map(bytes, libc::PROT_NONE)
}

/// Maps memory that reads as zeros and is backed when it is first written.
pub(crate) fn map_zeroed(bytes: usize) -> Option<NonNull<u8>> {
    map(bytes, libc::PROT_READ | libc::PROT_WRITE)
}

fn map(bytes: usize, protection: libc::c_int) -> Option<NonNull<u8>> {
    // SAFETY: a new private mapping at an address of the kernel's choice touches no memory in use.
    let start = unsafe { libc::mmap(core::ptr::null_mut(), bytes, protection, PRIVATE_AND_UNCOUNTED, -1, 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
}

/// Makes reserved memory readable and writable; it reads as zeros. False if the system refuses.
///
/// # Safety
/// The range is reserved by [`reserve`] and belongs to the caller.
pub(crate) unsafe fn commit(start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the range belongs to the caller, who loses nothing when it becomes accessible.
    unsafe { libc::mprotect(start.as_ptr().cast(), bytes, libc::PROT_READ | libc::PROT_WRITE) == 0 }
}

/// Lets the system back memory with huge pages as it is touched. It may be refused, and no harm done.
///
/// # Safety
/// The range is mapped and belongs to the caller.
pub(crate) unsafe fn advise_huge(start: NonNull<u8>, bytes: usize) {
    // SAFETY: advice about memory of the caller, whose contents stay as they are.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}

/// Gives a mapping, or part of one, back.
///
/// # Safety
/// The range belongs to the caller and is not used any more.
pub(crate) unsafe fn unmap(start: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the caller gives the range up. A refusal leaves it mapped, which harms nobody.
        unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
    }
}

/// Lets another thread run.
pub(crate) fn yield_now() {
    // SAFETY: sched_yield has no preconditions.
    unsafe { libc::sched_yield() };
}

/// Sleeps for about `nanoseconds`, less than a second.
pub(crate) fn sleep(nanoseconds: u32) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds as _ };
    // SAFETY: nanosleep reads the time; an early return does no harm.
    unsafe { libc::nanosleep(&time, core::ptr::null_mut()) };
}

/// A standard stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    Output = libc::STDOUT_FILENO as isize,
    Error = libc::STDERR_FILENO as isize,
}

/// Writes all of `bytes`, without buffers and without std. What the stream refuses is lost.
pub(crate) fn write(stream: Stream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the slice is readable for its length.
        let written = unsafe { libc::write(stream as libc::c_int, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) => bytes = &bytes[written.min(bytes.len())..],
            Err(_) if interrupted() => {}
            Err(_) => return,
        }
    }
}

fn interrupted() -> bool {
    // SAFETY: the C library's errno of this thread can always be read.
    unsafe { *libc::__errno_location() == libc::EINTR }
}

/// Ends the process by SIGABRT.
pub(crate) fn abort() -> ! {
    // SAFETY: abort has no preconditions.
    unsafe { libc::abort() }
}

/// Identifies the calling thread among those alive: an address.
pub(crate) fn this_thread() -> usize {
    // SAFETY: pthread_self has no preconditions.
    unsafe { libc::pthread_self() as usize }
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

/// A value that each thread has of its own, with a function that is called on it when the thread ends.
pub(crate) type ThreadKey = libc::pthread_key_t;

pub(crate) fn new_thread_key(at_exit: unsafe extern "C" fn(*mut libc::c_void)) -> Option<ThreadKey> {
    let mut key = 0;
    // SAFETY: the key is written; the function is called with values set for the key only.
    (unsafe { libc::pthread_key_create(&mut key, Some(at_exit)) } == 0).then_some(key)
}

/// Sets the calling thread's value.
///
/// # Safety
/// The key's function may be called with the value when the thread ends.
pub(crate) unsafe fn set_thread_value(key: ThreadKey, value: *mut libc::c_void) -> bool {
    // SAFETY: the key was created and is never deleted.
    unsafe { libc::pthread_setspecific(key, value) == 0 }
}
