//! The figures of a heap at one time, to be compared with those at another.

use crate::global::PageAllocator;
use crate::heap::Heap;
use crate::human::Bytes;
use crate::size_class::Geometry;
use crate::stats::Stats;
use core::fmt;

/// The figures of a heap at one time. It is as large as they are, some kilobytes, and allocates nothing.
///
/// ```
/// use page_memory_allocator::{PageAllocator, Snapshot};
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     let before: Snapshot = HEAP.snapshot();
///     let kept = vec![1u8; 1 << 20];
///     let mut picture = String::new();
///     HEAP.dump_html_since(&before, &mut picture).unwrap();
///     let mut document = String::new();
///     HEAP.dump_json_since(&before, &mut document).unwrap();
///     assert!(picture.contains("<html") && document.contains("\"before\":"));
///     assert!(HEAP.snapshot().stats().live_bytes() >= kept.len());
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot(Stats);

impl<G: Geometry> Heap<G> {
    /// Keeps the figures of this moment.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.stats())
    }
}

impl PageAllocator {
    /// Keeps the figures of this moment.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.stats())
    }
}

impl Snapshot {
    /// The figures.
    pub const fn stats(&self) -> &Stats {
        &self.0
    }

    /// What has changed from `before` to this snapshot, of the same heap.
    pub const fn diff(&self, before: &Snapshot) -> Difference {
        Difference { before: before.0, after: self.0 }
    }
}

/// What has changed between two snapshots of one heap. Growth is positive.
///
/// [`Display`](fmt::Display) writes by how much the resident size and the bytes handed out have changed, and a line for
/// the runs and each size class that did, those with the most live bytes gained first.
///
/// ```
/// use page_memory_allocator::{ClassChange, Difference, PageAllocator};
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     let before = HEAP.snapshot();
///     let kept: Vec<Box<[u8; 200]>> = (0..1000).map(|_| Box::new([1; 200])).collect();
///     let run = vec![1u8; 1 << 20];
///     let difference: Difference = HEAP.snapshot().diff(&before);
///     let class: ClassChange = difference.classes().find(|class| class.block == 208).unwrap();
///     assert!(class.live_blocks >= kept.len() as isize);
///     assert!(difference.runs().live_bytes >= run.len() as isize);
///     assert!(difference.live_bytes() >= difference.runs().live_bytes && difference.process_bytes() > 0);
///     println!("{difference}");
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    before: Stats,
    after: Stats,
}

/// What has changed in one size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ClassChange {
    /// Bytes in a block; 0 stands for runs of pages.
    pub block: usize,
    /// Live blocks, or runs.
    pub live_blocks: isize,
    /// Bytes in them.
    pub live_bytes: isize,
    /// Pages.
    pub pages: isize,
    /// Resident bytes of those.
    pub resident_bytes: isize,
}

impl ClassChange {
    fn is_none(&self) -> bool {
        (self.live_blocks, self.pages, self.resident_bytes) == (0, 0, 0)
    }
}

impl Difference {
    /// What has changed in each size class, in ascending order, those without change left out.
    pub fn classes(&self) -> impl Iterator<Item = ClassChange> {
        let pairs = self.before.classes().iter().zip(self.after.classes());
        let changes = pairs.map(|(before, after)| ClassChange {
            block: after.block,
            live_blocks: change(before.live_blocks, after.live_blocks),
            live_bytes: change(before.live_bytes(), after.live_bytes()),
            pages: change(before.pages.get(), after.pages.get()),
            resident_bytes: change(before.resident_bytes, after.resident_bytes),
        });
        changes.filter(|class| !class.is_none())
    }

    /// What has changed in the runs of pages.
    pub fn runs(&self) -> ClassChange {
        let (before, after) = (&self.before.runs, &self.after.runs);
        ClassChange {
            block: 0,
            live_blocks: change(before.runs, after.runs),
            live_bytes: change(before.live_bytes, after.live_bytes),
            pages: change(before.pages.get(), after.pages.get()),
            resident_bytes: change(before.resident_bytes, after.resident_bytes),
        }
    }

    /// Bytes by which the resident size of the process has grown.
    pub fn process_bytes(&self) -> isize {
        change(self.before.resident.process_bytes, self.after.resident.process_bytes)
    }

    /// Bytes by which the live blocks and runs have grown.
    pub fn live_bytes(&self) -> isize {
        change(self.before.live_bytes(), self.after.live_bytes())
    }
}

const fn change(before: usize, after: usize) -> isize {
    after as isize - before as isize
}

/// Bytes with their sign, ten characters and one.
struct Change(isize);

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.0 {
            0 => ' ',
            1.. => '+',
            _ => '-',
        };
        write!(f, "{sign}{:10}", Bytes(self.0.unsigned_abs()))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Resident size: {}", Change(self.process_bytes()))?;
        writeln!(f, "Handed out:    {}", Change(self.live_bytes()))?;
        write!(f, "{:>8} {:>12} {:>11} {:>8} {:>11}", "Block", "Live blocks", "Live", "Pages", "Resident")?;
        let mut line = |class: ClassChange| {
            match class.block {
                0 => write!(f, "\n{:>8}", "runs")?,
                block => write!(f, "\n{block:>8}")?,
            }
            let ClassChange { live_blocks, live_bytes, pages, resident_bytes, .. } = class;
            write!(f, " {live_blocks:>+12} {} {pages:>+8} {}", Change(live_bytes), Change(resident_bytes))
        };
        // Sorted without a list to sort: each turn finds what follows the line before. Of equal growth, runs and then
        // small blocks come first.
        let all = || core::iter::once(self.runs()).filter(|runs| !runs.is_none()).chain(self.classes());
        let order = |class: &ClassChange| (core::cmp::Reverse(class.live_bytes), class.block);
        let mut last = None;
        while let Some(class) =
            all().filter(|class| last.is_none_or(|last| order(class) > last)).min_by_key(order)
        {
            last = Some(order(&class));
            line(class)?;
        }
        Ok(())
    }
}
