//! A heap, beside what must be in it.

use crate::config;
use page_memory_allocator::page_table::PageState;
use page_memory_allocator::size_class::{CustomGeometry, Geometry, SizeClasses, built};
use page_memory_allocator::units::{ClassIndex, PageIndex};
use page_memory_allocator::{Heap, HeapOptions};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::alloc::Layout;
use std::collections::BTreeMap;

#[path = "../common/pattern.rs"]
mod pattern;
use pattern::{fill, verify};

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
