//! Words for the stacks of one cache.
//!
//! Short pieces are cut from what is left behind the cache itself, then from chunks of its own, which stay with it until its
//! thread ends. So a thread that uses many classes a little, as most do that come and go, asks for memory a few times instead
//! of once for each: that is a lock, and cache lines that another processor had last.

use crate::metadata;
use core::cell::Cell;
use core::ptr::NonNull;
use static_assertions::const_assert;

/// Words of a chunk. The first of them leads to the next chunk.
const CHUNK: usize = 128;
/// Words of the shortest piece: a cache line.
const LEAST: usize = 8;
/// Lengths of pieces that are cut from chunks, each twice as long as the one before. Longer ones are no part of a chunk.
const LENGTHS: usize = 3;
const MOST: usize = LEAST << (LENGTHS - 1);

const_assert!(LEAST + MOST <= CHUNK && CHUNK * size_of::<usize>() <= metadata::MOST);

/// A piece, or a chunk, whose first word leads to the next of its list.
type Link = Option<NonNull<usize>>;

/// The chunks of a cache, and what of them is not in use.
#[derive(Debug)]
pub(super) struct Words {
    chunks: Cell<Link>,
    /// Words that were never used.
    unused: Cell<Link>,
    unused_words: Cell<usize>,
    /// Pieces given back, by length.
    free: [Cell<Link>; LENGTHS],
}

/// Takes the first of a list.
///
/// # Safety
/// The list has only pieces or chunks that nothing else uses.
unsafe fn pop(list: &Cell<Link>) -> Link {
    let first = list.get()?;
    // SAFETY: what is in a list holds the link to the next.
    list.set(unsafe { first.cast::<Link>().read() });
    Some(first)
}

/// Puts a piece, or a chunk, in front of a list.
///
/// # Safety
/// Nothing else uses it any more.
unsafe fn push(list: &Cell<Link>, first: NonNull<usize>) {
    // SAFETY: it is the list's now, and long enough for a link.
    unsafe { first.cast::<Link>().write(list.get()) };
    list.set(Some(first));
}

impl Words {
    #[allow(clippy::declare_interior_mutable_const)] // copied into each cache
    pub(super) const NONE: Words = Words {
        chunks: Cell::new(None),
        unused: Cell::new(None),
        unused_words: Cell::new(0),
        free: [const { Cell::new(None) }; LENGTHS],
    };

    /// Begins with these words, which are no chunk.
    ///
    /// # Safety
    /// `start` leads to so many words, all zero, that begin a cache line, and that nothing else uses as long as this is used.
    pub(super) unsafe fn begin_with(&self, start: NonNull<usize>, words: usize) {
        debug_assert!(
            self.unused.get().is_none() && start.addr().get().is_multiple_of(LEAST * size_of::<usize>())
        );
        self.unused.set(Some(start));
        self.unused_words.set(words);
    }

    /// The words that a piece of at least `len` has, and its list.
    fn piece_of(&self, len: usize) -> (usize, &Cell<Link>) {
        let words = len.next_power_of_two().max(LEAST);
        (words, &self.free[(words / LEAST).ilog2() as usize])
    }

    /// `len` words, all zero; `None` if there is no memory for them.
    pub(super) fn alloc(&self, len: usize) -> Option<NonNull<usize>> {
        if len > MOST {
            return metadata::alloc(len * size_of::<usize>()).map(NonNull::cast);
        }
        let (words, list) = self.piece_of(len);
        // SAFETY: pieces in the list are nobody's.
        let given_back = unsafe { pop(list) };
        if let Some(piece) = given_back {
            // SAFETY: the piece is the caller's to be, and so long.
            unsafe { piece.write_bytes(0, words) };
            return Some(piece);
        }
        if self.unused_words.get() < words {
            let chunk = metadata::alloc(CHUNK * size_of::<usize>())?.cast();
            // SAFETY: the chunk is this cache's, and longer than a line.
            unsafe {
                push(&self.chunks, chunk);
                self.unused.set(Some(chunk.add(LEAST)));
            }
            self.unused_words.set(CHUNK - LEAST);
        }
        let piece = self.unused.get()?;
        self.unused_words.set(self.unused_words.get() - words);
        // SAFETY: there are as many words.
        self.unused.set(Some(unsafe { piece.add(words) }));
        Some(piece)
    }

    /// Gives words back.
    ///
    /// # Safety
    /// They were allocated by [`alloc`](Self::alloc) with the same `len`, and are not used any more.
    pub(super) unsafe fn free(&self, piece: NonNull<usize>, len: usize) {
        // SAFETY: as the caller says.
        unsafe {
            if len > MOST {
                metadata::free(piece.cast(), len * size_of::<usize>());
            } else {
                push(self.piece_of(len).1, piece);
            }
        }
    }

    /// Gives all chunks back.
    ///
    /// # Safety
    /// No piece is in use, and none is allocated any more.
    pub(super) unsafe fn free_chunks(&self) {
        // SAFETY: as the caller says; each chunk was allocated with this length.
        unsafe {
            while let Some(chunk) = pop(&self.chunks) {
                metadata::free(chunk.cast(), CHUNK * size_of::<usize>());
            }
        }
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    /// The words of a piece.
    fn all<'a>(piece: NonNull<usize>, len: usize) -> &'a mut [usize] {
        // SAFETY: the test has the piece, which is as long, and uses one of these at a time.
        unsafe { core::slice::from_raw_parts_mut(piece.as_ptr(), len) }
    }

    /// Pieces of all lengths, some of which go back in between; each is written to as long as it is in use.
    #[test]
    fn pieces_are_zeroed_and_nobody_elses() {
        #[repr(align(64))]
        struct Lines([usize; 5 * LEAST]);
        let mut first = Lines([0; 5 * LEAST]);
        let (words, start) = (Words::NONE, NonNull::from(&mut first.0).cast());
        // SAFETY: these words are used by nothing else.
        unsafe { words.begin_with(start, 5 * LEAST) };
        let mut in_use: BTreeMap<usize, (NonNull<usize>, usize)> = BTreeMap::new();
        for number in 1..2_000 {
            let len = [4, 8, 16, 32, 64, 512][number * 7 % 6];
            let piece = words.alloc(len).unwrap();
            assert!(number > 1 || piece == start);
            assert!(all(piece, len).iter().all(|&word| word == 0));
            let start = piece.addr().get();
            let before = in_use.range(..start).next_back();
            assert!(before.is_none_or(|(&before, &(_, len))| before + len * size_of::<usize>() <= start));
            let behind = in_use.range(start..).next();
            assert!(behind.is_none_or(|(&behind, _)| start + len * size_of::<usize>() <= behind));
            all(piece, len).fill(number);
            in_use.insert(start, (piece, len));
            if number % 3 != 0 {
                let keys: Vec<usize> = in_use.keys().copied().collect();
                let (piece, len) = in_use.remove(&keys[number * 31 % keys.len()]).unwrap();
                assert!(all(piece, len).windows(2).all(|pair| pair[0] == pair[1]));
                // SAFETY: it is in use no more.
                unsafe { words.free(piece, len) };
            }
        }
        // SAFETY: no piece is used any more.
        unsafe {
            in_use.into_values().for_each(|(piece, len)| words.free(piece, len));
            words.free_chunks();
        }
    }
}
