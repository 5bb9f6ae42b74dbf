//! What only the heap of the process has: a size of its own choice, shards that come into use, and forks.

use super::Heap;
use crate::ledger::Ledger;
use crate::options::Options;
use crate::shards::SHARED_SHARDS;
use crate::size_class::{BuildGeometry, Geometry, built};
use crate::sys;
use crate::units::{PageCount, ShardIndex};
use core::alloc::Layout;
use core::mem;
use core::sync::atomic::Ordering;

/// The accounts of the components of the program.
pub(crate) static LEDGER: Ledger = Ledger::new();

/// The process heap reserves so many times the machine's memory and swap: free runs may be scattered.
const ARENA_TO_MEMORY: usize = 2;
/// It reserves no more than so many times its limit: large runs lie apart, and one that grows may have to move.
const ARENA_TO_LIMIT: usize = 4;
/// What it tries to reserve when the machine does not say how much memory it has.
const USUAL_RESERVATION: usize = 64 << 30;
/// It gives up when even so little is refused.
const LEAST_RESERVATION: usize = 4 << 20;

/// Whether the system has so many bytes of addresses to give.
fn is_granted(bytes: usize) -> bool {
    // SAFETY: nobody has used what was just reserved.
    sys::reserve(bytes).map(|start| unsafe { sys::unmap(start, bytes) }).is_some()
}

impl Heap<BuildGeometry> {
    /// The heap of the process: as much address space as its program can need. Where the system grants less, three
    /// quarters of that, as there are stacks of threads and files to map, too; where it does not grant the memory that
    /// the tables might take, so much that they take a quarter of what it grants at most.
    pub(crate) fn for_process(options: &Options) -> Option<Heap<BuildGeometry>> {
        let wanted = match sys::machine_memory() {
            0 => USUAL_RESERVATION,
            memory => memory.saturating_mul(ARENA_TO_MEMORY),
        };
        let wanted = wanted.min(options.limit.saturating_mul(ARENA_TO_LIMIT));
        let mut bytes = wanted.clamp(LEAST_RESERVATION, built::ARENA_BYTES);
        if let Some(heap) = Self::for_process_of(bytes, options) {
            return Some(heap);
        }
        let mut share = 4;
        while bytes > LEAST_RESERVATION && !is_granted(bytes) {
            (bytes, share) = (bytes / 4 * 3, 1);
        }
        while bytes > LEAST_RESERVATION {
            bytes = if share == 1 { bytes / 4 * 3 } else { bytes / 2 };
            if Self::for_process_of(bytes, options).is_some() {
                return Self::for_process_of((bytes / share).max(LEAST_RESERVATION), options);
            }
        }
        Self::for_process_of(LEAST_RESERVATION, options)
    }

    fn for_process_of(bytes: usize, options: &Options) -> Option<Heap<BuildGeometry>> {
        let pages = PageCount((bytes / built::PAGE_SIZE).min(u32::MAX as usize - 1) as u32);
        let (shards, ledger) = (SHARED_SHARDS, Some(&LEDGER));
        let mut heap = Heap::with_geometry(BuildGeometry, pages, shards, ledger, true, options.huge_pages)?;
        heap.limit = PageCount(pages.get().min(options.limit / built::PAGE_SIZE) as u32);
        Some(heap)
    }

    /// Whether so much might be served if nothing else were in use.
    pub(crate) fn may_ever_serve(&self, layout: Layout) -> bool {
        layout.size() <= self.limit.bytes(self.geometry().page_shift())
    }

    /// Lets `shard` have pages, as threads are about to use it. Not while all is locked.
    pub(crate) fn use_shard(&self, shard: ShardIndex) {
        self.shards_in_use.fetch_max(shard.0 as usize + 1, Ordering::Relaxed);
        if shard.0 > 0 {
            self.arena.serve_many();
        }
    }

    /// Locks the ledger, all bins, then the runs, until [`unlock_all`](Self::unlock_all).
    ///
    /// The caller sees to it that no shard comes into use meanwhile. Bins of shards that are not in use are left out:
    /// nobody has them. That of sampled blocks always may be.
    pub(crate) fn lock_all(&self) {
        mem::forget(self.ledger.map(Ledger::freeze));
        for tag in self.tags(self.shards_in_use()) {
            mem::forget(self.bin(tag));
        }
        mem::forget(self.runs());
    }

    /// Opens what [`lock_all`](Self::lock_all) locked.
    ///
    /// # Safety
    /// This thread, or in a child process the one that forked, locked it.
    pub(crate) unsafe fn unlock_all(&self) {
        // SAFETY: the caller's locks; no reference to what they guard was kept.
        unsafe {
            self.tags(self.shards_in_use()).for_each(|tag| self.locked_bin(tag).unlock_leaked());
            self.runs.unlock_leaked();
            self.ledger.into_iter().for_each(|ledger| ledger.thaw());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_heap_keeps_to_the_parameters_of_the_build() {
        let heap = Heap::for_process(&Options::new()).expect("the system grants some address space");
        assert!(heap.reserved_bytes() <= built::ARENA_BYTES);
        assert!(heap.reserved_bytes() <= sys::machine_memory().saturating_mul(ARENA_TO_MEMORY));
        assert_eq!((heap.page_size(), heap.shards), (built::PAGE_SIZE, SHARED_SHARDS));
        heap.check().expect("a new heap is in order");
    }
}

/// With another heap that has a component, as only the process's has. The guards of the hardened build are counted as if
/// there were one heap.
#[cfg(all(test, not(feature = "hardened")))]
mod tests_of_accounts {
    use super::*;
    use crate::ledger::Account;
    use crate::page_table::Tag;
    use crate::units::ComponentIndex;
    use std::boxed::Box;

    /// The heap, the component and the account of that.
    fn heap_of_64_pages() -> (Heap<BuildGeometry>, ComponentIndex, &'static Account) {
        let ledger: &'static Ledger = Box::leak(Box::new(Ledger::new()));
        let heap =
            Heap::with_geometry(BuildGeometry, PageCount(64), SHARED_SHARDS, Some(ledger), true, false)
                .unwrap();
        let component = ledger.find_or_open("of a test", |_| ()).unwrap();
        (heap, component, ledger.account(component).unwrap())
    }

    #[test]
    fn a_run_that_is_refused_as_free_pages_lie_apart_is_not_charged_for() {
        let (heap, component, account) = heap_of_64_pages();
        let layout = |pages: usize| Layout::from_size_align(pages * built::PAGE_SIZE, 8).unwrap();
        let [first, between, last] =
            [28, 8, 28].map(|pages| heap.alloc_run(ComponentIndex::NONE, layout(pages), false));
        heap.dealloc_run(first.addr(), None);
        heap.dealloc_run(last.addr(), None);
        assert!(!between.is_null() && heap.alloc_run(component, layout(40), false).is_null());
        assert_eq!((account.held(), account.peak(), heap.check().is_ok()), (0, 0, true));
    }

    #[test]
    fn an_account_that_differs_from_the_pages_is_seen() {
        let (heap, component, account) = heap_of_64_pages();
        let layout = Layout::new::<[u8; 100]>();
        let block = heap.alloc_block(Tag::new(component.shard(), BuildGeometry.class_of(layout))).start;
        let run = heap.alloc_run(component, Layout::new::<[u8; 1 << 17]>(), false);
        assert!(!block.is_null() && !run.is_null());
        let room = heap.room_for(layout).unwrap();
        assert_eq!(account.held(), room + (1 << 17));
        heap.check().unwrap();
        assert_eq!(account.charge(1, 8), 1);
        assert!(heap.check().is_err());
        account.credit(8);
        // SAFETY: the block is live and has this layout.
        unsafe { heap.dealloc(block, layout) };
        assert_eq!((account.held(), heap.check().is_ok()), (1 << 17, true));
    }
}
