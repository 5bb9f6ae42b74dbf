//! Guarded blocks: of the allocations of a program in production, a few that trap when they are misused.
//!
//! About one allocation in so many (`PMA_GUARD_SAMPLE`) is placed in a *slot* of a mapping of its own, such that its end
//! meets an OS page that cannot be touched, as far as its alignment allows. When it is freed, the slot cannot be touched
//! either, and is reused after all others. So an overflow, or a use after free, of such a block is a fault at the
//! instruction that did it; the handler of that signal writes one line that says what was allocated there, and leaves
//! the rest to whoever handled the signal before. The idea, and that it is sampling which makes it affordable, are those
//! of GWP-ASan (<https://llvm.org/docs/GwpAsan.html>).
//!
//! What lies around a block in its own OS pages is filled, and looked at when the block is freed: a few bytes written
//! before it, or into what its alignment leaves behind it, are found then.
//!
//! # What it costs the others
//! Nothing on a fast path. Allocations are counted on slow paths, a refill of a thread's cache as so many blocks. The
//! pool is outside the arena, so a guarded block that is freed has no page that the thread's cache could expect.
//!
//! # States of a slot
//! | state | its memory | next |
//! |---|---|---|
//! | [`UNUSED`] | cannot be touched | `LIVE`, by [`alloc`] |
//! | [`LIVE`] | the block's pages can be touched | `FREED`, by [`free`] |
//! | [`FREED`] | cannot be touched | `LIVE`, after all slots that were freed before |
//!
//! The records of the slots lie apart. They are changed with the pool locked, and read by a signal handler without.

use crate::component;
use crate::fault;
use crate::heap::Heap;
use crate::line::Line;
use crate::lock::Lock;
use crate::options::Options;
use crate::page_table::Misuse;
use crate::residency::Residency;
use crate::size_class::{BuildGeometry, Geometry};
use crate::sys::{self, signals};
use crate::units::{ClassIndex, ComponentIndex, PageCount};
use core::alloc::Layout;
use core::fmt::{self, Write as _};
use core::mem;
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use static_assertions::const_assert;

/// Guarded blocks at a time.
const SLOTS: usize = 256;
/// Bytes of a slot, between two pages that can never be touched.
const ROOM: usize = 64 << 10;
/// What lies around a block in its OS pages.
const FILL: u8 = 0xA7;

const_assert!(SLOTS <= u16::MAX as usize); // else widen the queue
const_assert!(ROOM.is_multiple_of(64 << 10)); // of every size of OS page

const UNUSED: u32 = 0;
const LIVE: u32 = 1;
const FREED: u32 = 2;

/// One allocation in so many; 0 for none.
static INTERVAL: AtomicU32 = AtomicU32::new(0);
/// Whether it is known that there are none.
static OFF: AtomicBool = AtomicBool::new(false);
/// Allocations until one is due.
static LEFT: AtomicI64 = AtomicI64::new(0);
static RANDOM: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);

/// Address of the first slot; 0 before the first guarded block.
static START: AtomicUsize = AtomicUsize::new(0);
/// Bytes that can be touched.
static TOUCHABLE: AtomicUsize = AtomicUsize::new(0);
static POOL: Lock<Pool> = Lock::new(Pool { waiting: [0; SLOTS], first: 0, len: 0, refused: false });
static RECORDS: [Record; SLOTS] = [const { Record::UNUSED }; SLOTS];

/// The slots that are not live, the one that was freed first in front.
struct Pool {
    waiting: [u16; SLOTS],
    first: usize,
    len: usize,
    /// The system had no addresses for it.
    refused: bool,
}

/// What was allocated last in a slot.
struct Record {
    state: AtomicU32,
    address: AtomicUsize,
    size: AtomicUsize,
    align: AtomicUsize,
    allocated_by: AtomicU32,
    freed_by: AtomicU32,
}

/// Guarded blocks: see [`PageAllocator::guard_sample`](crate::PageAllocator::guard_sample), which has an example.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct GuardedStats {
    /// Those that the program holds.
    pub live_blocks: usize,
    /// The bytes that they were asked for with.
    pub live_bytes: usize,
    /// Resident bytes of the OS pages that they are in.
    pub resident_bytes: usize,
}

/// Begins to count, before the heap is in use.
pub(crate) fn start(options: &Options) {
    INTERVAL.store(options.guard_sample, Relaxed);
    LEFT.store(options.guard_sample.into(), Relaxed);
    OFF.store(options.guard_sample == 0, Relaxed);
}

/// Whether there are no guarded blocks, and will be none. False before the heap is made.
#[inline]
pub(crate) fn are_off() -> bool {
    OFF.load(Relaxed)
}

/// Counts `blocks` that go to a thread's cache.
#[inline]
pub(crate) fn count(blocks: usize) {
    if INTERVAL.load(Relaxed) != 0 {
        LEFT.fetch_sub(blocks as i64, Relaxed);
    }
}

/// Of `blocks` that a thread's cache may take, those until a guarded one is due; one at least.
#[inline]
pub(crate) fn before_next(blocks: usize) -> usize {
    if INTERVAL.load(Relaxed) == 0 { blocks } else { blocks.min(LEFT.load(Relaxed).max(1) as usize) }
}

/// Counts an allocation. True if it is to be a guarded block.
#[inline]
pub(crate) fn is_due() -> bool {
    INTERVAL.load(Relaxed) != 0 && LEFT.fetch_sub(1, Relaxed) <= 1
}

/// Draws the number of allocations until the next one: as many as wanted on average, and no rhythm of the program's.
fn draw() {
    let mut state = RANDOM.load(Relaxed);
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    RANDOM.store(state, Relaxed);
    let twice = 2 * u64::from(INTERVAL.load(Relaxed)).max(1) - 1;
    LEFT.store(1 + ((state >> 16) % twice) as i64, Relaxed);
}

/// Bytes from one slot to the next: a page that cannot be touched lies between the two.
fn stride() -> usize {
    ROOM + sys::page_size()
}

/// Bytes of OS pages that hold guarded blocks.
pub(crate) fn held_bytes() -> usize {
    TOUCHABLE.load(Relaxed)
}

/// Whether `address` is in the pool.
#[inline]
pub(crate) fn holds(address: usize) -> bool {
    let start = START.load(Relaxed);
    start != 0 && address.wrapping_sub(start) < SLOTS * stride()
}

/// Whether `address` is one of a guarded block's, which is in no page of `heap`.
#[inline]
pub(crate) fn is_guarded(heap: &Heap<BuildGeometry>, address: usize) -> bool {
    heap.table().page_of(address).is_none() && holds(address)
}

/// The slot that an address of the pool lies in, or right behind; and where that begins.
fn slot_of(address: usize) -> (&'static Record, usize) {
    let start = START.load(Relaxed);
    let slot = (address - start) / stride();
    (&RECORDS[slot], start + slot * stride())
}

impl Pool {
    /// Reserves the addresses, once. False if the system refuses.
    #[cold]
    fn prepare(&mut self) -> bool {
        let page = sys::page_size();
        let reserved = if self.refused { None } else { sys::reserve(page + SLOTS * stride()) };
        let Some(start) = reserved else {
            self.refused = true;
            return false;
        };
        (self.first, self.len) = (0, SLOTS);
        (0..).zip(&mut self.waiting).for_each(|(slot, waiting)| *waiting = slot);
        START.store(start.addr().get() + page, Relaxed);
        signals::on_fault(report);
        true
    }

    fn take(&mut self) -> Option<usize> {
        if (START.load(Relaxed) == 0 && !self.prepare()) || self.len == 0 {
            return None;
        }
        let slot = self.waiting[self.first];
        (self.first, self.len) = ((self.first + 1) % SLOTS, self.len - 1);
        Some(slot.into())
    }

    fn put(&mut self, slot: usize) {
        self.waiting[(self.first + self.len) % SLOTS] = slot as u16;
        self.len += 1;
    }
}

impl Record {
    /// All zeros, so that the records take no room in the program's file.
    #[allow(clippy::declare_interior_mutable_const)] // copied into the static
    const UNUSED: Record = Record {
        state: AtomicU32::new(UNUSED),
        address: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        align: AtomicUsize::new(0),
        allocated_by: AtomicU32::new(0),
        freed_by: AtomicU32::new(0),
    };

    fn is_live_at(&self, address: usize) -> bool {
        self.state.load(Relaxed) == LIVE && self.address.load(Relaxed) == address
    }

    /// Whether a block of the record may be freed with `layout`: one that a block of the heap would be.
    fn may_have(&self, layout: Layout) -> bool {
        let (size, align) = (self.size.load(Relaxed), self.align.load(Relaxed));
        let Ok(own) = Layout::from_size_align(size, align) else { return false };
        let pages = |layout: Layout| PageCount::holding(layout.size(), BuildGeometry.page_shift());
        let class = BuildGeometry.class_of(layout);
        class == BuildGeometry.class_of(own) && (class != ClassIndex::NONE || pages(layout) == pages(own))
    }

    /// Of the live block, its OS pages, and what lies before it and behind it there.
    fn pages(&self, slot_start: usize) -> Pages {
        let (address, size) = (self.address.load(Relaxed), self.size.load(Relaxed));
        let start = address - address % sys::page_size();
        let end = slot_start + ROOM;
        Pages { start, bytes: end - start, before: address - start, behind: end - (address + size) }
    }
}

/// What can be touched of a slot.
struct Pages {
    start: usize,
    bytes: usize,
    before: usize,
    behind: usize,
}

impl Pages {
    fn start(&self) -> NonNull<u8> {
        let start = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: an address within a mapping is not zero.
        unsafe { NonNull::new_unchecked(start) }
    }

    /// What lies before the block, and behind it.
    fn around(&self) -> [(NonNull<u8>, usize); 2] {
        // SAFETY: both lie within the pages.
        let behind = unsafe { self.start().add(self.bytes - self.behind) };
        [(self.start(), self.before), (behind, self.behind)]
    }

    fn fill(&self) {
        for (start, len) in self.around() {
            // SAFETY: the pages can be touched, and are the block's, who has no business there.
            unsafe { start.write_bytes(FILL, len) };
        }
    }

    /// Whether somebody wrote there.
    fn is_written(&self) -> bool {
        self.around().iter().any(|&(start, len)| {
            // SAFETY: as above; what another thread writes there wrongly may be seen or not.
            unsafe { slice::from_raw_parts(start.as_ptr(), len) }.iter().any(|&byte| byte != FILL)
        })
    }
}

/// A guarded block for `layout`, whose bytes are zero; `None` if there is to be none.
#[cold]
#[inline(never)]
pub(crate) fn alloc(heap: &Heap<BuildGeometry>, layout: Layout) -> Option<*mut u8> {
    let size = layout.size().max(1);
    // What a component holds is counted by pages of its own.
    let fits = size <= ROOM && layout.align() <= sys::page_size();
    if !fits || component::current_component() != ComponentIndex::NONE {
        return None;
    }
    draw();
    if !heap.has_room_for(size.next_multiple_of(sys::page_size())) {
        return None;
    }
    let mut pool = POOL.lock();
    let slot = pool.take()?;
    let slot_start = START.load(Relaxed) + slot * stride();
    let address = (slot_start + ROOM - size) & !(layout.align() - 1);
    let record = &RECORDS[slot];
    // A signal handler is to see the record of a live block, or that it is none.
    record.state.store(UNUSED, Relaxed);
    record.address.store(address, Relaxed);
    record.size.store(size, Relaxed);
    record.align.store(layout.align(), Relaxed);
    let pages = record.pages(slot_start);
    // SAFETY: the pages are of a slot that nobody has.
    if !unsafe { sys::commit(pages.start(), pages.bytes) } {
        pool.put(slot);
        return None;
    }
    pages.fill();
    record.allocated_by.store(sys::thread_number(), Relaxed);
    record.state.store(LIVE, Relaxed);
    TOUCHABLE.fetch_add(pages.bytes, Relaxed);
    Some(ptr::with_exposed_provenance_mut(address))
}

/// Frees the guarded block at `address`, which is in the pool; with `layout`, only if it may be freed with that. Else
/// ends the process.
#[cold]
#[inline(never)]
pub(crate) fn free(address: usize, layout: Option<Layout>) {
    let mut pool = POOL.lock();
    let (record, slot_start) = slot_of(address);
    let pages = record.pages(slot_start);
    let wrong = if !record.is_live_at(address) {
        let at_start = record.address.load(Relaxed) == address;
        Some(if at_start { Misuse::AlreadyFree } else { Misuse::NotAtStart })
    } else if layout.is_some_and(|layout| !record.may_have(layout)) {
        Some(Misuse::WrongLayout)
    } else {
        None
    };
    if wrong.is_some() || pages.is_written() {
        drop(pool);
        match wrong {
            Some(misuse) => end(format_args!("{misuse}"), address, record),
            None => end(format_args!("wrote beyond the ends of a block"), address, record),
        }
    }
    record.freed_by.store(sys::thread_number(), Relaxed);
    record.state.store(FREED, Relaxed);
    TOUCHABLE.fetch_sub(pages.bytes, Relaxed);
    // SAFETY: the pages are the block's, which is given up, and can be touched until they are protected. Where the system
    // refuses that, a use after free goes unnoticed.
    unsafe {
        if !sys::purge(pages.start(), pages.bytes) {
            pages.start().write_bytes(0, pages.bytes);
        }
        sys::protect(pages.start(), pages.bytes);
    }
    pool.put((slot_start - START.load(Relaxed)) / stride());
}

/// Bytes that the guarded block at `address` has room for. Ends the process if there is none.
#[cold]
pub(crate) fn usable_size(address: usize) -> usize {
    let (record, _) = slot_of(address);
    if !record.is_live_at(address) {
        end(format_args!("asked for the size of what is not a block"), address, record);
    }
    record.size.load(Relaxed)
}

/// Reports misuse of a guarded block, and ends the process.
fn end(what: fmt::Arguments<'_>, address: usize, record: &Record) -> ! {
    let mut line = Line::new();
    // Writing to the buffer cannot fail.
    let _ = writeln!(line, "page_memory_allocator: {what}: {address:#x} (guarded: {record})");
    fault::end(&line)
}

/// The block of a record, in words.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, align) = (self.size.load(Relaxed), self.align.load(Relaxed));
        let (address, by) = (self.address.load(Relaxed), self.allocated_by.load(Relaxed));
        write!(f, "a block of {size} bytes, align {align}, at {address:#x}, allocated by thread {by}")?;
        match self.state.load(Relaxed) {
            FREED => write!(f, ", freed by thread {}", self.freed_by.load(Relaxed)),
            _ => Ok(()),
        }
    }
}

/// Says what is, or was, at an address that was touched and cannot be, if it is in the pool. For a signal handler: takes
/// no lock.
fn report(address: usize) {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    // Below the first slot there is a page that cannot be touched, too.
    let first = START.load(Relaxed);
    let is_ours = holds(address) || holds(address.wrapping_add(sys::page_size()));
    if !is_ours || REPORTED.swap(true, Relaxed) {
        return;
    }
    let (mut record, slot) = slot_of(address.max(first));
    // The page between two slots is behind the one, and before the other if its block begins where the slot does.
    if address >= slot + ROOM && record.state.load(Relaxed) != LIVE && holds(slot + stride()) {
        let (above, next) = slot_of(slot + stride());
        let is_beside = above.address.load(Relaxed) < next + sys::page_size();
        if above.state.load(Relaxed) == LIVE && is_beside {
            record = above;
        }
    }
    let block = record.address.load(Relaxed);
    let (state, end) = (record.state.load(Relaxed), block + record.size.load(Relaxed));
    let mut line = Line::new();
    // A line that is too long is cut off.
    let _ = match state {
        UNUSED => writeln!(
            line,
            "page_memory_allocator: touched {address:#x}, among guarded blocks, where none was"
        ),
        FREED => {
            writeln!(line, "page_memory_allocator: use after free at {address:#x}: {record}")
        }
        _ if address < block => writeln!(
            line,
            "page_memory_allocator: underflow at {address:#x}, {} bytes before {record}",
            block - address
        ),
        // It was executed, for one.
        _ if address < end => writeln!(line, "page_memory_allocator: fault at {address:#x}, in {record}"),
        _ => writeln!(
            line,
            "page_memory_allocator: overflow at {address:#x}, {} bytes past {record}",
            address - end
        ),
    };
    line.report();
}

/// What guarded blocks there are.
pub(crate) fn stats(residency: &mut Residency) -> GuardedStats {
    let mut stats = GuardedStats::default();
    let start = START.load(Relaxed);
    if start == 0 {
        return stats;
    }
    for record in RECORDS.iter().filter(|record| record.state.load(Relaxed) == LIVE) {
        stats.live_blocks += 1;
        stats.live_bytes += record.size.load(Relaxed);
    }
    stats.resident_bytes = residency.bytes(start, SLOTS * stride());
    stats
}

/// Bytes of live guarded blocks.
pub(crate) fn live_bytes() -> usize {
    let live = RECORDS.iter().filter(|record| record.state.load(Relaxed) == LIVE);
    live.map(|record| record.size.load(Relaxed)).sum()
}

/// Locks the pool until [`unlock`].
pub(crate) fn lock() {
    mem::forget(POOL.lock());
}

/// Opens the pool again.
///
/// # Safety
/// This thread, or in a child process the one that forked, locked it.
pub(crate) unsafe fn unlock() {
    // SAFETY: the caller's lock; no reference to the pool was kept.
    unsafe { POOL.unlock_leaked() };
}
