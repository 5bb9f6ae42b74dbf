//! The calling thread's pointer to its cache: one machine word of thread-local storage without a destructor.

use crate::thread_cache::ThreadCache;

#[cfg(feature = "initial-exec")]
pub(crate) use initial_exec::{get, set};
#[cfg(all(feature = "std", not(feature = "initial-exec")))]
pub(crate) use native::{get, set};
#[cfg(not(any(feature = "std", feature = "initial-exec")))]
pub(crate) use none::{get, set};

/// Whether threads can have caches at all.
pub(crate) const AVAILABLE: bool = cfg!(any(feature = "std", feature = "initial-exec"));

/// `thread_local!`: in an executable, one load relative to the thread pointer.
#[cfg(all(feature = "std", not(feature = "initial-exec")))]
mod native {
    use super::ThreadCache;
    use core::cell::Cell;

    std::thread_local! {
        // Constant, and nothing to drop: no test whether it is initialised, alive in every destructor.
        static CACHE: Cell<*const ThreadCache> = const { Cell::new(&raw const crate::thread_cache::EMPTY.0) };
    }

    #[inline(always)]
    pub(crate) fn get() -> *const ThreadCache {
        CACHE.with(Cell::get)
    }

    pub(crate) fn set(cache: *const ThreadCache) {
        CACHE.with(|current| current.set(cache));
    }
}

/// A symbol of our own, reached by the initial-exec model. In a shared library `thread_local!` is a function call,
/// which moreover may allocate; this is two loads, and is in place before the first instruction of any thread.
#[cfg(feature = "initial-exec")]
mod initial_exec {
    use super::ThreadCache;
    use core::arch::{asm, global_asm};

    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    compile_error!("the feature `initial-exec` is for Linux on x86-64 and AArch64");

    global_asm!(
        ".pushsection .tdata.pma_thread_cache,\"awT\",@progbits",
        ".balign 8",
        ".hidden pma_thread_cache",
        ".globl pma_thread_cache",
        ".type pma_thread_cache, @object",
        ".size pma_thread_cache, 8",
        "pma_thread_cache:",
        ".quad {empty}",
        ".popsection",
        empty = sym crate::thread_cache::EMPTY,
    );

    #[inline(always)]
    fn slot() -> *mut *const ThreadCache {
        let slot: *mut *const ThreadCache;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: computes the address of this thread's symbol; touches nothing else.
        unsafe {
            asm!(
                "mov {slot}, qword ptr fs:[0]",
                "add {slot}, qword ptr [rip + pma_thread_cache@GOTTPOFF]",
                slot = out(reg) slot, options(pure, nomem, nostack),
            );
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            asm!(
                "mrs {slot}, tpidr_el0",
                "adrp {offset}, :gottprel:pma_thread_cache",
                "ldr {offset}, [{offset}, :gottprel_lo12:pma_thread_cache]",
                "add {slot}, {slot}, {offset}",
                slot = out(reg) slot, offset = out(reg) _, options(pure, nomem, nostack),
            );
        }
        slot
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn get() -> *const ThreadCache {
        let cache: *const ThreadCache;
        // SAFETY: reads this thread's symbol.
        unsafe {
            asm!(
                "mov {cache}, qword ptr [rip + pma_thread_cache@GOTTPOFF]",
                "mov {cache}, qword ptr fs:[{cache}]",
                cache = out(reg) cache, options(readonly, nostack, preserves_flags),
            );
        }
        cache
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(crate) fn get() -> *const ThreadCache {
        // SAFETY: the slot is this thread's and lives as long as it does.
        unsafe { slot().read_volatile() }
    }

    pub(crate) fn set(cache: *const ThreadCache) {
        // SAFETY: as above. Volatile, as `get` reads it where the compiler does not see.
        unsafe { slot().write_volatile(cache) }
    }
}

/// No thread-local storage: every thread stays on the empty cache.
#[cfg(not(any(feature = "std", feature = "initial-exec")))]
mod none {
    use super::ThreadCache;

    #[inline(always)]
    pub(crate) fn get() -> *const ThreadCache {
        &raw const crate::thread_cache::EMPTY.0
    }

    pub(crate) fn set(_: *const ThreadCache) {}
}
