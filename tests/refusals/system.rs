//! The calls to the system, counted and refused.

use libc::{c_int, c_long, c_void, off_t, size_t};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};

/// What the system is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Map,
    Protect,
    /// `madvise`, but for the next.
    Advise,
    /// `madvise` that gives memory back.
    Purge,
    Remap,
}

pub const KINDS: [Kind; 5] = [Kind::Map, Kind::Protect, Kind::Advise, Kind::Purge, Kind::Remap];

/// Which calls to the system are refused.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Those of this kind, or all; others are not counted.
    pub kind: Option<Kind>,
    /// The first call that is, counted from 1, from the moment that the plan is set.
    pub first: usize,
    /// How many are.
    pub count: usize,
}

impl Plan {
    pub const NONE: Plan = Plan { kind: None, first: usize::MAX, count: 0 };
}

/// Of the calls of a run, so many are told apart.
const TOLD: usize = 1_000;

/// By kind, all calls and those among the first that are told apart.
static CALLS: [AtomicUsize; KINDS.len()] = [const { AtomicUsize::new(0) }; KINDS.len()];
static EARLY: [AtomicUsize; KINDS.len()] = [const { AtomicUsize::new(0) }; KINDS.len()];
static REFUSED: AtomicUsize = AtomicUsize::new(0);
/// The plan: the kinds, by bit; the first call, by the number of calls of these kinds; how many.
static PLANNED: AtomicUsize = AtomicUsize::new(0);
static SEEN: AtomicUsize = AtomicUsize::new(0);
static FIRST: AtomicUsize = AtomicUsize::new(usize::MAX);
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Whether a move of memory that is refused has unmapped its destination, as the system may do, and another thread
/// has mapped a page there since: this one.
pub static UNMAPS: AtomicBool = AtomicBool::new(false);
pub static TAKES: AtomicBool = AtomicBool::new(false);
pub static TAKEN: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
/// Is called once, in the next call that gives memory back.
static AT_PURGE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

pub fn at_purge(interruption: fn()) {
    AT_PURGE.store(interruption as *mut (), Relaxed);
}

thread_local! {
    /// Whether the thread is inside the allocator under test.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

pub fn set(plan: Plan) {
    COUNT.store(plan.count, Relaxed);
    PLANNED.store(plan.kind.map_or(usize::MAX, |kind| 1 << kind as usize), Relaxed);
    SEEN.store(0, Relaxed);
    FIRST.store(plan.first, Relaxed);
}

pub fn calls() -> usize {
    CALLS.iter().map(|calls| calls.load(Relaxed)).sum()
}

/// Calls of a kind, and how many of them were among the first of all.
pub fn calls_of(kind: Kind) -> (usize, usize) {
    (CALLS[kind as usize].load(Relaxed), EARLY[kind as usize].load(Relaxed))
}

pub fn refused() -> usize {
    REFUSED.load(Relaxed)
}

/// Does `work`, whose calls to the system are counted.
pub fn counted<R>(work: impl FnOnce() -> R) -> R {
    let before = COUNTED.replace(true);
    let result = work();
    COUNTED.set(before);
    result
}

/// Whether this call is refused.
fn refuses(kind: Kind) -> bool {
    if !COUNTED.get() {
        return false;
    }
    if calls() < TOLD {
        EARLY[kind as usize].fetch_add(1, Relaxed);
    }
    CALLS[kind as usize].fetch_add(1, Relaxed);
    if PLANNED.load(Relaxed) & 1 << kind as usize == 0 {
        return false;
    }
    let call = SEEN.fetch_add(1, Relaxed) + 1;
    let first = FIRST.load(Relaxed);
    let refuses = call >= first && call - first < COUNT.load(Relaxed);
    if refuses {
        REFUSED.fetch_add(1, Relaxed);
        // SAFETY: this thread's errno can always be written.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
    }
    refuses
}

/// Does to the destination of a refused move what [`UNMAPS`] and [`TAKES`] say.
unsafe fn leave_a_hole(start: *mut c_void, bytes: size_t) {
    if UNMAPS.load(Relaxed) {
        // SAFETY: a move that is refused may do this.
        unsafe { libc::syscall(libc::SYS_munmap, start, bytes) };
    }
    if TAKES.load(Relaxed) {
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as c_long;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as c_long;
        let page = start.wrapping_byte_add((bytes / 2) & !0xFFFF);
        // SAFETY: nothing is mapped there. The page is this test's, and is filled.
        unsafe {
            libc::syscall(libc::SYS_mmap, page, 4096 as c_long, protection, flags, -1 as c_long, 0 as c_long);
            page.cast::<u8>().write_bytes(0x5A, 4096);
        }
        TAKEN.store(page.cast(), Relaxed);
    }
    // SAFETY: this thread's errno can always be written.
    unsafe { *libc::__errno_location() = libc::ENOMEM };
}

// The system's own calls; `syscall` sets errno as the C library's functions do.

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    start: *mut c_void,
    bytes: size_t,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: off_t,
) -> *mut c_void {
    if refuses(Kind::Map) {
        return libc::MAP_FAILED;
    }
    // SAFETY: as the caller says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mmap,
            start,
            bytes,
            protection as c_long,
            flags as c_long,
            file as c_long,
            offset,
        )
    };
    std::ptr::with_exposed_provenance_mut(result as usize)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mprotect(start: *mut c_void, bytes: size_t, protection: c_int) -> c_int {
    if refuses(Kind::Protect) {
        return -1;
    }
    // SAFETY: as the caller says.
    unsafe { libc::syscall(libc::SYS_mprotect, start, bytes, protection as c_long) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(start: *mut c_void, bytes: size_t, advice: c_int) -> c_int {
    let kind = if advice == libc::MADV_DONTNEED { Kind::Purge } else { Kind::Advise };
    if kind == Kind::Purge && COUNTED.get() {
        let interruption = AT_PURGE.swap(std::ptr::null_mut(), Relaxed);
        if !interruption.is_null() {
            // SAFETY: what is not null is a function of that type.
            unsafe { std::mem::transmute::<*mut (), fn()>(interruption)() };
        }
    }
    if refuses(kind) {
        return -1;
    }
    // SAFETY: as the caller says.
    unsafe { libc::syscall(libc::SYS_madvise, start, bytes, advice as c_long) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mremap(
    start: *mut c_void,
    bytes: size_t,
    new_bytes: size_t,
    flags: c_int,
    new_start: *mut c_void,
) -> *mut c_void {
    // Without a place to move to, it is only asked whether there is room.
    if flags & libc::MREMAP_FIXED != 0 && refuses(Kind::Remap) {
        // SAFETY: the destination is the caller's.
        unsafe { leave_a_hole(new_start, new_bytes) };
        return libc::MAP_FAILED;
    }
    // SAFETY: as the caller says; the last argument is read only if the flags ask for it.
    let result =
        unsafe { libc::syscall(libc::SYS_mremap, start, bytes, new_bytes, flags as c_long, new_start) };
    std::ptr::with_exposed_provenance_mut(result as usize)
}
