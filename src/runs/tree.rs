//! The tree of summaries over a bitmap: where the lowest run of `n` ones is, in O(log bits).

use super::WORD;
use crate::units::{PageCount, PageIndex};

/// Children of a summary node.
const FANOUT: usize = 8;
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
        let all_free = |child: &Summary| child.longest as usize == len;
        let full = children.iter().take_while(|child| all_free(child)).count();
        let prefix = (full * len) as u32 + children.get(full).map_or(0, |child| child.prefix);
        let (mut longest, mut suffix) = (0, 0);
        for child in children {
            longest = child.longest.max(suffix + child.prefix).max(longest);
            suffix = if all_free(child) { suffix + child.suffix } else { child.suffix };
        }
        Summary { prefix, longest, suffix }
    }
}

/// Puts `summary` in place of another. Whether they differ.
fn set(held: &mut Summary, summary: Summary) -> bool {
    let changed = *held != summary;
    *held = summary;
    changed
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

/// Nodes of each level for `capacity` pages, from level 0 up to the single root.
fn level_sizes(capacity: PageCount) -> impl Iterator<Item = usize> {
    let mut next = Some(capacity.get().div_ceil(WORD).max(1));
    core::iter::from_fn(move || {
        let nodes = next?;
        next = (nodes > 1).then(|| nodes.div_ceil(FANOUT));
        Some(nodes)
    })
}

/// The tree. Its leaves are the summaries of the words of a bitmap, which the owner has.
#[derive(Debug)]
pub(super) struct Tree<'s> {
    summaries: &'s mut [Summary],
    /// Where each level begins in `summaries`; level 0 has a summary a word, the last level one in all.
    levels: [usize; MAX_LEVELS],
    /// Levels kept up to date: as many as it takes for the highest to have no more than a node's children. A small
    /// heap in a large arena has a low tree.
    height: usize,
    /// Words in use, from the first one on. Beyond them there are no ones.
    words: usize,
}

impl<'s> Tree<'s> {
    /// Summaries that are needed for `capacity` pages.
    pub(super) fn summaries(capacity: PageCount) -> usize {
        level_sizes(capacity).sum()
    }

    /// A tree over zeros.
    pub(super) fn new(capacity: PageCount, summaries: &'s mut [Summary]) -> Tree<'s> {
        let (mut levels, mut start) = ([0; MAX_LEVELS], 0);
        for (level, nodes) in levels.iter_mut().zip(level_sizes(capacity)) {
            *level = start;
            start += nodes;
        }
        debug_assert_eq!(summaries.len(), start);
        Tree { summaries, levels, height: 1, words: 0 }
    }

    /// Takes words into use, up to so many in all; those that are new are zeros.
    pub(super) fn grow(&mut self, words: usize) {
        let before = self.words;
        self.words = words;
        // The last nodes of before have more children now, and none of them ends with ones any more.
        for level in (1..self.height).filter(|_| words > before && before > 0) {
            let node = (before - 1) / (1 << (3 * level));
            self.summaries[self.levels[level] + node] = self.summarize(level, node);
        }
        while self.in_use(self.height - 1) > FANOUT {
            self.height += 1;
            let level = self.height - 1;
            for node in 0..self.in_use(level) {
                self.summaries[self.levels[level] + node] = self.summarize(level, node);
            }
        }
    }

    /// Brings the tree up to date after words from `first` to `last` have changed.
    pub(super) fn update(&mut self, first: usize, last: usize, word_at: impl Fn(usize) -> u64) {
        let mut changed = false;
        for word in first..=last {
            changed |= set(&mut self.summaries[word], Summary::of_word(word_at(word)));
        }
        let (mut first, mut last) = (first, last);
        for level in 1..self.height {
            if !changed {
                break;
            }
            (first, last) = (first / FANOUT, last / FANOUT);
            changed = false;
            for node in first..=last {
                let summary = self.summarize(level, node);
                changed |= set(&mut self.summaries[self.levels[level] + node], summary);
            }
        }
    }

    /// The lowest run of so many ones.
    pub(super) fn find(&self, wanted: u32, word_at: impl Fn(usize) -> u64) -> Option<PageIndex> {
        self.find_among(self.height - 1, 0, wanted, word_at)
    }

    /// [`find`](Self::find) that begins at `from` or behind it.
    pub(super) fn find_from(
        &self,
        from: PageIndex,
        wanted: u32,
        word_at: impl Fn(usize) -> u64,
    ) -> Option<PageIndex> {
        let (word, bit) = (from.get() / WORD, from.get() % WORD);
        if word >= self.words {
            return None;
        }
        let ones = word_at(word) & (!0 << bit);
        if Summary::of_word(ones).longest >= wanted
            && let Some(bit) = lowest_ones(ones, wanted)
        {
            return Some(PageIndex((word * WORD) as u32 + bit));
        }
        let mut before = ones.leading_ones();
        let (mut level, mut node) = (0, word + 1);
        loop {
            // Its siblings from here on; then those of its parent, from the one behind that.
            let len = WORD << (3 * level);
            let is_top = level == self.height - 1;
            let end = if is_top { usize::MAX } else { node.next_multiple_of(FANOUT) };
            while node < end.min(self.in_use(level)) {
                let summary = self.summaries[self.levels[level] + node];
                if before + summary.prefix >= wanted {
                    return Some(PageIndex((node * len) as u32 - before));
                }
                if summary.longest >= wanted {
                    return match level {
                        0 => lowest_ones(word_at(node), wanted)
                            .map(|bit| PageIndex((node * WORD) as u32 + bit)),
                        _ => self.find_among(level - 1, node * FANOUT, wanted, word_at),
                    };
                }
                before =
                    if summary.suffix as usize == len { before + summary.suffix } else { summary.suffix };
                node += 1;
            }
            if is_top {
                return None;
            }
            (level, node) = (level + 1, node.div_ceil(FANOUT));
        }
    }

    /// The lowest run of so many ones below the siblings of a node that is the first of them.
    fn find_among(
        &self,
        mut level: usize,
        mut first: usize,
        wanted: u32,
        word_at: impl Fn(usize) -> u64,
    ) -> Option<PageIndex> {
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
                let bit = lowest_ones(word_at(node), wanted)?;
                return Some(PageIndex((node * WORD) as u32 + bit));
            }
            level -= 1;
            first = node * FANOUT;
        }
    }

    /// Verifies every summary against the words.
    pub(super) fn check(&self, word_at: impl Fn(usize) -> u64) -> Result<(), &'static str> {
        if (0..self.levels[1].max(1)).any(|word| self.summaries[word] != Summary::of_word(word_at(word))) {
            return Err("a word's summary differs from the word");
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

    /// Nodes of `level` in use; one at the least.
    fn in_use(&self, level: usize) -> usize {
        self.words.div_ceil(1 << (3 * level)).max(1)
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
}
