//! The feature `hardened`: what the process heap does beyond the default to stop misuse early, and to make it hard to
//! turn to account.
//!
//! | measure | where |
//! |---|---|
//! | every block has a bit that says whether the program holds it: a block freed twice, by a pointer into its middle, or resized after it was freed, is seen at the call | [`LIVE`] |
//! | freed blocks are filled with zeros, and must hold nothing else when they are handed out | [`wipe`], [`hand_out`] |
//! | a freed block waits among others, of which a random one is handed out | `ThreadCache::pop` |
//! | the blocks of a page are handed out in random order, a batch at a time | [`Random::shuffle`] |
//! | a page that cannot be touched follows every run | `heap/large.rs` |

use crate::fault;
use crate::heap::Heap;
use crate::page_table::Misuse;
use crate::size_class::{BuildGeometry, GRANULE, Geometry, SizeClasses};
use crate::sys;
use crate::units::ClassIndex;
use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

/// For every granule of the arena a bit: whether a block that the program holds begins there.
static LIVE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// What follows the mark in a block is looked at in words.
type Word = u64;

/// Makes the bits for a heap of so many bytes, before it is published. False if the system refuses.
pub(crate) fn prepare(heap: &Heap<BuildGeometry>) -> bool {
    let words = heap.reserved_bytes().div_ceil(GRANULE * u64::BITS as usize);
    let bits = sys::map_zeroed((words * size_of::<u64>()).next_multiple_of(sys::page_size()));
    LIVE.store(bits.map_or(ptr::null_mut(), |bits| bits.cast().as_ptr()), Relaxed);
    bits.is_some()
}

/// The bit of the granule that `address` lies in, and the word it is in.
fn bit(heap: &Heap<BuildGeometry>, address: usize) -> (&'static AtomicU64, u64) {
    let granule = (address - heap.start().addr()) / GRANULE;
    let at = granule / u64::BITS as usize;
    // SAFETY: every granule of the arena has a bit, and the address is in the arena.
    (unsafe { &*LIVE.load(Relaxed).add(at) }, 1 << (granule % u64::BITS as usize))
}

/// Notes that the program holds the block at `address`, which is handed out. If it is `wiped`, it ends the process
/// unless the block still is.
pub(crate) fn hand_out(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize, wiped: bool) {
    if wiped && !contents(class, address).iter().all(|&word| word == 0) {
        heap.refuse_unmarked(address);
    }
    let (word, bit) = bit(heap, address);
    if word.fetch_or(bit, Relaxed) & bit != 0 {
        heap.refuse_unmarked(address);
    }
}

/// Ends the process unless the program holds a block that begins at `address`, if it is to be one of `class`, and not a
/// run.
pub(crate) fn expect_live(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize) {
    if class == ClassIndex::NONE {
        return;
    }
    heap.tag_for_free(address, class);
    let (word, bit) = bit(heap, address);
    if !address.is_multiple_of(GRANULE) || word.load(Relaxed) & bit == 0 {
        refuse(heap, class, address);
    }
}

/// Notes that the program gives the block at `address` back, and wipes it. Ends the process unless it holds a block
/// that begins there.
pub(crate) fn take_back(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize) {
    let (word, bit) = bit(heap, address);
    if !address.is_multiple_of(GRANULE) || word.fetch_and(!bit, Relaxed) & bit == 0 {
        refuse(heap, class, address);
    }
    wipe(class, address);
}

/// Fills a block with zeros, but for its first word, which is for the mark.
pub(crate) fn wipe(class: ClassIndex, address: usize) {
    contents(class, address).fill(0);
}

/// A block that nobody holds, without its first word.
fn contents<'a>(class: ClassIndex, address: usize) -> &'a mut [Word] {
    let words = SizeClasses::BUILD.block(class) / size_of::<Word>();
    // SAFETY: a block of that class begins at the address, whose owner gave it up or is yet to get it.
    unsafe {
        let start = NonNull::new_unchecked(ptr::with_exposed_provenance_mut::<Word>(address));
        NonNull::slice_from_raw_parts(start.add(1), words - 1).as_mut()
    }
}

#[cold]
fn refuse(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize) -> ! {
    let offset = (address - heap.start().addr()) & (BuildGeometry.page_size() - 1);
    let at_start = offset.is_multiple_of(SizeClasses::BUILD.block(class));
    let state = heap.table().page_of(address).map(|page| heap.page_state(page));
    fault::misuse(if at_start { Misuse::AlreadyFree } else { Misuse::NotAtStart }, address, state)
}

/// Random numbers of one thread: Marsaglia's xorshift, begun by the system. They need not be good, only unknown to
/// those who write a program's input.
pub(crate) struct Random(Cell<u64>);

impl Random {
    /// Numbers for nobody.
    #[allow(clippy::declare_interior_mutable_const)] // copied into statics
    pub(crate) const NONE: Random = Random(Cell::new(0));

    pub(crate) fn new() -> Random {
        Random(Cell::new(sys::random() | 1))
    }

    fn next(&self) -> u64 {
        let mut number = self.0.get();
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        self.0.set(number);
        number
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    pub(crate) fn shuffle(&self, slots: &mut [usize]) {
        for last in (1..slots.len()).rev() {
            slots.swap(last, self.below(last + 1));
        }
    }
}
