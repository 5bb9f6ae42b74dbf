//! Index of the free pages: the lowest run of `n` free pages, in O(log pages).
//!
//! A bitmap holds one bit a page (1: free and committed). Above it stands a tree of summaries with eight
//! children to a node; a summary says how many free pages its range begins with, ends with, and has in its
//! longest run. Runs therefore split and coalesce by setting bits: no list, no header at their ends. The idea is
//! the page allocator of the Go runtime (`runtime/mpagealloc.go`).
//!
//! A second bitmap remembers which pages may hold something other than zeros, a third which of the free ones among
//! them have been free for a while: these are the ones to give back to the system. A fourth tells *sparse* pages from
//! *dense* ones, which are found apart, each kind by a tree of its own. The four are interleaved by words, so that a small
//! heap has them all in one OS page.
//!
//! All storage is handed in zeroed, and zero means *not available*: a table for terabytes costs memory only for
//! the part of the arena that has been in use.
//!
//! The module is public for tests, fuzzing and benches:
//!
//! ```
//! use page_memory_allocator::runs::{Runs, Summary, Word};
//! use page_memory_allocator::units::{PageCount, PageIndex};
//!
//! let (words, nodes) = Runs::words_and_summaries(PageCount(1000));
//! let mut words = vec![Word::default(); words];
//! let mut summaries = vec![Summary::default(); nodes];
//! let mut runs = Runs::new(PageCount(1000), &mut words, &mut summaries);
//! runs.grow(PageCount(100));
//! runs.claim(PageIndex(0), PageCount(10));
//! runs.release(PageIndex(2), PageCount(3));
//! assert_eq!(runs.find(PageCount(3)), Some(PageIndex(2)));
//! assert_eq!(runs.find(PageCount(4)), Some(PageIndex(10)));
//! ```

mod tree;

pub use tree::Summary;

use crate::expectation::Expectation;
use crate::units::{PageCount, PageIndex};
use tree::Tree;

/// Pages in a bitmap word.
const WORD: usize = u64::BITS as usize;

/// Lengths of runs that are told apart by what is expected of them; the last one is of all that are longer.
const LENGTHS: usize = 8;

/// What is known of 64 pages, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Word {
    /// Free, and committed.
    free: u64,
    /// They may hold something other than zeros, as far as they are free. What the system backs with memory of these is among
    /// them, but for what shares a huge page with them.
    dirty: u64,
    /// Free and dirty when [`age`](Runs::age) was last called, and not claimed since.
    idle: u64,
    /// [Sparse](Runs::make_sparse), free or not.
    sparse: u64,
}

impl Word {
    fn free_and_dense(self) -> u64 {
        self.free & !self.sparse
    }

    fn free_and_sparse(self) -> u64 {
        self.free & self.sparse
    }

    fn free_and_dirty(self) -> u64 {
        self.free & self.dirty
    }
}

/// The index. Plain data: its owner provides storage, locks it, and commits the memory of the pages it adds.
#[derive(Debug)]
pub struct Runs<'s> {
    words: &'s mut [Word],
    /// Over the free pages that are dense: not sparse.
    dense: Tree<'s>,
    /// Over those that are. As long as no page is, it is left alone, all zeros.
    sparse: Tree<'s>,
    sparse_pages: PageCount,
    /// Pages below are in use or free; pages from there on have never been added.
    frontier: PageIndex,
    free_pages: PageCount,
    /// Of these, pages that are dirty.
    dirty_free_pages: PageCount,
    capacity: PageCount,
    /// Of runs, by their lengths: two doublings each.
    expectations: [Expectation; LENGTHS],
}

impl<'s> Runs<'s> {
    /// Words and summaries that are needed for `capacity` pages.
    pub fn words_and_summaries(capacity: PageCount) -> (usize, usize) {
        (capacity.get().div_ceil(WORD).max(1), 2 * Tree::summaries(capacity))
    }

    /// An index of up to `capacity` pages, none of them added yet.
    ///
    /// The slices are zeroed and as long as [`words_and_summaries`](Self::words_and_summaries) says.
    pub fn new(capacity: PageCount, words: &'s mut [Word], summaries: &'s mut [Summary]) -> Runs<'s> {
        debug_assert_eq!((words.len(), summaries.len()), Self::words_and_summaries(capacity));
        let (dense, sparse) = summaries.split_at_mut(Tree::summaries(capacity));
        Runs {
            words,
            dense: Tree::new(capacity, dense),
            sparse: Tree::new(capacity, sparse),
            sparse_pages: PageCount(0),
            frontier: PageIndex(0),
            free_pages: PageCount(0),
            dirty_free_pages: PageCount(0),
            capacity,
            expectations: [Expectation::NONE; LENGTHS],
        }
    }

    /// Pages below are in use or free; pages from there on have never been added.
    pub fn frontier(&self) -> PageIndex {
        self.frontier
    }

    /// Free pages below the frontier.
    pub fn free_pages(&self) -> PageCount {
        self.free_pages
    }

    /// Pages that can still be added.
    pub fn unadded(&self) -> PageCount {
        PageCount(self.capacity.0 - self.frontier.0)
    }

    /// Adds the next `count` pages, clean and free.
    pub fn grow(&mut self, count: PageCount) {
        debug_assert!(count <= self.unadded());
        let start = self.frontier;
        self.frontier = start.plus(count);
        let words = self.words_in_use();
        self.dense.grow(words);
        if self.sparse_pages.0 > 0 {
            self.sparse.grow(words);
        }
        self.set(start, count, true);
    }

    /// Remembers of `count` pages below the frontier that they may hold anything.
    pub fn soil(&mut self, start: PageIndex, count: PageCount) {
        for (word, mask) in words_of(start, count) {
            let word = &mut self.words[word];
            self.dirty_free_pages.0 += ones(word.free & !word.dirty & mask);
            word.dirty |= mask;
        }
    }

    /// The lowest run of `count` free pages that are not sparse, not yet claimed.
    pub fn find(&self, count: PageCount) -> Option<PageIndex> {
        self.dense.find(count.0, |word| self.words[word].free_and_dense())
    }

    /// [`find`](Self::find) for a run that begins at `from` or behind it.
    pub fn find_from(&self, from: PageIndex, count: PageCount) -> Option<PageIndex> {
        self.dense.find_from(from, count.0, |word| self.words[word].free_and_dense())
    }

    /// The lowest run of `count` free pages that are [sparse](Self::make_sparse), not yet claimed.
    pub fn find_sparse(&self, count: PageCount) -> Option<PageIndex> {
        if self.sparse_pages.0 == 0 {
            return None;
        }
        self.sparse.find(count.0, |word| self.words[word].free_and_sparse())
    }

    /// Sets dense pages below the frontier apart, free or not, for those who touch little of each: they are found by
    /// [`find_sparse`](Self::find_sparse) from now on, and by [`find`](Self::find) no more.
    pub fn make_sparse(&mut self, start: PageIndex, count: PageCount) {
        self.sparse_pages.0 += count.0;
        self.sparse.grow(self.words_in_use());
        for (word, mask) in words_of(start, count) {
            debug_assert_eq!(self.words[word].sparse & mask, 0, "pages made sparse twice");
            self.words[word].sparse |= mask;
        }
        self.update(start, count, true, true);
    }

    /// Makes all pages dense again.
    pub fn make_dense(&mut self) {
        if self.sparse_pages.0 == 0 {
            return;
        }
        let words = self.words_in_use();
        self.words[..words].iter_mut().for_each(|word| word.sparse = 0);
        self.update(PageIndex(0), PageCount(self.frontier.0), true, true);
        self.sparse_pages = PageCount(0);
    }

    /// Pages that are sparse, free or not.
    pub fn sparse_pages(&self) -> PageCount {
        self.sparse_pages
    }

    /// Whether `page` is sparse, and how many pages from there on, counted up to `most`, are as it is.
    pub fn alike_from(&self, page: PageIndex, most: PageCount) -> (bool, PageCount) {
        let sparse = self.words[page.get() / WORD].sparse >> (page.get() % WORD) & 1 == 1;
        let mut alike = 0;
        for (word, mask) in words_of(page, most) {
            let marks = self.words[word].sparse;
            let others = mask & if sparse { !marks } else { marks };
            if others != 0 {
                alike += others.trailing_zeros() - mask.trailing_zeros();
                break;
            }
            alike += mask.count_ones();
        }
        (sparse, PageCount(alike))
    }

    /// Length of the run of free and dense pages that ends at the frontier.
    pub fn free_below_frontier(&self) -> PageCount {
        let mut pages = 0;
        let mut end = self.frontier.get();
        while end > 0 {
            let word = (end - 1) / WORD;
            let within = end - word * WORD;
            let ones =
                (self.words[word].free_and_dense() << (WORD - within)).leading_ones().min(within as u32);
            pages += ones;
            end -= ones as usize;
            if end != word * WORD {
                break;
            }
        }
        PageCount(pages)
    }

    /// Takes `count` free pages from `start` on.
    pub fn claim(&mut self, start: PageIndex, count: PageCount) {
        for (word, mask) in words_of(start, count) {
            let word = &mut self.words[word];
            self.dirty_free_pages.0 -= ones(word.dirty & mask);
            word.idle &= !mask;
        }
        self.set(start, count, false);
    }

    /// Gives `count` pages back; they may hold anything.
    pub fn release(&mut self, start: PageIndex, count: PageCount) {
        self.soil(start, count);
        self.set(start, count, true);
        self.dirty_free_pages.0 += count.0;
    }

    /// Notes that `count` pages from `start` on, free or not, read as zeros and have no memory.
    pub fn clean(&mut self, start: PageIndex, count: PageCount) {
        for (word, mask) in words_of(start, count) {
            let word = &mut self.words[word];
            self.dirty_free_pages.0 -= ones(word.free_and_dirty() & mask);
            word.dirty &= !mask;
            word.idle &= !mask;
        }
    }

    /// The first free and dirty pages from `from` on that lie side by side, counted up to `most` and no further than
    /// a multiple of `most`; with `idle`, only those that were free and dirty at the last [`age`](Self::age), too.
    pub fn dirty_free_from(
        &self,
        from: PageIndex,
        idle: bool,
        most: PageCount,
    ) -> Option<(PageIndex, PageCount)> {
        let wanted =
            |word: usize| if idle { self.words[word].idle } else { self.words[word].free_and_dirty() };
        self.next_of(from, most, wanted)
    }

    /// The first free pages from `from` on that lie side by side, dirty or clean, counted up to `most` and no further than a
    /// multiple of `most`.
    pub fn next_free(&self, from: PageIndex, most: PageCount) -> Option<(PageIndex, PageCount)> {
        self.next_of(from, most, |word| self.words[word].free)
    }

    /// The first pages below the frontier, from `from` on, that lie side by side and are `wanted`, which is asked for the
    /// bits of a word; counted up to `most` and no further than a multiple of `most`.
    fn next_of(
        &self,
        from: PageIndex,
        most: PageCount,
        wanted: impl Fn(usize) -> u64,
    ) -> Option<(PageIndex, PageCount)> {
        debug_assert!(most.0.is_power_of_two());
        let mut at = from.get();
        while at < self.frontier.get() {
            let (word, bit) = (at / WORD, at % WORD);
            let rest = wanted(word) >> bit;
            if rest != 0 {
                let start = PageIndex(at as u32 + rest.trailing_zeros());
                let ones = (rest >> rest.trailing_zeros()).trailing_ones();
                let to_boundary = most.0 - start.0 % most.0;
                return Some((start, PageCount(ones.min(to_boundary))));
            }
            at = (word + 1) * WORD;
        }
        None
    }

    /// These pages, and free and clean ones on both sides of them, no further than the multiples of `most` that they lie
    /// between.
    pub fn with_clean(&self, start: PageIndex, count: PageCount, most: PageCount) -> (PageIndex, PageCount) {
        debug_assert!(most.0.is_power_of_two());
        let is_clean = |&page: &u32| {
            let word = self.words[page as usize / WORD];
            (word.free & !word.dirty) >> (page as usize % WORD) & 1 == 1
        };
        let end = start.0 + count.0;
        let first = start.0 - (start.0 - start.0 % most.0..start.0).rev().take_while(is_clean).count() as u32;
        let behind = end..end.next_multiple_of(most.0).min(self.frontier.0);
        let end = end + behind.take_while(is_clean).count() as u32;
        (PageIndex(first), PageCount(end - first))
    }

    /// Free pages that may hold something other than zeros.
    pub fn dirty_free_pages(&self) -> PageCount {
        self.dirty_free_pages
    }

    /// Begins a new age: pages that are free and dirty are idle until they are claimed.
    pub fn age(&mut self) {
        for word in 0..self.words_in_use() {
            self.words[word].idle = self.words[word].free_and_dirty();
        }
    }

    /// What is expected of runs of about `count` pages.
    pub(crate) fn expectation(&mut self, count: PageCount) -> &mut Expectation {
        &mut self.expectations[(count.0.ilog2() as usize / 2).min(LENGTHS - 1)]
    }

    /// Whether `page` is free: released, or never used.
    pub fn is_free(&self, page: PageIndex) -> bool {
        page >= self.frontier || self.words[page.get() / WORD].free >> (page.get() % WORD) & 1 == 1
    }

    /// Free pages from `start` on, counted up to `most`; pages that were never added do not count.
    pub fn free_from(&self, start: PageIndex, most: PageCount) -> PageCount {
        let mut pages = 0;
        while pages < most.0 && start.0 + pages < self.frontier.0 {
            let at = start.get() + pages as usize;
            let ones = (self.words[at / WORD].free >> (at % WORD)).trailing_ones();
            pages += ones;
            if ones as usize != WORD - at % WORD {
                break;
            }
        }
        PageCount(pages.min(most.0))
    }

    /// The range from the first to the last page among `count` from `start` on that may hold something other
    /// than zeros, or `None` when all of them read as zeros.
    pub fn dirty_within(&self, start: PageIndex, count: PageCount) -> Option<(PageIndex, PageCount)> {
        let mut range: Option<(u32, u32)> = None;
        for (word, mask) in words_of(start, count) {
            let dirty = self.words[word].dirty & mask;
            if dirty != 0 {
                let base = (word * WORD) as u32;
                let first = range.map_or(base + dirty.trailing_zeros(), |(first, _)| first);
                range = Some((first, base + WORD as u32 - dirty.leading_zeros()));
            }
        }
        range.map(|(first, end)| (PageIndex(first), PageCount(end - first)))
    }

    /// The first of the pages from `from` up to `end` that may hold something other than zeros, and those of them that lie side by
    /// side with it.
    pub fn next_dirty(&self, from: PageIndex, end: PageIndex) -> Option<(PageIndex, PageCount)> {
        let mut first = None;
        for (word, mask) in words_of(from, PageCount(end.0.saturating_sub(from.0))) {
            let (dirty, base) = (self.words[word].dirty & mask, (word * WORD) as u32);
            let skipped = if first.is_none() { dirty.trailing_zeros() } else { 0 };
            if skipped == WORD as u32 {
                continue;
            }
            let first = *first.get_or_insert(base + skipped);
            let behind = base + skipped + (dirty >> skipped).trailing_ones();
            if behind < base + WORD as u32 {
                return Some((PageIndex(first), PageCount(behind - first)));
            }
        }
        first.map(|first| (PageIndex(first), PageCount(end.0 - first)))
    }

    /// Verifies every summary against the bitmap, and the counts.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        let (mut free, mut dirty, mut sparse) = (0, 0, 0);
        for word in self.words.iter() {
            free += word.free.count_ones();
            dirty += word.free_and_dirty().count_ones();
            sparse += word.sparse.count_ones();
        }
        self.dense.check(|word| self.words[word].free_and_dense())?;
        self.sparse.check(|word| self.words[word].free_and_sparse())?;
        if sparse != self.sparse_pages.0 {
            return Err("the count of sparse pages differs from the bitmap");
        }
        if free != self.free_pages.0 {
            return Err("the count of free pages differs from the bitmap");
        }
        if dirty != self.dirty_free_pages.0 {
            return Err("the count of free pages that are dirty differs from the bitmap");
        }
        if words_of(self.frontier, self.unadded()).any(|(word, mask)| {
            let word = self.words[word];
            (word.free | word.dirty | word.sparse) & mask != 0
        }) {
            return Err("a page above the frontier is marked");
        }
        if self.words.iter().any(|word| word.idle & !word.free_and_dirty() != 0) {
            return Err("an idle page is in use, or clean");
        }
        Ok(())
    }

    fn words_in_use(&self) -> usize {
        self.frontier.get().div_ceil(WORD)
    }

    /// Marks pages free or not, and brings the summaries above them up to date.
    fn set(&mut self, start: PageIndex, count: PageCount, free: bool) {
        let (mut dense, mut sparse) = (false, false);
        for (word, mask) in words_of(start, count) {
            let word = &mut self.words[word];
            debug_assert_eq!(
                word.free & mask,
                if free { 0 } else { mask },
                "pages claimed or released twice"
            );
            word.free = if free { word.free | mask } else { word.free & !mask };
            dense |= mask & !word.sparse != 0;
            sparse |= mask & word.sparse != 0;
        }
        if free {
            self.free_pages.0 += count.0;
        } else {
            self.free_pages.0 -= count.0;
        }
        self.update(start, count, dense, sparse);
    }

    /// Brings the trees of either kind, or of one, up to date after pages have changed.
    fn update(&mut self, start: PageIndex, count: PageCount, dense: bool, sparse: bool) {
        let (first, last) = (start.get() / WORD, (start.get() + count.get() - 1) / WORD);
        if dense {
            self.dense.update(first, last, |word| self.words[word].free_and_dense());
        }
        if sparse {
            self.sparse.update(first, last, |word| self.words[word].free_and_sparse());
        }
    }
}

/// The number of bits that are set. Mostly they lie side by side, or there are none: to count others takes long where the processor
/// has no instruction for it, or may not be taken to have one.
fn ones(bits: u64) -> u32 {
    if bits == 0 {
        return 0;
    }
    let low = bits >> bits.trailing_zeros();
    if low & low.wrapping_add(1) == 0 { low.trailing_ones() } else { bits.count_ones() }
}

/// The bitmap words that `count` pages from `start` on lie in, each with the mask of those pages.
fn words_of(start: PageIndex, count: PageCount) -> impl Iterator<Item = (usize, u64)> {
    let (mut at, end) = (start.get(), start.get() + count.get());
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (word, bit) = (at / WORD, at % WORD);
        let len = (WORD - bit).min(end - at);
        at += len;
        Some((word, (u64::MAX >> (WORD - len)) << bit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::String, vec};

    fn runs(capacity: u32) -> Runs<'static> {
        let capacity = PageCount(capacity);
        let (words, nodes) = Runs::words_and_summaries(capacity);
        Runs::new(capacity, vec![Word::default(); words].leak(), vec![Summary::default(); nodes].leak())
    }

    #[test]
    fn a_run_is_found_from_any_page_on() {
        const PAGES: u32 = 64 * 8 * 8 * 2 + 100;
        let mut runs = runs(PAGES);
        runs.grow(PageCount(PAGES));
        let mut seed = 7u32;
        let mut below = |bound: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) % bound
        };
        let mut page = 0;
        while page < PAGES {
            let free = if below(20) == 0 { below(700) } else { below(9) };
            let taken = 1 + if below(30) == 0 { below(1500) } else { below(3) };
            page += free;
            if page < PAGES {
                runs.claim(PageIndex(page), PageCount(taken.min(PAGES - page)));
            }
            page += taken;
        }
        for _ in 0..4000 {
            let (from, count) = (below(PAGES + 70), 1 + if below(2) == 0 { below(8) } else { below(800) });
            let slow = (from..PAGES)
                .find(|&page| runs.free_from(PageIndex(page), PageCount(count)).0 == count)
                .map(PageIndex);
            assert_eq!(runs.find_from(PageIndex(from), PageCount(count)), slow, "{count} from {from}");
        }
    }

    /// Before, action, after: a picture a page, `.` free and `#` in use.
    #[test]
    fn find_takes_the_lowest_run_that_fits() {
        for (before, count, after) in [
            ("........", 3, "###....."),
            ("#.#..#..", 2, "#.####.."),
            ("#.#..#..", 3, "none"),
            ("##..##....", 4, "##..######"),
            (".#.#.#", 1, "##.#.#"),
        ] {
            let mut runs = runs(before.len() as u32);
            runs.grow(PageCount(before.len() as u32));
            for (page, state) in before.bytes().enumerate() {
                if state == b'#' {
                    runs.claim(PageIndex(page as u32), PageCount(1));
                }
            }
            let found = runs.find(PageCount(count));
            if let Some(start) = found {
                runs.claim(start, PageCount(count));
            }
            let picture: String = (0..before.len() as u32)
                .map(|page| if runs.is_free(PageIndex(page)) { '.' } else { '#' })
                .collect();
            assert_eq!(if found.is_some() { picture.as_str() } else { "none" }, after);
            runs.check().unwrap();
        }
    }

    #[test]
    fn runs_across_word_and_node_boundaries_are_found_and_coalesce() {
        let mut runs = runs(100_000);
        runs.grow(PageCount(100_000));
        runs.claim(PageIndex(0), PageCount(100_000));
        for start in [60, 500, 4_090, 32_760, 65_530] {
            runs.release(PageIndex(start), PageCount(3));
            runs.release(PageIndex(start + 6), PageCount(4));
            assert_eq!(runs.find(PageCount(5)), None);
            runs.release(PageIndex(start + 3), PageCount(3));
            assert_eq!(runs.find(PageCount(10)), Some(PageIndex(start)));
            assert_eq!(runs.free_from(PageIndex(start), PageCount(100)), PageCount(10));
            runs.claim(PageIndex(start), PageCount(10));
            runs.check().unwrap();
        }
    }

    #[test]
    fn sparse_pages_at_the_frontier_end_there_when_it_moves() {
        // The frontier lies within a node, and where one of each level begins.
        for frontier in [576, 512, 4_096, 4_608, 32_768, 33_280] {
            for more in [64, 512, 4_096] {
                let mut runs = runs(100_000);
                runs.grow(PageCount(frontier));
                runs.make_sparse(PageIndex(frontier - 64), PageCount(64));
                runs.grow(PageCount(more));
                runs.check().unwrap();
                assert_eq!(runs.find_sparse(PageCount(64)), Some(PageIndex(frontier - 64)));
                assert_eq!(runs.find_sparse(PageCount(65)), None);
                let next = runs.frontier().0.next_multiple_of(4_096);
                runs.grow(PageCount(next + 64 - runs.frontier().0));
                runs.make_sparse(PageIndex(next), PageCount(64));
                runs.check().unwrap();
                assert_eq!(runs.find_sparse(PageCount(65)), None, "{frontier} and {more}");
            }
        }
    }

    #[test]
    fn sparse_pages_are_found_apart() {
        let mut runs = runs(10_000);
        runs.grow(PageCount(300));
        assert_eq!((runs.find_sparse(PageCount(1)), runs.sparse_pages()), (None, PageCount(0)));
        runs.claim(PageIndex(0), PageCount(50));
        runs.make_sparse(PageIndex(32), PageCount(64));
        runs.make_sparse(PageIndex(260), PageCount(40));
        runs.check().unwrap();
        let found = |runs: &Runs, count| [runs.find(PageCount(count)), runs.find_sparse(PageCount(count))];
        assert_eq!(found(&runs, 40), [Some(PageIndex(96)), Some(PageIndex(50))]);
        assert_eq!(found(&runs, 47), [Some(PageIndex(96)), None]);
        assert_eq!(found(&runs, 165), [None, None]);
        assert_eq!(runs.free_below_frontier(), PageCount(0));
        // What is claimed and released stays what it was, on both sides of where the kinds meet.
        runs.claim(PageIndex(80), PageCount(40));
        assert_eq!(found(&runs, 40), [Some(PageIndex(120)), Some(PageIndex(260))]);
        runs.release(PageIndex(20), PageCount(20));
        assert_eq!(found(&runs, 8), [Some(PageIndex(20)), Some(PageIndex(32))]);
        let alike = |runs: &Runs, page, most| runs.alike_from(PageIndex(page), PageCount(most));
        assert_eq!(alike(&runs, 0, 300), (false, PageCount(32)));
        assert_eq!(alike(&runs, 32, 300), (true, PageCount(64)));
        assert_eq!(alike(&runs, 96, 300), (false, PageCount(164)));
        assert_eq!(alike(&runs, 96, 100), (false, PageCount(100)));
        // Neither tree takes pages beyond its end for free, whatever is added.
        runs.grow(PageCount(9_000));
        runs.check().unwrap();
        assert_eq!(found(&runs, 40), [Some(PageIndex(120)), Some(PageIndex(260))]);
        assert_eq!(found(&runs, 9_000), [Some(PageIndex(300)), None]);
        runs.make_dense();
        runs.check().unwrap();
        assert_eq!(found(&runs, 9_001), [Some(PageIndex(120)), None]);
        assert_eq!((runs.sparse_pages(), alike(&runs, 0, 300)), (PageCount(0), (false, PageCount(300))));
    }

    #[test]
    fn pages_are_clean_until_they_are_released() {
        let mut runs = runs(1_000);
        runs.grow(PageCount(500));
        runs.claim(PageIndex(100), PageCount(200));
        assert_eq!(runs.dirty_within(PageIndex(0), PageCount(500)), None);
        runs.release(PageIndex(130), PageCount(2));
        runs.release(PageIndex(190), PageCount(10));
        assert_eq!(runs.dirty_within(PageIndex(100), PageCount(200)), Some((PageIndex(130), PageCount(70))));
        assert_eq!(runs.dirty_within(PageIndex(132), PageCount(58)), None);
        let next = |from, end| runs.next_dirty(PageIndex(from), PageIndex(end));
        assert_eq!((next(0, 130), next(132, 190), next(200, 200)), (None, None, None));
        assert_eq!(next(0, 500), Some((PageIndex(130), PageCount(2))));
        assert_eq!(next(132, 500), Some((PageIndex(190), PageCount(10))));
        assert_eq!(next(190, 192), Some((PageIndex(190), PageCount(2))));
        assert_eq!(next(195, 300), Some((PageIndex(195), PageCount(5))));
        runs.check().unwrap();
    }

    #[test]
    fn pages_are_idle_once_they_stayed_free_from_one_age_to_the_next() {
        let mut runs = runs(1_000);
        let (all, most) = (PageIndex(0), PageCount(32));
        runs.grow(PageCount(500));
        runs.claim(PageIndex(0), PageCount(300));
        assert_eq!(runs.dirty_free_from(all, false, most), None);
        runs.release(PageIndex(30), PageCount(40));
        assert_eq!(runs.dirty_free_from(all, false, most), Some((PageIndex(30), PageCount(2))));
        assert_eq!(runs.dirty_free_from(PageIndex(32), false, most), Some((PageIndex(32), PageCount(32))));
        assert_eq!(runs.dirty_free_from(PageIndex(64), false, most), Some((PageIndex(64), PageCount(6))));
        assert_eq!(runs.dirty_free_from(PageIndex(70), false, most), None);
        assert_eq!(runs.dirty_free_from(all, true, most), None);
        runs.age();
        runs.claim(PageIndex(30), PageCount(5));
        runs.release(PageIndex(30), PageCount(5));
        assert_eq!(runs.dirty_free_from(all, true, most), Some((PageIndex(35), PageCount(29))));
        runs.check().unwrap();
        runs.clean(PageIndex(35), PageCount(35));
        assert_eq!(runs.dirty_free_from(all, true, most), None);
        assert_eq!(runs.dirty_within(PageIndex(30), PageCount(40)), Some((PageIndex(30), PageCount(5))));
        runs.age();
        assert_eq!(runs.dirty_free_from(all, true, most), Some((PageIndex(30), PageCount(2))));
        runs.check().unwrap();
    }

    #[test]
    fn clean_pages_go_with_dirty_ones_beside_them_up_to_a_multiple() {
        let mut runs = runs(1_000);
        let most = PageCount(32);
        runs.grow(PageCount(500));
        runs.claim(PageIndex(0), PageCount(40));
        runs.release(PageIndex(36), PageCount(4));
        // In use up to 36, dirty up to 40, clean from there on.
        let with_clean =
            |runs: &Runs, start, count| runs.with_clean(PageIndex(start), PageCount(count), most);
        assert_eq!(with_clean(&runs, 36, 4), (PageIndex(36), PageCount(28)));
        assert_eq!(runs.next_free(PageIndex(0), most), Some((PageIndex(36), PageCount(28))));
        assert_eq!(runs.next_free(PageIndex(64), most), Some((PageIndex(64), PageCount(32))));
        runs.claim(PageIndex(50), PageCount(6));
        runs.release(PageIndex(50), PageCount(6));
        // Neither over other dirty pages, nor over pages in use, nor beyond the frontier.
        assert_eq!(with_clean(&runs, 36, 4), (PageIndex(36), PageCount(14)));
        assert_eq!(with_clean(&runs, 50, 6), (PageIndex(40), PageCount(24)));
        runs.claim(PageIndex(60), PageCount(1));
        assert_eq!(with_clean(&runs, 50, 6), (PageIndex(40), PageCount(20)));
        assert_eq!(with_clean(&runs, 490, 2), (PageIndex(480), PageCount(20)));
        assert_eq!(runs.next_free(PageIndex(480), most), Some((PageIndex(480), PageCount(20))));
        assert_eq!(runs.next_free(PageIndex(500), most), None);
    }

    #[test]
    fn free_pages_are_looked_at_up_to_the_end_of_the_bitmap() {
        let mut runs = runs(128);
        runs.grow(PageCount(128));
        assert_eq!(runs.free_from(PageIndex(100), PageCount(100)), PageCount(28));
        let all = (PageIndex(0), PageCount(128));
        assert_eq!(runs.with_clean(PageIndex(100), PageCount(1), PageCount(256)), all);
    }

    #[test]
    fn only_added_pages_are_found() {
        let mut runs = runs(200);
        assert_eq!(runs.find(PageCount(1)), None);
        runs.grow(PageCount(70));
        assert_eq!(runs.find(PageCount(71)), None);
        assert_eq!(runs.free_below_frontier(), PageCount(70));
        runs.claim(PageIndex(10), PageCount(5));
        assert_eq!(runs.free_below_frontier(), PageCount(55));
        runs.grow(PageCount(130));
        assert_eq!(runs.find(PageCount(185)), Some(PageIndex(15)));
        assert!(runs.is_free(PageIndex(199)));
        runs.check().unwrap();
    }
}
