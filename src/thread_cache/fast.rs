//! The fast paths: a block goes onto a stack, and off it.
//!
//! The words of a stack are [`BOTTOM`], slots, and [`LID`]. What the thread of the stack does here is ordered for signal
//! handlers, who interrupt it, and for others, who [take](super::raise) what is below the top.

use crate::sync::{AtomicPtr, AtomicUsize};
use core::ptr;
use core::sync::atomic::{Ordering, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};

/// What a free block of the process heap begins with: it is written when the block is freed, and looked at and wiped
/// out when it is handed out. A block that has lost it meanwhile was handed out already, as it was freed twice, or was
/// written to by somebody who had freed it.
///
/// No block, and no decision but to end the program, depends on what a block holds: a program that writes this itself
/// goes unnoticed at worst. It fits into an instruction, and is no address.
pub(super) const FREED: u64 = -0x0F11_4EED_i64 as u64;
/// Set in the slot of a block that need not begin with [`FREED`]: it was never in use since its page was divided, or
/// the system has taken its contents.
pub(super) const UNMARKED: usize = 1 << (usize::BITS - 1);

/// Set besides [`UNMARKED`] in the slot of a block that holds zeros: it had no memory, and was not in use since.
pub(super) const ZEROS: usize = 1 << (usize::BITS - 2);
/// Of a slot, what is not the address.
pub(super) const FLAGS: usize = UNMARKED | ZEROS;

/// Lies below the lowest slot of a stack, as an unmarked block at no address: what `pop` finds there says that the
/// stack is empty.
pub(super) const BOTTOM: usize = UNMARKED;
/// Lies above the highest slot of a stack: what `push` finds there says that the stack is full. No block is at
/// this address, and no free slot holds this value.
pub(super) const LID: usize = 1;

/// ThreadSanitizer knows nothing of [fences in all threads](crate::sys::fence_all_threads): for it, a top tells what was written
/// before it.
pub(super) const TOP_IS_READ: Ordering = if cfg!(pma_sanitized) { Ordering::Acquire } else { Relaxed };
const TOP_IS_WRITTEN: Ordering = if cfg!(pma_sanitized) { Ordering::Release } else { Relaxed };

/// Writes down in a block that it is free.
#[inline(always)]
pub(super) fn mark(address: usize) {
    // SAFETY: the page table says that the address lies in a page of blocks, whose memory is committed, and the one who
    // frees a block gives it up. If there is no block at the address, the program will end for it.
    unsafe { ptr::with_exposed_provenance_mut::<u64>(address).write_unaligned(FREED) };
}

/// Whether a word is [`LID`]; that it is not is what is expected.
///
/// # Safety
/// `word` is one of a stack's words, which is alive.
#[inline(always)]
unsafe fn is_lid(word: *const AtomicUsize) -> bool {
    #[cfg(all(target_arch = "x86_64", not(any(miri, loom, pma_sanitized))))]
    // SAFETY: the word is alive, as the caller says, and is only read.
    unsafe {
        // A processor compares a word in memory in one instruction; what is read as an atomic, the compiler reads first.
        core::arch::asm!(
            "cmp qword ptr [{word}], {lid}",
            "je {yes}",
            word = in(reg) word,
            lid = const LID,
            yes = label { return true },
            options(nostack, readonly),
        );
        false
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(miri, loom, pma_sanitized)))))]
    // SAFETY: as above.
    unsafe {
        (*word).load(Relaxed) == LID
    }
}

/// The block on top, which is removed, and whether it is known to hold zeros; null if there is none, or if it should be
/// [`FREED`] and is not.
///
/// What tells that nobody has the block is looked at after it is off the stack: by then no signal handler finds it there, and
/// one that took it before has left neither mark nor bit.
///
/// # Safety
/// `top` leads to a slot in use of the calling thread's stack, or to the bottom.
#[cfg(not(feature = "hardened"))]
#[inline(always)]
pub(super) unsafe fn pop(top: &AtomicPtr<AtomicUsize>) -> (*mut u8, bool) {
    let slot = top.load(Relaxed);
    // SAFETY: as the caller says; below a slot in use there is a slot or the bottom. A slot holds the address of a block,
    // whose first word may be read and written.
    unsafe {
        let value = (*slot).load(Relaxed);
        if value & UNMARKED != 0 {
            cold();
            let address = value & !FLAGS;
            if address == 0 {
                return (ptr::null_mut(), false);
            }
            top.store(slot.sub(1), TOP_IS_WRITTEN);
            compiler_fence(SeqCst);
            if (*slot).load(Relaxed) == value {
                // Should the slot be found in use again, the block in it is to be looked at.
                if cfg!(not(pma_unchecked = "bit")) {
                    (*slot).store(address, Relaxed);
                }
                return (ptr::with_exposed_provenance_mut(address), value & ZEROS != 0);
            }
        } else {
            let block = ptr::with_exposed_provenance_mut::<u64>(value);
            top.store(slot.sub(1), TOP_IS_WRITTEN);
            compiler_fence(SeqCst);
            if block.read() == FREED || cfg!(pma_unchecked = "mark") {
                block.write(0);
                return (block.cast(), false);
            }
        }
        top.store(slot, TOP_IS_WRITTEN);
        (ptr::null_mut(), false)
    }
}

/// Has the compiler lay out what comes here apart, so that what is usual needs no jump.
#[cold]
#[inline(always)]
pub(super) fn cold() {}

/// Puts `address` on top; false if there is no room.
///
/// # Safety
/// `top` leads to a slot in use of the calling thread's stack, or to the bottom.
#[inline(always)]
pub(super) unsafe fn push(top: &AtomicPtr<AtomicUsize>, address: usize) -> bool {
    // SAFETY: above a slot in use, and above the bottom, there is a slot or `LID`.
    unsafe {
        let slot = top.load(Relaxed).add(1);
        if is_lid(slot) {
            return false;
        }
        mark(address);
        compiler_fence(SeqCst);
        (*slot).store(address, Relaxed);
        compiler_fence(SeqCst);
        top.store(slot, TOP_IS_WRITTEN);
    }
    true
}
