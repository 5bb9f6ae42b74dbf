//! No operating system: no memory but what is given, nobody to yield to, nowhere to write.

mod remapped;

pub(crate) use remapped::Remapped;

use core::hint::spin_loop;
use core::ops::Range;
use core::ptr::NonNull;

/// Pauses of a [`sleep`] that is meant to last a microsecond: about as many on any processor.
const PAUSES_PER_MICROSECOND: u64 = 32;

/// Memory is not mapped in pages of any size.
pub(crate) fn page_size() -> usize {
    1
}

/// There is no address space to be had.
pub(crate) fn reserve(_bytes: usize) -> Option<NonNull<u8>> {
    None
}

/// As little.
pub(crate) fn reserve_tables(_bytes: usize) -> Option<NonNull<u8>> {
    None
}

/// There is no memory to be had.
pub(crate) fn map_zeroed(_bytes: usize) -> Option<NonNull<u8>> {
    None
}

/// There is nobody to write core files.
///
/// # Safety
/// None is needed; with an operating system it is.
pub(crate) unsafe fn advise_dump(_start: NonNull<u8>, _bytes: usize, _dump: bool) -> bool {
    false
}

/// Nothing is reserved.
///
/// # Safety
/// None is needed; with an operating system it is.
pub(crate) unsafe fn commit_part(_reserved: NonNull<u8>, _bytes: usize, _part: Range<usize>) -> bool {
    false
}

/// Does nothing.
///
/// # Safety
/// None is needed; with an operating system it is.
pub(crate) unsafe fn advise_huge(_start: NonNull<u8>, _bytes: usize, _huge: bool) {}

pub(crate) mod resident {
    //! What of the memory the system holds in RAM: there is none.
    use super::NonNull;

    /// Pages of any size.
    pub(crate) const WINDOW: usize = 1 << 21;

    /// None has memory of the system's.
    pub(crate) fn bytes_with_memory(_start: NonNull<u8>, _bytes: usize) -> usize {
        0
    }
}

/// Nothing is given back.
///
/// # Safety
/// None is needed; with an operating system it is.
pub(crate) unsafe fn purge(_start: NonNull<u8>, _bytes: usize) -> bool {
    false
}

/// Nothing is moved.
///
/// # Safety
/// None is needed; with an operating system it is.
pub(crate) unsafe fn remap(_from: NonNull<u8>, _to: NonNull<u8>, _bytes: usize) -> Remapped {
    Remapped::Refused
}

/// Nothing is mapped.
///
/// # Safety
/// None is needed; with an operating system it is.
pub(crate) unsafe fn map_over(_start: NonNull<u8>, _bytes: usize) -> bool {
    false
}

/// Does nothing.
///
/// # Safety
/// None is needed; with an operating system it is.
pub(crate) unsafe fn unmap(_start: NonNull<u8>, _bytes: usize) {}

/// [`this_thread`] does not tell one thread from another.
pub(crate) const TELLS_THREADS: bool = false;

/// Some thread or other.
pub(crate) fn this_thread() -> usize {
    1
}

/// There is no other thread to let run that does not run by itself.
pub(crate) fn yield_now() {
    spin_loop();
}

/// Waits for about `nanoseconds`, or less.
pub(crate) fn sleep(nanoseconds: u64) {
    for _ in 0..nanoseconds / 1000 * PAUSES_PER_MICROSECOND {
        spin_loop();
    }
}

/// A standard stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    Error,
}

/// Nobody reads it: who wants to know sets a [fault handler](crate::set_fault_handler).
pub(crate) fn write(_: Stream, _: &[u8]) {}

/// Stops the processor by an instruction that none executes; where that is not known, goes no further.
pub(crate) fn abort() -> ! {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    // SAFETY: the instruction touches no memory, and does not return.
    unsafe {
        core::arch::asm!("ud2", options(noreturn, nomem, nostack))
    }
    #[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("udf #0", options(noreturn, nomem, nostack))
    }
    #[cfg(any(target_arch = "riscv32", target_arch = "riscv64"))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("unimp", options(noreturn, nomem, nostack))
    }
    #[allow(unreachable_code)] // reached on other processors
    loop {
        spin_loop();
    }
}
