//! Index of the free pages: the lowest run of `n` free pages, in O(log pages).
//!
//! A bitmap holds one bit a page (1: free and committed). Above it stands a tree of summaries with eight
//! children to a node; a summary says how many free pages its range begins with, ends with, and has in its
//! longest run. Runs therefore split and coalesce by setting bits: no list, no header at their ends. The idea is
//! the page allocator of the Go runtime (`runtime/mpagealloc.go`).
//!
//! A second bitmap remembers which pages may hold something other than zeros, a third which of the free ones among
//! them have been free for a while: these are the ones to give back to the system. The three are interleaved by words, so
//! that a small heap has them all in one OS page.
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
//! let (words, nodes) = Runs::storage(PageCount(1000));
//! let mut words = vec![Word::default(); words];
//! let mut summaries = vec![Summary::default(); nodes];
//! let mut runs = Runs::new(PageCount(1000), &mut words, &mut summaries);
//! runs.grow(PageCount(100));
//! runs.claim(PageIndex(0), PageCount(10));
//! runs.release(PageIndex(2), PageCount(3));
//! assert_eq!(runs.find(PageCount(3)), Some(PageIndex(2)));
//! assert_eq!(runs.find(PageCount(4)), Some(PageIndex(10)));
//! ```

use crate::units::{PageCount, PageIndex};

/// Children of a summary node.
const FANOUT: usize = 8;
/// Pages in a bitmap word.
const WORD: usize = u64::BITS as usize;
/// Levels that serve the most pages a `u32` can count.
const MAX_LEVELS: usize = 10;

/// Free pages of a range: at its start, in its longest run, and at its end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Summary {
    prefix: u32,
    longest: u32,
    suffix: u32,
}

impl Summary {
    /// `len` pages, all free.
    fn all(len: usize) -> Summary {
        Summary { prefix: len as u32, longest: len as u32, suffix: len as u32 }
    }

    fn of_word(word: u64) -> Summary {
        match word {
            0 => Summary::default(),
            u64::MAX => Summary::all(WORD),
            _ => Summary {
                prefix: word.trailing_ones(),
                longest: longest_ones(word),
                suffix: word.leading_ones(),
            },
        }
    }

    /// The summary of neighbouring ranges of `len` pages each.
    fn of_children(children: &[Summary], len: usize) -> Summary {
        let mut whole = Summary { prefix: children[0].prefix, ..Summary::default() };
        for (at, child) in children.iter().enumerate() {
            if whole.prefix as usize == at * len {
                whole.prefix = (at * len) as u32 + child.prefix;
            }
            whole.longest = whole.longest.max(child.longest).max(whole.suffix + child.prefix);
            whole.suffix =
                if child.suffix as usize == len { whole.suffix + child.suffix } else { child.suffix };
        }
        whole
    }
}

/// Length of the longest run of ones in `word`, which has a zero.
fn longest_ones(word: u64) -> u32 {
    // `starts[k]`: positions at which `1 << k` ones begin.
    let mut starts = [word; 6];
    for k in 0..5 {
        starts[k + 1] = starts[k] & (starts[k] >> (1 << k));
    }
    // Lengthen greedily, by ever smaller powers of two.
    let (mut at, mut len) = (!0u64, 0);
    for k in (0..6).rev() {
        let longer = at & (starts[k] >> len);
        if longer != 0 {
            (at, len) = (longer, len + (1 << k));
        }
    }
    len
}

/// What is known of 64 pages, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Word {
    /// Free, and committed.
    free: u64,
    /// They may hold something other than zeros. What the system backs with memory is among them.
    dirty: u64,
    /// Free and dirty when [`age`](Runs::age) was last called, and not claimed since.
    idle: u64,
}

impl Word {
    fn free_and_dirty(self) -> u64 {
        self.free & self.dirty
    }
}

/// The index. Plain data: its owner provides storage, locks it, and commits the memory of the pages it adds.
#[derive(Debug)]
pub struct Runs<'s> {
    words: &'s mut [Word],
    summaries: &'s mut [Summary],
    /// Where each level begins in `summaries`; level 0 has a summary a word, the last level one in all.
    levels: [usize; MAX_LEVELS],
    /// Levels kept up to date: as many as it takes for the highest to have no more than a node's children. A small
    /// heap in a large arena has a low tree.
    height: usize,
    /// Pages below are in use or free; pages from there on have never been added.
    frontier: PageIndex,
    free_pages: PageCount,
    capacity: PageCount,
}

/// Nodes of each level for `capacity` pages, from level 0 up to the single root.
fn level_sizes(capacity: PageCount) -> impl Iterator<Item = usize> {
    let mut next = Some(capacity.get().div_ceil(WORD).max(1));
    core::iter::from_fn(move || {
        let nodes = next?;
        next = (nodes > 1).then(|| nodes.div_ceil(FANOUT));
        Some(nodes)
    })
}

impl<'s> Runs<'s> {
    /// Words and summaries that are needed for `capacity` pages.
    pub fn storage(capacity: PageCount) -> (usize, usize) {
        (capacity.get().div_ceil(WORD).max(1), level_sizes(capacity).sum())
    }

    /// An index of up to `capacity` pages, none of them added yet.
    ///
    /// The slices are zeroed and as long as [`storage`](Self::storage) says.
    pub fn new(capacity: PageCount, words: &'s mut [Word], summaries: &'s mut [Summary]) -> Runs<'s> {
        let (mut levels, mut start) = ([0; MAX_LEVELS], 0);
        for (level, nodes) in levels.iter_mut().zip(level_sizes(capacity)) {
            *level = start;
            start += nodes;
        }
        debug_assert_eq!((words.len(), summaries.len()), Self::storage(capacity));
        Runs {
            words,
            summaries,
            levels,
            height: 1,
            frontier: PageIndex(0),
            free_pages: PageCount(0),
            capacity,
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
        while self.in_use(self.height - 1) > FANOUT {
            self.height += 1;
            let level = self.height - 1;
            for node in 0..self.in_use(level) {
                self.summaries[self.levels[level] + node] = self.summarize(level, node);
            }
        }
        self.set(start, count, true);
    }

    /// Remembers of `count` pages below the frontier that they may hold anything.
    pub fn soil(&mut self, start: PageIndex, count: PageCount) {
        for (word, mask) in words_of(start, count) {
            self.words[word].dirty |= mask;
        }
    }

    /// The lowest run of `count` free pages, not yet claimed.
    pub fn find(&self, count: PageCount) -> Option<PageIndex> {
        let wanted = count.0;
        let mut level = self.height - 1;
        let mut first = 0;
        loop {
            let len = WORD << (3 * level);
            // Free pages at the end of the nodes passed so far.
            let mut before = 0;
            let mut node = first;
            for summary in self.siblings(level, first) {
                if before + summary.prefix >= wanted {
                    return Some(PageIndex((node * len) as u32 - before));
                }
                if summary.longest >= wanted {
                    break;
                }
                before =
                    if summary.suffix as usize == len { before + summary.suffix } else { summary.suffix };
                node += 1;
            }
            if node == first + self.siblings(level, first).len() {
                return None;
            }
            if level == 0 {
                let bit = lowest_ones(self.words[node].free, wanted)?;
                return Some(PageIndex((node * WORD) as u32 + bit));
            }
            level -= 1;
            first = node * FANOUT;
        }
    }

    /// Free pages above the frontier's last used page: the run that ends at the frontier.
    pub fn free_below_frontier(&self) -> PageCount {
        let mut pages = 0;
        let mut end = self.frontier.get();
        while end > 0 {
            let word = (end - 1) / WORD;
            let within = end - word * WORD;
            let ones = (self.words[word].free << (WORD - within)).leading_ones().min(within as u32);
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
            self.words[word].idle &= !mask;
        }
        self.set(start, count, false);
    }

    /// Gives `count` pages back; they may hold anything.
    pub fn release(&mut self, start: PageIndex, count: PageCount) {
        self.soil(start, count);
        self.set(start, count, true);
    }

    /// Notes that `count` pages from `start` on, free or not, read as zeros and have no memory.
    pub fn clean(&mut self, start: PageIndex, count: PageCount) {
        for (word, mask) in words_of(start, count) {
            self.words[word].dirty &= !mask;
            self.words[word].idle &= !mask;
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
        debug_assert!(most.0.is_power_of_two());
        let wanted =
            |word: usize| if idle { self.words[word].idle } else { self.words[word].free_and_dirty() };
        let mut at = from;
        while at < self.frontier {
            let (word, bit) = (at.get() / WORD, at.get() % WORD);
            let rest = wanted(word) >> bit;
            if rest != 0 {
                let start = at.plus(PageCount(rest.trailing_zeros()));
                let ones = (rest >> rest.trailing_zeros()).trailing_ones();
                let to_boundary = most.0 - start.0 % most.0;
                return Some((start, PageCount(ones.min(to_boundary))));
            }
            at = PageIndex(((word + 1) * WORD) as u32);
        }
        None
    }

    /// Free pages that may hold something other than zeros: they may have memory.
    pub fn dirty_free_pages(&self) -> PageCount {
        let words = self.frontier.get().div_ceil(WORD);
        let pages = (0..words).map(|word| self.words[word].free_and_dirty().count_ones());
        PageCount(pages.sum())
    }

    /// Begins a new age: pages that are free and dirty are idle until they are claimed.
    pub fn age(&mut self) {
        let words = self.frontier.get().div_ceil(WORD);
        for word in 0..words {
            self.words[word].idle = self.words[word].free_and_dirty();
        }
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

    /// Verifies every summary against the bitmap, and the counts; returns what is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        let mut free = 0;
        for (at, word) in self.words.iter().enumerate() {
            free += word.free.count_ones();
            if self.summaries[at] != Summary::of_word(word.free) {
                return Err("a word's summary differs from the word");
            }
        }
        if free != self.free_pages.0 {
            return Err("the count of free pages differs from the bitmap");
        }
        if words_of(self.frontier, self.unadded())
            .any(|(word, mask)| (self.words[word].free | self.words[word].dirty) & mask != 0)
        {
            return Err("a page above the frontier is marked");
        }
        if self.words.iter().any(|word| word.idle & !word.free_and_dirty() != 0) {
            return Err("an idle page is in use, or clean");
        }
        if self.in_use(self.height - 1) > FANOUT {
            return Err("the tree is too low for its pages");
        }
        for level in 1..self.height {
            for node in 0..self.in_use(level) {
                if self.siblings(level, node)[0] != self.summarize(level, node) {
                    return Err("a node's summary differs from its children");
                }
            }
        }
        Ok(())
    }

    /// Nodes of `level` that pages below the frontier lie in; one at the least.
    fn in_use(&self, level: usize) -> usize {
        self.frontier.get().div_ceil(WORD << (3 * level)).max(1)
    }

    /// Nodes of `level` from `first` on, at most a node's worth of children.
    #[inline]
    fn siblings(&self, level: usize, first: usize) -> &[Summary] {
        let count = (self.in_use(level) - first).min(FANOUT);
        &self.summaries[self.levels[level] + first..][..count]
    }

    fn summarize(&self, level: usize, node: usize) -> Summary {
        Summary::of_children(self.siblings(level - 1, node * FANOUT), WORD << (3 * (level - 1)))
    }

    /// Marks pages free or not, and brings the summaries above them up to date.
    fn set(&mut self, start: PageIndex, count: PageCount, free: bool) {
        for (word, mask) in words_of(start, count) {
            let old = self.words[word].free;
            debug_assert_eq!(old & mask, if free { 0 } else { mask }, "pages claimed or released twice");
            self.words[word].free = if free { old | mask } else { old & !mask };
            self.summaries[word] = Summary::of_word(self.words[word].free);
        }
        if free {
            self.free_pages.0 += count.0;
        } else {
            self.free_pages.0 -= count.0;
        }
        let (mut first, mut last) = (start.get() / WORD, (start.get() + count.get() - 1) / WORD);
        for level in 1..self.height {
            (first, last) = (first / FANOUT, last / FANOUT);
            let mut changed = false;
            for node in first..=last {
                let summary = self.summarize(level, node);
                let held = &mut self.summaries[self.levels[level] + node];
                changed |= *held != summary;
                *held = summary;
            }
            if !changed {
                break;
            }
        }
    }
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

/// The lowest position at which `count` ones begin in `word`.
fn lowest_ones(word: u64, count: u32) -> Option<u32> {
    let (mut starts, mut len) = (word, 1);
    while len < count {
        let step = len.min(count - len);
        starts &= starts >> step;
        len += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::String, vec};

    fn runs(capacity: u32) -> Runs<'static> {
        let capacity = PageCount(capacity);
        let (words, nodes) = Runs::storage(capacity);
        Runs::new(capacity, vec![Word::default(); words].leak(), vec![Summary::default(); nodes].leak())
    }

    fn longest_ones_slowly(word: u64) -> u32 {
        (0..64).map(|at| (word >> at).trailing_ones()).max().unwrap()
    }

    #[test]
    fn a_words_summary_matches_a_plain_count() {
        let mut word = 0x9E37_79B9_7F4A_7C15u64;
        for round in 0..100_000u32 {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            let dense = word | word.rotate_left(round % 64) | word.rotate_left(round % 7);
            assert_eq!(Summary::of_word(dense).longest, longest_ones_slowly(dense));
            for count in 1..=64 {
                let slow = (0..=64 - count).find(|&at| (dense >> at).trailing_ones() >= count);
                assert_eq!(lowest_ones(dense, count), slow);
            }
        }
        assert_eq!(Summary::of_word(u64::MAX), Summary::all(64));
        assert_eq!(Summary::of_word(0), Summary::all(0));
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
    fn pages_are_clean_until_they_are_released() {
        let mut runs = runs(1_000);
        runs.grow(PageCount(500));
        runs.claim(PageIndex(100), PageCount(200));
        assert_eq!(runs.dirty_within(PageIndex(0), PageCount(500)), None);
        runs.release(PageIndex(130), PageCount(2));
        runs.release(PageIndex(190), PageCount(10));
        assert_eq!(runs.dirty_within(PageIndex(100), PageCount(200)), Some((PageIndex(130), PageCount(70))));
        assert_eq!(runs.dirty_within(PageIndex(132), PageCount(58)), None);
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
    fn free_pages_are_counted_up_to_the_end_of_the_bitmap() {
        let mut runs = runs(128);
        runs.grow(PageCount(128));
        assert_eq!(runs.free_from(PageIndex(100), PageCount(100)), PageCount(28));
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
