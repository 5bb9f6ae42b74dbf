//! How a stack of another thread is emptied, while that thread goes on or sleeps.
//!
//! The owner of a stack takes no lock to pop and to push, and says nothing of where it is: it may have been interrupted
//! between any two instructions, for however long. A *taker*, who has closed the [gate](super::gate) of the cache, so that the
//! owner is in no slow path, makes the top slot of the stack its new bottom, and what is in it and below it its own:
//!
//! 1. It reads the top, and swaps [`BOTTOM`] for the block in that slot, `k`.
//! 2. A fence in all threads. What the owner reads in slot `k` from here on is `BOTTOM`: its next pop there finds the stack
//!    empty, and its slow path waits at the gate.
//! 3. It reads the top again, which must not be below `k`.
//! 4. A second fence in all threads.
//! 5. It reads the slot, which must still hold `BOTTOM`. Then the blocks are the taker's. Else it puts the block back, if
//!    `BOTTOM` is still there, and has taken nothing.
//!
//! A fence in all threads ([`sys::fence_all_threads`](crate::sys::fence_all_threads)) is one that each of them executes
//! between two of its instructions, wherever it is, while the taker waits; one that does not run has executed it when it
//! was stopped. So the owner pays nothing for it. What it does, in this order:
//!
//! | | pop | push |
//! |---|---|---|
//! | a | reads the top: `t` | reads the top: `t` |
//! | b | reads slot `t`: a block, or `BOTTOM` | |
//! | c | | writes the block to slot `t + 1` |
//! | d | writes the top: `t - 1` | writes the top: `t + 1` |
//! | e | reads slot `t`: if it is not what it was, puts the top back to `t`, and has no block | |
//!
//! Of the blocks up to slot `k` the owner gets none after step 5 has succeeded:
//!
//! - To get the block of slot `k` it must have read it twice (b, e) before the first fence, as later there is `BOTTOM`; and
//!   written the top `k - 1` in between (d). To get one below, it must do that first.
//! - The taker, who reads the top after the fence, reads `k - 1` or what was written later.
//! - If it does not read less than `k`, a push has written to slot `k` (c) after that pop, and `k` to the top (d): from `k - 1`
//!   there is no other way up, but for a pop that finds its block not as it should be, puts the top back to `k`, and waits at
//!   the gate. The taker has seen the latter write, or what came after it, before the second fence; so it sees the former after
//!   that. No longer is there `BOTTOM`.
//! - A pop that has read the block (b) before the first fence, and reads `BOTTOM` (e), has the top at `k - 1` for a moment, and then
//!   puts it back. Nothing else of the owner's comes in between. Whichever of the two the taker reads, it is right: the block is
//!   not popped, and if the taker does put it back, it is in its place when the owner looks again behind the gate.
//!
//! Nor is a block lost when it fails. If the owner popped what was in slot `k`, that slot is free, or was pushed to since,
//! and whatever is put back into a free slot means nothing. Else the block belongs there. If it is put back between the two
//! reads of a pop (b, e), that pop has its block, and the taker has none.
//!
//! All this is said of a thread that is not interrupted within a pop by a signal handler that pops: see `SECURITY.md`.

use super::fast::{BOTTOM, TOP_IS_READ};
use crate::sync::{AtomicPtr, AtomicUsize};
use core::sync::atomic::Ordering::Relaxed;

/// A stack that is about to be emptied.
#[derive(Debug)]
pub(super) struct Raise<'a> {
    top: &'a AtomicPtr<AtomicUsize>,
    /// What is to be the bottom, and what was in it.
    slot: *const AtomicUsize,
    block: usize,
    /// The top was not below that after the first fence.
    high_enough: bool,
}

impl<'a> Raise<'a> {
    /// Begins to take the blocks above `bottom`; `None` if there are none. To be followed by a fence.
    ///
    /// # Safety
    /// The caller has closed the gate of the cache, until it is done. `top` leads to a word of the stack.
    pub(super) unsafe fn begin(
        top: &'a AtomicPtr<AtomicUsize>,
        bottom: *const AtomicUsize,
    ) -> Option<Raise<'a>> {
        let slot = top.load(TOP_IS_READ).cast_const();
        // A pop that finds the stack taken has the top below the bottom for a moment.
        if slot <= bottom {
            return None;
        }
        // SAFETY: the slot is one of the stack, above the bottom; nobody frees it while the gate is closed.
        let block = unsafe { (*slot).swap(BOTTOM, Relaxed) };
        Some(Raise { top, slot, block, high_enough: false })
    }

    /// Looks at the top, after a fence and before another.
    pub(super) fn look(&mut self) {
        self.high_enough = self.top.load(TOP_IS_READ).cast_const() >= self.slot;
    }

    /// Whether the blocks up to the [slot](Self::slot) are the caller's, as can be told after the second fence.
    pub(super) fn is_done(&self) -> bool {
        // SAFETY: as in `begin`.
        self.high_enough && unsafe { (*self.slot).load(Relaxed) } == BOTTOM
    }

    /// Leaves the stack as it was.
    pub(super) fn undo(&self) {
        // SAFETY: as in `begin`.
        let _ = unsafe { (*self.slot).compare_exchange(BOTTOM, self.block, Relaxed, Relaxed) };
    }

    /// The new bottom.
    pub(super) fn slot(&self) -> *const AtomicUsize {
        self.slot
    }

    /// The block that was there.
    pub(super) fn block(&self) -> usize {
        self.block
    }
}
