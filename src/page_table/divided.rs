//! One Divided page: blocks taken from it and put back.

use super::neighbours::{Neighbours, free_all, mask, neighbours, write_descending};
use super::{Bin, Header, Misuse, PageState, PageTable, Tag};
use crate::size_class::Geometry;
use crate::units::PageIndex;
use core::ops::Range;
use core::slice;

/// Parts of a page of which it is known whether they may have memory, and of which blocks: the bits of
/// [`Header::purged`] and [`Header::unwritten`].
const PARTS: usize = u16::BITS as usize;

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
        self.header.zeros |= self.note_lost(start, end);
    }

    /// Notes that the page may have lost what it held from offset `start` to `end`, where no block is live, or some of it. Returns
    /// the parts that it may have been in, a bit each.
    pub fn note_lost(&mut self, start: usize, end: usize) -> u16 {
        let first = self.table.address_of(self.page);
        let parts = self.parts_of(first + start..first + end);
        self.header.unwritten |= parts;
        parts
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
