//! The index of free runs, beside a walk over all pages.

use crate::config;
use page_memory_allocator::runs::{Runs, Summary, Word};
use page_memory_allocator::units::{PageCount, PageIndex};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Copy, Debug)]
enum RunsStep {
    Grow(Index),
    /// Grows up to where a word or a node of some level begins.
    GrowToNode(u32),
    /// Finds the lowest run and claims it.
    Claim(u32),
    /// Claims some of a free run, from within.
    ClaimAt(Index, u32),
    /// Releases pages from some page in use on.
    Release(Index, u32),
    Ask(Index, u32),
    /// Makes dense pages from some page on sparse.
    MakeSparse(Index, u32),
    /// Makes the last pages sparse, which may be free.
    MakeEndSparse(u32),
    /// Makes all pages dense, one time in eight.
    MakeDense(Index),
}

fn runs_step() -> impl Strategy<Value = RunsStep> {
    let count = prop_oneof![4 => 1..5u32, 3 => 1..70u32, 2 => 60..68u32, 1 => 1..1_200u32];
    let at = any::<Index>;
    prop_oneof![
        1 => at().prop_map(RunsStep::Grow),
        2 => (6..14u32).prop_map(RunsStep::GrowToNode),
        6 => count.clone().prop_map(RunsStep::Claim),
        3 => (at(), count.clone()).prop_map(|(at, count)| RunsStep::ClaimAt(at, count)),
        8 => (at(), count.clone()).prop_map(|(at, count)| RunsStep::Release(at, count)),
        4 => (at(), count.clone()).prop_map(|(at, count)| RunsStep::Ask(at, count)),
        1 => (at(), count.clone()).prop_map(|(at, count)| RunsStep::MakeSparse(at, count)),
        1 => count.prop_map(RunsStep::MakeEndSparse),
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

    fn grow(&mut self, count: u32) {
        self.runs.grow(PageCount(count));
        self.free.resize(self.free.len() + count as usize, true);
        self.dirty.resize(self.free.len(), false);
        self.sparse.resize(self.free.len(), false);
    }

    /// Makes dense pages from `start` on sparse, at most so many.
    fn make_sparse(&mut self, start: usize, most: usize) {
        let count = self.sparse[start..].iter().take(most).take_while(|&&sparse| !sparse).count();
        if count > 0 {
            self.runs.make_sparse(PageIndex(start as u32), PageCount(count as u32));
            self.sparse[start..][..count].fill(true);
        }
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
                    self.grow(by.index(unadded.get()) as u32 / 4 + 1);
                }
            }
            RunsStep::GrowToNode(shift) => {
                let frontier = self.runs.frontier().0;
                let count = (frontier + 1).next_multiple_of(1 << shift) - frontier;
                if count <= self.runs.unadded().0 {
                    self.grow(count);
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
                    self.make_sparse(at.index(self.free.len()), count as usize);
                }
            }
            RunsStep::MakeEndSparse(count) => {
                let dense =
                    self.sparse.iter().rev().take(count as usize).take_while(|&&sparse| !sparse).count();
                self.make_sparse(self.sparse.len() - dense, dense);
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
            Just(100_000),
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
