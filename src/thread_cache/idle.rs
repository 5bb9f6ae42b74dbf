//! What waits in the caches of threads that do not come by a slow path, as they are asleep: others take it.
//!
//! `purge()` takes from all caches what can be taken. The passes of [`decay`] take what did not change for a whole period, as
//! each thread does with its own on its slow paths. Whoever takes closes the [gate](super::gate) of the cache, which its thread
//! goes through on slow paths; if it finds the thread inside, it leaves that cache alone. How blocks are taken while the thread
//! may be on a fast path is said in [raise](super::raise): all but one of each class. With the feature `hardened`, where a pop
//! reads and writes anywhere near the top, all pops and pushes go through the gate, and nothing is left.
//!
//! The words of a stack stay with its thread, which on its next slow path moves what it has pushed since down to their beginning.

use super::fast::BOTTOM;
use super::raise::Raise;
use super::registry::{TAKER, registry};
use super::stacks::{Stacks, classes, put_slots};
use super::{ThreadCache, apart, has_heap_lock};
use crate::decay;
use crate::heap::{Heap, Unused};
use crate::size_class::{BuildGeometry, SizeClasses};
use crate::sys;
use crate::tls;
use crate::units::ClassIndex;
use core::cell::Cell;
use core::ptr;
use core::slice;
use core::sync::atomic::Ordering::Relaxed;

/// Stands for the number of blocks that a stack held at the last pass, if that was what it had held before: then it was idle.
pub(super) const IDLE: u16 = u16::MAX;
/// The most that others leave in a stack.
const LEFT: u16 = 1;
/// Stacks that are raised between the same two fences.
const AT_ONCE: usize = 32;

/// Takes what it can from all caches, of a kind. Returns how many bytes of blocks that were.
pub(crate) fn take_from_all(heap: &Heap<BuildGeometry>, kind: Unused) -> usize {
    registry().begin_walk(kind);
    let mut bytes = 0;
    while let Some(taken) = take_from_next(heap, kind) {
        bytes += taken;
    }
    bytes
}

/// Takes what is idle from the next few caches, or begins anew with the first.
pub(crate) fn take_from_some(heap: &Heap<BuildGeometry>, most: usize) {
    if !(0..most).all(|_| take_from_next(heap, Unused::Idle).is_some()) {
        registry().begin_walk(Unused::Idle);
    }
}

/// Takes what it can from the next cache, if there is one. A signal handler meanwhile finds no cache of its thread.
fn take_from_next(heap: &Heap<BuildGeometry>, kind: Unused) -> Option<usize> {
    let own = tls::get();
    apart(|| {
        let _taker = TAKER.lock_before(has_heap_lock);
        let mut registry = registry();
        let cache = registry.next_on_walk(kind)?;
        if ptr::eq(cache, own) || cache.has_nothing() || !cache.gate.close() {
            return Some(0);
        }
        let cache = ptr::from_ref(cache);
        drop(registry);
        // SAFETY: the cache stays in the registry: its thread takes it out behind the gate, which is closed.
        let cache = unsafe { &*cache };
        let bytes = cache.flush_from_outside(heap, kind);
        cache.gate.open();
        Some(bytes)
    })
}

impl ThreadCache {
    /// How many blocks stay in each of these stacks: one that the thread may be about to pop, if it does so on a fast path.
    fn left_of(&self, stacks: &Stacks) -> usize {
        let is_popped = ptr::eq(stacks, &self.local);
        usize::from(is_popped && !cfg!(any(feature = "hardened", pma_unchecked = "top")))
    }

    fn stacks(&self) -> impl Iterator<Item = (&Stacks, ClassIndex)> {
        [&self.local, &self.remote].into_iter().flat_map(|stacks| classes().map(move |class| (stacks, class)))
    }

    /// Whether nothing can be taken from it, as far as can be seen from outside.
    fn has_nothing(&self) -> bool {
        self.kept_pages().0 == 0
            && self.stacks().all(|(stacks, class)| stacks.held(class) <= self.left_of(stacks))
    }

    /// Gives what it can of a kind back to its pages, for another thread, which has closed the gate. Returns how many bytes of
    /// blocks that were.
    fn flush_from_outside(&self, heap: &Heap<BuildGeometry>, kind: Unused) -> usize {
        let pass = decay::passes();
        if kind == Unused::Idle {
            if self.passes.get() == pass || self.looked_at.get() == pass {
                return 0;
            }
            self.looked_at.set(pass);
        }
        let bytes = Cell::new(self.give_up_runs(heap));
        let count = |class, taken| bytes.set(bytes.get() + taken * SizeClasses::BUILD.block(class));
        let wanted = self.stacks().filter(|&(stacks, class)| {
            !stacks.words(class).0.is_null() && (kind == Unused::All || stacks.is_idle(class))
        });
        let mut begun = wanted.filter_map(|(stacks, class)| {
            if cfg!(feature = "hardened") {
                count(class, stacks.take_behind_gate(class, heap));
                return None;
            }
            let bottom = stacks.words(class).0.wrapping_add(stacks.bottom(class));
            // SAFETY: the gate is closed. `top` leads to a word of the stack, which has words; those of which nothing
            // is left are not popped.
            let raise = unsafe { Raise::begin(stacks.top(class), bottom, self.left_of(stacks)) }?;
            Some((stacks, class, raise))
        });
        loop {
            let mut raises: [_; AT_ONCE] = core::array::from_fn(|_| None);
            for (place, raise) in raises.iter_mut().zip(&mut begun) {
                *place = Some(raise);
            }
            if raises[0].is_none() {
                return bytes.get();
            }
            let mut fenced = sys::fence_all_threads();
            raises.iter_mut().flatten().for_each(|(_, _, raise)| raise.look());
            fenced &= sys::fence_all_threads();
            for (stacks, class, raise) in raises.iter().flatten() {
                if fenced && raise.is_done() {
                    self.raised.set(true);
                    // SAFETY: the gate is closed, and the raise is done.
                    count(*class, unsafe { stacks.take_below(raise, *class, heap) });
                } else {
                    raise.undo();
                }
            }
        }
    }
}

impl Stacks {
    /// Whether a stack holds what it held at the last pass, or was idle then; takes note of it. So its words will go, too,
    /// when its thread comes by a slow path.
    fn is_idle(&self, class: ClassIndex) -> bool {
        let held = self.held(class) as u16;
        let then = &self.held_then[class.get()];
        // What others took stays idle until there is more in it again.
        let idle = then.get() == held || (then.get() == IDLE && held <= LEFT);
        then.set(if idle { IDLE } else { held });
        idle
    }

    /// Gives the blocks of a stack that is only used behind the gate back to their pages. Returns how many.
    fn take_behind_gate(&self, class: ClassIndex, heap: &Heap<BuildGeometry>) -> usize {
        let (slots, used) = self.slots(class);
        put_slots(heap, class, &mut slots[..used]);
        self.set_used(class, 0);
        used
    }

    /// Gives the blocks up to the new bottom of a stack back to their pages. Returns how many.
    ///
    /// # Safety
    /// The caller has closed the gate of the cache, and has [raised](Raise) the bottom of this stack.
    unsafe fn take_below(&self, raise: &Raise<'_>, class: ClassIndex, heap: &Heap<BuildGeometry>) -> usize {
        let start = self.words(class).0;
        let old = start.wrapping_add(self.bottom(class)).cast::<usize>();
        // SAFETY: the new bottom is one of the stack's words, above the old one. Those below it are the caller's.
        unsafe {
            let taken = raise.slot().cast::<usize>().offset_from_unsigned(old);
            // The block of the new bottom takes the place of the old one.
            old.write(raise.block());
            put_slots(heap, class, slice::from_raw_parts_mut(old, taken));
            // The lowest is the bottom again once the stack is moved; a signal handler may look at the highest.
            slice::from_raw_parts_mut(old, taken).fill(BOTTOM);
            let new = raise.slot().offset_from_unsigned(start.cast_const());
            self.bottoms[class.get()].store(new as u16, Relaxed);
            taken
        }
    }

    /// Moves what is in raised stacks down to where their words begin.
    pub(super) fn lower(&self) {
        for class in classes().filter(|&class| self.bottom(class) > 0) {
            let words = self.words(class).0.cast::<usize>();
            let top = self.top(class).load(Relaxed).cast::<usize>();
            let bottom = words.wrapping_add(self.bottom(class));
            // A pop that a signal handler has interrupted may have left the top below.
            let used = top.addr().saturating_sub(bottom.addr()) / size_of::<usize>();
            // SAFETY: the slots in use lie between bottom and top, and the caller is alone.
            unsafe { words.add(1).copy_from(bottom.add(1), used) };
            self.bottoms[class.get()].store(0, Relaxed);
            self.set_used(class, used);
        }
    }
}
