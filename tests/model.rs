//! Random operations beside a plain model: the heap, its page table as pure data, and the index of free runs.

use page_memory_allocator::page_table::{Bin, Contents, Misuse, PageState, PageTable, Tag};
use page_memory_allocator::runs::{Runs, Summary, Word};
use page_memory_allocator::size_class::{BuildGeometry, CustomGeometry, Geometry, SizeClasses, built};
use page_memory_allocator::units::{ClassIndex, PageCount, PageIndex, ShardIndex};
use page_memory_allocator::{Heap, HeapOptions};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, FileFailurePersistence};
use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem;
use std::panic;
use std::ptr::NonNull;
use std::sync::Once;

#[path = "common/pattern.rs"]
mod pattern;
use pattern::{fill, verify};

/// Few cases of many operations: what goes wrong needs a history.
fn config(cases: u32) -> Config {
    report_panics_once();
    Config {
        cases,
        max_shrink_iters: 20_000,
        max_shrink_time: 20_000, // milliseconds
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..Config::default()
    }
}

/// Keeps quiet about the panics of the cases that are tried on the way to a minimal one, but for where the last was.
fn report_panics_once() {
    static QUIET: Once = Once::new();
    thread_local! {
        static LAST: RefCell<String> = const { RefCell::new(String::new()) };
    }
    QUIET.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let text = panic.payload().downcast_ref::<String>();
            if text.is_some_and(|text| text.contains("minimal failing input")) {
                LAST.with_borrow(|last| eprintln!("panicked {last}"));
                usual(panic);
            } else {
                LAST.set(panic.location().map(|at| format!("at {at}")).unwrap_or_default());
            }
        }));
    });
}

/// What is asked of a heap.
#[derive(Clone, Copy, Debug)]
enum HeapStep {
    Alloc {
        size: usize,
        align: usize,
        zeroed: bool,
    },
    Realloc {
        which: Index,
        size: usize,
    },
    Dealloc {
        which: Index,
    },
    /// Frees all blocks but every n-th.
    Sweep {
        keep: usize,
    },
}

/// Sizes for a heap of `pages` pages of `page` bytes: mostly small, often at an edge.
fn size(page: usize, pages: usize) -> impl Strategy<Value = usize> + Clone {
    let near = |size: usize| (0..3usize).prop_map(move |off| (size + off).saturating_sub(1));
    prop_oneof![
        8 => 0..=64usize,
        8 => 0..=page / 2,
        4 => (3..=page.ilog2()).prop_flat_map(move |shift| near(1 << shift)),
        2 => near(page / 2),
        4 => (1..=4usize).prop_flat_map(move |count| near(count * page)),
        2 => 0..=page * pages / 4,
        1 => (1..=pages).prop_flat_map(move |count| near(count * page)),
        1 => prop_oneof![Just(isize::MAX as usize / 2), Just(1 << 40), Just(page * pages + 1)],
    ]
}

fn heap_step(page: usize, pages: usize) -> impl Strategy<Value = HeapStep> {
    let align = prop_oneof![
        6 => Just(1usize),
        6 => (0..=6u32).prop_map(|shift| 1 << shift),
        2 => (0..=page.ilog2()).prop_map(|shift| 1 << shift),
        1 => (0..=4u32).prop_map(move |shift| page << shift),
    ];
    prop_oneof![
        50 => (size(page, pages), align, any::<bool>())
            .prop_map(|(size, align, zeroed)| HeapStep::Alloc { size, align, zeroed }),
        15 => (any::<Index>(), size(page, pages)).prop_map(|(which, size)| HeapStep::Realloc { which, size }),
        40 => any::<Index>().prop_map(|which| HeapStep::Dealloc { which }),
        1 => (1..5usize).prop_map(|keep| HeapStep::Sweep { keep }),
    ]
}

struct Block {
    start: *mut u8,
    layout: Layout,
    seed: usize,
}

/// A heap, and what must be in it.
struct HeapModel {
    heap: Heap,
    geometry: CustomGeometry,
    blocks: Vec<Block>,
    /// Address ranges in use, by start.
    ranges: BTreeMap<usize, usize>,
    seed: usize,
}

impl HeapModel {
    fn new(page: usize, pages: usize, classes: &'static SizeClasses) -> HeapModel {
        let options = HeapOptions::new().capacity(page * pages).page_size(page).classes(classes);
        HeapModel {
            heap: options.build().unwrap(),
            geometry: CustomGeometry::new(page, classes).unwrap(),
            blocks: Vec::new(),
            ranges: BTreeMap::new(),
            seed: 0,
        }
    }

    fn step(&mut self, step: HeapStep) {
        match step {
            HeapStep::Alloc { size, align, zeroed } => {
                let layout = Layout::from_size_align(size, align).unwrap();
                let start = if zeroed { self.heap.alloc_zeroed(layout) } else { self.heap.alloc(layout) };
                if start.is_null() {
                    return self.assert_full_for(layout);
                }
                for at in 0..if zeroed { size } else { 0 } {
                    // SAFETY: the block was just allocated with this size.
                    assert_eq!(unsafe { start.add(at).read() }, 0, "byte {at} of {size}");
                }
                self.enter(start, layout);
            }
            HeapStep::Realloc { which, size } => {
                if self.blocks.is_empty() {
                    return;
                }
                let at = which.index(self.blocks.len());
                let Block { start, layout, seed } = self.blocks[at];
                // SAFETY: the block is live, and has that layout.
                let resized = unsafe { self.heap.realloc(start, layout, size) };
                let layout_now = Layout::from_size_align(size, layout.align()).unwrap();
                if resized.is_null() {
                    self.assert_full_for(layout_now);
                    self.assert_no_room_behind(start, layout, layout_now);
                    // SAFETY: the block is as it was.
                    return unsafe { verify(start, layout.size(), seed) };
                }
                // SAFETY: the block is as long as what was kept of its contents.
                unsafe { verify(resized, layout.size().min(size), seed) };
                if self.geometry.class_of(layout) != ClassIndex::NONE
                    && self.geometry.class_of(layout) == self.geometry.class_of(layout_now)
                {
                    assert_eq!(resized, start, "{layout:?} to {size} bytes");
                }
                self.leave(at);
                self.enter(resized, layout_now);
            }
            HeapStep::Dealloc { which } => {
                if !self.blocks.is_empty() {
                    self.free(which.index(self.blocks.len()));
                }
            }
            HeapStep::Sweep { keep } => {
                for at in (0..self.blocks.len()).rev().filter(|at| at % keep != 0) {
                    self.free(at);
                }
            }
        }
    }

    fn free(&mut self, at: usize) {
        let Block { start, layout, seed } = self.leave(at);
        // SAFETY: the block is live, has that layout, and is forgotten.
        unsafe {
            verify(start, layout.size(), seed);
            self.heap.dealloc(start, layout);
        }
    }

    /// Notes a block that must be aligned, in the arena, and apart from all others.
    fn enter(&mut self, start: *mut u8, layout: Layout) {
        let (from, to) = (start.addr(), start.addr() + layout.size().max(1));
        assert_eq!(from % layout.align(), 0, "{layout:?}");
        let arena = self.heap.start().addr();
        assert!(from >= arena && to <= arena + self.heap.reserved_bytes(), "{layout:?} at {from:#x}");
        if let Some((&below, &end)) = self.ranges.range(..to).next_back() {
            assert!(end <= from, "{from:#x} to {to:#x} overlaps {below:#x} to {end:#x}");
        }
        self.ranges.insert(from, to);
        self.seed += 1;
        // SAFETY: the block is live, and has that size.
        unsafe { fill(start, layout.size(), self.seed) };
        self.blocks.push(Block { start, layout, seed: self.seed });
    }

    fn leave(&mut self, at: usize) -> Block {
        let block = self.blocks.swap_remove(at);
        self.ranges.remove(&block.start.addr());
        block
    }

    /// Null for `layout` is right only while there is no room for it.
    fn assert_full_for(&self, layout: Layout) {
        let page = self.heap.page_size();
        let class = self.geometry.class_of(layout);
        // A block needs a page; a run aligned to more than pages is looked for in one that surely has it.
        let needed = match class {
            ClassIndex::NONE => {
                layout.size().max(1).div_ceil(page) + (layout.align() / page).saturating_sub(1)
            }
            _ => 1,
        };
        let mut free = 0;
        for page in 0..self.heap.pages().0 {
            let state = self.heap.page_state(PageIndex(page));
            free = if state == PageState::Free { free + 1 } else { 0 };
            assert!(free < needed, "{layout:?} was refused, with {needed} pages free up to page {page}");
            if let PageState::Divided { class: other, free_blocks, .. } = state {
                assert!(
                    other != class || free_blocks == 0,
                    "{layout:?} was refused, with blocks in page {page}"
                );
            }
        }
    }

    /// Null for a run that is to grow is right only while it cannot do so where it stands.
    fn assert_no_room_behind(&self, start: *mut u8, old: Layout, new: Layout) {
        let grows = self.geometry.class_of(old) == ClassIndex::NONE && new.size() > old.size();
        if !grows || new.size() > self.heap.reserved_bytes() {
            return;
        }
        let page = self.heap.page_size();
        let first = (start.addr() - self.heap.start().addr()) / page;
        let pages = |layout: Layout| layout.size().max(1).div_ceil(page);
        let mut behind = first + pages(old)..first + pages(new);
        assert!(
            behind.end > self.heap.pages().get()
                || behind.any(|page| self.heap.page_state(PageIndex(page as u32)) != PageState::Free),
            "{old:?} at page {first} could have become {new:?}"
        );
    }

    /// Verifies the table, and its totals against the model's.
    fn check(&self) {
        let census = self.heap.check().unwrap();
        let (mut blocks, mut bytes, mut runs, mut pages) = (0, 0, 0, 0);
        for block in &self.blocks {
            match self.geometry.class_of(block.layout) {
                ClassIndex::NONE => {
                    runs += 1;
                    pages += block.layout.size().max(1).div_ceil(self.heap.page_size());
                }
                class => {
                    blocks += 1;
                    bytes += self.geometry.classes().block(class);
                }
            }
        }
        assert_eq!((census.live_blocks, census.live_block_bytes), (blocks, bytes));
        assert_eq!((census.runs, census.multi_pages), (runs, pages));
        assert_eq!(
            census.free_pages + census.divided_pages + pages,
            self.heap.pages().get(),
            "a page is lost"
        );
    }

    fn run(mut self, steps: Vec<HeapStep>, check_every: usize) {
        for (at, step) in steps.into_iter().enumerate() {
            self.step(step);
            if at % check_every == 0 {
                self.check();
            }
        }
        self.check();
        while !self.blocks.is_empty() {
            self.free(self.blocks.len() / 2);
        }
        let census = self.heap.check().unwrap();
        assert_eq!(census.free_pages, self.heap.pages().get(), "{census:?}");
        for page in 0..self.heap.pages().0 {
            assert_eq!(self.heap.page_state(PageIndex(page)), PageState::Free);
        }
    }
}

macro_rules! heap_keeps_its_promises {
    ($($name:ident: $cases:literal cases, $pages:literal pages of $page:expr, $classes:ident, checked every $every:literal;)*) => {$(
        proptest! {
            #![proptest_config(config($cases))]
            #[test]
            fn $name(steps in vec(heap_step($page, $pages), 1_600..2_400)) {
                HeapModel::new($page, $pages, SizeClasses::$classes).run(steps, $every);
            }
        }
    )*};
}

heap_keeps_its_promises! {
    a_heap_of_eight_pages: 16 cases, 8 pages of 4096, POWERS_OF_TWO, checked every 1;
    a_heap_of_one_page: 4 cases, 1 pages of 4096, POWERS_OF_TWO, checked every 1;
    a_heap_of_the_smallest_pages: 12 cases, 70 pages of 512, POWERS_OF_TWO, checked every 1;
    a_heap_of_the_smallest_pages_in_build_classes: 12 cases, 70 pages of 512, BUILD, checked every 1;
    a_heap_of_small_pages_in_build_classes: 12 cases, 130 pages of 4096, BUILD, checked every 4;
    a_heap_of_the_builds_pages: 8 cases, 40 pages of built::PAGE_SIZE, BUILD, checked every 8;
    a_heap_of_the_largest_pages: 2 cases, 3 pages of 1 << 20, BUILD, checked every 8;
}

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

#[derive(Clone, Copy, Debug)]
enum RunsStep {
    Grow(Index),
    /// Finds the lowest run and claims it.
    Claim(u32),
    /// Claims some of a free run, from within.
    ClaimAt(Index, u32),
    /// Releases pages from some page in use on.
    Release(Index, u32),
    Ask(Index, u32),
    /// Makes dense pages from some page on sparse.
    MakeSparse(Index, u32),
    /// Makes all pages dense, one time in eight.
    MakeDense(Index),
}

fn runs_step() -> impl Strategy<Value = RunsStep> {
    let count = prop_oneof![4 => 1..5u32, 3 => 1..70u32, 2 => 60..68u32, 1 => 1..1_200u32];
    let at = any::<Index>;
    prop_oneof![
        1 => at().prop_map(RunsStep::Grow),
        6 => count.clone().prop_map(RunsStep::Claim),
        3 => (at(), count.clone()).prop_map(|(at, count)| RunsStep::ClaimAt(at, count)),
        8 => (at(), count.clone()).prop_map(|(at, count)| RunsStep::Release(at, count)),
        4 => (at(), count.clone()).prop_map(|(at, count)| RunsStep::Ask(at, count)),
        1 => (at(), count).prop_map(|(at, count)| RunsStep::MakeSparse(at, count)),
        1 => at().prop_map(RunsStep::MakeDense),
    ]
}

/// A bool a page, and a walk for every question.
struct RunsModel {
    runs: Runs<'static>,
    free: Vec<bool>,
    dirty: Vec<bool>,
    sparse: Vec<bool>,
}

/// Length of the equal elements from `at` on.
fn stretch(bits: &[bool], at: usize) -> usize {
    bits[at..].iter().take_while(|&&bit| bit == bits[at]).count()
}

impl RunsModel {
    fn new(capacity: u32) -> RunsModel {
        let (words, nodes) = Runs::words_and_summaries(PageCount(capacity));
        let runs = Runs::new(
            PageCount(capacity),
            vec![Word::default(); words].leak(),
            vec![Summary::default(); nodes].leak(),
        );
        RunsModel { runs, free: Vec::new(), dirty: Vec::new(), sparse: Vec::new() }
    }

    fn find(&self, count: u32, sparse: bool) -> Option<PageIndex> {
        let mut found = 0;
        let end = self.free.iter().zip(&self.sparse).position(|(&free, &is_sparse)| {
            found = if free && is_sparse == sparse { found + 1 } else { 0 };
            found == count
        });
        end.map(|end| PageIndex(end as u32 + 1 - count))
    }

    fn claim(&mut self, start: PageIndex, count: u32) {
        self.runs.claim(start, PageCount(count));
        self.free[start.get()..][..count as usize].fill(false);
    }

    fn step(&mut self, step: RunsStep) {
        match step {
            RunsStep::Grow(by) => {
                let unadded = self.runs.unadded();
                if unadded.0 > 0 {
                    let count = PageCount(by.index(unadded.get()) as u32 / 4 + 1);
                    self.runs.grow(count);
                    self.free.resize(self.free.len() + count.get(), true);
                    self.dirty.resize(self.free.len(), false);
                    self.sparse.resize(self.free.len(), false);
                }
            }
            RunsStep::Claim(count) => {
                let found = self.runs.find(PageCount(count));
                assert_eq!(found, self.find(count, false), "{count} pages");
                if let Some(start) = found {
                    self.claim(start, count);
                }
            }
            RunsStep::ClaimAt(at, count) => {
                if let Some((start, len)) = self.some_stretch(at, true) {
                    self.claim(start, len.min(count));
                }
            }
            RunsStep::Release(at, count) => {
                if let Some((start, len)) = self.some_stretch(at, false) {
                    let count = len.min(count);
                    self.runs.release(start, PageCount(count));
                    self.free[start.get()..][..count as usize].fill(true);
                    self.dirty[start.get()..][..count as usize].fill(true);
                }
            }
            RunsStep::Ask(at, count) => self.ask(at, count),
            RunsStep::MakeSparse(at, count) => {
                if !self.free.is_empty() {
                    let start = at.index(self.free.len());
                    let dense = self.sparse[start..].iter().take_while(|&&sparse| !sparse).count();
                    let count = dense.min(count as usize);
                    if count > 0 {
                        self.runs.make_sparse(PageIndex(start as u32), PageCount(count as u32));
                        self.sparse[start..][..count].fill(true);
                    }
                }
            }
            RunsStep::MakeDense(at) => {
                if at.index(8) == 0 && !self.free.is_empty() {
                    self.runs.make_dense();
                    self.sparse.fill(false);
                }
            }
        }
    }

    /// Pages from some page on that are all free, or all in use.
    fn some_stretch(&self, at: Index, free: bool) -> Option<(PageIndex, u32)> {
        if self.free.is_empty() {
            return None;
        }
        let from = at.index(self.free.len());
        let start = (from..self.free.len()).chain(0..from).find(|&page| self.free[page] == free)?;
        Some((PageIndex(start as u32), stretch(&self.free, start) as u32))
    }

    fn ask(&self, at: Index, count: u32) {
        assert_eq!(self.runs.find(PageCount(count)), self.find(count, false), "{count} pages");
        assert_eq!(self.runs.find_sparse(PageCount(count)), self.find(count, true), "{count} sparse pages");
        let added = self.free.len();
        let free_and_dense = self.free.iter().zip(&self.sparse).rev();
        let below = free_and_dense.take_while(|&(&free, &sparse)| free && !sparse).count();
        assert_eq!(self.runs.free_below_frontier().get(), below);
        if added == 0 {
            return;
        }
        let start = at.index(added);
        let free = if self.free[start] { stretch(&self.free, start) as u32 } else { 0 };
        let start_page = PageIndex(start as u32);
        assert_eq!(self.runs.free_from(start_page, PageCount(count)).0, free.min(count));
        let (alike, most) = (stretch(&self.sparse, start), count.min((added - start) as u32));
        assert_eq!(
            self.runs.alike_from(start_page, PageCount(most)),
            (self.sparse[start], PageCount(most.min(alike as u32)))
        );
        let asked = &self.dirty[start..(start + count as usize).min(added)];
        let dirty = asked.iter().position(|&dirty| dirty).map(|first| {
            let last = asked.iter().rposition(|&dirty| dirty).unwrap();
            (PageIndex((start + first) as u32), PageCount((last + 1 - first) as u32))
        });
        assert_eq!(self.runs.dirty_within(start_page, PageCount(asked.len() as u32)), dirty);
    }

    fn check(&self, capacity: u32) {
        self.runs.check().unwrap();
        assert_eq!(self.runs.frontier().get(), self.free.len());
        assert_eq!(self.runs.unadded().0, capacity - self.free.len() as u32);
        assert_eq!(self.runs.free_pages().get(), self.free.iter().filter(|&&free| free).count());
        for (page, &free) in (0..).zip(&self.free) {
            assert_eq!(self.runs.is_free(PageIndex(page)), free, "page {page}");
        }
    }
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn the_index_of_runs_finds_what_a_walk_finds(
        capacity in prop_oneof![
            1..200u32,
            Just(64u32),
            Just(512),
            Just(513),
            Just(4_096),
            Just(4_097),
            Just(33_000),
        ],
        steps in vec(runs_step(), 200..1_000),
    ) {
        let mut model = RunsModel::new(capacity);
        for (at, step) in steps.into_iter().enumerate() {
            model.step(step);
            if at % 4 == 0 || capacity < 1_000 {
                model.check(capacity);
            }
        }
        model.check(capacity);
    }
}
