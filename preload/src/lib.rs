//! `libpma.so`: [`page_memory_allocator`] behind C's allocation functions, for `LD_PRELOAD`, and for programs that
//! link it or open it by `dlopen`.
//!
//! What the functions do is what POSIX, C23 and the manual of glibc say; where these leave a choice, what glibc
//! does. Each leaves `errno` alone but for a failure, which is `ENOMEM`, or `EINVAL` for an alignment that is none.
//! Sizes above `PTRDIFF_MAX` fail. A size of zero gives a block of its own.
//!
//! `malloc` and `free` begin with a pop from, or a push to, the thread's cache. They are leaves without a stack
//! frame: what is not done by then is a jump to a cold function, which is where `errno` comes in.
//!
//! C++'s operators `new` and `delete` are exported on x86-64, where a library can hand a call on without a frame of its
//! own: see `operators.rs`. Elsewhere, those of the C++ library call `malloc` and `free`. For the same reason `dlopen.rs`, by
//! which all libraries of a program share one allocator, is for x86-64.
//!
//! No function here calls another one by its exported name: that would lead to whichever library comes first, and
//! the compiler believes to know what `malloc` does. But where a program has a `malloc` of its own, those that it does not
//! have lead there: see `seen.rs`.

// Without std there is no runtime to load with every program. Its panics unwind in the profiles that `cargo test`
// and `cargo build` use, and for that std is needed.
#![cfg_attr(panic = "abort", no_std)]

#[cfg(target_arch = "x86_64")]
mod dlopen;
mod errno;
mod libc_names;
#[cfg(target_arch = "x86_64")]
mod operators;
mod seen;

// What the compiler adds on AArch64 has tables for unwinding that name std's function for it. Nothing unwinds here.
#[cfg(all(panic = "abort", target_arch = "aarch64"))]
core::arch::global_asm!(
    ".globl rust_eh_personality",
    ".hidden rust_eh_personality",
    "rust_eh_personality:",
    "brk #1"
);

use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicPtr;
use core::{mem, ptr};
use errno::{failing_with_enomem, keeping_errno, set_errno};
use page_memory_allocator::PageAllocator;

static HEAP: PageAllocator = PageAllocator::new();

/// Called by the loader, before the constructors of other libraries: makes the heap, and registers its fork handlers.
/// As the first ones, they are the last to run before a fork and the first after it, so those of other libraries may
/// allocate. Whoever allocates before this function is called is served all the same.
extern "C" fn start() {
    // To free a block touches it: this one lies in a page that most programs use.
    let block = HEAP.malloc(32);
    // SAFETY: the block is null or was just allocated.
    unsafe { HEAP.free(block) };
    // Who looks later may have to wait for the loader, and for a thread that opens a library and waits in turn.
    seen::look();
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

// An indirect function: the loader calls its resolver when it relocates this library, which comes before the program is
// relocated. Indirect functions of the program may allocate when they are resolved; thread-local storage has its first
// values after that.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .text.pma_relocated,\"ax\",@progbits",
    ".type pma_relocated, @gnu_indirect_function",
    ".globl pma_relocated",
    ".hidden pma_relocated",
    "pma_relocated:",
    // The stack is aligned for the call.
    "sub rsp, 8",
    "call {serve}",
    "add rsp, 8",
    "lea rax, [rip + {serve}]",
    "ret",
    ".popsection",
    serve = sym page_memory_allocator::serve_before_thread_local_storage,
);
#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    fn pma_relocated();
}
#[cfg(target_arch = "x86_64")]
#[used]
static RELOCATED: unsafe extern "C" fn() = pma_relocated;

/// A block of `size` bytes, aligned to 16; to 8 if it has no more than 8 bytes. Null with `ENOMEM` if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    let block = HEAP.malloc_cached(size);
    if block.is_null() { malloc_slow(size) } else { block.cast() }
}

#[cold]
#[inline(never)]
extern "C" fn malloc_slow(size: usize) -> *mut c_void {
    failing_with_enomem(|| HEAP.malloc_otherwise(size))
}

/// A block of `count` times `size` bytes of zeros, aligned as by [`malloc`]. Null with `ENOMEM` if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(bytes) = count.checked_mul(size) else { return out_of_memory() };
    let block = HEAP.malloc_zeroed_cached(bytes);
    if block.is_null() { calloc_slow(bytes) } else { block.cast() }
}

#[cold]
#[inline(never)]
extern "C" fn calloc_slow(bytes: usize) -> *mut c_void {
    failing_with_enomem(|| HEAP.malloc_zeroed(bytes))
}

/// Makes the block one of `size` bytes, here or elsewhere, and keeps its contents as far as both reach. Null with
/// `ENOMEM`, and the block untouched, if there is none. As in glibc, a size of zero frees the block and returns null,
/// and for a null pointer this is [`malloc`].
///
/// # Safety
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's contract is the same.
    unsafe { resize(block, size) }
}

/// [`realloc`] to `count` times `size` bytes; `ENOMEM`, and the block untouched, if that is too much for a size.
///
/// # Safety
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    static REALLOC: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    let Some(bytes) = count.checked_mul(size) else { return out_of_memory() };
    if !seen::is_beside_another() {
        // SAFETY: the caller's contract is the same.
        return unsafe { resize(block, bytes) };
    }
    // SAFETY: what has this name has these arguments.
    unsafe {
        let realloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void =
            mem::transmute(seen::once_by_name("realloc\0", &REALLOC));
        realloc(block, bytes)
    }
}

/// # Safety
/// `block` is null or a live block.
unsafe fn resize(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return failing_with_enomem(|| HEAP.malloc(size));
    }
    if size == 0 {
        // SAFETY: the block is live, and given up.
        keeping_errno(|| unsafe { HEAP.free(block.cast()) });
        return ptr::null_mut();
    }
    // SAFETY: the block is live; all of this library's are allocated without layouts.
    failing_with_enomem(|| unsafe { HEAP.realloc_unsized(block.cast(), size) })
}

/// Frees a block; null is let pass. A pointer that is none of this heap's blocks ends the process.
///
/// # Safety
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's contract is the same.
    if !unsafe { HEAP.free_cached(block.cast()) } {
        free_slow(block);
    }
}

/// The caller's pointer is that of [`free`].
#[cold]
#[inline(never)]
extern "C" fn free_slow(block: *mut c_void) {
    // SAFETY: the block is null or live. To put it into the cache touches no errno.
    if !unsafe { HEAP.free_cached_for_others(block.cast()) } {
        // SAFETY: as above.
        keeping_errno(|| unsafe { HEAP.free_otherwise(block.cast()) });
    }
}

/// [`free`] for a block of `size` bytes (C23). Unless the block has as many, the process ends.
///
/// # Safety
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(block: *mut c_void, size: usize) {
    // SAFETY: the caller's contract is the same.
    unsafe {
        if seen::is_beside_another() {
            programs_free(block);
        } else {
            keeping_errno(|| HEAP.free_sized(block.cast(), size));
        }
    }
}

/// `free`, as the program sees it.
///
/// # Safety
/// `block` is null, or a live block of the program's `malloc`.
unsafe fn programs_free(block: *mut c_void) {
    static FREE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    // SAFETY: what has this name has this argument.
    unsafe {
        let free: unsafe extern "C" fn(*mut c_void) = mem::transmute(seen::once_by_name("free\0", &FREE));
        free(block);
    }
}

/// [`free`] for a block of `size` bytes from [`aligned_alloc`] (C23). Unless the block has as many, the process ends.
///
/// # Safety
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _alignment: usize, size: usize) {
    // SAFETY: the caller's contract is the same.
    unsafe { free_sized(block, size) };
}

/// [`free`], as it was called in old programs.
///
/// # Safety
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller's contract is the same.
    unsafe { if seen::is_beside_another() { programs_free(block) } else { free(block) } };
}

/// Stores a block of `size` bytes at a multiple of `alignment` and returns 0. Returns `EINVAL` unless the alignment
/// is a power of two and a multiple of a pointer's size, and `ENOMEM` if there is no such block; then nothing is
/// stored. `errno` stays as it is.
///
/// # Safety
/// `stored` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(stored: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    if !alignment.is_power_of_two() || alignment < size_of::<*mut c_void>() {
        return libc::EINVAL;
    }
    let block = keeping_errno(|| HEAP.malloc_aligned(size, alignment));
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's.
    unsafe { stored.write(block.cast()) };
    0
}

/// A block of `size` bytes at a multiple of `alignment`. Null with `EINVAL` unless that is a power of two, and with
/// `ENOMEM` if there is none. The size need not be a multiple of the alignment.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    if alignment.is_power_of_two() { aligned(alignment, size) } else { invalid() }
}

/// [`aligned_alloc`]; as in glibc, an alignment that is no power of two counts as the next one.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(alignment: usize, size: usize) -> *mut c_void {
    match alignment.checked_next_power_of_two() {
        Some(alignment) => aligned(alignment, size),
        None => invalid(),
    }
}

/// A block of `size` bytes at the start of an OS page. Null with `ENOMEM` if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    aligned(os_page_size(), size)
}

/// [`valloc`] of as many whole OS pages as hold `size` bytes, at least one.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let page_size = os_page_size();
    match size.max(1).checked_next_multiple_of(page_size) {
        Some(bytes) => aligned(page_size, bytes),
        None => out_of_memory(),
    }
}

/// Bytes that the block has room for, at least as many as were asked for; 0 for null.
///
/// # Safety
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller's contract is the same.
    keeping_errno(|| unsafe { HEAP.usable_size(block.cast()) })
}

/// Gives free memory back to the system, all of it, as [`PageAllocator::purge`] does. Returns 1 if there was some, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_kept: usize) -> c_int {
    keeping_errno(|| HEAP.purge() > 0).into()
}

fn aligned(alignment: usize, size: usize) -> *mut c_void {
    failing_with_enomem(|| HEAP.malloc_aligned(size, alignment))
}

fn os_page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

#[cold]
fn out_of_memory() -> *mut c_void {
    set_errno(libc::ENOMEM);
    ptr::null_mut()
}

#[cold]
fn invalid() -> *mut c_void {
    set_errno(libc::EINVAL);
    ptr::null_mut()
}

/// Ends the process, saying why.
#[cfg(any(panic = "abort", target_arch = "x86_64"))]
fn end(why: &[u8]) -> ! {
    // SAFETY: the text is readable; abort has no preconditions.
    unsafe {
        libc::write(libc::STDERR_FILENO, why.as_ptr().cast(), why.len());
        libc::abort()
    }
}

/// A bug of the allocator was found out by an assertion.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    end(b"libpma: an assertion of the allocator failed\n")
}
