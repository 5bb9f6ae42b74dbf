//! The arena: one reservation of address space, committed upward in steps, or memory that somebody gave.

use crate::sys;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// The least and the most bytes that are committed at a time.
const LEAST_STEP: usize = 1 << 20;
const MOST_STEP: usize = 64 << 20;
/// Huge pages of the OS begin at multiples of this.
pub(crate) const HUGE_PAGE: usize = 2 << 20;
/// What is committed beyond so many bytes may be backed by huge pages. There, the part of a huge page that is not used is
/// little beside the heap, while each fault saves 511 others, and address translation is cheaper for good.
const FIRST_HUGE: usize = 16 << 20;
/// The same once there is more than one shard: each has pages of every class that are used in part.
const FIRST_HUGE_OF_MANY: usize = 32 << 20;
/// What is committed next is one part in so many of what is committed already.
const STEP_SHARE: usize = 8;

/// A reserved range of addresses, of which a part from the start on is committed.
#[derive(Debug)]
pub(crate) struct Arena {
    start: NonNull<u8>,
    bytes: usize,
    /// The offset beyond which the system may use huge pages; `usize::MAX` if it may not.
    huge_from: AtomicUsize,
    /// The least that this ever was when memory was committed beyond it: from there on, huge pages may be left.
    first_huge: AtomicUsize,
    /// Whether the memory is somebody else's, who gave all of it for use: then it is never the system's concern.
    given: bool,
    /// Whether there may be a hole in the range, where somebody else may have memory by now.
    has_hole: AtomicBool,
}

// SAFETY: the arena is a range of addresses that it owns; it hands out no references.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// The `bytes` bytes from `start` on, given for as long as the arena lives.
    pub(crate) fn given(start: NonNull<u8>, bytes: usize) -> Arena {
        let none = || AtomicUsize::new(usize::MAX);
        let has_hole = AtomicBool::new(false);
        Arena { start, bytes, huge_from: none(), first_huge: none(), given: true, has_hole }
    }

    /// Reserves exactly `bytes`, a multiple of the OS page, at a multiple of `align`. With `huge_pages`, the system may
    /// use some.
    pub(crate) fn reserve(bytes: usize, align: usize, huge_pages: bool) -> Option<Arena> {
        let surplus = align.saturating_sub(sys::page_size());
        let whole = sys::reserve(bytes.checked_add(surplus)?)?;
        let before = whole.addr().get().wrapping_neg() & (align - 1) & !(sys::page_size() - 1);
        // SAFETY: what is cut off lies within the mapping, on either side of the arena, and was never used.
        unsafe {
            let start = whole.add(before);
            sys::unmap(whole, before);
            sys::unmap(start.add(bytes), surplus - before);
            // Where the system uses huge pages wherever it can, too.
            sys::advise_huge(start, bytes, false);
            sys::advise_dump(start, bytes, false);
            Some(Arena {
                start,
                bytes,
                huge_from: AtomicUsize::new(if huge_pages { FIRST_HUGE } else { usize::MAX }),
                first_huge: AtomicUsize::new(usize::MAX),
                given: false,
                has_hole: AtomicBool::new(false),
            })
        }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Commits memory behind the first `committed` bytes, at least `needed` bytes more, and returns how many: a
    /// step in proportion to the heap if the system grants it, else what is needed, else none.
    pub(crate) fn commit(&self, committed: usize, needed: usize) -> Option<usize> {
        if self.given {
            return None;
        }
        let left = self.bytes - committed;
        let needed = needed.checked_next_multiple_of(sys::page_size())?;
        if needed > left {
            return None;
        }
        let mut step =
            (committed / STEP_SHARE).clamp(LEAST_STEP, MOST_STEP).next_multiple_of(LEAST_STEP).max(needed);
        if committed + step > self.huge_from() {
            // Whole huge pages: of one that is committed in part, there would be only small ones.
            step = (committed + step).next_multiple_of(HUGE_PAGE) - committed;
        }
        let granted = [step.min(left), needed].into_iter().find(|&bytes| {
            // SAFETY: the range is within the reservation, and nobody uses it before it is committed.
            unsafe { sys::commit_part(self.start, self.bytes, committed..committed + bytes) }
        })?;
        let from = committed.max(self.huge_from());
        if committed + granted > from {
            self.first_huge.fetch_min(from, Relaxed);
            // SAFETY: as above.
            unsafe { sys::advise_huge(self.start.add(from), committed + granted - from, true) };
        }
        Some(granted)
    }

    /// Whether the memory is somebody else's.
    pub(crate) fn is_given(&self) -> bool {
        self.given
    }

    /// Notes that more than one shard is in use: what is committed from now on has huge pages later.
    pub(crate) fn serve_many(&self) {
        self.huge_from.fetch_max(FIRST_HUGE_OF_MANY, Relaxed);
    }

    fn huge_from(&self) -> usize {
        self.huge_from.load(Relaxed)
    }

    /// The offset beyond which there may be huge pages, or ever might; `usize::MAX` if there are none.
    pub(crate) fn first_huge(&self) -> usize {
        self.first_huge.load(Relaxed)
    }

    /// Whether the system may use huge pages at all.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.huge_from() != usize::MAX
    }

    /// The part of a range, given by offsets, that the system backs with huge pages although it should not, or the
    /// other way round. None of a `sparse` range is backed so otherwise.
    pub(crate) fn backed_otherwise(
        &self,
        range: Range<usize>,
        sparse: bool,
        huge: bool,
    ) -> Option<Range<usize>> {
        let huge_from = if sparse { range.end } else { self.huge_from() };
        let part =
            if huge { range.start..range.end.min(huge_from) } else { range.start.max(huge_from)..range.end };
        (self.has_huge_pages() && !part.is_empty()).then_some(part)
    }

    /// Has the system back a committed range, given by offsets, with huge pages or without.
    pub(crate) fn advise_huge(&self, range: Range<usize>, huge: bool) {
        // SAFETY: the range is committed, and keeps its contents.
        unsafe { sys::advise_huge(self.start.add(range.start), range.len(), huge) };
    }

    /// Undoes [`advise_huge`](Self::advise_huge), and says as much of a range that was mapped anew.
    pub(crate) fn advise_as_usual(&self, range: Range<usize>, sparse: bool) {
        let huge_from = if sparse { range.end } else { self.huge_from().clamp(range.start, range.end) };
        for (part, huge) in [(range.start..huge_from, false), (huge_from..range.end, true)] {
            if !part.is_empty() {
                self.advise_huge(part, huge);
            }
        }
    }

    /// Has the system use no more huge pages for what is committed up to the offset `end`: it would fill with zeros
    /// again what was given back to it in small parts.
    pub(crate) fn no_more_huge_pages_below(&self, end: usize) {
        self.begin_huge_pages_at(end, end);
    }

    /// Notes that part of the range may be mapped no more: then it is given back no more as a whole.
    pub(crate) fn note_hole(&self) {
        self.has_hole.store(true, Relaxed);
    }

    /// Whether the system may back what lies at an offset with a huge page, if it is not sparse.
    pub(crate) fn may_be_huge(&self, offset: usize) -> bool {
        offset >= self.huge_from()
    }

    /// Has the system use no more huge pages but for large runs. Of the arena, `committed` bytes are committed.
    pub(crate) fn forgo_huge_pages(&self, committed: usize) {
        self.begin_huge_pages_at(self.bytes, committed);
    }

    /// Has the system use no huge pages any more, not for large runs either: then the `committed` bytes have one mapping but for
    /// what was moved there. False if it used none.
    pub(crate) fn do_without_huge_pages(&self, committed: usize) -> bool {
        let had = self.huge_from.swap(usize::MAX, Relaxed) != usize::MAX;
        if had {
            self.advise_huge(0..committed, false);
        }
        had
    }

    /// Has huge pages begin at the offset `start`, if they begin below, and the system use none any more from there to
    /// `end`, up to which memory is committed.
    fn begin_huge_pages_at(&self, start: usize, end: usize) {
        let before = self.huge_from.fetch_update(Relaxed, Relaxed, |from| (from < start).then_some(start));
        if let Ok(before) = before
            && before < end
        {
            self.advise_huge(before..end, false);
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.given && !*self.has_hole.get_mut() {
            // SAFETY: the arena owns the range; its users have given it up with the arena.
            unsafe { sys::unmap(self.start, self.bytes) };
        }
    }
}

#[cfg(all(test, feature = "os"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_advised_is_what_is_backed_otherwise() {
        let start = FIRST_HUGE - 100..FIRST_HUGE + 300;
        let arena = Arena::reserve(64 << 20, HUGE_PAGE, true).unwrap();
        let part = |sparse, huge| arena.backed_otherwise(start.clone(), sparse, huge);
        assert_eq!(part(false, true), Some(FIRST_HUGE - 100..FIRST_HUGE));
        assert_eq!(part(false, false), Some(FIRST_HUGE..FIRST_HUGE + 300));
        assert_eq!((part(true, true), part(true, false)), (Some(start.clone()), None));
        let without = Arena::reserve(64 << 20, HUGE_PAGE, false).unwrap();
        assert_eq!(without.backed_otherwise(start.clone(), true, true), None);
    }
}
