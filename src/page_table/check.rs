//! Whether all that should hold of a table does.

use super::bin::{LISTS, Link};
use super::{Bin, Header, Mapping, PageTable, State, Tag};
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{PageCount, PageIndex};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

/// An invariant that does not hold, and the page (or the first page concerned) where it was seen.
///
/// ```
/// use page_memory_allocator::page_table::Violation;
/// use page_memory_allocator::units::PageIndex;
///
/// let violation = Violation { what: "a page in use is free, too", page: PageIndex(3) };
/// assert_eq!(violation.to_string(), "page 3: a page in use is free, too");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What should hold and does not.
    pub what: &'static str,
    /// Where.
    pub page: PageIndex,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}: {}", self.page.0, self.what)
    }
}

impl core::error::Error for Violation {}

/// Totals of a verified table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Pages not in use, those above the frontier included.
    pub free_pages: usize,
    /// Divided pages.
    pub divided_pages: usize,
    /// Pages of Multi runs.
    pub multi_pages: usize,
    /// Multi runs.
    pub runs: usize,
    /// Blocks handed out, those in thread caches included.
    pub live_blocks: usize,
    /// Bytes in those blocks.
    pub live_block_bytes: usize,
    /// Divided pages with free blocks: each is in exactly one list.
    pub listed_pages: usize,
}

impl<G: Geometry> PageTable<G> {
    /// Verifies every page against the invariants of the [module](super), and returns the totals.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    ///
    /// # Safety
    /// The caller has exclusive use of the table: it holds `runs` and all bins.
    pub unsafe fn check(&self, runs: &Runs) -> Result<Census, Violation> {
        let mut census = Census::default();
        let fail = |what, page| Err(Violation { what, page });
        if let Err(what) = runs.check() {
            return fail(what, PageIndex(0));
        }
        census.free_pages = self.capacity.get() - runs.frontier().get();
        let mut page = PageIndex(0);
        while page < runs.frontier() {
            // SAFETY: the caller has exclusive use of all headers.
            let header = unsafe { &*self.header(page) };
            let tag = self.tag(page);
            let mut pages = PageCount(1);
            // A run may go to a thread's cache, or come from there, at any time.
            let state = header.state.get();
            if state != State::MultiHead && header.mapping != Mapping::Usual {
                return fail("a page that begins no run is mapped apart", page);
            }
            if runs.is_free(page) {
                if state != State::None || tag.is_divided() {
                    return fail("a free page has a state", page);
                }
                let figures = [
                    header.live,
                    header.watermark,
                    header.first_word,
                    header.run.0,
                    header.tail.load(Relaxed),
                ];
                let parts = header.purged | header.unwritten | header.zeros;
                if self.is_watched(page) {
                    return fail("a free page is watched", page);
                }
                if figures != [0; 5] || header.busy || header.blank || header.fresh || parts != 0 {
                    return fail("a free page has a header that is not blank", page);
                }
                census.free_pages += 1;
            } else {
                match state {
                    State::None => return fail("a page is neither free nor part of anything", page),
                    State::MultiHead => {
                        pages = header.run;
                        self.check_multi(runs, page, pages)?;
                        census.multi_pages += pages.get();
                        census.runs += 1;
                    }
                    State::Guard if tag.is_divided() => return fail("a guard has a class", page),
                    State::Guard => census.free_pages += 1,
                    State::Held => return fail("a run is held by nobody", page),
                    State::Waiting | State::Cached => {
                        pages = header.run;
                        self.check_multi(runs, page, pages)?;
                        census.free_pages += pages.get();
                    }
                    State::Divided => {
                        self.check_divided(header, page)?;
                        census.divided_pages += 1;
                        census.live_blocks += header.live as usize;
                        census.live_block_bytes +=
                            header.live as usize * self.geometry.classes().block(tag.class());
                        census.listed_pages += usize::from(header.list != 0);
                    }
                }
            }
            page = page.plus(pages);
        }
        Ok(census)
    }

    fn is_watched(&self, page: PageIndex) -> bool {
        self.next_watched(page, page.plus(PageCount(1))).is_some()
    }

    fn check_multi(&self, runs: &Runs, head: PageIndex, count: PageCount) -> Result<(), Violation> {
        if count.0 == 0 || head.plus(count) > runs.frontier() {
            return Err(Violation { what: "a run leaves the arena", page: head });
        }
        // SAFETY: `check` has exclusive use of all headers.
        let state = |page| unsafe { (*self.header(page)).state.get() };
        let of_tail = if state(head) == State::Waiting { State::Waiting } else { State::None };
        for page in (head.0..head.plus(count).0).map(PageIndex) {
            let whole = !runs.is_free(page) && !self.tag(page).is_divided();
            if !whole || (page != head && state(page) != of_tail) {
                return Err(Violation { what: "a page of a run is something else too", page });
            }
        }
        Ok(())
    }

    fn check_divided(&self, header: &Header, page: PageIndex) -> Result<(), Violation> {
        let fail = |what| Err(Violation { what, page });
        let tag = self.tag(page);
        if !tag.is_divided() || tag.class().get() >= self.geometry.class_count() {
            return fail("a Divided page has no class");
        }
        let capacity = self.capacity_of(tag);
        let watermark = header.watermark as usize;
        // SAFETY: `check` has exclusive use of all bitmaps.
        let words_of = |bitmap: NonNull<[u64]>| unsafe { bitmap.as_ref() };
        if self
            .other_bitmaps_of(page, capacity, watermark)
            .any(|other| words_of(other).iter().any(|&word| word != 0))
        {
            return fail("a bitmap that is not in use has bits");
        }
        let words = words_of(self.bitmap_of(page, capacity, watermark));
        let free_bits: usize = words.iter().map(|word| word.count_ones() as usize).sum();
        if header.live as usize + free_bits + (capacity - header.watermark as usize) != capacity {
            return fail("live + free bits + (capacity - watermark) differs from the capacity");
        }
        let last_bit =
            words.iter().rposition(|&word| word != 0).map(|word| word * 64 + words[word].ilog2() as usize);
        if last_bit.is_some_and(|bit| bit >= header.watermark as usize) {
            return fail("a block above the watermark is marked free");
        }
        if words[..header.first_word as usize].iter().any(|&word| word != 0) {
            return fail("a block below the first free one is free");
        }
        if header.busy && !self.is_watched(page) {
            return fail("a page that was used is not watched");
        }
        if header.list != Bin::list_of(capacity - header.live as usize, capacity) {
            return fail("a page is in the wrong list");
        }
        Ok(())
    }

    /// Verifies the lists of the bin of `tag`, and returns how many pages are in them.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn check_bin(&self, bin: &mut Bin, tag: Tag) -> Result<usize, Violation> {
        let mut listed = 0;
        for list in 0..LISTS {
            let mut previous = Link::END;
            let mut next = bin.heads[list];
            while let Some(page) = next.page() {
                let fail = |what| Err(Violation { what, page });
                if self.tag(page) != tag {
                    return fail("a list holds a page of another class or shard");
                }
                let header = self.divided(bin, page).header;
                if header.list as usize != list + 1 || header.previous != previous {
                    return fail("a list's links disagree");
                }
                listed += 1;
                if listed > self.capacity.get() {
                    return fail("a list runs in a circle");
                }
                (previous, next) = (Link::to(page), header.next);
            }
        }
        if listed != bin.listed as usize {
            return Err(Violation { what: "a bin's count of listed pages is wrong", page: PageIndex(0) });
        }
        Ok(listed)
    }
}
