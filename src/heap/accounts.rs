//! The accounts of components: charged for the blocks and runs that leave their pages, and verified against them.

use super::Heap;
use crate::ledger::{Account, Ledger};
use crate::page_table::{Tag, Violation};
use crate::runs::Runs;
use crate::shards::MOST_COMPONENTS;
use crate::size_class::Geometry;
use crate::units::{ComponentIndex, PageCount, PageIndex};

impl<G: Geometry> Heap<G> {
    /// The components that may have pages.
    pub(crate) fn components(&self) -> impl DoubleEndedIterator<Item = ComponentIndex> + use<G> {
        self.ledger.into_iter().flat_map(Ledger::components)
    }

    pub(crate) fn component_name(&self, component: ComponentIndex) -> &'static str {
        self.ledger.map_or("", |ledger| ledger.name(component))
    }

    fn account(&self, component: ComponentIndex) -> Option<&'static Account> {
        self.ledger.and_then(|ledger| ledger.account(component))
    }

    /// The component whose pages have `tag`.
    pub(crate) fn component_of(&self, tag: Tag) -> ComponentIndex {
        self.ledger.map_or(ComponentIndex::NONE, |_| tag.shard().component())
    }

    /// The most blocks of `tag`, up to `count`, that may be taken; they are charged for. The bin is locked.
    pub(super) fn charge_blocks(&self, tag: Tag, count: usize) -> usize {
        match self.account(self.component_of(tag)) {
            Some(account) => account.charge(count, self.geometry().classes().block(tag.class())),
            None => count,
        }
    }

    /// Notes what a component holds after it was charged, and credited with what it did not use.
    pub(super) fn settle_account(&self, component: ComponentIndex) {
        if let Some(account) = self.account(component) {
            account.settle();
        }
    }

    /// Blocks of `tag` were put back, or not taken. The bin is locked.
    pub(super) fn credit_blocks(&self, tag: Tag, count: usize) {
        if let Some(account) = self.account(self.component_of(tag)) {
            account.credit(count * self.geometry().classes().block(tag.class()));
        }
    }

    /// Whether `owner` may have `count` pages more, for which it is charged. The runs are locked.
    pub(super) fn charge_pages(&self, owner: ComponentIndex, count: PageCount) -> bool {
        let bytes = count.bytes(self.geometry().page_shift());
        self.account(owner).is_none_or(|account| account.charge(1, bytes) == 1)
    }

    /// Pages of a run of `owner` were released, or not claimed. The runs are locked.
    pub(super) fn credit_pages(&self, owner: ComponentIndex, count: PageCount) {
        if let Some(account) = self.account(owner) {
            account.credit(count.bytes(self.geometry().page_shift()));
        }
    }

    /// Verifies that each account is the sum of the component's blocks and runs.
    ///
    /// # Safety
    /// This thread has locked the runs and leaked the guards of all bins; the table was found in order.
    pub(super) unsafe fn check_accounts(&self, runs: &Runs) -> Result<(), Violation> {
        if self.components().next().is_none() {
            return Ok(());
        }
        let mut held = [0; MOST_COMPONENTS + 1];
        let mut page = PageIndex(0);
        while page < runs.frontier() {
            let tag = self.table.tag(page);
            let mut pages = PageCount(1);
            if tag.is_divided() {
                // SAFETY: as the caller says; no other reference to the bin is alive.
                let bin = unsafe { self.locked_bin(tag).leaked() };
                let live = self.table.divided(bin, page).live();
                held[self.component_of(tag).0 as usize] +=
                    live * self.geometry().classes().block(tag.class());
            } else if let Ok(run) = self.table.multi_run(runs, page) {
                pages = run;
                held[self.table.owner(runs, page).0 as usize] += run.bytes(self.geometry().page_shift());
            }
            page = page.plus(pages);
        }
        let differs = |component: &ComponentIndex| {
            self.account(*component).is_some_and(|account| account.held() != held[component.0 as usize])
        };
        match self.components().find(differs) {
            Some(_) => {
                let what = "a component's account differs from its blocks and runs";
                Err(Violation { what, page: PageIndex(0) })
            }
            None => Ok(()),
        }
    }
}
