//! How large a thread's cache may be: bytes and words of each stack and of all, when a stack grows, and when it goes.

use super::ThreadCache;
use super::idle::IDLE;
use super::registry::share;
use super::stacks::{Stacks, classes, put_slots};
use crate::guarded;
use crate::heap::Heap;
use crate::metadata;
use crate::page_table::Tag;
use crate::size_class::{BuildGeometry, SizeClasses};
use crate::units::{ClassIndex, ComponentIndex};
use static_assertions::const_assert;

/// A stack holds no more bytes of blocks than this, nor more slots than [`USUAL_WORDS`] leaves.
const USUAL_BYTES: usize = 64 << 10;
/// The same for a stack of blocks for other shards: a thread that only takes over and frees what others allocate fills
/// them all, and has no use for what is in them.
const REMOTE_BYTES: usize = 8 << 10;
/// A stack that is found empty grows to no more than this, or [`REFILL_WORDS`] if these are more, so that a batch is half as
/// much. Beyond it grows only what overflows, as its thread frees what it allocates: if others do, or nobody does for long,
/// each block of a batch is used once, and those that wait for their turn are that much memory.
const REFILL_BYTES: usize = 16 << 10;
const REFILL_WORDS: usize = 64;
/// [`USUAL_BYTES`] of a stack of [`SMALL`] blocks that was empty since it last overflowed, and overflows again: its thread
/// takes and frees more blocks in turn than the stack holds. It may then have [`MOST_WORDS`], too.
const MOST_BYTES: usize = 1 << 20;
/// The same for a stack of larger blocks, which has no more than [`USUAL_WORDS`].
const MOST_LARGE_BYTES: usize = 256 << 10;
/// Bytes of the largest small block.
const SMALL: usize = 1024;
/// All stacks of a cache together have slots for no more bytes of blocks than this, beside the first few of each small
/// class.
pub(super) const CACHE_BYTES: usize = 3 << 20;
/// The first slots of a class are exempt from the cache's bound if their blocks have no more bytes than this; in a
/// component's cache always.
const EXEMPT_BYTES: usize = 4 << 10;
/// Words of a stack, the two at its ends included: powers of two.
const FIRST_WORDS: usize = 8;
const LEAST_WORDS: usize = 4;
pub(super) const USUAL_WORDS: usize = 512;
const MOST_WORDS: usize = 2048;
/// A large stack is halved by so many slots more: words copied by exactly a multiple of 4 KiB look to the processor like
/// the ones just written (4K aliasing).
pub(super) const ALIASING_SLOTS: usize = 16;
/// Words that a stack of blocks for other shards grows to on account of components.
const COMPONENT_WORDS: usize = 32;

const_assert!(LEAST_WORDS <= FIRST_WORDS && FIRST_WORDS <= COMPONENT_WORDS && COMPONENT_WORDS <= USUAL_WORDS);
const_assert!(REFILL_BYTES <= USUAL_BYTES && REFILL_WORDS <= USUAL_WORDS);
const_assert!(USUAL_WORDS <= MOST_WORDS && MOST_WORDS < IDLE as usize);
const_assert!(MOST_WORDS * size_of::<usize>() <= metadata::MOST);

/// The most words a stack of `class` grows to, as it holds no more than so many bytes of blocks, nor more words.
fn most_words(class: ClassIndex, bytes: usize, words: usize) -> usize {
    let slots = bytes / SizeClasses::BUILD.block(class);
    (1 << (slots + 2).ilog2()).clamp(LEAST_WORDS, words)
}

impl ThreadCache {
    /// The most words that the local stack of a class grows to, as it is found empty, of which note is taken.
    pub(super) fn bound_when_empty(&self, class: ClassIndex) -> usize {
        self.was_empty[class.get()].set(true);
        let usual = most_words(class, USUAL_BYTES, USUAL_WORDS);
        // There a stack counts as empty with up to 16 blocks left, to choose from: a small batch would bring few more.
        if cfg!(feature = "hardened") {
            return usual;
        }
        most_words(class, REFILL_BYTES, USUAL_WORDS).max(REFILL_WORDS).min(usual)
    }

    /// The most words of the stack that a block of `tag` goes to, which overflows: that it does is taken note of. Blocks of
    /// components that wait to go home are held by them all the while, so they do not wait for many others.
    pub(super) fn bound_on_overflow(&self, tag: Tag) -> usize {
        let class = tag.class();
        if tag.shard() != self.shard {
            let of_component = tag.shard().component() != ComponentIndex::NONE;
            most_words(class, REMOTE_BYTES, if of_component { COMPONENT_WORDS } else { USUAL_WORDS })
        } else if self.was_empty[class.get()].replace(false)
            // What is to be guarded is chosen among those that are not in the cache.
            && guarded::are_off()
        {
            let is_small = SizeClasses::BUILD.block(class) <= SMALL;
            let (bytes, words) =
                if is_small { (MOST_BYTES, MOST_WORDS) } else { (MOST_LARGE_BYTES, USUAL_WORDS) };
            most_words(class, bytes, words)
        } else {
            most_words(class, USUAL_BYTES, USUAL_WORDS)
        }
    }

    /// Doubles the stack of a class, up to `most` words, if the bound of the cache allows.
    pub(super) fn grow(&self, stacks: &Stacks, class: ClassIndex, most: usize) -> bool {
        let (_, old) = stacks.words(class);
        let new = if old == 0 { FIRST_WORDS.min(most) } else { old * 2 };
        let more = (new - old) * SizeClasses::BUILD.block(class);
        if new > most
            || ((old != 0 || (more > EXEMPT_BYTES && self.component() == ComponentIndex::NONE))
                && self.slot_bytes.get() + more > self.most_bytes.min(share()))
            || !stacks.move_to(class, new, &self.words)
        {
            return false;
        }
        self.slot_bytes.set(self.slot_bytes.get() + more);
        debug_assert_eq!(self.slot_bytes.get(), self.bytes_of_slots());
        true
    }

    /// What [`slot_bytes`](Self::slot_bytes) is to be; the words at the ends of stacks are counted as slots.
    fn bytes_of_slots(&self) -> usize {
        let both = classes().flat_map(|class| [(&self.local, class), (&self.remote, class)]);
        both.map(|(stacks, class)| stacks.words(class).1 * SizeClasses::BUILD.block(class)).sum()
    }

    /// Empties the stacks that are as full as they were a period ago, which were hardly used meanwhile, and gives
    /// their words back. If the others have slots for more bytes than the cache may have by now, as there are more
    /// caches, so it does with those of the largest blocks.
    #[cold]
    pub(super) fn shrink(&self, heap: &Heap<BuildGeometry>) {
        for stacks in [&self.local, &self.remote] {
            for class in classes() {
                let held = stacks.slots(class).1 as u16;
                let then = stacks.held_then[class.get()].replace(held);
                // Who has looked from outside has noted what was idle.
                if then == IDLE || (then == held && self.looked_at.get() != self.passes.get()) {
                    self.empty(stacks, class, heap);
                }
            }
        }
        let most = self.most_bytes.min(share());
        let both = classes().rev().flat_map(|class| [(&self.remote, class), (&self.local, class)]);
        for (stacks, class) in both {
            if self.slot_bytes.get() <= most {
                break;
            }
            self.empty(stacks, class, heap);
        }
    }

    /// Gives the blocks of a stack back to their pages, and its words.
    fn empty(&self, stacks: &Stacks, class: ClassIndex, heap: &Heap<BuildGeometry>) {
        let (slots, used) = stacks.slots(class);
        if !slots.is_empty() {
            let bytes = (slots.len() + 2) * SizeClasses::BUILD.block(class);
            put_slots(heap, class, &mut slots[..used]);
            stacks.drop_words(class, &self.words);
            stacks.held_then[class.get()].set(0);
            self.slot_bytes.set(self.slot_bytes.get() - bytes);
            debug_assert_eq!(self.slot_bytes.get(), self.bytes_of_slots());
        }
    }
}
