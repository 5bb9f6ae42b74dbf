//! Blocks of Divided pages, a batch at a time: out of the pages, and back.

use super::Heap;
use crate::fault;
use crate::page_table::{Bin, Misuse, PageState, Tag};
use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{ClassIndex, ComponentIndex, PageCount, PageIndex, ShardIndex};
use core::ptr;

impl<G: Geometry> Heap<G> {
    pub(crate) fn alloc_block(&self, tag: Tag) -> *mut u8 {
        let mut slot = [0];
        match self.refill(tag, &mut slot, |_| ()) {
            0 => ptr::null_mut(),
            _ => self.pointer(slot[0]),
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
    pub(crate) fn refill(&self, tag: Tag, slots: &mut [usize], blank: impl Fn(&mut [usize])) -> usize {
        let mut bin = self.bin(tag);
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
        taken
    }

    /// Moves a page that another shard of threads can spare to `bin`, if that is one of theirs, too. The blocks that a
    /// thread has left behind, or handed to others, are used up before memory is.
    fn adopt(&self, bin: &mut Bin, tag: Tag) -> Option<PageIndex> {
        let shards = self.shards_in_use();
        if self.component_of(tag) != ComponentIndex::NONE || tag.shard().is_sampled() {
            return None;
        }
        (1..shards).find_map(|distance| {
            let shard = (tag.shard().0 as usize + distance) % shards;
            // Out of order, so only if nobody has it.
            let mut other = self.locked_bin(Tag::new(ShardIndex(shard as u8), tag.class())).try_lock()?;
            let page = other.spare()?;
            self.table.transfer(&mut other, bin, tag, page);
            Some(page)
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
            let Some(page) = self.table.page_of(blocks[at]).filter(|&page| self.table.tag(page) == tag)
            else {
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
                let mut runs = self.runs();
                self.table.release_divided(&mut runs, &mut bin, page);
                self.settle_guards(&mut runs, page, PageCount(1));
            }
        }
        self.credit_blocks(tag, others);
        others
    }

    /// Ends the process, as the block at `address`, which is to be handed out, was in use meanwhile.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse_unmarked(&self, address: usize) -> ! {
        let state = self.table.page_of(address).map(|page| self.page_state(page));
        fault::misuse(Misuse::UsedSinceFreed, address, state)
    }

    /// Ends the process, as `address`, which is being freed, is where no block begins.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse_middle(&self, address: usize) -> ! {
        let state = self.table.page_of(address).map(|page| self.page_state(page));
        fault::misuse(Misuse::NotAtStart, address, state)
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
