//! One Divided page: blocks taken from it and put back.

use super::{Bin, Header, Misuse, PageState, PageTable, Tag};
use crate::size_class::Geometry;
use crate::units::PageIndex;
use core::ops::Range;
use core::slice;

/// Parts of a page of which it is known whether they may have memory, and of which blocks: the bits of
/// [`Header::purged`] and [`Header::unwritten`].
const PARTS: usize = u16::BITS as usize;

/// `count` bits from bit `first` on: at least one, and all within a word.
#[inline]
fn mask(first: usize, count: usize) -> u64 {
    debug_assert!(count >= 1 && first + count <= u64::BITS as usize);
    (u64::MAX >> (u64::BITS as usize - count)) << first
}

/// Writes `lowest` and the addresses of the blocks that follow it, the lowest last.
#[inline]
fn write_descending(slots: &mut [usize], lowest: usize, block: usize) {
    let mut address = lowest;
    for slot in slots.iter_mut().rev() {
        *slot = address;
        address += block;
    }
}

/// How many of a list's first blocks lie side by side.
enum Neighbours {
    /// Each follows the one before it; one block at least.
    Above(usize),
    /// Each precedes the one before it.
    Below(usize),
}

#[inline]
fn neighbours(blocks: &[usize], block: usize) -> Neighbours {
    let distance = if let [first, second, ..] = blocks { second.wrapping_sub(*first) } else { 0 };
    if distance == block {
        Neighbours::Above(at_distance(blocks, distance))
    } else if distance == block.wrapping_neg() {
        Neighbours::Below(at_distance(blocks, distance))
    } else {
        Neighbours::Below(1)
    }
}

/// How many of the first blocks lie at this distance, each from the one before it. The first two do.
#[inline]
fn at_distance(blocks: &[usize], distance: usize) -> usize {
    // Most batches are either short or long: few by themselves, and then so many to a turn.
    const FEW: usize = 4;
    const AT_ONCE: usize = 8;
    let follows = |count: usize| blocks[count].wrapping_sub(blocks[count - 1]) == distance;
    let mut count = 2;
    while count < blocks.len().min(FEW) {
        if !follows(count) {
            return count;
        }
        count += 1;
    }
    while let Some(next) = blocks.get(count - 1..count + AT_ONCE) {
        let differ =
            (0..AT_ONCE).fold(0, |differ, at| differ | (next[at + 1].wrapping_sub(next[at]) ^ distance));
        if differ != 0 {
            break;
        }
        count += AT_ONCE;
    }
    while count < blocks.len() && follows(count) {
        count += 1;
    }
    count
}

/// Sets `count` bits from bit `first` on, if none of them is set.
#[inline]
fn free_all(bitmap: &mut [u64], first: usize, count: usize) -> bool {
    // Most lie in one word.
    let (word, bit) = (first / u64::BITS as usize, first % u64::BITS as usize);
    if bit + count <= u64::BITS as usize {
        let mask = mask(bit, count);
        let are_used = bitmap[word] & mask == 0;
        bitmap[word] |= if are_used { mask } else { 0 };
        return are_used;
    }
    let words = |bitmap: &mut [u64], each: fn(&mut u64, u64) -> bool| {
        let (mut at, end) = (first, first + count);
        while at < end {
            let (word, bit) = (at / u64::BITS as usize, at % u64::BITS as usize);
            let bits = (u64::BITS as usize - bit).min(end - at);
            if !each(&mut bitmap[word], mask(bit, bits)) {
                return false;
            }
            at += bits;
        }
        true
    };
    words(bitmap, |word, mask| *word & mask == 0)
        && words(bitmap, |word, mask| {
            *word |= mask;
            true
        })
}

/// What is in free blocks that nobody has marked when they were put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// Nobody knows.
    Unknown,
    /// Zeros: they were not handed out since their page was divided, or their part of it [purged](DividedPage::note_purged),
    /// and there was no memory then.
    Zeros,
}

impl Contents {
    /// Zeros, if that is known.
    #[inline]
    pub(crate) fn zeros_if(known: bool) -> Contents {
        if known { Contents::Zeros } else { Contents::Unknown }
    }
}

/// Exclusive use of one Divided page.
#[derive(Debug)]
pub struct DividedPage<'a, G> {
    pub(super) table: &'a PageTable<G>,
    pub(super) page: PageIndex,
    pub(super) tag: Tag,
    pub(super) bin: &'a mut Bin,
    pub(super) header: &'a mut Header,
}

impl<G: Geometry> PageTable<G> {
    /// Takes back the first of `blocks`, as long as each lies apart from the next, in a page of `tag`, whose bin that is, and
    /// nothing else is to be done: it is live, others of its page are, and that stays in its list. Returns how many; with the
    /// one that follows somebody else is to [deal](DividedPage::put).
    ///
    /// By itself, as the loop has more of what it needs in registers than in a function that does all else, too.
    #[inline(never)]
    pub fn put_apart(&self, _: &mut Bin, tag: Tag, blocks: &[usize]) -> usize {
        let (classes, class, capacity) = (self.geometry.classes(), tag.class(), self.capacity_of(tag));
        let block = classes.block(class);
        let mut put = 0;
        while let Some(&address) = blocks.get(put) {
            let distance = blocks.get(put + 1).map_or(0, |next| next.wrapping_sub(address));
            let Some(page) = self.page_of(address) else { break };
            if distance == block || distance == block.wrapping_neg() || self.tag(page) != tag {
                break;
            }
            // SAFETY: the page is Divided, so its header belongs to the holder of its bin.
            let header = unsafe { &mut *self.header(page) };
            let offset = address - self.address_of(page);
            let (number, watermark) = (classes.divide(offset, class), header.watermark as usize);
            if number >= watermark || number * block != offset || header.live <= 1 || !header.busy {
                break;
            }
            let live = header.live as usize - 1;
            if Bin::list_of(capacity - live, capacity) != header.list {
                break;
            }
            // SAFETY: so does its bitmap.
            let bitmap = unsafe { self.bitmap_of(page, capacity, watermark).as_mut() };
            let (word, bit) = (number / u64::BITS as usize, mask(number % u64::BITS as usize, 1));
            if bitmap[word] & bit != 0 {
                break;
            }
            bitmap[word] |= bit;
            header.first_word = header.first_word.min(word as u32);
            header.live = live as u32;
            put += 1;
        }
        put
    }
}

impl<G: Geometry> DividedPage<'_, G> {
    /// Blocks handed out.
    pub fn live(&self) -> usize {
        self.header.live as usize
    }

    /// The words of the bitmap, as far as there may be bits.
    pub(super) fn bitmap(&mut self) -> &mut [u64] {
        let (capacity, watermark) = (self.table.capacity_of(self.tag), self.header.watermark as usize);
        // SAFETY: the bitmap of a Divided page belongs to the holder of its bin, as the header does.
        unsafe { self.table.bitmap_of(self.page, capacity, watermark).as_mut() }
    }

    /// Takes up to `slots.len()` blocks, lowest first, and writes their addresses to the end of `slots` in
    /// descending order: a stack that ends there pops them in ascending order. Returns how many. `blank` is told of those
    /// that may hold nothing that was written when they were put back, and what they do hold.
    pub fn take(&mut self, slots: &mut [usize], blank: impl Fn(&mut [usize], Contents)) -> usize {
        let block = self.table.geometry.classes().block(self.tag.class());
        let capacity = self.table.capacity_of(self.tag);
        let base = self.table.address_of(self.page);
        let mut unfilled = slots.len();
        let mut at = self.header.first_word as usize;
        let words = self.bitmap();
        while unfilled > 0 && at < words.len() {
            let mut word = words[at];
            let origin = base + at * u64::BITS as usize * block;
            // Blocks that lie side by side are written down without a look at each of them.
            while word != 0 && unfilled > 0 {
                let first = word.trailing_zeros() as usize;
                let count = unfilled.min((word >> first).trailing_ones() as usize);
                write_descending(&mut slots[unfilled - count..unfilled], origin + first * block, block);
                unfilled -= count;
                word &= !mask(first, count);
            }
            words[at] = word;
            at += usize::from(word == 0);
        }
        let watermark = self.header.watermark as usize;
        let fresh = unfilled.min(capacity - watermark);
        write_descending(&mut slots[unfilled - fresh..unfilled], base + watermark * block, block);
        let taken = slots.len() - unfilled + fresh;
        let zeros = self.header.zeros;
        if zeros != 0 {
            let parts = slots[unfilled - fresh..].iter().map(|&slot| self.parts_of(slot..slot + block));
            self.header.zeros &= !parts.fold(0, |all, parts| all | parts);
        }
        let tell_of_each = |slots: &mut [usize], unwritten: u16| {
            for slot in slots.iter_mut().filter(|slot| unwritten & self.part_of(**slot) != 0) {
                let parts = || self.parts_of(*slot..*slot + block);
                let has_zeros = zeros != 0 && !zeros & parts() == 0;
                blank(slice::from_mut(slot), Contents::zeros_if(has_zeros));
            }
        };
        let (never_used, used) = slots[unfilled - fresh..].split_at_mut(fresh);
        match never_used {
            [] => {}
            all if self.header.fresh => blank(all, Contents::Zeros),
            all if zeros == 0 => blank(all, Contents::Unknown),
            all => tell_of_each(all, u16::MAX),
        }
        if self.header.unwritten != 0 {
            tell_of_each(used, self.header.unwritten);
        }
        self.header.purged = 0;
        self.header.first_word = at as u32;
        self.header.watermark = (watermark + fresh) as u32;
        self.header.live += taken as u32;
        if self.header.live as usize == capacity {
            self.header.unwritten = 0;
        }
        taken
    }

    fn bytes_of_part(&self) -> usize {
        self.table.geometry.page_size() / PARTS
    }

    /// The bits of the parts that a range of addresses, which is not empty, lies in.
    fn parts_of(&self, addresses: Range<usize>) -> u16 {
        let part = |address: usize| (address - self.table.address_of(self.page)) / self.bytes_of_part();
        let (first, last) = (part(addresses.start), part(addresses.end - 1));
        mask(first, last + 1 - first) as u16
    }

    /// The bit of the part that `address` lies in.
    fn part_of(&self, address: usize) -> u16 {
        1 << ((address - self.table.address_of(self.page)) / self.bytes_of_part())
    }

    /// Notes that nothing was written to `blocks`, which were put back.
    pub fn note_unwritten(&mut self, blocks: &[usize]) {
        self.header.unwritten |= blocks.iter().fold(0, |parts, &block| parts | self.part_of(block));
    }

    /// Takes back the first of `blocks`, which lies in this page, and those that follow it as long as they do.
    /// Returns how many.
    ///
    /// # Errors
    /// If one of them is no block in use: its place among `blocks`, and what it is instead. Those before it are put back
    /// all the same.
    pub fn put(&mut self, blocks: &[usize]) -> Result<usize, (usize, Misuse)> {
        let class = self.tag.class();
        let classes = self.table.geometry.classes();
        let page_size = self.table.geometry.page_size();
        let base = self.table.address_of(self.page);
        let block = classes.block(class);
        let end = self.header.watermark as usize * block;
        let mut first_word = self.header.first_word as usize;
        let bitmap = self.bitmap();
        let (mut put, mut misuse) = (0, None);
        while let Some(&address) = blocks.get(put) {
            let offset = address.wrapping_sub(base);
            if offset >= end {
                if offset < page_size {
                    misuse = Some(if offset % block == 0 { Misuse::AlreadyFree } else { Misuse::NotAtStart });
                }
                break;
            }
            let number = classes.divide(offset, class);
            if number * block != offset && cfg!(not(pma_unchecked = "put")) {
                misuse = Some(Misuse::NotAtStart);
                break;
            }
            // Blocks that were allocated one after the other often come back so, upward or downward.
            let (lowest, count) = match neighbours(&blocks[put..], block) {
                Neighbours::Above(count) => (number, count.min((end - offset) / block)),
                Neighbours::Below(count) => (number + 1 - count.min(number + 1), count.min(number + 1)),
            };
            if count > 1 && free_all(bitmap, lowest, count) {
                first_word = first_word.min(lowest / u64::BITS as usize);
                put += count;
                continue;
            }
            // By itself, as it lies apart, or because one of them is free.
            let (word, bit) = (number / u64::BITS as usize, mask(number % u64::BITS as usize, 1));
            if bitmap[word] & bit != 0 && cfg!(not(pma_unchecked = "put")) {
                misuse = Some(Misuse::AlreadyFree);
                break;
            }
            bitmap[word] |= bit;
            first_word = first_word.min(word);
            put += 1;
        }
        self.header.first_word = first_word as u32;
        self.header.live -= put as u32;
        misuse.map_or(Ok(put), |misuse| Err((put, misuse)))
    }

    /// Whether no block was taken or put since this was last asked; notes that it was asked.
    pub fn was_idle(&mut self) -> bool {
        !core::mem::replace(&mut self.header.busy, false)
    }

    /// Notes that the page has nothing more to give back until blocks are taken or put: it is
    /// [watched](PageTable::next_watched) no more.
    pub fn let_be(&mut self) {
        debug_assert!(!self.header.busy);
        self.table.let_be(self.page);
    }

    /// The parts of the page that hold no live block and may have memory, as offsets of their first bytes and behind
    /// their last; each is a multiple of `grain` bytes, a power of two. A caller who gives the memory of a part back
    /// to the system, such that it reads as zeros, says so by [`note_purged`](Self::note_purged).
    pub fn unused_parts(&mut self, grain: usize) -> impl Iterator<Item = (usize, usize)> + use<G> {
        let part = grain.max(self.bytes_of_part());
        let parts = self.table.geometry.page_size() / part;
        let block = self.table.geometry.classes().block(self.tag.class());
        let capacity = self.table.capacity_of(self.tag);
        let watermark = self.header.watermark as usize;
        let mut unused = 0u32;
        for number in 0..parts {
            let first = number * part / block;
            let last = ((number + 1) * part).div_ceil(block).min(capacity);
            let all_free = self.all_free(first, last.min(watermark));
            unused |= u32::from(all_free) << number;
        }
        unused &= !u32::from(self.header.purged);
        core::iter::from_fn(move || {
            if unused == 0 {
                return None;
            }
            let first = unused.trailing_zeros() as usize;
            let count = (unused >> first).trailing_ones() as usize;
            unused &= !(((1 << count) - 1) << first);
            Some((first * part, (first + count) * part))
        })
    }

    /// Notes that the page has no memory, and reads as zeros, from offset `start` to `end`.
    pub fn note_purged(&mut self, start: usize, end: usize, grain: usize) {
        let part = grain.max(self.bytes_of_part());
        for number in start / part..end / part {
            self.header.purged |= 1 << number;
        }
        let first = self.table.address_of(self.page) + start;
        for address in (first..first + (end - start)).step_by(self.bytes_of_part()) {
            self.header.unwritten |= self.part_of(address);
            self.header.zeros |= self.part_of(address);
        }
    }

    /// Whether no block from `first` to before `end`, all below the watermark, is live.
    fn all_free(&mut self, first: usize, end: usize) -> bool {
        let bitmap = self.bitmap();
        let mut at = first;
        while at < end {
            let (word, bit) = (at / u64::BITS as usize, at % u64::BITS as usize);
            let count = (u64::BITS as usize - bit).min(end - at);
            let mask = mask(bit, count);
            if bitmap[word] & mask != mask {
                return false;
            }
            at += count;
        }
        true
    }

    /// Offset of the first byte behind the last whole block.
    pub fn blocks_end(&self) -> usize {
        self.table.capacity_of(self.tag) * self.table.geometry.classes().block(self.tag.class())
    }

    /// Calls `see` with the first byte and the end of each range of free blocks, as offsets within the page, upward.
    pub fn for_each_free(&mut self, mut see: impl FnMut(usize, usize)) {
        let block = self.table.geometry.classes().block(self.tag.class());
        let capacity = self.table.capacity_of(self.tag);
        let (watermark, first_word) = (self.header.watermark as usize, self.header.first_word as usize);
        // The free range that is not at its end yet, in blocks.
        let mut range = 0..0;
        let mut add = |from: usize, to: usize| {
            if from > range.end {
                if !range.is_empty() {
                    see(range.start * block, range.end * block);
                }
                range.start = from;
            }
            range.end = to;
        };
        for (at, &word) in self.bitmap().iter().enumerate().skip(first_word) {
            let mut rest = word;
            while rest != 0 {
                let first = rest.trailing_zeros();
                let len = (rest >> first).trailing_ones();
                let from = at * u64::BITS as usize + first as usize;
                add(from, from + len as usize);
                rest = rest.checked_shr(first + len).unwrap_or(0).checked_shl(first + len).unwrap_or(0);
            }
        }
        add(watermark, capacity);
        // Behind everything, so that what is left is seen.
        add(usize::MAX, usize::MAX);
    }

    /// Moves the page to the list that its fullness asks for. Due after blocks were taken or put.
    pub fn settle(self) {
        if !core::mem::replace(&mut self.header.busy, true) {
            self.table.watch(self.page);
        }
        let capacity = self.table.capacity_of(self.tag);
        let list = Bin::list_of(capacity - self.header.live as usize, capacity);
        self.table.relist(self.bin, self.page, list);
    }

    /// What the page is, for a reader of the table.
    pub fn state(&mut self) -> PageState {
        let class = self.tag.class();
        let block = self.table.geometry.classes().block(class);
        let capacity = self.table.capacity_of(self.tag);
        let watermark = self.header.watermark as usize;
        let first_word = self.header.first_word as usize;
        let free = self.bitmap()[first_word..]
            .iter()
            .position(|&word| word != 0)
            .map(|at| first_word + at)
            .map(|at| at * u64::BITS as usize + self.bitmap()[at].trailing_zeros() as usize);
        let next = free.unwrap_or(if watermark < capacity { watermark } else { 0 });
        PageState::Divided {
            class,
            block,
            free_blocks: capacity - self.live(),
            live_blocks: self.live(),
            next_offset: next * block,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_mask_has_as_many_bits_as_asked_for_from_the_first_on() {
        for (first, count, bits) in
            [(0, 1, 1), (0, 64, u64::MAX), (63, 1, 1 << 63), (4, 3, 0b111 << 4), (1, 63, u64::MAX - 1)]
        {
            assert_eq!(mask(first, count), bits, "{count} from {first} on");
        }
    }

    #[test]
    fn blocks_are_put_all_at_once_or_none_of_them() {
        const ALL: u64 = u64::MAX;
        // Before: the bits of blocks that are free; then which are put, whether they are, and the bits after.
        for (before, first, count, put, after) in [
            ([0, 0, 0], 3, 2, true, [0b11000, 0, 0]),
            ([0b100, 0, 0], 3, 2, true, [0b11100, 0, 0]),
            ([0b10000, 0, 0], 3, 2, false, [0b10000, 0, 0]),
            ([0b11000, 0, 0], 3, 2, false, [0b11000, 0, 0]),
            ([0, 0, 0], 0, 192, true, [ALL, ALL, ALL]),
            ([0, 0, 0], 63, 2, true, [1 << 63, 1, 0]),
            ([0, 0, 0], 60, 100, true, [0b1111 << 60, ALL, ALL >> 32]),
            // One in the way, in the first word, between and in the last.
            ([1 << 61, 0, 0], 60, 100, false, [1 << 61, 0, 0]),
            ([0, 1 << 33, 0], 60, 100, false, [0, 1 << 33, 0]),
            ([0, 0, 1 << 31], 60, 100, false, [0, 0, 1 << 31]),
            ([0, 0, 1 << 32], 60, 100, true, [0b1111 << 60, ALL, ALL >> 31]),
        ] {
            let mut bitmap = before;
            assert_eq!(free_all(&mut bitmap, first, count), put, "{count} from {first} on, of {before:x?}");
            assert_eq!(bitmap, after, "{count} from {first} on, of {before:x?}");
        }
    }

    #[test]
    fn neighbours_are_counted_upward_or_downward() {
        let counted = |blocks: &[usize]| match neighbours(blocks, 48) {
            Neighbours::Above(count) => (true, count),
            Neighbours::Below(count) => (false, count),
        };
        assert_eq!(counted(&[480, 528, 576, 720, 768]), (true, 3));
        assert_eq!(counted(&[480, 432, 384]), (false, 3));
        assert_eq!(counted(&[480, 432, 480]), (false, 2));
        assert_eq!(counted(&[480, 480]), (false, 1));
        assert_eq!(counted(&[480]), (false, 1));
        // As many as are counted at a time, and more, with one that lies elsewhere at every place.
        for len in 2..=20 {
            let above: Vec<usize> = (0..len).map(|at| 4_800 + at * 48).collect();
            let below: Vec<usize> = above.iter().rev().copied().collect();
            assert_eq!((counted(&above), counted(&below)), ((true, len), (false, len)));
            for other in 2..len {
                let broken = |mut blocks: Vec<usize>| {
                    blocks[other] = 48_000;
                    counted(&blocks)
                };
                assert_eq!((broken(above.clone()), broken(below.clone())), ((true, other), (false, other)));
            }
        }
    }

    #[test]
    fn addresses_are_written_down_from_the_end_upward() {
        let mut slots = [0; 4];
        write_descending(&mut slots[1..], 1_000, 48);
        assert_eq!(slots, [0, 1_096, 1_048, 1_000]);
    }
}
