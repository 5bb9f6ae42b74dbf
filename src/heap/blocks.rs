//! Blocks of Divided pages, a batch at a time: out of the pages, and back.

use super::Heap;
use crate::fault;
use crate::lock::Guard;
use crate::page_table::{Bin, Contents, Misuse, PageState, Tag};
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{ClassIndex, ComponentIndex, PageCount, PageIndex, ShardIndex};
use core::cell::Cell;
use core::ptr;
use core::slice;

/// A block that is about to be handed out.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Null if there is none.
    pub(crate) start: *mut u8,
    pub(crate) holds: Contents,
}

impl From<*mut u8> for Block {
    fn from(start: *mut u8) -> Block {
        Block { start, holds: Contents::Unknown }
    }
}

impl Block {
    pub(crate) const NONE: Block = Block { start: ptr::null_mut(), holds: Contents::Unknown };

    /// The block, with its first `bytes` zero.
    ///
    /// # Safety
    /// It has so many, and is nobody else's.
    #[inline]
    pub(crate) unsafe fn zeroed(self, bytes: usize) -> *mut u8 {
        if !self.start.is_null() {
            // SAFETY: as the caller says.
            unsafe {
                if self.holds == Contents::Unknown {
                    self.start.write_bytes(0, bytes);
                }
                // Not all of a long one: to look at a page is to touch it. As slices, which builds without optimization compare
                // as fast.
                let looked_at = bytes.min(1 << 10);
                debug_assert!(slice::from_raw_parts(self.start, looked_at) == &[0; 1 << 10][..looked_at]);
            }
        }
        self.start
    }
}

impl<G: Geometry> Heap<G> {
    pub(crate) fn alloc_block(&self, tag: Tag) -> Block {
        let mut slot = [0];
        let contents = Cell::new(Contents::Unknown);
        match self.refill(tag, &mut slot, |_, holds| contents.set(holds)) {
            0 => Block::NONE,
            _ => Block { start: self.pointer(slot[0]), holds: contents.get() },
        }
    }

    /// The pointer to an address of the arena, with the provenance of the whole of it.
    #[inline]
    pub(crate) fn pointer(&self, address: usize) -> *mut u8 {
        self.arena.start().as_ptr().with_addr(address)
    }

    /// Takes blocks of one class and shard, from the fullest pages first, and writes their addresses to the end of
    /// `slots`, such that a stack that ends there pops neighbours in ascending order. Returns how many: fewer than
    /// asked for rather than begin a page while there are some, none if no page is to be had. `blank` is told of those
    /// that hold nothing that was written when they were put back: they were never put back, or purged.
    pub(crate) fn refill(
        &self,
        tag: Tag,
        slots: &mut [usize],
        blank: impl Fn(&mut [usize], Contents),
    ) -> usize {
        let (taken, granted) = self.take(self.bin(tag), tag, slots, &blank);
        if taken > 0 || granted == 0 || !self.is_process_heap {
            return taken;
        }
        let unused = slots.len() - granted;
        self.refill_with_the_last(tag, &mut slots[unused..], &blank)
    }

    /// [`refill`](Self::refill) where no page is to be had: with what other shards have, or with a page that stayed Divided
    /// without a live block.
    #[cold]
    fn refill_with_the_last(
        &self,
        tag: Tag,
        slots: &mut [usize],
        blank: impl Fn(&mut [usize], Contents),
    ) -> usize {
        if let Some(bin) = self.adopt_any(tag) {
            return self.take(bin, tag, slots, blank).0;
        }
        self.release_unused_pages();
        self.take(self.bin(tag), tag, slots, blank).0
    }

    /// [`refill`](Self::refill) from `bin`, which is that of `tag`. Returns how many were taken, and how many the limit of the
    /// component allowed for.
    fn take(
        &self,
        mut bin: Guard<'_, Bin>,
        tag: Tag,
        slots: &mut [usize],
        blank: impl Fn(&mut [usize], Contents),
    ) -> (usize, usize) {
        let granted = self.charge_blocks(tag, slots.len());
        let unused = slots.len() - granted;
        let slots = &mut slots[unused..];
        let mut taken = 0;
        while taken < granted {
            let page = match bin.fullest() {
                Some(page) => page,
                None if taken > 0 => break,
                None => match self.adopt(&mut bin, tag).or_else(|| self.claim_divided(&mut bin, tag)) {
                    Some(page) => page,
                    None => break,
                },
            };
            let unfilled = slots.len() - taken;
            let mut divided = self.table.divided(&mut bin, page);
            taken += divided.take(&mut slots[..unfilled], &blank);
            divided.settle();
        }
        self.credit_blocks(tag, granted - taken);
        self.settle_account(self.component_of(tag));
        (taken, granted)
    }

    /// Moves a page that another shard of threads can spare to `bin`, if that is one of theirs, too. The blocks that a
    /// thread has left behind, or handed to others, are used up before memory is.
    fn adopt(&self, bin: &mut Bin, tag: Tag) -> Option<PageIndex> {
        self.in_other_shards(tag).find_map(|other| {
            // Out of order, so only if nobody has it.
            let mut other = self.locked_bin(other).try_lock()?;
            let page = other.spare()?;
            self.table.transfer(&mut other, bin, tag, page);
            Some(page)
        })
    }

    /// The bin of `tag`, once it has free blocks: it is given the page of another shard of threads, if that is one of theirs,
    /// too, whether that can spare it or not.
    fn adopt_any(&self, tag: Tag) -> Option<Guard<'_, Bin>> {
        let lock = |tag| self.locked_bin(tag).lock_unless_own();
        self.in_other_shards(tag).find_map(|other| {
            // Who waits for two waits for that of the lower shard first.
            let lower = if other.shard().0 < tag.shard().0 { Some(lock(other)?) } else { None };
            let mut bin = lock(tag)?;
            let mut other = lower.or_else(|| lock(other))?;
            if let (None, Some(page)) = (bin.fullest(), other.emptiest()) {
                self.table.transfer(&mut other, &mut bin, tag, page);
            }
            bin.fullest().is_some().then_some(bin)
        })
    }

    /// The tags of the class in all other shards of threads; none if `tag` is of no thread's shard.
    fn in_other_shards(&self, tag: Tag) -> impl Iterator<Item = Tag> + use<G> {
        let is_of_threads = self.component_of(tag) == ComponentIndex::NONE && !tag.shard().is_sampled();
        let shards = if is_of_threads { self.shards_in_use() } else { 1 };
        (1..shards).map(move |distance| {
            let shard = (tag.shard().0 as usize + distance) % shards;
            Tag::new(ShardIndex(shard as u8), tag.class())
        })
    }

    fn claim_divided(&self, bin: &mut Bin, tag: Tag) -> Option<PageIndex> {
        let sparse = self.is_to_be_sparse(bin, tag);
        let mut runs = self.runs();
        let find = |runs: &mut Runs| {
            if self.may_use(runs, PageCount(1)) { self.find_to_divide(runs, sparse) } else { None }
        };
        let page = match find(&mut runs) {
            None if self.empty_quarantine(&mut runs) => find(&mut runs),
            page => page,
        }?;
        self.note_divided(&runs, bin, page);
        self.table.claim_divided(&mut runs, bin, tag, page);
        self.settle_guards(&mut runs, page, PageCount(1));
        self.keep_to_limit(&mut runs, page.plus(PageCount(1)));
        Some(page)
    }

    /// Gives blocks of `class` back to their pages, whichever shard those belong to; pages without live blocks
    /// become Free. A block that is not one, or is free already, ends the process. The order of `blocks` is lost.
    pub(crate) fn put_all(&self, class: ClassIndex, blocks: &mut [usize]) {
        self.put_in_turn(class, blocks, true);
    }

    /// [`put_all`](Self::put_all) for blocks that nothing was written to, so that who takes them next finds no mark.
    #[cfg(all(feature = "os", not(feature = "hardened")))]
    pub(crate) fn put_all_unwritten(&self, class: ClassIndex, blocks: &mut [usize]) {
        self.put_in_turn(class, blocks, false);
    }

    fn put_in_turn(&self, class: ClassIndex, mut blocks: &mut [usize], written: bool) {
        while let Some(&first) = blocks.first() {
            let tag = self.tag_for_free(first, class);
            let done = self.put_shard(tag, blocks, written);
            blocks = &mut blocks[done..];
        }
    }

    /// Puts those of `blocks` that belong to pages of `tag`, the first among them, and moves the others to the end.
    /// Returns how many were put.
    fn put_shard(&self, tag: Tag, blocks: &mut [usize], written: bool) -> usize {
        let mut bin = self.bin(tag);
        let keeps_last_page = self.is_process_heap && self.component_of(tag) == ComponentIndex::NONE;
        let (mut at, mut others) = (0, blocks.len());
        while at < others {
            if written {
                at += self.table.put_apart(&mut bin, tag, &blocks[at..others]);
            }
            let Some(&next) = blocks[..others].get(at) else { break };
            let Some(page) = self.table.page_of(next).filter(|&page| self.table.tag(page) == tag) else {
                others -= 1;
                blocks.swap(at, others);
                continue;
            };
            let mut divided = self.table.divided(&mut bin, page);
            match divided.put(&blocks[at..others]) {
                Ok(put) => {
                    if !written {
                        divided.note_unwritten(&blocks[at..at + put]);
                    }
                    at += put;
                }
                Err((put, misuse)) => {
                    let state = divided.state();
                    self.credit_blocks(tag, at + put);
                    // Open, as somebody may handle the signal.
                    drop(bin);
                    fault::misuse(misuse, blocks[at + put], Some(state));
                }
            }
            let live = divided.live();
            divided.settle();
            if live == 0 && !(keeps_last_page && bin.pages() == 1) {
                self.release_divided(&mut bin, page);
            }
        }
        self.credit_blocks(tag, others);
        others
    }

    /// Makes a Divided page without live blocks Free.
    fn release_divided(&self, bin: &mut Bin, page: PageIndex) {
        let mut runs = self.runs();
        self.table.release_divided(&mut runs, bin, page);
        self.settle_guards(&mut runs, page, PageCount(1));
    }

    /// Makes all pages Free that stayed Divided when their last block was freed. The caller holds no lock of a bin or of the
    /// runs; what a thread holds that it has interrupted is left out.
    #[cold]
    pub(crate) fn release_unused_pages(&self) {
        // Components keep none.
        let tags = self.tags(self.shards_in_use());
        for tag in tags.filter(|&tag| self.component_of(tag) == ComponentIndex::NONE) {
            if let Some(mut bin) = self.locked_bin(tag).lock_unless_own()
                && let Some(page) = bin.emptiest()
                && self.table.divided(&mut bin, page).live() == 0
            {
                self.release_divided(&mut bin, page);
            }
        }
    }

    /// Ends the process for a `misuse` of `address`, with what the page table says of its page. The caller holds no lock of a
    /// bin or of the runs.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse(&self, misuse: Misuse, address: usize) -> ! {
        let state = self.table.page_of(address).map(|page| self.page_state(page));
        fault::misuse(misuse, address, state)
    }

    /// The tag of the Divided page that `address` lies in, if it is in one.
    pub(crate) fn tag_of(&self, address: usize) -> Option<Tag> {
        let tag = self.table.tag(self.table.page_of(address)?);
        tag.is_divided().then_some(tag)
    }

    /// The tag of the page of a block of `class` that is being freed. Ends the process if there is no such page.
    pub(crate) fn tag_for_free(&self, address: usize, class: ClassIndex) -> Tag {
        let Some(page) = self.table.page_of(address) else {
            fault::misuse(Misuse::OutsideArena, address, None)
        };
        let tag = self.table.tag(page);
        if tag.class() == class || cfg!(pma_unchecked = "tag") {
            return tag;
        }
        let state = self.page_state(page);
        fault::misuse(
            if state == PageState::Free { Misuse::FreePage } else { Misuse::WrongLayout },
            address,
            Some(state),
        )
    }
}
