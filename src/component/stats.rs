//! What components hold.

use super::LEDGER;
use crate::global::{PageAllocator, heap};
use crate::human::{Bytes, Name};
use crate::page_table::PageState;
use crate::shards::MOST_COMPONENTS;
use crate::size_class::{BuildGeometry, Geometry as _};
use crate::thread_cache;
use crate::units::{ComponentIndex, PageCount};
use core::fmt;

/// What a component holds of the process heap.
///
/// While threads allocate, the figures are near the truth. When none does,
/// `held_bytes = live_bytes + cached_bytes`, but for blocks that were freed outside the component and wait in other
/// caches to go home: they are counted as live.
///
/// ```
/// use page_memory_allocator::{Component, ComponentStats, PageAllocator};
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     static CACHE: Component = Component::new("cache").limit(16 << 20);
///     let held = CACHE.enter(|| vec![0u8; 1 << 20]);
///     let stats: ComponentStats = CACHE.stats();
///     assert_eq!((stats.name, stats.limit, stats.soft_limit), ("cache", Some(16 << 20), None));
///     assert!(stats.live_bytes >= held.len() && stats.multi_pages.get() >= 16);
///     println!("{stats}");
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ComponentStats {
    /// The component's name.
    pub name: &'static str,
    /// Bytes in blocks and runs that are not in their pages: what limits are compared with.
    pub held_bytes: usize,
    /// Most bytes held at a time.
    pub peak_bytes: usize,
    /// The limit, in bytes.
    pub limit: Option<usize>,
    /// The soft limit, in bytes.
    pub soft_limit: Option<usize>,
    /// Times that the limit kept memory from the component: allocations refused, and batches cut short.
    pub refusals: usize,
    /// Bytes in blocks and runs that the program holds.
    pub live_bytes: usize,
    /// Bytes in blocks of the component that wait in thread caches, wherever they were freed.
    pub cached_bytes: usize,
    /// Pages divided into blocks of the component.
    pub divided_pages: PageCount,
    /// Pages of the component's runs.
    pub multi_pages: PageCount,
}

/// A limit of an account, as it is told.
fn limit(bytes: usize) -> Option<usize> {
    (bytes != usize::MAX).then_some(bytes)
}

/// The figures of all components, from one walk over the page table.
fn walk(mut each: impl FnMut(ComponentStats)) {
    let Some(heap) = heap() else { return };
    let mut pages = [(PageCount(0), PageCount(0)); MOST_COMPONENTS + 1];
    for span in heap.spans() {
        let (divided, multi) = &mut pages[span.owner.0 as usize];
        match span.state {
            PageState::Free => {}
            PageState::Divided { .. } => divided.0 += span.pages.0,
            PageState::MultiHead { .. } | PageState::MultiTail => multi.0 += span.pages.0,
        }
    }
    let mut cached = [0; MOST_COMPONENTS + 1];
    thread_cache::component_totals(heap, &mut cached);
    for component in LEDGER.components() {
        let Some(account) = LEDGER.account(component) else { continue };
        let (divided_pages, multi_pages) = pages[component.0 as usize];
        let held_bytes = account.held();
        let cached_bytes = cached[component.0 as usize].min(held_bytes);
        each(ComponentStats {
            name: LEDGER.name(component),
            held_bytes,
            peak_bytes: account.peak(),
            limit: limit(account.limit()),
            soft_limit: limit(account.soft_limit()),
            refusals: account.refusals(),
            live_bytes: held_bytes - cached_bytes,
            cached_bytes,
            divided_pages,
            multi_pages,
        });
    }
}

pub(super) fn of(component: ComponentIndex) -> ComponentStats {
    let name = LEDGER.name(component);
    // Before there is a heap, no more is known.
    let mut found = ComponentStats { name, ..ComponentStats::default() };
    if let Some(account) = LEDGER.account(component) {
        (found.limit, found.soft_limit) = (limit(account.limit()), limit(account.soft_limit()));
    }
    walk(|stats| {
        if stats.name == name {
            found = stats;
        }
    });
    found
}

impl PageAllocator {
    /// Calls `each` with what every [`Component`](crate::Component) holds, in the order in which they were first
    /// used. Nothing is allocated, and no lock is held while `each` is called.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     static CACHE: page_memory_allocator::Component = page_memory_allocator::Component::new("cache");
    ///     let held = CACHE.enter(|| vec![0u8; 1 << 20]);
    ///     let mut live = 0;
    ///     HEAP.components(|component| live += component.live_bytes);
    ///     assert!(live >= held.len());
    /// }
    /// ```
    pub fn components(&self, each: impl FnMut(ComponentStats)) {
        walk(each);
    }
}

/// One line: `cache: 12.3 MiB live, 1.0 MiB cached, in 14 pages (896.0 KiB), at most 64.0 MiB`.
impl fmt::Display for ComponentStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.divided_pages.get() + self.multi_pages.get();
        let (live, cached) = (Bytes(self.live_bytes), Bytes(self.cached_bytes));
        let arena = Bytes(pages * BuildGeometry.page_size());
        write!(f, "{}: {live} live, {cached} cached, in {pages} pages ({arena})", Name(self.name))?;
        match self.limit {
            Some(limit) => write!(f, ", at most {}", Bytes(limit)),
            None => Ok(()),
        }
    }
}
