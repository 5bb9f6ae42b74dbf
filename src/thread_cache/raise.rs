//! How a stack of another thread is emptied, but for the block on top, while that thread goes on or sleeps.
//!
//! The owner of a stack takes no lock to pop and to push, and says nothing of where it is: it may have been interrupted
//! between any two instructions, for however long. If it was in a pop, it has perhaps read the block on top already, and that is
//! nobody else's. A *taker*, who has closed the [gate](super::gate) of the cache, so that the owner is in no slow path, makes
//! the slot below the top the new bottom of the stack, and what is in it and below it its own:
//!
//! 1. It reads the top, `k + 1`, and swaps [`BOTTOM`] for the block in slot `k`.
//! 2. A fence in all threads. What the owner reads in slot `k` from here on is `BOTTOM`: its next pop there finds the stack
//!    empty, and its slow path waits at the gate.
//! 3. It reads the top again, which must be above `k`.
//! 4. A second fence in all threads.
//! 5. It reads slot `k`, which must still hold `BOTTOM`. Then the blocks are the taker's. Else it puts the block back, if
//!    `BOTTOM` is still there, and has taken nothing.
//!
//! A fence in all threads ([`sys::fence_all_threads`](crate::sys::fence_all_threads)) is one that each of them executes
//! between two of its instructions, wherever it is, while the taker waits; one that does not run has executed it when it
//! was stopped. So the owner pays nothing for it. What it does, in this order:
//!
//! | | pop | push |
//! |---|---|---|
//! | a | reads the top: `t` | reads the top: `t` |
//! | b | reads slot `t`: a block, or `BOTTOM`, which ends it | |
//! | c | | writes the block to slot `t + 1` |
//! | d | writes the top: `t - 1` | writes the top: `t + 1` |
//! | e | writes the block to slot `t` without its flags, if it was never used and is there still | |
//! | f | writes the top: `t` again, if the block is not as it should be, and has none | |
//!
//! Of the blocks up to slot `k` the owner gets none after step 5 has succeeded:
//!
//! - To get the block that was in slot `k`, a pop must have read it (b) before the first fence, as later there is `BOTTOM`, and
//!   `k` in the top before that (a). To get one below, the owner must get that one first.
//! - From there the top comes to be above `k` again only by a push to slot `k` (c), after which the top is `k` (d), and by one
//!   more to the slot above; f leads no further than to `k`, and to the gate. If the taker has read the top of that one, or of
//!   a later step, it sees the former push after the second fence: no longer is there `BOTTOM`.
//!
//! Nor is a block lost when it fails. If the owner popped what was in slot `k`, that slot is free, or was pushed to since,
//! and whatever is put back into a free slot means nothing. Else the block belongs there, and the owner, who may have found
//! the stack empty meanwhile, looks again behind the gate.
//!
//! In a stack that its owner only pushes to, nothing is left: slot `k` is that of the top.

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
    /// Slots in use above that.
    left: usize,
    /// The top was not below those after the first fence.
    high_enough: bool,
}

impl<'a> Raise<'a> {
    /// Begins to take the blocks above `bottom`, all but `left` of them; `None` if there are no more. To be followed by a fence.
    ///
    /// # Safety
    /// The caller has closed the gate of the cache, until it is done. `top` leads to a word of the stack. At least one block is
    /// left of a stack that is popped on fast paths.
    pub(super) unsafe fn begin(
        top: &'a AtomicPtr<AtomicUsize>,
        bottom: *const AtomicUsize,
        left: usize,
    ) -> Option<Raise<'a>> {
        let slot = top.load(TOP_IS_READ).cast_const().wrapping_sub(left);
        if slot <= bottom {
            return None;
        }
        // SAFETY: the slot is one of the stack, above the bottom; nobody frees it while the gate is closed.
        let block = unsafe { (*slot).swap(BOTTOM, Relaxed) };
        Some(Raise { top, slot, block, left, high_enough: false })
    }

    /// Looks at the top, after a fence and before another.
    pub(super) fn look(&mut self) {
        self.high_enough = self.top.load(TOP_IS_READ).cast_const() >= self.slot.wrapping_add(self.left);
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
