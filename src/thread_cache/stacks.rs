//! Stacks of block addresses, one for each size class: what a thread cache is made of.
//!
//! Owned by one thread, which alone pushes and pops. Nothing is atomic in more than name: others read the tops to count, and
//! [take](super::raise) what lies at the bottom.

use super::fast::{self, BOTTOM, FLAGS, LID, UNMARKED, mark};
use super::words::Words;
#[cfg(feature = "hardened")]
use crate::hardened;
#[cfg(not(feature = "hardened"))]
use crate::heap::Block;
use crate::heap::Heap;
#[cfg(not(feature = "hardened"))]
use crate::page_table::Contents;
#[cfg(not(feature = "hardened"))]
use crate::size_class::SizeClasses;
use crate::size_class::{BuildGeometry, built::CLASS_COUNT};
#[cfg(not(feature = "hardened"))]
use crate::sys;
use crate::units::ClassIndex;
use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU16, AtomicUsize, Ordering::Relaxed};

/// The stack of every class that has none yet: empty and full.
static NO_STACK: [AtomicUsize; 2] = [AtomicUsize::new(BOTTOM), AtomicUsize::new(LID)];

/// A stack of addresses for each class. Its words are [`BOTTOM`], slots, and [`LID`].
pub(super) struct Stacks {
    /// The highest slot in use, or the bottom. It is written after the slot.
    tops: [AtomicPtr<AtomicUsize>; CLASS_COUNT],
    /// The first word.
    starts: [AtomicPtr<AtomicUsize>; CLASS_COUNT],
    /// The number of words.
    lens: [AtomicU16; CLASS_COUNT],
    /// Where among the words the bottom is, if others have [taken](super::raise) what was below.
    pub(super) bottoms: [AtomicU16; CLASS_COUNT],
    /// How many blocks each held when the last pass of [`decay`](crate::decay) was seen; or [`IDLE`](super::idle::IDLE).
    pub(super) held_then: [Cell<u16>; CLASS_COUNT],
}

/// Starts to fetch the cache line of a block that was freed: it is the next to be handed out, and written to. No
/// instruction waits for it, so a cold block costs the one who frees it nothing.
#[inline(always)]
fn prefetch_for_writing(address: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which touches no memory and never faults.
    unsafe {
        core::arch::asm!("prefetchw [{address}]", address = in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{address}]", address = in(reg) address, options(nostack, preserves_flags, readonly));
    }
    let _ = address;
}

/// Gives the blocks of slots back to their pages.
pub(super) fn put_slots(heap: &Heap<BuildGeometry>, class: ClassIndex, slots: &mut [usize]) {
    let any = slots.iter().fold(0, |all, slot| all | slot);
    let slots = if any & UNMARKED != 0 { mark_all(heap, class, slots) } else { slots };
    heap.put_all(class, slots);
}

/// Has all blocks of slots marked that are to go back to their pages, and returns the slots. Those go back here, without
/// a mark, that were not in use since they were taken, and lie in OS pages of which the same is true of all blocks: the
/// mark would be all that the page has memory for.
#[cfg(not(feature = "hardened"))]
fn mark_all<'a>(heap: &Heap<BuildGeometry>, class: ClassIndex, slots: &'a mut [usize]) -> &'a mut [usize] {
    let (block, os_page) = (SizeClasses::BUILD.block(class), sys::page_size());
    let (mut at, mut marked) = (0, 0);
    while at < slots.len() {
        if slots[at] & UNMARKED == 0 {
            slots[marked] = slots[at];
            (at, marked) = (at + 1, marked + 1);
            continue;
        }
        // A refill writes neighbours down from the highest to the lowest.
        let end = at + 1 + slots[at..].windows(2).take_while(|pair| pair[1] == pair[0] - block).count();
        slots[at..end].iter_mut().for_each(|slot| *slot &= !FLAGS);
        let (pages_start, pages_end) =
            (slots[end - 1].next_multiple_of(os_page), (slots[at] + block) & !(os_page - 1));
        // Those above the whole pages, then those that begin in them, then those below.
        let above = at + slots[at..end].iter().take_while(|&&address| address >= pages_end).count();
        let within = above + slots[above..end].iter().take_while(|&&address| address >= pages_start).count();
        if above < within {
            heap.put_all_unwritten(class, &mut slots[above..within]);
        }
        for others in [at..above, within..end] {
            for slot in others {
                mark(slots[slot]);
                slots[marked] = slots[slot];
                marked += 1;
            }
        }
        at = end;
    }
    &mut slots[..marked]
}

/// Has all blocks of slots marked that are to go back to their pages, and returns the slots.
#[cfg(feature = "hardened")]
fn mark_all<'a>(_: &Heap<BuildGeometry>, class: ClassIndex, slots: &'a mut [usize]) -> &'a mut [usize] {
    for slot in slots.iter_mut().filter(|slot| **slot & UNMARKED != 0) {
        *slot &= !FLAGS;
        hardened::wipe(class, *slot);
        mark(*slot);
    }
    slots
}

impl Stacks {
    #[allow(clippy::declare_interior_mutable_const)] // copied into each cache
    pub(super) const NONE: Stacks = Stacks {
        tops: [const { AtomicPtr::new(&raw const NO_STACK as *mut AtomicUsize) }; CLASS_COUNT],
        starts: [const { AtomicPtr::new(ptr::null_mut()) }; CLASS_COUNT],
        lens: [const { AtomicU16::new(0) }; CLASS_COUNT],
        bottoms: [const { AtomicU16::new(0) }; CLASS_COUNT],
        held_then: [const { Cell::new(0) }; CLASS_COUNT],
    };

    /// Those of a sentinel that no fast path looks at: without addresses, which the loader would have to put in.
    #[allow(clippy::declare_interior_mutable_const)] // to be written down once
    pub(super) const UNUSED: Stacks =
        Stacks { tops: [const { AtomicPtr::new(ptr::null_mut()) }; CLASS_COUNT], ..Stacks::NONE };

    #[inline(always)]
    pub(super) fn top(&self, class: ClassIndex) -> &AtomicPtr<AtomicUsize> {
        debug_assert!(class.get() < CLASS_COUNT);
        // SAFETY: class indices are below the number of classes: the tables that yield them say so.
        unsafe { self.tops.get_unchecked(class.get()) }
    }

    /// The block on top, which is removed; none if there is none, or if somebody has it.
    #[cfg(not(feature = "hardened"))]
    #[inline(always)]
    pub(super) fn pop(&self, class: ClassIndex) -> Block {
        // SAFETY: each top leads to a slot in use or to the bottom, and the stacks are the calling thread's.
        let (start, zeros) = unsafe { fast::pop(self.top(class)) };
        Block { start, holds: Contents::zeros_if(zeros) }
    }

    /// Puts `address` on top; false if there is no room.
    #[inline(always)]
    pub(super) fn push(&self, class: ClassIndex, address: usize) -> bool {
        // SAFETY: as above.
        unsafe { fast::push(self.top(class), address) }
    }

    /// Whether there is room for one block more.
    #[cfg(feature = "hardened")]
    pub(super) fn has_room(&self, class: ClassIndex) -> bool {
        // SAFETY: as in `push`.
        unsafe { (*self.top(class).load(Relaxed).add(1)).load(Relaxed) != LID }
    }

    /// [`push`](Self::push) of a block that this thread is to hand out again.
    #[inline(always)]
    pub(super) fn push_warm(&self, class: ClassIndex, address: usize) -> bool {
        let pushed = self.push(class, address);
        if pushed {
            prefetch_for_writing(address);
        }
        pushed
    }

    /// The slots of a class, from the bottom up, and how many of them are in use. The bottom is where the words begin.
    #[allow(clippy::mut_from_ref)] // the slots are this thread's alone, and it uses them one function at a time
    pub(super) fn slots(&self, class: ClassIndex) -> (&mut [usize], usize) {
        let (start, len) = self.words(class);
        if len == 0 {
            return (&mut [], 0);
        }
        // SAFETY: the words are this thread's; the reference ends before they are used otherwise. `top` lies within.
        unsafe {
            let used = self.top(class).load(Relaxed).offset_from_unsigned(start);
            (slice::from_raw_parts_mut(start.add(1).cast(), len - 2), used)
        }
    }

    /// Where the words of a class are, and how many.
    pub(super) fn words(&self, class: ClassIndex) -> (*mut AtomicUsize, usize) {
        (self.starts[class.get()].load(Relaxed), self.lens[class.get()].load(Relaxed).into())
    }

    /// Where the bottom of a class is.
    pub(super) fn bottom(&self, class: ClassIndex) -> usize {
        self.bottoms[class.get()].load(Relaxed).into()
    }

    pub(super) fn set_used(&self, class: ClassIndex, used: usize) {
        let (start, len) = self.words(class);
        debug_assert!(used < len);
        // SAFETY: `used` is at most the number of slots, which follow the bottom.
        self.top(class).store(unsafe { start.add(used) }, Relaxed);
    }

    /// Moves the stack of a class to `len` of the cache's words, at least as many as it has.
    pub(super) fn move_to(&self, class: ClassIndex, len: usize, words: &Words) -> bool {
        let Some(new) = words.alloc(len) else { return false };
        let new = new.as_ptr();
        let (old, used) = self.slots(class);
        // SAFETY: the new words are zeroed, so no free slot holds `LID`; the slots in use fit.
        unsafe {
            new.write(BOTTOM);
            new.add(len - 1).write(LID);
            new.add(1).copy_from_nonoverlapping(old.as_ptr(), used);
        }
        self.drop_words(class, words);
        self.starts[class.get()].store(new.cast(), Relaxed);
        self.lens[class.get()].store(len as u16, Relaxed);
        self.set_used(class, used);
        true
    }

    /// Gives every block back to its page.
    pub(super) fn flush(&self, heap: &Heap<BuildGeometry>) {
        for class in classes() {
            let (slots, used) = self.slots(class);
            put_slots(heap, class, &mut slots[..used]);
            if used > 0 {
                self.set_used(class, 0);
            }
        }
    }

    /// Gives the words of a class back, whatever is in them.
    pub(super) fn drop_words(&self, class: ClassIndex, words: &Words) {
        let (start, len) = self.words(class);
        self.top(class).store(&raw const NO_STACK as *mut AtomicUsize, Relaxed);
        self.lens[class.get()].store(0, Relaxed);
        if let Some(start) = NonNull::new(start.cast()) {
            // SAFETY: the words were allocated with this length, and nothing leads to them any more.
            unsafe { words.free(start, len) };
        }
        self.starts[class.get()].store(ptr::null_mut(), Relaxed);
    }

    /// Blocks held, as another thread may count them: near the truth while the owner is at work.
    pub(super) fn held(&self, class: ClassIndex) -> usize {
        let (start, len) = self.words(class);
        let bottom = start.wrapping_add(self.bottom(class)).addr();
        let used = self.top(class).load(Relaxed).addr().wrapping_sub(bottom) / size_of::<usize>();
        if !start.is_null() && used < len { used } else { 0 }
    }

    /// Calls `each` with the addresses of the blocks held. For the owner, or who has closed the gate: then the owner may push
    /// meanwhile, and no more.
    pub(super) fn for_each_held(&self, class: ClassIndex, mut each: impl FnMut(usize)) {
        let (start, bottom) = (self.words(class).0, self.bottom(class));
        for at in bottom..bottom + self.held(class) {
            // SAFETY: the words of the stack stay while the owner is not on a slow path, and so many of them are in use.
            each(unsafe { (*start.add(at + 1)).load(Relaxed) } & !FLAGS);
        }
    }
}

/// All classes.
pub(super) fn classes() -> impl DoubleEndedIterator<Item = ClassIndex> {
    (1..CLASS_COUNT).map(|class| ClassIndex(class as u8))
}
