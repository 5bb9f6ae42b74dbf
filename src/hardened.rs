//! The feature `hardened`: what the process heap does beyond the default to stop misuse early, and to make it hard to
//! turn to account.
//!
//! | measure | where |
//! |---|---|
//! | every block has a byte that says whether the program holds it: a block freed twice, by a pointer into its middle, or resized after it was freed, is seen at the call | [`HELD`] |
//! | freed blocks are filled with zeros, the first [`FILLED`] bytes of each or all, and must hold nothing else when they are handed out | [`wipe`], [`hand_out`] |
//! | a block that was freed, or is of a fresh page, waits among others, of which a random one is handed out | `ThreadCache::pop` |
//! | pages that cannot be touched lie around every run, and between groups of Divided pages; a freed run waits before its pages are used again | `heap/guards.rs`, `heap/quarantine.rs` |

use crate::fault;
use crate::heap::Heap;
use crate::options::Options;
use crate::page_table::Misuse;
use crate::size_class::{BuildGeometry, GRANULE, Geometry as _, SizeClasses, built, may_begin_at};
use crate::sys;
use crate::units::{ClassIndex, PageIndex};
use core::cell::Cell;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering::Relaxed};

/// Of a freed block, so many bytes are filled, and looked at when it is handed out, unless all of it is to be zeroed.
const FILLED: usize = 128;

/// A byte for each block of each page, by its number in the page: whether the program holds it. It is read and written
/// without a lock: of two threads that free one block at the very same time, neither may see it, and then the block is
/// seen when it is handed out for the second time.
static HELD: AtomicPtr<AtomicU8> = AtomicPtr::new(ptr::null_mut());
/// Most blocks in a page.
const BYTES_PER_PAGE: usize = built::PAGE_SIZE / GRANULE;

/// Bytes of the reservation that these begin, of which those of the pages up to the frontier are committed.
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// A byte for each page: how it is [covered](Cover). They lie behind the others.
static COVERED: AtomicPtr<AtomicU8> = AtomicPtr::new(ptr::null_mut());

/// What follows the mark in a block is looked at in words.
type Word = u64;

/// So many words of a freed block are filled, the mark included.
static FILLED_WORDS: AtomicUsize = AtomicUsize::new(FILLED / size_of::<Word>());

/// How it is that a page cannot be touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Cover {
    /// It can.
    None = 0,
    /// By a note in the system's page table.
    Noted,
    /// By a mapping of its own.
    Mapped,
}

/// Makes the tables for a heap before it is published. False if the system refuses.
pub(crate) fn prepare(heap: &Heap<BuildGeometry>, options: &Options) -> bool {
    let pages = heap.pages().get();
    let [held_bytes, covered_bytes] = [pages * BYTES_PER_PAGE, pages].map(in_os_pages);
    let Some(held) = sys::reserve_tables(held_bytes + covered_bytes) else { return false };
    // SAFETY: both parts lie within the reservation, which is new.
    let (covered, committed) = unsafe {
        let all = held_bytes + covered_bytes;
        (held.add(held_bytes), sys::commit_part(held, all, held_bytes..all))
    };
    if !committed {
        // SAFETY: nobody has it.
        unsafe { sys::unmap(held, held_bytes + covered_bytes) };
        return false;
    }
    RESERVED.store(held_bytes + covered_bytes, Relaxed);
    HELD.store(held.cast().as_ptr(), Relaxed);
    COVERED.store(covered.cast().as_ptr(), Relaxed);
    if options.zero_on_free {
        FILLED_WORDS.store(usize::MAX, Relaxed);
    }
    commit(0..heap.frontier().get())
}

/// Has the bytes of the blocks of so many pages be there. False if the system refuses.
pub(crate) fn commit(pages: Range<usize>) -> bool {
    let start = pages.start * BYTES_PER_PAGE / sys::page_size() * sys::page_size();
    let end = in_os_pages(pages.end * BYTES_PER_PAGE);
    // SAFETY: what is committed of the reservation stays as it is.
    start == end
        || NonNull::new(HELD.load(Relaxed).cast())
            .is_some_and(|held| unsafe { sys::commit_part(held, RESERVED.load(Relaxed), start..end) })
}

/// Bytes of so many in whole OS pages.
fn in_os_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(sys::page_size())
}

/// Where the tables for the first so many pages are, in whole OS pages: start and length in bytes.
pub(crate) fn tables_in_use(pages: usize) -> [(usize, usize); 2] {
    [
        (HELD.load(Relaxed).addr(), in_os_pages(pages * BYTES_PER_PAGE)),
        (COVERED.load(Relaxed).addr(), in_os_pages(pages)),
    ]
}

/// Bytes of the [tables](tables_in_use) for `committed` bytes of pages.
pub(crate) fn table_bytes(committed: usize) -> usize {
    tables_in_use(committed / BuildGeometry.page_size()).iter().map(|(_, bytes)| bytes).sum()
}

/// Whether all of what is freed is to be zeroed.
pub(crate) fn zeroes_freed() -> bool {
    FILLED_WORDS.load(Relaxed) == usize::MAX
}

/// Whether there are tables.
pub(crate) fn is_prepared() -> bool {
    !COVERED.load(Relaxed).is_null()
}

/// How `page` is covered. The runs are locked, and there are tables.
pub(crate) fn cover_of(page: PageIndex) -> &'static AtomicU8 {
    // SAFETY: every page of the arena has a byte.
    unsafe { &*COVERED.load(Relaxed).add(page.get()) }
}

/// The byte of the block of `class` that begins at `address`, in the arena that begins at `base`.
#[inline(always)]
fn held(base: usize, class: ClassIndex, address: usize) -> &'static AtomicU8 {
    debug_assert!(may_begin_at(class, address));
    let page = address.wrapping_sub(base) / built::PAGE_SIZE;
    let number = SizeClasses::BUILD.divide(address % built::PAGE_SIZE, class);
    // SAFETY: the address is in a Divided page, and these have as many bytes as there can be blocks.
    unsafe { &*HELD.load(Relaxed).add(page * BYTES_PER_PAGE + number) }
}

/// Notes that the program holds the block at `address`, which is handed out. If it is `wiped`, it ends the process
/// unless the block still is.
#[inline(always)]
pub(crate) fn hand_out(base: usize, class: ClassIndex, address: usize, wiped: bool) {
    let held = held(base, class, address);
    if held.load(Relaxed) != 0 || (wiped && !is_wiped(class, address)) {
        refuse_to_hand_out(address);
    }
    held.store(1, Relaxed);
}

/// Notes that the program gives the block at `address`, where one may begin, back, and wipes it. Ends the process unless
/// the program holds it.
#[inline(always)]
pub(crate) fn take_back(base: usize, class: ClassIndex, address: usize) {
    let held = held(base, class, address);
    if held.load(Relaxed) == 0 {
        refuse(address);
    }
    held.store(0, Relaxed);
    wipe(class, address);
}

/// Ends the process unless the program holds a block that begins at `address`, if it is to be one of `class`, and not a
/// run.
pub(crate) fn expect_live(heap: &Heap<BuildGeometry>, class: ClassIndex, address: usize) {
    if class == ClassIndex::NONE {
        return;
    }
    heap.tag_for_free(address, class);
    if !may_begin_at(class, address) {
        heap.refuse(Misuse::NotAtStart, address);
    }
    if held(heap.start().addr(), class, address).load(Relaxed) == 0 {
        refuse(address);
    }
}

/// Fills a block with zeros, but for its first word, which is for the mark.
#[inline(always)]
pub(crate) fn wipe(class: ClassIndex, address: usize) {
    let (start, words) = contents(class, address);
    // SAFETY: the words are in the block, whose owner gave it up.
    unsafe { start.write_bytes(0, words) };
}

#[inline(always)]
fn is_wiped(class: ClassIndex, address: usize) -> bool {
    let (start, words) = contents(class, address);
    // SAFETY: the words are in the block, which nobody holds; who writes there all the same may be seen or not. All are
    // read, as they are seldom found written.
    (0..words).fold(0, |all, at| all | unsafe { start.add(at).read_volatile() }) == 0
}

/// Where what is filled of a block begins, and how many words it has: the first one is left out.
#[inline(always)]
fn contents(class: ClassIndex, address: usize) -> (*mut Word, usize) {
    // SAFETY: class indices are below the number of classes.
    let block = unsafe { *built::BLOCK_SIZES.get_unchecked(class.get()) } as usize;
    let words = (block / size_of::<Word>()).min(FILLED_WORDS.load(Relaxed));
    (ptr::with_exposed_provenance_mut(address + size_of::<Word>()), words - 1)
}

/// Ends the process, as the block at `address`, which is to be handed out, is not as it was left.
#[cold]
#[inline(never)]
pub(crate) fn refuse_to_hand_out(address: usize) -> ! {
    end(Misuse::UsedSinceFreed, address)
}

/// Ends the process, as the block at `address`, which is being freed or resized, is not one that the program holds.
#[cold]
#[inline(never)]
fn refuse(address: usize) -> ! {
    end(Misuse::AlreadyFree, address)
}

fn end(misuse: Misuse, address: usize) -> ! {
    match crate::global::heap() {
        Some(heap) => heap.refuse(misuse, address),
        None => fault::misuse(misuse, address, None),
    }
}

/// Random numbers of one thread, begun by the system: the upper half of a linear congruence with Knuth's multiplier.
/// They need not be good, only unknown to those who write a program's input.
pub(crate) struct Random(Cell<u64>);

impl Random {
    /// Numbers for nobody.
    #[allow(clippy::declare_interior_mutable_const)] // copied into statics
    pub(crate) const NONE: Random = Random(Cell::new(0));

    pub(crate) fn new() -> Random {
        Random(Cell::new(sys::random()))
    }

    /// A number below `bound`, which is not zero and fits into 32 bits.
    #[inline(always)]
    pub(crate) fn below(&self, bound: usize) -> usize {
        let number = self.0.get();
        self.0.set(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
        (((number >> 32) * bound as u64) >> 32) as usize
    }
}
