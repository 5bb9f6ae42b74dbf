//! Runs of pages: large allocations, and where pages come from at all.

use super::Heap;
use crate::arena::HUGE_PAGE;
use crate::fault;
use crate::lock::Guard;
use crate::page_table::{Mapping, Misuse};
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::sys::{self, resident};
use crate::units::{ComponentIndex, PageCount, PageIndex};
use core::alloc::Layout;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;

/// Runs of so many bytes begin where a huge page does, and the system is advised how to back them.
pub(super) const LARGE: usize = 2 * HUGE_PAGE;
/// Unless more than one part in so many of their bytes would be left of their last huge page.
const WASTED_SHARE: usize = 16;
/// Free runs that are as long as an aligned one, of which so many are tried before a longer one is looked for, which has room for it
/// wherever that begins.
const MOST_PLACES: usize = 8;
/// Runs of so many bytes that are to be zeroed, and need not be written for that, are not backed by huge pages.
const LARGE_ZEROED: usize = 16 << 20;

/// Why a run cannot be claimed.
enum Lack {
    /// There are not so many free pages side by side, or the heap's limit does not allow for them.
    OfPages,
    /// The limit of its component does not.
    OfAllowance,
}

impl<G: Geometry> Heap<G> {
    /// Pages of a run for `layout`; `None` for more than any arena has.
    pub(crate) fn pages_for(&self, layout: Layout) -> Option<PageCount> {
        PageCount::holding(layout.size().max(1), self.geometry().page_shift())
    }

    /// Bytes of `count` pages that a run for `layout` does not need.
    pub(super) fn tail(&self, count: PageCount, layout: Layout) -> usize {
        count.bytes(self.geometry().page_shift()) - layout.size().max(1)
    }

    /// Where pages lie, as offsets from the start of the arena.
    pub(super) fn range(&self, start: PageIndex, count: PageCount) -> Range<usize> {
        let shift = self.geometry().page_shift();
        start.get() << shift..start.plus(count).get() << shift
    }

    /// A run for `layout`, which `owner` is to hold.
    pub(crate) fn alloc_run(&self, owner: ComponentIndex, layout: Layout, zeroed: bool) -> *mut u8 {
        // Memory that is not to be zeroed is there to be written, though perhaps from its beginning on only. But who asks
        // for many zeros may mean to use only a few of them: a table that is to fill up some day.
        let least_advised = if zeroed { LARGE_ZEROED } else { LARGE };
        let Some((mut runs, start, count)) = self.claim_run(owner, None, layout, least_advised) else {
            return ptr::null_mut();
        };
        let dirty = runs.dirty_within(start, count);
        let is_fresh = dirty.is_none_or(|(_, pages)| pages.0 < count.0 / 2);
        let is_large = layout.size() >= least_advised;
        let is_short_and_blank = !is_large && dirty.is_none();
        let is_apart = is_short_and_blank && self.is_to_be_apart(&mut runs, start, count);
        if is_short_and_blank && !is_apart {
            self.note_fresh_run(&mut runs, start, count);
        }
        if (is_large && is_fresh) || is_apart {
            let huge_from = if is_large && !zeroed {
                self.huge_from(&mut runs, start, count)
            } else {
                self.range(start, count).end
            };
            self.advise(runs, start, count, huge_from);
        } else {
            drop(runs);
        }
        let address = self.table.address_of(start);
        if zeroed && dirty.is_some() {
            // SAFETY: the run is as long, and nobody else has it.
            unsafe { self.zero_dirty_pages(start, count, address + layout.size()) };
        }
        self.pointer(address)
    }

    /// Has those pages of a run that may hold something hold zeros, up to the address `end`. The others do already.
    ///
    /// # Safety
    /// The run is the caller's, and reaches to `end`.
    unsafe fn zero_dirty_pages(&self, head: PageIndex, count: PageCount, end: usize) {
        let mut from = head;
        loop {
            // What is known of pages stays as it is while they are in use.
            let next = self.runs().next_dirty(from, head.plus(count));
            let Some((first, pages)) = next else { break };
            let start = self.table.address_of(first);
            let end = end.min(start + pages.bytes(self.geometry().page_shift()));
            // SAFETY: the range is part of the run, which is the caller's.
            unsafe { self.fill_with_zeros(start, end.saturating_sub(start)) };
            from = first.plus(pages);
        }
    }

    /// Has memory that may hold anything hold zeros.
    ///
    /// Of a large range in which little has memory, that is given back: to write zeros would give memory to all of it.
    ///
    /// # Safety
    /// The range is committed, and the caller's.
    unsafe fn fill_with_zeros(&self, start: usize, bytes: usize) {
        let (window, end) = (resident::WINDOW * sys::page_size(), start + bytes);
        let mut written = start;
        // SAFETY: as the caller says; the range begins with a page.
        let write_up_to = |written, at| unsafe { self.pointer(written).write_bytes(0, at - written) };
        if bytes >= LARGE_ZEROED && self.has_whole_os_pages() {
            for at in (start..=end.saturating_sub(window)).step_by(window) {
                // SAFETY: as above, and the arena is not at address zero.
                let is_given_back = unsafe {
                    let part = NonNull::new_unchecked(self.pointer(at));
                    resident::bytes_with_memory(part, window) < window / 2 && sys::purge(part, window)
                };
                if is_given_back {
                    // What lies side by side is written at once: much of it takes less time for a byte.
                    write_up_to(written, at);
                    written = at + window;
                }
            }
        }
        write_up_to(written, end);
    }

    /// Claims a run for `layout`, which `owner` is to hold, and returns it with the lock it is under. It begins where a
    /// huge page does if it has `least_aligned` bytes, and little is left of its last huge page. If it is `instead` of a
    /// shorter run of that owner, which is the caller's, that is nobody's from then on, and the owner charged for the difference.
    pub(super) fn claim_run(
        &self,
        owner: ComponentIndex,
        instead: Option<(PageIndex, PageCount)>,
        layout: Layout,
        least_aligned: usize,
    ) -> Option<(Guard<'_, Runs<'static>>, PageIndex, PageCount)> {
        let count = self.pages_for(layout).filter(|&count| count <= self.table.capacity())?;
        let claim = || self.claim_for(owner, instead, count, layout, least_aligned);
        let (runs, start) = match claim() {
            Err(Lack::OfPages) if self.is_process_heap => {
                self.release_unused_pages();
                claim()
            }
            claimed => claimed,
        }
        .ok()?;
        Some((runs, start, count))
    }

    /// Claims `count` pages as a run for `layout`, unless there is a lack of something.
    fn claim_for(
        &self,
        owner: ComponentIndex,
        instead: Option<(PageIndex, PageCount)>,
        count: PageCount,
        layout: Layout,
        least_aligned: usize,
    ) -> Result<(Guard<'_, Runs<'static>>, PageIndex), Lack> {
        let mut runs = self.runs();
        let may_use =
            self.may_use(&runs, count) || (self.empty_quarantine(&mut runs) && self.may_use(&runs, count));
        if !may_use {
            return Err(Lack::OfPages);
        }
        let more = PageCount(count.0 - instead.map_or(0, |(_, count)| count.0));
        if !self.charge_pages(owner, more) {
            return Err(Lack::OfAllowance);
        }
        let claimed = match self.take_from_quarantine(&mut runs, count, layout.align()) {
            None => self.claim_anew(&mut runs, count, layout, least_aligned),
            quarantined => quarantined,
        };
        let Some(start) = claimed else {
            self.credit_pages(owner, more);
            return Err(Lack::OfPages);
        };
        self.settle_account(owner);
        self.table.set_owner(&mut runs, start, owner);
        if let Some((head, _)) = instead {
            self.table.set_owner(&mut runs, head, ComponentIndex::NONE);
        }
        self.table.set_multi_tail(&mut runs, start, self.tail(count, layout));
        Ok((runs, start))
    }

    /// Claims `count` free pages as a run for `layout`.
    fn claim_anew(
        &self,
        runs: &mut Runs,
        count: PageCount,
        layout: Layout,
        least_aligned: usize,
    ) -> Option<PageIndex> {
        // What is left of the last huge page has memory, too, once the run's part of it is touched.
        let left = layout.size().next_multiple_of(HUGE_PAGE) - layout.size();
        let is_large = layout.size() >= least_aligned;
        let is_aligned = is_large && left <= layout.size() / WASTED_SHARE && self.arena.has_huge_pages();
        let find = |runs: &mut Runs| {
            let find = |runs: &mut Runs, align| self.find_guarded(runs, count, align, is_large);
            let at_huge_page = if is_aligned { find(runs, layout.align().max(HUGE_PAGE)) } else { None };
            at_huge_page.or_else(|| find(runs, layout.align()))
        };
        let start = match find(runs) {
            None if self.empty_quarantine(runs) => find(runs),
            start => start,
        }?;
        self.table.claim_multi(runs, start, count);
        let touchable = self.uncover(start, count);
        if !touchable {
            self.table.release_multi(runs, start, count);
        }
        self.settle_guards(runs, start, count);
        self.keep_to_limit(runs, start.plus(count));
        touchable.then_some(start)
    }

    /// A low run of `count` free pages whose address `align` divides. A large one will be touched as a whole, whatever became
    /// of others.
    pub(super) fn find_aligned(
        &self,
        runs: &mut Runs,
        count: PageCount,
        align: usize,
        is_large: bool,
    ) -> Option<PageIndex> {
        let shift = self.geometry().page_shift();
        if !is_large && align <= self.page_size() {
            return self.find_run(runs, count);
        }
        // More lies between such runs than in them.
        let sparse = count.bytes(shift) < align.min(HUGE_PAGE);
        let lowest = if sparse { self.find_apart(runs, count) } else { runs.find(count) };
        if let Some(lowest) = lowest
            && self.table.address_of(lowest).is_multiple_of(align)
        {
            return Some(lowest);
        }
        // An aligned run that went has left just such a place, but it need not be the lowest that is long enough.
        if !sparse && let Some(found) = self.aligned_among(runs, lowest, count, align) {
            return Some(found);
        }
        // Any run this much longer has an aligned one in it.
        let slack = (align >> shift).saturating_sub(1);
        let padded = PageCount(u32::try_from(count.get() + slack).ok()?);
        let found = if sparse { self.find_spacious(runs, padded) } else { self.find(runs, padded) };
        found
            .and_then(|found| self.aligned(found, align))
            .or_else(|| self.aligned_from(runs, PageIndex(0), count, align))
    }

    /// A run of `count` free dense pages whose address `align` divides, if a few of those that are as long have room for one;
    /// `lowest` is where the first of these begins.
    fn aligned_among(
        &self,
        runs: &Runs,
        lowest: Option<PageIndex>,
        count: PageCount,
        align: usize,
    ) -> Option<PageIndex> {
        let mut lowest = lowest?;
        for _ in 0..MOST_PLACES {
            let start = self.aligned(lowest, align)?;
            lowest = runs.find_from(start, count)?;
            if lowest == start {
                return Some(start);
            }
        }
        None
    }

    /// The first page from `page` on whose address `align` divides, be there such a page or not; `None` if there is no such
    /// address.
    fn aligned(&self, page: PageIndex, align: usize) -> Option<PageIndex> {
        let address = self.table.address_of(page).checked_next_multiple_of(align)?;
        u32::try_from((address - self.table.base()) >> self.geometry().page_shift()).ok().map(PageIndex)
    }

    /// The lowest run of `count` free pages, from `page` on, whose address `align` divides. Looks at one free range after
    /// the other.
    #[cold]
    fn aligned_from(
        &self,
        runs: &Runs,
        mut page: PageIndex,
        count: PageCount,
        align: usize,
    ) -> Option<PageIndex> {
        while let Some((free, _)) = runs.next_free(page, PageCount(1)) {
            let (start, end) =
                (self.aligned(free, align)?, free.plus(runs.free_from(free, PageCount(u32::MAX))));
            if start < end && end.0 - start.0 >= count.0 {
                return Some(start);
            }
            page = end;
        }
        None
    }

    /// Takes the run at `address`, which is being freed, for the calling thread's cache, if it is one that `wanted` says is
    /// wanted; with `layout`, only if it may have been allocated with that. Returns its length. Takes no lock.
    #[cfg(not(feature = "hardened"))]
    #[inline]
    pub(crate) fn cache_run(
        &self,
        address: usize,
        layout: Option<Layout>,
        wanted: impl FnOnce(PageCount) -> bool,
    ) -> Option<(PageIndex, PageCount)> {
        let head = self.table.page_of(address).filter(|&head| self.table.address_of(head) == address)?;
        let fits = |count| layout.is_none_or(|layout| self.pages_for(layout) == Some(count));
        let count = self.table.cache_multi(head, |count| fits(count) && wanted(count))?;
        Some((head, count))
    }

    /// Makes the run of `count` pages at `head` one for `layout`, with zeros if they are wanted. The calling thread had it in
    /// its cache. Takes no lock.
    #[cfg(not(feature = "hardened"))]
    #[inline]
    pub(crate) fn uncache_run(
        &self,
        head: PageIndex,
        count: PageCount,
        layout: Layout,
        zeroed: bool,
    ) -> *mut u8 {
        self.table.uncache_multi(head, self.tail(count, layout));
        let run = self.pointer(self.table.address_of(head));
        if zeroed {
            // SAFETY: the run is the caller's to be, and as long.
            unsafe { run.write_bytes(0, layout.size()) };
        }
        run
    }

    /// Frees the run at `head`, which the calling thread had in its cache, or took from another's.
    #[cfg(not(feature = "hardened"))]
    pub(crate) fn free_cached_run(&self, head: PageIndex) {
        self.table.uncache_multi(head, 0);
        self.dealloc_run(self.table.address_of(head), None);
    }

    /// Frees the run at `address`; with `layout`, only if that is what it was allocated with.
    pub(crate) fn dealloc_run(&self, address: usize, layout: Option<Layout>) {
        let (runs, head, count) = self.expect_run(address, layout);
        self.free_run(runs, head, count);
    }

    pub(super) fn free_run<'h>(
        &'h self,
        mut runs: Guard<'h, Runs<'static>>,
        head: PageIndex,
        count: PageCount,
    ) {
        self.ask_freed_run(&mut runs, head, count);
        let mapping = self.table.mapping(&runs, head);
        let (mut runs, blank) = self.give_up_pages(runs, head, head, count);
        let Some(blank) = blank else {
            // The run stays as it is, and nobody's: others may map memory where there is none.
            self.credit_pages(self.table.owner(&runs, head), count);
            self.table.set_owner(&mut runs, head, ComponentIndex::NONE);
            return;
        };
        if mapping != Mapping::Usual {
            self.mapped(mapping).fetch_sub(1, Relaxed);
            self.table.set_mapping(&mut runs, head, Mapping::Usual);
        }
        self.credit_pages(self.table.owner(&runs, head), count);
        if !self.quarantine(&mut runs, head, count, blank) {
            self.release_run(&mut runs, head, count, blank);
        }
    }

    /// Has `count` pages from `start` on, the run at `head` or its end, which its owner gives up, mapped as their neighbours
    /// are, and zeroed if what is freed is to be. Returns whether they have no memory by then; `None` if the system refuses:
    /// then they are not to be used.
    ///
    /// The system may take its time, so others have the lock meanwhile. They do not change the run: the table says that its
    /// pages are in use, so nobody is given one of them, and to free or resize it is its owner's, who is here. If somebody
    /// else frees it, too, there is no run when the lock is taken again, and the process ends.
    pub(super) fn give_up_pages<'h>(
        &'h self,
        mut runs: Guard<'h, Runs<'static>>,
        head: PageIndex,
        start: PageIndex,
        count: PageCount,
    ) -> (Guard<'h, Runs<'static>>, Option<bool>) {
        let mapping = self.table.mapping(&runs, head);
        if mapping == Mapping::Usual && !self.zeroes_freed() {
            return (runs, Some(false));
        }
        // Nor do they purge its end: there may be nothing meanwhile, or what another has mapped there.
        self.table.set_multi_tail(&mut runs, head, 0);
        drop(runs);
        let blank = self.map_as_usual(start, count, mapping).then(|| {
            let purged = self.zeroes_freed() && self.zero(start, count);
            purged || mapping == Mapping::Moved
        });
        (self.expect_run(self.table.address_of(head), None).0, blank)
    }

    /// Makes a run Free, which nobody is charged for any more. If it is `blank`, it has no memory.
    pub(super) fn release_run(&self, runs: &mut Runs, head: PageIndex, count: PageCount, blank: bool) {
        self.table.release_multi(runs, head, count);
        if blank {
            runs.clean(head, count);
        }
        self.settle_guards(runs, head, count);
    }

    /// The run at `address`, which was allocated with `layout` if one is given, and the lock it is under. Ends the
    /// process if there is none.
    pub(super) fn expect_run(
        &self,
        address: usize,
        layout: Option<Layout>,
    ) -> (Guard<'_, Runs<'static>>, PageIndex, PageCount) {
        let Some(head) = self.table.page_of(address) else {
            fault::misuse(Misuse::OutsideArena, address, None)
        };
        let runs = self.runs();
        let misuse = match self.table.multi_run(&runs, head) {
            Err(misuse) => misuse,
            Ok(count) if cfg!(pma_unchecked = "run") => return (runs, head, count),
            Ok(_) if self.table.address_of(head) != address => Misuse::NotAtStart,
            Ok(count) if layout.is_some_and(|layout| self.pages_for(layout) != Some(count)) => {
                Misuse::WrongLayout
            }
            Ok(count) => return (runs, head, count),
        };
        drop(runs);
        fault::misuse(misuse, address, Some(self.page_state(head)))
    }

    /// The component that the run at `address` belongs to; none if there are no components, or no such run.
    #[cfg(feature = "os")]
    pub(crate) fn owner_of_run(&self, address: usize) -> ComponentIndex {
        if self.components().next().is_none() {
            return ComponentIndex::NONE;
        }
        let Some(head) = self.table.page_of(address) else { return ComponentIndex::NONE };
        let runs = self.runs();
        if self.table.multi_run(&runs, head).is_err() {
            return ComponentIndex::NONE;
        }
        self.table.owner(&runs, head)
    }

    /// Bytes that the live block or run at `address` has room for. Ends the process if there is none.
    pub(crate) fn usable_size(&self, address: usize) -> usize {
        if let Some(tag) = self.tag_of(address) {
            return self.geometry().classes().block(tag.class());
        }
        let (runs, head, count) = self.expect_run(address, None);
        count.bytes(self.geometry().page_shift()) - self.table.multi_tail(&runs, head)
    }
}
