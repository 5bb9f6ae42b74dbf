//! A page table as pure data, beside what its pages must be.

use crate::config;
use page_memory_allocator::page_table::{Bin, Contents, Misuse, PageState, PageTable, Tag};
use page_memory_allocator::runs::Runs;
use page_memory_allocator::size_class::{BuildGeometry, CustomGeometry, Geometry, SizeClasses};
use page_memory_allocator::units::{ClassIndex, PageCount, PageIndex, ShardIndex};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::alloc::Layout;
use std::cell::RefCell;
use std::mem;
use std::ptr::NonNull;

/// What a page of the table must be.
#[derive(Clone, PartialEq, Debug)]
enum Page {
    Free,
    /// `live[n]`: block `n` is in use.
    Divided {
        tag: Tag,
        live: Vec<bool>,
        memory: Memory,
    },
    Head {
        run: u32,
    },
    Tail,
}

/// What a Divided page must know about its memory.
#[derive(Clone, PartialEq, Debug)]
struct Memory {
    /// `purged[n]`: part `n` has none.
    purged: Vec<bool>,
    /// `unwritten[n]`: in sixteenth `n` of the page, blocks may begin that hold nothing that was written when they were
    /// put back.
    unwritten: [bool; 16],
    /// Blocks from here on were never in use.
    fresh_from: usize,
    /// Whether the page had no memory when it was divided.
    fresh: bool,
    /// Of every 8 bytes, whether they are zero for sure.
    zero: Vec<bool>,
    /// Whether blocks were taken or put since it was last asked.
    busy: bool,
}

#[derive(Clone, Copy, Debug)]
enum TableStep {
    Grow { pages: u32 },
    Divide { tag: Index },
    Take { page: Index, blocks: usize },
    Put { page: Index, block: Index, written: bool },
    PutAll { page: Index },
    PutApart { page: Index, first: Index, step: usize, wrong: Option<usize> },
    Purge { page: Index, every: usize },
    PutWrongly { page: Index, block: Index, off: usize },
    Claim { pages: u32 },
    Resize { run: Index, pages: u32 },
    Release { run: Index },
}

fn table_step() -> impl Strategy<Value = TableStep> {
    let index = any::<Index>;
    prop_oneof![
        1 => (1..10u32).prop_map(|pages| TableStep::Grow { pages }),
        4 => index().prop_map(|tag| TableStep::Divide { tag }),
        12 => (index(), 1..300usize).prop_map(|(page, blocks)| TableStep::Take { page, blocks }),
        12 => (index(), index(), any::<bool>())
            .prop_map(|(page, block, written)| TableStep::Put { page, block, written }),
        5 => index().prop_map(|page| TableStep::PutAll { page }),
        6 => (index(), index(), 1..7usize, prop_oneof![2 => Just(None), 1 => (0..9usize).prop_map(Some)])
            .prop_map(|(page, first, step, wrong)| TableStep::PutApart { page, first, step, wrong }),
        6 => (index(), 1..4usize).prop_map(|(page, every)| TableStep::Purge { page, every }),
        2 => (index(), index(), prop_oneof![Just(0), 1..8usize])
            .prop_map(|(page, block, off)| TableStep::PutWrongly { page, block, off }),
        5 => (1..12u32).prop_map(|pages| TableStep::Claim { pages }),
        4 => (index(), 1..14u32).prop_map(|(run, pages)| TableStep::Resize { run, pages }),
        4 => index().prop_map(|run| TableStep::Release { run }),
    ]
}

/// A page table of an arena that does not exist, over storage of its own.
struct TableModel<G> {
    table: PageTable<G>,
    runs: Runs<'static>,
    bins: Vec<(Tag, Bin)>,
    pages: Vec<Page>,
}

impl<G: Geometry> TableModel<G> {
    /// Far from anything that is mapped: the table touches no block.
    const BASE: usize = 1 << 30;
    const PAGES: u32 = 90;
    /// Memory is given back in multiples of so many bytes.
    const GRAIN: usize = 128;

    fn new(geometry: G) -> TableModel<G> {
        let capacity = PageCount(Self::PAGES);
        let storage = vec![0u64; PageTable::storage(geometry, capacity).div_ceil(size_of::<u64>())].leak();
        // SAFETY: the storage is zeroed, aligned, long enough, leaked, and used by nothing else. Each class and shard
        // has one bin.
        let (table, runs) =
            unsafe { PageTable::new(geometry, Self::BASE, capacity, NonNull::from(storage).cast()) };
        // A few classes suffice, the first and the last among them.
        let last = geometry.class_count() as u8 - 1;
        let classes = (1..last).step_by(geometry.class_count().div_ceil(7)).chain([last]);
        let tags =
            classes.flat_map(|class| [0, 1].map(|shard| Tag::new(ShardIndex(shard), ClassIndex(class))));
        let bins = tags.map(|tag| (tag, Bin::new())).collect();
        TableModel { table, runs, bins, pages: Vec::new() }
    }

    fn bin(bins: &mut [(Tag, Bin)], tag: Tag) -> &mut Bin {
        &mut bins.iter_mut().find(|(other, _)| *other == tag).unwrap().1
    }

    /// One of the pages that `pick` accepts.
    fn some_page(&self, which: Index, pick: impl Fn(&Page) -> bool) -> Option<PageIndex> {
        let pages: Vec<u32> =
            (0..).zip(&self.pages).filter(|(_, page)| pick(page)).map(|(at, _)| at).collect();
        (!pages.is_empty()).then(|| PageIndex(pages[which.index(pages.len())]))
    }

    fn some_divided(&self, which: Index) -> Option<PageIndex> {
        self.some_page(which, |page| matches!(page, Page::Divided { .. }))
    }

    fn step(&mut self, step: TableStep) {
        match step {
            TableStep::Grow { pages } => {
                let count = PageCount(pages.min(self.runs.unadded().0));
                if count.0 > 0 {
                    self.runs.grow(count);
                    self.pages.resize(self.pages.len() + count.get(), Page::Free);
                }
            }
            TableStep::Divide { tag } => {
                let tag = self.bins[tag.index(self.bins.len())].0;
                let Some(page) = self.runs.find(PageCount(1)) else { return };
                let clean = self.runs.dirty_within(page, PageCount(1)).is_none();
                self.table.claim_divided(&mut self.runs, Self::bin(&mut self.bins, tag), tag, page);
                let blocks = self.table.geometry().capacity(tag.class());
                let purged = vec![clean; self.table.geometry().page_size() / self.part()];
                assert_eq!(self.pages[page.get()], Page::Free);
                self.pages[page.get()] = Page::Divided {
                    tag,
                    live: vec![false; blocks],
                    memory: Memory {
                        purged,
                        unwritten: [false; 16],
                        fresh_from: 0,
                        fresh: clean,
                        zero: vec![clean; self.table.geometry().page_size() / 8],
                        busy: true,
                    },
                };
            }
            TableStep::Take { page, blocks } => self.take(page, blocks),
            TableStep::Put { page, block, written } => {
                let Some(page) = self.some_divided(page) else { return };
                let Page::Divided { live, .. } = &self.pages[page.get()] else { unreachable!() };
                let used: Vec<usize> = (0..live.len()).filter(|&block| live[block]).collect();
                match used.len() {
                    0 => self.release_divided(page),
                    len => self.put(page, &[used[block.index(len)]], written),
                }
            }
            TableStep::PutAll { page } => {
                let Some(page) = self.some_divided(page) else { return };
                self.put_all(page);
            }
            TableStep::PutApart { page, first, step, wrong } => {
                let Some(page) = self.some_divided(page) else { return };
                let Page::Divided { tag, .. } = self.pages[page.get()] else { unreachable!() };
                self.put_apart(tag, first, step, wrong);
            }
            TableStep::Purge { page, every } => self.purge(page, every),
            TableStep::PutWrongly { page, block, off } => {
                let Some(page) = self.some_divided(page) else { return };
                let Page::Divided { tag, live, .. } = &self.pages[page.get()] else { unreachable!() };
                // Rather one that was in use than one never handed out: those below a live one.
                let end = live.iter().rposition(|&live| live).unwrap_or(live.len());
                let free: Vec<usize> = (0..end).filter(|&block| off > 0 || !live[block]).collect();
                if free.is_empty() {
                    return;
                }
                let block = free[block.index(free.len())];
                let misuse = if off == 0 { Misuse::AlreadyFree } else { Misuse::NotAtStart };
                let size = self.table.geometry().classes().block(tag.class());
                let address = self.table.address_of(page) + block * size + off;
                let put = self.table.divided(Self::bin(&mut self.bins, *tag), page).put(&[address]);
                assert_eq!(put, Err((0, misuse)));
            }
            TableStep::Claim { pages } => {
                let Some(start) = self.runs.find(PageCount(pages)) else { return };
                self.table.claim_multi(&mut self.runs, start, PageCount(pages));
                self.set_run(start, PageCount(0), PageCount(pages));
            }
            TableStep::Resize { run, pages } => {
                let Some(head) = self.some_page(run, |page| matches!(page, Page::Head { .. })) else {
                    return;
                };
                let old = self.table.multi_run(&self.runs, head).unwrap();
                let behind = self.pages.get(head.get() + old.get()..head.get() + pages as usize);
                let fits = pages <= old.0
                    || behind.is_some_and(|pages| pages.iter().all(|page| *page == Page::Free));
                let resized = self.table.resize_multi(&mut self.runs, head, old, PageCount(pages));
                assert_eq!(resized, fits, "{old:?} to {pages} pages at {head}");
                if resized {
                    self.set_run(head, old, PageCount(pages));
                }
            }
            TableStep::Release { run } => {
                let Some(head) = self.some_page(run, |page| matches!(page, Page::Head { .. })) else {
                    return;
                };
                let count = self.table.multi_run(&self.runs, head).unwrap();
                self.table.release_multi(&mut self.runs, head, count);
                self.set_run(head, count, PageCount(0));
            }
        }
    }

    /// Takes blocks, which must be the lowest of the page that are free.
    fn take(&mut self, page: Index, blocks: usize) {
        let Some(page) = self.some_divided(page) else { return };
        let Page::Divided { tag, live, memory } = &mut self.pages[page.get()] else { unreachable!() };
        let size = self.table.geometry().classes().block(tag.class());
        let mut slots = vec![0; blocks];
        let mut divided = self.table.divided(Self::bin(&mut self.bins, *tag), page);
        let blank = RefCell::new(Vec::new());
        let taken = divided.take(&mut slots, |more, holds| {
            blank.borrow_mut().extend(more.iter().map(|&address| (address, holds)));
        });
        divided.settle();
        let lowest: Vec<usize> = (0..live.len()).filter(|&block| !live[block]).take(blocks).collect();
        let base = self.table.address_of(page);
        assert!(slots[..blocks - taken].iter().all(|&slot| slot == 0));
        let taken = slots[blocks - taken..].iter().rev().map(|&address| (address - base) / size);
        assert!(taken.eq(lowest.iter().copied()), "{slots:x?} taken from {base:#x}");
        assert!(slots.iter().all(|&slot| slot == 0 || (slot - base).is_multiple_of(size)));
        let fresh = lowest.iter().filter(|&&block| block >= memory.fresh_from).count();
        let mut blank: Vec<_> =
            blank.into_inner().into_iter().map(|(address, holds)| ((address - base) / size, holds)).collect();
        blank.sort_unstable_by_key(|&(block, _)| block);
        let sixteenth = self.table.geometry().page_size() / 16;
        let is_blank =
            |block: usize| block >= memory.fresh_from || memory.unwritten[block * size / sixteenth];
        // A block that was never in use holds zeros if its page did; else that is known by whole sixteenths.
        let holds = |block: usize| {
            let (start, end) = (block * size, (block + 1) * size);
            let known = if memory.fresh && block >= memory.fresh_from {
                start..end
            } else {
                start / sixteenth * sixteenth..end.next_multiple_of(sixteenth)
            };
            let zeros = memory.zero[known.start / 8..known.end / 8].iter().all(|&zero| zero);
            if zeros { Contents::Zeros } else { Contents::Unknown }
        };
        let expected = lowest.iter().filter(|&&block| is_blank(block)).map(|&block| (block, holds(block)));
        assert_eq!(blank, expected.collect::<Vec<_>>());
        memory.fresh_from += fresh;
        for block in lowest {
            live[block] = true;
            memory.zero[block * size / 8..(block + 1) * size / 8].fill(false);
        }
        memory.purged.fill(false);
        if !live.contains(&false) {
            memory.unwritten.fill(false);
        }
        memory.busy = true;
    }

    /// Bytes in a part of a page that may have memory or not.
    fn part(&self) -> usize {
        Self::GRAIN.max(self.table.geometry().page_size() / 16)
    }

    /// Gives back some of the parts of a page that have memory and no live block.
    fn purge(&mut self, page: Index, every: usize) {
        let Some(page) = self.some_divided(page) else { return };
        let part = self.part();
        let Page::Divided { tag, live, memory } = &mut self.pages[page.get()] else { unreachable!() };
        let size = self.table.geometry().classes().block(tag.class());
        let is_watched = self.table.next_watched(page, page.plus(PageCount(1))).is_some();
        let mut divided = self.table.divided(Self::bin(&mut self.bins, *tag), page);
        let was_idle = divided.was_idle();
        assert_eq!(was_idle, !mem::replace(&mut memory.busy, false));
        assert!(divided.was_idle(), "it was asked just before");
        let in_use = |number: usize| {
            let blocks = number * part / size..((number + 1) * part).div_ceil(size).min(live.len());
            blocks.into_iter().any(|block| live[block])
        };
        let unused = (0..memory.purged.len()).map(|number| !memory.purged[number] && !in_use(number));
        let unused = stretches(&unused.collect::<Vec<_>>(), part);
        assert_eq!(divided.unused_parts(Self::GRAIN).collect::<Vec<_>>(), unused);
        assert!(is_watched || (was_idle && unused.is_empty()), "nobody would look at the page");
        for &(start, end) in unused.iter().step_by(every) {
            divided.note_purged(start, end, Self::GRAIN);
            memory.purged[start / part..end / part].fill(true);
            memory.zero[start / 8..end / 8].fill(true);
            let sixteenth = self.table.geometry().page_size() / 16;
            memory.unwritten[start / sixteenth..end / sixteenth].fill(true);
        }
        if every == 1 {
            divided.let_be();
        }
    }

    /// Puts blocks, to which something was `written` or not.
    fn put(&mut self, page: PageIndex, blocks: &[usize], written: bool) {
        let Page::Divided { tag, live, memory } = &mut self.pages[page.get()] else { unreachable!() };
        let size = self.table.geometry().classes().block(tag.class());
        let mut addresses: Vec<usize> =
            blocks.iter().map(|block| self.table.address_of(page) + block * size).collect();
        // What follows lies in other pages, and is let be.
        addresses.extend([self.table.address_of(page.plus(PageCount(1))), addresses[0]]);
        let mut divided = self.table.divided(Self::bin(&mut self.bins, *tag), page);
        assert_eq!(divided.put(&addresses), Ok(blocks.len()));
        if !written {
            divided.note_unwritten(&addresses[..blocks.len()]);
            let sixteenth = self.table.geometry().page_size() / 16;
            blocks.iter().for_each(|&block| memory.unwritten[block * size / sixteenth] = true);
        }
        divided.settle();
        blocks.iter().for_each(|&block| live[block] = false);
        memory.busy = true;
    }

    /// Puts some of the blocks in the pages of a tag, by the way that is for those that lie apart; with a `wrong` one among them,
    /// free or no block at all, that is where it ends. It may end before: then the rest stays.
    fn put_apart(&mut self, tag: Tag, first: Index, step: usize, wrong: Option<usize>) {
        const MOST: usize = 8;
        let size = self.table.geometry().classes().block(tag.class());
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        let mut not_live = None;
        for (page, what) in self.pages.iter().enumerate() {
            if let Page::Divided { tag: of, live, .. } = what
                && *of == tag
            {
                blocks.extend((0..live.len()).filter(|&block| live[block]).map(|block| (page, block)));
                let used = live.iter().rposition(|&live| live).unwrap_or(0);
                not_live = not_live.or((0..used).find(|&block| !live[block]).map(|block| (page, block)));
            }
        }
        if blocks.is_empty() {
            return;
        }
        let first = first.index(blocks.len());
        blocks.rotate_left(first);
        let blocks: Vec<_> = blocks.into_iter().step_by(step).take(MOST).collect();
        let address =
            |(page, block): (usize, usize)| self.table.address_of(PageIndex(page as u32)) + block * size;
        let mut addresses: Vec<_> = blocks.iter().map(|&block| address(block)).collect();
        let wrong = wrong.map(|at| at.min(blocks.len()));
        if let Some(at) = wrong {
            addresses.insert(at, not_live.map_or(address(blocks[0]) + 1, address));
        }
        let put = self.table.put_apart(Self::bin(&mut self.bins, tag), tag, &addresses);
        assert!(put <= wrong.unwrap_or(blocks.len()));
        for &(page, block) in &blocks[..put] {
            let Page::Divided { live, memory, .. } = &mut self.pages[page] else { unreachable!() };
            live[block] = false;
            memory.busy = true;
        }
    }

    /// Puts all blocks of a page, the uneven ones first, and releases it.
    fn put_all(&mut self, page: PageIndex) {
        let Page::Divided { live, .. } = &self.pages[page.get()] else { unreachable!() };
        let (even, uneven): (Vec<_>, Vec<_>) =
            (0..live.len()).filter(|&block| live[block]).partition(|block| block % 2 == 0);
        for blocks in [uneven, even].into_iter().filter(|blocks| !blocks.is_empty()) {
            self.put(page, &blocks, true);
        }
        self.release_divided(page);
    }

    fn release_divided(&mut self, page: PageIndex) {
        let Page::Divided { tag, .. } = self.pages[page.get()] else { unreachable!() };
        self.table.release_divided(&mut self.runs, Self::bin(&mut self.bins, tag), page);
        self.pages[page.get()] = Page::Free;
    }

    /// Makes the model's run of `old` pages one of `new` pages.
    fn set_run(&mut self, head: PageIndex, old: PageCount, new: PageCount) {
        self.pages[head.get()..head.plus(old).get()].fill(Page::Free);
        for page in head.get()..head.plus(new).get() {
            assert_eq!(self.pages[page], Page::Free);
            self.pages[page] = if page == head.get() { Page::Head { run: new.0 } } else { Page::Tail };
        }
    }

    fn check(&mut self) {
        // SAFETY: the table is this thread's alone.
        let census = unsafe { self.table.check(&self.runs) }.unwrap();
        let mut listed = 0;
        for (tag, bin) in &mut self.bins {
            listed += self.table.check_bin(bin, *tag).unwrap();
            Self::check_fullest(&self.table, &self.pages, *tag, bin);
        }
        let count = |pick: fn(&Page) -> bool| self.pages.iter().filter(|page| pick(page)).count();
        let unadded = self.runs.unadded().get();
        assert_eq!(census.free_pages, count(|page| *page == Page::Free) + unadded);
        assert_eq!(census.divided_pages, count(|page| matches!(page, Page::Divided { .. })));
        assert_eq!(census.multi_pages, count(|page| matches!(page, Page::Head { .. } | Page::Tail)));
        assert_eq!(census.runs, count(|page| matches!(page, Page::Head { .. })));
        assert_eq!(census.listed_pages, listed);
        assert_eq!(self.pages.len() + unadded, Self::PAGES as usize);
        for at in 0..self.pages.len() {
            self.check_page(PageIndex(at as u32));
        }
    }

    fn check_page(&mut self, page: PageIndex) {
        let expected = match &self.pages[page.get()] {
            Page::Free => PageState::Free,
            Page::Head { run } => PageState::MultiHead { run: PageCount(*run) },
            Page::Tail => PageState::MultiTail,
            Page::Divided { tag, live, .. } => {
                assert_eq!(self.table.tag(page), *tag);
                assert_eq!(self.table.undivided_state(&self.runs, page), None);
                assert_eq!(self.table.multi_run(&self.runs, page), Err(Misuse::WrongLayout));
                let live_blocks = live.iter().filter(|&&live| live).count();
                let block = self.table.geometry().classes().block(tag.class());
                let next = live.iter().position(|&live| !live).unwrap_or(0);
                let mut divided = self.table.divided(Self::bin(&mut self.bins, *tag), page);
                let mut free = Vec::new();
                divided.for_each_free(|from, to| free.push((from, to)));
                assert_eq!(free, stretches(&live.iter().map(|live| !live).collect::<Vec<_>>(), block));
                assert_eq!(divided.blocks_end(), live.len() * block);
                let state = divided.state();
                let expected = PageState::Divided {
                    class: tag.class(),
                    block,
                    free_blocks: live.len() - live_blocks,
                    live_blocks,
                    next_offset: next * block,
                };
                return assert_eq!(state, expected, "page {page}");
            }
        };
        assert_eq!(self.table.tag(page), Tag::NONE);
        assert_eq!(self.table.undivided_state(&self.runs, page), Some(expected), "page {page}");
    }

    /// The page to take from next is one of the fullest that have a free block.
    fn check_fullest(table: &PageTable<G>, pages: &[Page], tag: Tag, bin: &Bin) {
        let free_of = |page: &Page| match page {
            Page::Divided { tag: other, live, .. } if *other == tag => {
                live.iter().filter(|&&live| !live).count()
            }
            _ => 0,
        };
        let capacity = table.geometry().capacity(tag.class());
        let band = |free: usize| [8, 4, 2].iter().filter(|&&part| free >= capacity / part).count();
        let fullest = pages.iter().map(free_of).filter(|&free| free > 0).map(band).min();
        assert_eq!(bin.fullest().map(|page| band(free_of(&pages[page.get()]))), fullest);
    }
}

/// Where stretches of `true` begin and end, each of them `bytes` long.
fn stretches(all: &[bool], bytes: usize) -> Vec<(usize, usize)> {
    let mut at = 0;
    let mut found = Vec::new();
    for stretch in all.chunk_by(|left, right| left == right) {
        let end = at + stretch.len();
        if stretch[0] {
            found.push((at * bytes, end * bytes));
        }
        at = end;
    }
    found
}

fn run_table<G: Geometry>(geometry: G, steps: Vec<TableStep>) {
    let mut model = TableModel::new(geometry);
    for step in steps {
        model.step(step);
        model.check();
    }
    for at in 0..model.pages.len() {
        match model.pages[at].clone() {
            Page::Divided { .. } => model.put_all(PageIndex(at as u32)),
            Page::Head { run } => {
                model.table.release_multi(&mut model.runs, PageIndex(at as u32), PageCount(run));
                model.set_run(PageIndex(at as u32), PageCount(run), PageCount(0));
            }
            Page::Free | Page::Tail => {}
        }
    }
    model.check();
    assert!(model.bins.iter().all(|(_, bin)| bin.pages() == 0 && bin.fullest().is_none()));
    assert_eq!(model.runs.free_below_frontier().get(), model.pages.len());
}

#[test]
fn blocks_are_put_up_to_the_first_that_is_free() {
    let mut model = TableModel::new(BuildGeometry);
    model.runs.grow(PageCount(1));
    let tag = model.bins[0].0;
    let (page, size) = (PageIndex(0), BuildGeometry.classes().block(tag.class()));
    let bin = &mut model.bins[0].1;
    model.table.claim_divided(&mut model.runs, bin, tag, page);
    let mut blocks = [0; 10];
    let mut divided = model.table.divided(bin, page);
    assert_eq!(divided.take(&mut blocks, |_, _| ()), 10);
    blocks.reverse();
    assert_eq!(divided.put(&blocks[5..6]), Ok(1));
    // Upward to it, and downward.
    assert_eq!(divided.put(&blocks[2..8]), Err((3, Misuse::AlreadyFree)));
    assert_eq!(divided.put(&[blocks[7], blocks[6], blocks[5]]), Err((2, Misuse::AlreadyFree)));
    assert_eq!(divided.live(), 4);
    let mut free = Vec::new();
    divided.for_each_free(|from, to| free.push((from / size, to / size)));
    assert_eq!(free, [(2, 8), (10, BuildGeometry.capacity(tag.class()))]);
    divided.settle();
    // SAFETY: the table is this thread's alone.
    unsafe { model.table.check(&model.runs) }.unwrap();
}

#[test]
fn blocks_that_lie_apart_are_put_until_one_has_a_neighbour_or_its_page_another_list() {
    let mut model = TableModel::new(BuildGeometry);
    model.runs.grow(PageCount(4));
    let tag = Tag::new(ShardIndex(0), BuildGeometry.class_of(Layout::new::<[u8; 64]>()));
    let capacity = BuildGeometry.capacity(tag.class());
    let (mut bin, mut bin_of_others) = (Bin::new(), Bin::new());
    let mut blocks = vec![0; 2 * capacity];
    for page in 0..2 {
        model.table.claim_divided(&mut model.runs, &mut bin, tag, PageIndex(page as u32));
        let mut divided = model.table.divided(&mut bin, PageIndex(page as u32));
        assert_eq!(divided.take(&mut blocks[page * capacity..][..capacity], |_, _| ()), capacity);
        divided.settle();
    }
    let put = |bin: &mut Bin, blocks: &[usize]| model.table.put_apart(bin, tag, blocks);
    assert_eq!(put(&mut bin, &[blocks[0]]), 0, "the page is full, and then in a list");
    for page in 0..2 {
        let mut divided = model.table.divided(&mut bin, PageIndex(page as u32));
        assert_eq!(divided.put(&[blocks[page * capacity]]), Ok(1));
        divided.settle();
    }
    // From one page to the other and back.
    let apart = [10, capacity + 10, 20, 30, capacity + 20].map(|at| blocks[at]);
    assert_eq!(put(&mut bin, &apart), 5);
    assert_eq!(put(&mut bin, &apart[..1]), 0, "it is free");
    assert_eq!(put(&mut bin, &[blocks[40], blocks[50] + 8, blocks[60]]), 1);
    assert_eq!(put(&mut bin, &[blocks[70], blocks[81], blocks[80]]), 1, "two side by side");
    assert_eq!(put(&mut bin, &[blocks[90], 8]), 1, "in no page of the table");
    let others = Tag::new(ShardIndex(1), tag.class());
    for (page, tag, bin) in [(2, tag, &mut bin), (3, others, &mut bin_of_others)] {
        model.table.claim_divided(&mut model.runs, bin, tag, PageIndex(page));
        let mut divided = model.table.divided(bin, PageIndex(page));
        assert_eq!(divided.take(&mut [0; 3], |_, _| ()), 3);
        divided.settle();
    }
    let of_page = |page: u32, block: usize| model.table.address_of(PageIndex(page)) + block * 64;
    let put = |bin: &mut Bin, blocks: &[usize]| model.table.put_apart(bin, tag, blocks);
    assert_eq!(put(&mut bin, &[of_page(2, 1), of_page(2, 3)]), 1, "never handed out");
    assert_eq!(put(&mut bin, &[of_page(3, 1)]), 0, "of another shard");
    assert_eq!(put(&mut bin, &[of_page(2, 0)]), 1);
    assert_eq!(put(&mut bin, &[of_page(2, 2)]), 0, "the last one of its page");
    let many: Vec<_> = blocks[100..capacity].iter().step_by(2).copied().collect();
    // Seven were put before.
    assert_eq!(put(&mut bin, &many), capacity / 8 - 7 - 1, "then an eighth of the page is free");
    model.table.divided(&mut bin, PageIndex(1)).was_idle();
    assert_eq!(put(&mut bin, &[blocks[capacity + 30]]), 0, "of a page that is to be watched from now on");
    for page in 0..2 {
        let live = model.table.divided(&mut bin, PageIndex(page)).live();
        assert_eq!(live, capacity - if page == 0 { capacity / 8 - 1 } else { 3 });
    }
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn a_table_of_small_pages_agrees_with_the_model(steps in vec(table_step(), 500..1_500)) {
        run_table(CustomGeometry::new(1024, SizeClasses::POWERS_OF_TWO).unwrap(), steps);
    }

    #[test]
    fn a_table_of_the_builds_geometry_agrees_with_the_model(steps in vec(table_step(), 500..1_500)) {
        run_table(BuildGeometry, steps);
    }
}
