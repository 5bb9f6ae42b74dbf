//! The operating system, and the only place where `libc` is used: memory, time, output, the end of the process.
//!
//! Sizes and addresses given to the memory calls are multiples of [`page_size`].

pub(crate) mod file;
pub(crate) mod resident;
pub(crate) mod signals;

use core::ffi::CStr;
use core::ptr::{self, NonNull};
use core::sync::atomic::{self, AtomicU32, AtomicUsize, Ordering};

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

/// Maps memory that reads as zeros and is backed when it is first written, by no more than is written.
pub(crate) fn map_zeroed(bytes: usize) -> Option<NonNull<u8>> {
    let start = map(bytes, libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: the mapping is new.
    unsafe { advise_huge(start, bytes, false) };
    Some(start)
}

fn map(bytes: usize, protection: libc::c_int) -> Option<NonNull<u8>> {
    // SAFETY: a new private mapping at an address of the kernel's choice touches no memory in use.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, PRIVATE_AND_UNCOUNTED, -1, 0) };
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

/// Lets the system back memory with huge pages as it is touched, or not. It may be refused, and no harm done.
///
/// # Safety
/// The range is mapped and belongs to the caller.
pub(crate) unsafe fn advise_huge(start: NonNull<u8>, bytes: usize, huge: bool) {
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: advice about memory of the caller, whose contents stay as they are.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, advice) };
}

/// Gives the memory of committed addresses back to the system: they read as zeros, and are backed anew when they
/// are written. False if that is refused; then they may hold anything.
///
/// # Safety
/// The range is committed and belongs to the caller, who needs none of its contents.
pub(crate) unsafe fn purge(start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the caller gives the contents up.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_DONTNEED) == 0 }
}

/// What became of memory that was to be moved. If it was not, the contents are where they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Remapped {
    /// It was moved.
    Moved,
    /// It was not, and the new place is as it was.
    Refused,
    /// It was not, and the new place was unmapped for it, but is mapped again.
    MappedAnew,
    /// It was not, and nobody can tell whether the new place is as it was, or was unmapped for it and is by now another
    /// thread's.
    Lost,
}

/// Moves the memory of `bytes` committed bytes to another place, without copying it; what was there is lost. The old
/// place stays committed, and reads as zeros.
///
/// # Safety
/// Both ranges are committed and belong to the caller; they do not overlap.
pub(crate) unsafe fn remap(from: NonNull<u8>, to: NonNull<u8>, bytes: usize) -> Remapped {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: both ranges are the caller's, who expects the contents in the new one.
    let moved = unsafe { libc::mremap(from.as_ptr().cast(), bytes, bytes, flags, to.as_ptr()) };
    if moved == to.as_ptr().cast() {
        return Remapped::Moved;
    }
    // What the system does not know, or does not let a process do, it refuses before it does anything.
    if matches!(errno(), libc::EINVAL | libc::ENOSYS | libc::EPERM) {
        return Remapped::Refused;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = PRIVATE_AND_UNCOUNTED | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the range is mapped only if nothing else is mapped there.
    unsafe {
        let mapped = libc::mmap(to.as_ptr().cast(), bytes, protection, flags, -1, 0);
        if mapped == to.as_ptr().cast() {
            return Remapped::MappedAnew;
        }
        if mapped != libc::MAP_FAILED {
            // A system that does not know the flag has chosen a place.
            libc::munmap(mapped, bytes);
        }
    }
    Remapped::Lost
}

/// Replaces what is at committed addresses by memory that was never used. False if the system refuses: then there
/// may be nothing.
///
/// # Safety
/// The range is within an arena and belongs to the caller, who needs none of its contents.
pub(crate) unsafe fn map_over(start: NonNull<u8>, bytes: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = PRIVATE_AND_UNCOUNTED | libc::MAP_FIXED;
    // SAFETY: the caller gives up what is there.
    unsafe { libc::mmap(start.as_ptr().cast(), bytes, protection, flags, -1, 0) != libc::MAP_FAILED }
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

/// Makes committed memory inaccessible until [`commit`] is called for it. It may be refused.
///
/// # Safety
/// The range is committed and belongs to the caller, who does not use it meanwhile.
pub(crate) unsafe fn protect(start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: nobody uses the range.
    unsafe { libc::mprotect(start.as_ptr().cast(), bytes, libc::PROT_NONE) == 0 }
}

/// Has the system keep a note that pages cannot be touched, until [`unguard`] is called for them; their contents are lost.
/// It costs no mapping. False if the system cannot, as before Linux 6.13, or does not.
///
/// # Safety
/// The range is committed and belongs to the caller, who does not use it meanwhile.
#[cfg(feature = "hardened")]
pub(crate) unsafe fn guard(start: NonNull<u8>, bytes: usize) -> bool {
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    // SAFETY: nobody uses the range.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, MADV_GUARD_INSTALL) == 0 }
}

/// Undoes [`guard`]. False if the system refuses.
///
/// # Safety
/// The range belongs to the caller.
#[cfg(feature = "hardened")]
pub(crate) unsafe fn unguard(start: NonNull<u8>, bytes: usize) -> bool {
    const MADV_GUARD_REMOVE: libc::c_int = 103;
    // SAFETY: the range becomes as it was.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, MADV_GUARD_REMOVE) == 0 }
}

/// A number that nobody can know beforehand, if the system has any.
#[cfg(feature = "hardened")]
pub(crate) fn random() -> u64 {
    let mut number = 0;
    number ^= milliseconds() ^ (&raw const number).addr() as u64;
    // SAFETY: the number is long enough. It stays as it is if the system has none yet.
    unsafe { libc::getrandom((&raw mut number).cast(), size_of::<u64>(), libc::GRND_NONBLOCK) };
    number
}

/// Lets another thread run.
pub(crate) fn yield_now() {
    // SAFETY: sched_yield has no preconditions.
    unsafe { libc::sched_yield() };
}

/// Sleeps for about `nanoseconds`.
pub(crate) fn sleep(nanoseconds: u64) {
    let time = libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as _,
        tv_nsec: (nanoseconds % 1_000_000_000) as _,
    };
    // SAFETY: nanosleep reads the time; an early return does no harm.
    unsafe { libc::nanosleep(&time, ptr::null_mut()) };
}

/// Nanoseconds on a clock that never goes back.
#[cfg(feature = "profile")]
pub(crate) fn nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written. The clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Milliseconds on a clock that never goes back, to the nearest few. It is read without a system call.
pub(crate) fn milliseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written. The clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
}

/// The environment variable `name`. Programs that have more rights than their user do not listen to it.
pub(crate) fn environment(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: the name ends in a zero, and so does the value, which stays where it is unless the program changes its
    // environment: callers have read it by then.
    unsafe {
        if libc::getauxval(libc::AT_SECURE) != 0 {
            return None;
        }
        let value = libc::getenv(name.as_ptr());
        if value.is_null() { environment_at_start(name) } else { Some(CStr::from_ptr(value)) }
    }
}

/// The environment variable `name` before the C library has an environment: a library that is loaded before it, as by
/// `LD_PRELOAD`, may be asked for memory by then.
///
/// # Safety
/// No other thread changes the environment meanwhile.
#[cfg(target_env = "gnu")]
unsafe fn environment_at_start(name: &CStr) -> Option<&'static CStr> {
    use core::ffi::c_char;
    unsafe extern "C" {
        static environ: *const *const c_char;
        /// Where the kernel has put the number of arguments; behind it lie these, a null pointer, and the
        /// variables up to another one. Set by the dynamic linker before it calls anybody.
        static __libc_stack_end: *const usize;
    }
    // SAFETY: as said there; the strings stay where the kernel has put them.
    unsafe {
        if !environ.is_null() || __libc_stack_end.is_null() {
            return None;
        }
        let arguments = *__libc_stack_end;
        let mut variable = __libc_stack_end.add(1 + arguments + 1).cast::<*const c_char>();
        while !(*variable).is_null() {
            let text = CStr::from_ptr(*variable);
            if let Some(rest) = text.to_bytes().strip_prefix(name.to_bytes())
                && rest.first() == Some(&b'=')
            {
                return CStr::from_bytes_with_nul(&text.to_bytes_with_nul()[name.count_bytes() + 1..]).ok();
            }
            variable = variable.add(1);
        }
    }
    None
}

/// Other C libraries have their environment before any library is called.
///
/// # Safety
/// None is needed.
#[cfg(not(target_env = "gnu"))]
unsafe fn environment_at_start(_: &CStr) -> Option<&'static CStr> {
    None
}

/// Starts a thread that runs `body` for as long as the process lives, with a small stack and all signals blocked. If that is too
/// small for the program's thread-local storage, which the C library takes from the stack, it has one of the usual size.
pub(crate) fn spawn(body: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void) -> bool {
    const STACK: usize = 256 << 10;
    spawn_with(Some(STACK), body) || spawn_with(None, body)
}

fn spawn_with(stack: Option<usize>, body: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void) -> bool {
    // SAFETY: attributes and signal sets are initialised before they are used; the thread is given nothing.
    unsafe {
        let mut attributes = core::mem::zeroed();
        let (mut all, mut before) = (core::mem::zeroed(), core::mem::zeroed());
        if libc::pthread_attr_init(&mut attributes) != 0 {
            return false;
        }
        if let Some(stack) = stack {
            libc::pthread_attr_setstacksize(&mut attributes, stack);
        }
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

/// A standard stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    Output = libc::STDOUT_FILENO as isize,
    Error = libc::STDERR_FILENO as isize,
}

/// Writes all of `bytes`, without buffers and without std. What the stream refuses is lost.
pub(crate) fn write(stream: Stream, bytes: &[u8]) {
    write_all(stream as libc::c_int, bytes);
}

/// Writes all of `bytes` to a descriptor; false if it refuses some.
fn write_all(descriptor: libc::c_int, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        // SAFETY: the slice is readable for its length.
        let written = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) => bytes = &bytes[written.min(bytes.len())..],
            Err(_) if interrupted() => {}
            Err(_) => return false,
        }
    }
    true
}

fn interrupted() -> bool {
    errno() == libc::EINTR
}

fn errno() -> libc::c_int {
    // SAFETY: the C library's errno of this thread can always be read.
    unsafe { *libc::__errno_location() }
}

/// Ends the process by SIGABRT.
pub(crate) fn abort() -> ! {
    // SAFETY: abort has no preconditions.
    unsafe { libc::abort() }
}

/// Processors that the process may run on, at least 1.
pub(crate) fn processors() -> usize {
    // SAFETY: a set of processors is plain data, which the call writes at most as much of as it is told.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        match libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) {
            0 => libc::CPU_COUNT(&set).max(1) as usize,
            // More of them than the set has room for.
            _ => size_of::<libc::cpu_set_t>() * 8,
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

/// Sets the calling thread's value.
///
/// # Safety
/// The key's function may be called with the value when the thread ends.
pub(crate) unsafe fn set_thread_value(key: ThreadKey, value: *mut libc::c_void) -> bool {
    // SAFETY: the key was created and is never deleted.
    unsafe { libc::pthread_setspecific(key, value) == 0 }
}
