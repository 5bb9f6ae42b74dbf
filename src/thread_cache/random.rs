//! What is handed out with the feature `hardened`: any of the blocks near the top of a stack, so that it is hard to guess
//! which.

use super::fast::{FLAGS, FREED, UNMARKED, ZEROS};
use super::{ThreadCache, apart};
use crate::hardened;
use crate::heap::Block;
use crate::page_table::Contents;
use crate::units::ClassIndex;
use core::ptr;
use core::sync::atomic::Ordering::Relaxed;

/// Of a stack, this part stays behind, so that a block that was freed last is not the next to be handed out.
const LEAST_CHOICE: usize = 4;
/// The next block is one of so many on top of the stack. More of them would have to be fetched from further away.
const MOST_CHOICE: usize = 16;

impl ThreadCache {
    /// A block of `class`, or none if its stack has none to give.
    #[inline]
    pub(crate) fn pop(&self, class: ClassIndex) -> Block {
        if self.is_sentinel() {
            return Block::NONE;
        }
        apart(|| self.gate.try_enter().map(|_inside| self.pop_inside(class))).unwrap_or(Block::NONE)
    }

    /// Any block near the top of the stack, or none if that has too few for it to be hard to guess which.
    #[inline]
    pub(super) fn pop_inside(&self, class: ClassIndex) -> Block {
        let (_, words) = self.local.words(class);
        self.pop_at_random(class, (words / LEAST_CHOICE).min(MOST_CHOICE))
    }

    /// A block of `class`, any near the top of the stack, or none if that has no more than `left`.
    #[inline]
    pub(super) fn pop_at_random(&self, class: ClassIndex, left: usize) -> Block {
        let (start, top) = (self.local.words(class).0, self.local.top(class));
        if start.is_null() {
            return Block::NONE;
        }
        let slot = top.load(Relaxed);
        // SAFETY: `top` leads to a slot in use, or to the bottom, which is where the words start; all between are in use.
        let value = unsafe {
            let used = slot.offset_from_unsigned(start);
            if used <= left {
                return Block::NONE;
            }
            let chosen = slot.sub(self.random.below(used.min(MOST_CHOICE)));
            let value = (*chosen).load(Relaxed);
            (*chosen).store((*slot).load(Relaxed), Relaxed);
            top.store(slot.sub(1), Relaxed);
            value
        };
        let block = ptr::with_exposed_provenance_mut::<u64>(value & !FLAGS);
        // SAFETY: the block is the caller's to be, and no block is shorter.
        if value & UNMARKED == 0 && unsafe { block.replace(0) } != FREED {
            hardened::refuse_to_hand_out(block.addr());
        }
        hardened::hand_out(self.base, class, block.addr(), value & UNMARKED == 0);
        Block { start: block.cast(), holds: Contents::zeros_if(value & ZEROS != 0) }
    }
}
