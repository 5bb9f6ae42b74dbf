//! One Divided page: blocks taken from it and put back.

use super::{Bin, Header, Misuse, PageState, PageTable, Tag};
use crate::size_class::Geometry;
use crate::units::PageIndex;

/// Exclusive use of one Divided page.
#[derive(Debug)]
pub struct DividedPage<'a, G> {
    pub(super) table: &'a PageTable<G>,
    pub(super) page: PageIndex,
    pub(super) tag: Tag,
    pub(super) bin: &'a mut Bin,
    pub(super) header: &'a mut Header,
}

impl<G: Geometry> DividedPage<'_, G> {
    /// Blocks handed out.
    pub fn live(&self) -> usize {
        self.header.live as usize
    }

    /// The words of the bitmap that the class uses.
    pub(super) fn bitmap(&mut self) -> &mut [u64] {
        let words = self.table.capacity_of(self.tag).div_ceil(u64::BITS as usize);
        // SAFETY: the bitmap of a Divided page belongs to the holder of its bin, as the header does.
        let bitmap = unsafe { self.table.bitmap_of(self.page).as_mut() };
        &mut bitmap[..words]
    }

    /// Takes up to `slots.len()` blocks, lowest first, and writes their addresses to the end of `slots` in
    /// descending order: a stack that ends there pops them in ascending order. Returns how many.
    pub fn take(&mut self, slots: &mut [usize]) -> usize {
        let block = self.table.geometry.classes().block(self.tag.class());
        let capacity = self.table.capacity_of(self.tag);
        let base = self.table.address_of(self.page);
        let mut unfilled = slots.len();
        let mut at = self.header.first_word as usize;
        let words = self.bitmap();
        while unfilled > 0 && at < words.len() {
            let mut word = words[at];
            let count = unfilled.min(word.count_ones() as usize);
            let origin = base + at * u64::BITS as usize * block;
            for slot in slots[unfilled - count..unfilled].iter_mut().rev() {
                *slot = origin + word.trailing_zeros() as usize * block;
                word &= word - 1;
            }
            unfilled -= count;
            words[at] = word;
            at += usize::from(word == 0);
        }
        let watermark = self.header.watermark as usize;
        let fresh = unfilled.min(capacity - watermark);
        let mut address = base + watermark * block;
        for slot in slots[unfilled - fresh..unfilled].iter_mut().rev() {
            *slot = address;
            address += block;
        }
        let taken = slots.len() - unfilled + fresh;
        self.header.first_word = at as u32;
        self.header.watermark = (watermark + fresh) as u32;
        self.header.live += taken as u32;
        taken
    }

    /// Takes back the first of `blocks`, which lies in this page, and those that follow it as long as they do.
    /// Returns how many; if one of them is no block in use, its place among `blocks` and what it is instead. Those
    /// before it are put back all the same.
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
        for &address in blocks {
            let offset = address.wrapping_sub(base);
            if offset >= end {
                if offset < page_size {
                    misuse = Some(if offset % block == 0 { Misuse::AlreadyFree } else { Misuse::NotAtStart });
                }
                break;
            }
            let number = classes.divide(offset, class);
            let (word, bit) = (number / u64::BITS as usize, 1 << (number % u64::BITS as usize));
            if number * block != offset {
                misuse = Some(Misuse::NotAtStart);
                break;
            }
            if bitmap[word] & bit != 0 {
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

    /// Moves the page to the list that its fullness asks for. Due after blocks were taken or put.
    pub fn settle(self) {
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
