//! Where the memory of the process is: its resident size, taken apart by what the page table says.

use crate::global::PageAllocator;
use crate::guarded::{self, GuardedStats};
use crate::heap::Heap;
use crate::human::{Bytes, Count, Share};
use crate::metadata;
use crate::page_table::PageState;
use crate::residency::{Residency, ResidentSpan, ResidentSpans};
use crate::size_class::{Geometry, MOST_CLASSES};
use crate::summary::Summary;
use crate::sys;
use crate::thread_cache;
use crate::units::{ClassIndex, PageCount};
use core::fmt;

/// The resident size of the process, in parts. Each resident byte is in exactly one:
///
/// > `live_block_bytes + cached_block_bytes + free_block_bytes + tail_bytes + live_run_bytes + free_page_bytes +
/// > guarded_bytes + table_bytes + cache_bytes + other_bytes = process_bytes`
///
/// What is resident is what the system says of each OS page. An OS page of a Divided page holds several blocks, or
/// part of one: each of them has its share of it. Of the blocks that the page table takes for live, those in thread
/// caches are known by number only, so they have the part of their class's resident bytes that they are by number.
/// Once a process has forked, the system does not tell its pages from that of zeros: what was only read counts, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Resident {
    /// Resident bytes of the whole process, as in `/proc/self/smaps`.
    pub process_bytes: usize,
    /// In blocks that the program holds.
    pub live_block_bytes: usize,
    /// In blocks that wait in thread caches.
    pub cached_block_bytes: usize,
    /// In free blocks of Divided pages.
    pub free_block_bytes: usize,
    /// Behind the last whole block of Divided pages.
    pub tail_bytes: usize,
    /// In runs that the program holds.
    pub live_run_bytes: usize,
    /// In free pages.
    pub free_page_bytes: usize,
    /// In OS pages of guarded blocks.
    pub guarded_bytes: usize,
    /// The page table and the bins.
    pub table_bytes: usize,
    /// The thread caches themselves: addresses of blocks, not the blocks.
    pub cache_bytes: usize,
    /// All else: code, stacks, data, other mappings, and other heaps than this one.
    pub other_bytes: usize,
}

/// The Divided pages of one size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ClassStats {
    /// Bytes in a block.
    pub block: usize,
    /// Bytes in a block of the next smaller class; 0 if there is none.
    pub smaller_block: usize,
    /// Pages of the class.
    pub pages: PageCount,
    /// Blocks that the program holds.
    pub live_blocks: usize,
    /// Blocks that wait in thread caches.
    pub cached_blocks: usize,
    /// Blocks that are free in their pages.
    pub free_blocks: usize,
    /// Resident bytes of the pages.
    pub resident_bytes: usize,
    /// Those of them in blocks that the program holds or that wait in thread caches.
    pub taken_resident_bytes: usize,
    /// Those of them in free blocks.
    pub free_resident_bytes: usize,
}

impl ClassStats {
    /// Bytes handed out: those of the live blocks.
    pub const fn live_bytes(&self) -> usize {
        self.live_blocks * self.block
    }

    /// The least that the live blocks were asked for with, in bytes. Nothing remembers what a block was asked for with;
    /// but a smaller class serves all that fits it, so every request was, rounded up to its alignment, longer than a
    /// block of that. The most is [`live_bytes`](Self::live_bytes).
    pub const fn least_asked_bytes(&self) -> usize {
        self.live_blocks * (self.smaller_block + 1)
    }

    /// Resident bytes in blocks that wait in thread caches: the part that they are, by number, of the blocks that are
    /// not free.
    pub fn cached_resident_bytes(&self) -> usize {
        let taken = (self.live_blocks + self.cached_blocks).max(1);
        (self.taken_resident_bytes as u128 * self.cached_blocks as u128 / taken as u128) as usize
    }

    /// Resident bytes in blocks that the program holds.
    pub fn live_resident_bytes(&self) -> usize {
        self.taken_resident_bytes - self.cached_resident_bytes()
    }
}

/// The runs of pages that the program holds: one allocation each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct RunStats {
    /// How many.
    pub runs: usize,
    /// Pages in them.
    pub pages: PageCount,
    /// Bytes handed out: those of the pages.
    pub live_bytes: usize,
    /// Bytes asked for: the page table has them of each run.
    pub asked_bytes: usize,
    /// Resident bytes.
    pub resident_bytes: usize,
}

/// The free pages of what is committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct FreeStats {
    /// How many, those never committed left out.
    pub pages: PageCount,
    /// Those of them with resident bytes: they were in use, and wait to be used again or purged.
    pub resident_pages: PageCount,
    /// Resident bytes.
    pub resident_bytes: usize,
}

impl FreeStats {
    /// Pages without resident bytes: purged, or never touched.
    pub const fn purged_pages(&self) -> PageCount {
        PageCount(self.pages.0 - self.resident_pages.0)
    }
}

/// Where the memory of the process is. Made by [`PageAllocator::stats`] and [`Heap::stats`].
///
/// [`Display`](fmt::Display) writes the resident size and its parts, in units for people.
///
/// ```
/// use page_memory_allocator::{ClassStats, FreeStats, PageAllocator, Resident, RunStats, Stats};
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     let (run, blocks) = (vec![1u8; 1 << 20], vec![String::from("a block"); 100]);
///     let stats: Stats = HEAP.stats();
///     assert!(stats.least_asked_bytes() <= stats.live_bytes());
///
///     // The parts of the resident size add up.
///     let resident: Resident = stats.resident;
///     assert_eq!(resident.own_bytes() + resident.other_bytes, resident.process_bytes);
///     assert!(resident.arena_bytes() >= run.len());
///
///     let runs: RunStats = stats.runs;
///     assert!(runs.runs >= 1 && runs.resident_bytes >= run.len());
///     let free: FreeStats = stats.free;
///     assert_eq!(free.purged_pages().get() + free.resident_pages.get(), free.pages.get());
///     let class: &ClassStats = stats.classes().iter().find(|class| class.block == 8).unwrap();
///     assert!(class.live_blocks >= blocks.len() && class.least_asked_bytes() <= class.live_bytes());
///     assert_eq!(class.live_resident_bytes() + class.cached_resident_bytes(), class.taken_resident_bytes);
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// The use of the address space, resident or not.
    pub summary: Summary,
    /// The resident size of the process, in parts.
    pub resident: Resident,
    /// Runs of pages.
    pub runs: RunStats,
    /// Free pages.
    pub free: FreeStats,
    /// Guarded blocks, which lie outside the arena and are in no figure of it.
    pub guarded: GuardedStats,
    classes: [ClassStats; MOST_CLASSES],
    class_count: usize,
}

impl Stats {
    pub(crate) fn none() -> Stats {
        Stats {
            summary: Summary::default(),
            resident: Resident::default(),
            runs: RunStats::default(),
            free: FreeStats::default(),
            guarded: GuardedStats::default(),
            classes: [ClassStats::default(); MOST_CLASSES],
            class_count: 0,
        }
    }

    /// All size classes of the heap in ascending order, those without pages included.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     let words = vec![String::from("a class of its own"); 100];
    ///     let stats = HEAP.stats();
    ///     let held: usize = stats.classes().iter().map(|class| class.live_blocks).sum();
    ///     assert!(held >= words.len());
    /// }
    /// ```
    pub fn classes(&self) -> &[ClassStats] {
        &self.classes[..self.class_count]
    }

    /// Bytes handed out to the program, in blocks and runs.
    pub const fn live_bytes(&self) -> usize {
        self.summary.live_bytes
    }

    /// The least that the program asked for, in bytes: what it did for runs, and the least for blocks, of which see
    /// [`ClassStats::least_asked_bytes`].
    pub fn least_asked_bytes(&self) -> usize {
        self.classes().iter().map(ClassStats::least_asked_bytes).sum::<usize>() + self.runs.asked_bytes
    }

    /// The figures of a heap before its pages are counted.
    #[cold] // so that it is not written out wherever a heap is dumped
    pub(crate) fn of_no_pages<G: Geometry>(heap: &Heap<G>) -> Stats {
        let mut stats = Stats::none();
        stats.summary = Summary::of_pages(heap.page_size());
        stats.class_count = heap.geometry().class_count() - 1;
        let block = |class: usize| heap.geometry().classes().block(ClassIndex(class as u8));
        for (at, class) in stats.classes[..stats.class_count].iter_mut().enumerate() {
            (class.smaller_block, class.block) = (block(at), block(at + 1));
        }
        stats
    }

    /// Reads the whole table of `heap`.
    fn of<G: Geometry>(heap: &Heap<G>, caches: Caches) -> Stats {
        let mut stats = Stats::of_no_pages(heap);
        ResidentSpans::new(heap).for_each(|span| stats.add(&span));
        stats.finish(heap, caches)
    }

    /// Counts the pages of `span`.
    pub(crate) fn add(&mut self, span: &ResidentSpan) {
        let page_size = self.summary.page_size;
        self.summary.add(&span.span);
        match span.span.state {
            PageState::Free => {
                self.free.pages.0 += span.committed_pages.0;
                self.free.resident_pages.0 += if span.resident > 0 { span.span.pages.0 } else { 0 };
                self.free.resident_bytes += span.resident;
            }
            PageState::Divided { class, free_blocks, live_blocks, .. } => {
                let class = &mut self.classes[class.get() - 1];
                class.pages.0 += 1;
                class.live_blocks += live_blocks;
                class.free_blocks += free_blocks;
                class.resident_bytes += span.resident;
                class.taken_resident_bytes += span.taken_resident();
                class.free_resident_bytes += span.free_resident;
                self.resident.tail_bytes += span.tail_resident;
            }
            PageState::MultiHead { .. } | PageState::MultiTail => {
                let head = span.span.state != PageState::MultiTail;
                let bytes = span.span.pages.get() * page_size;
                self.runs.runs += usize::from(head);
                self.runs.pages.0 += span.span.pages.0;
                self.runs.live_bytes += bytes;
                self.runs.asked_bytes += bytes - span.span.unasked;
                self.runs.resident_bytes += span.resident;
            }
        }
    }

    /// Adds what is known of the heap, its thread caches and the process as a whole, after all pages were counted.
    pub(crate) fn finish<G: Geometry>(mut self, heap: &Heap<G>, caches: Caches) -> Stats {
        self.summary = self.summary.finish(heap);
        let mut residency = Residency::new();
        let mut counted = 0;
        // Whole OS pages: what is between the parts, in a page with one of them, serves nothing else; unless it was given.
        let grain = if heap.has_given_tables() { 1 } else { sys::page_size() };
        for (start, bytes) in heap.tables_in_use() {
            let from = (start - start % grain).max(counted);
            counted = (start + bytes).next_multiple_of(grain).max(from);
            self.resident.table_bytes += residency.bytes(from, counted - from);
        }
        if caches == Caches::OfProcess {
            self.tell_caches_apart();
            for (start, bytes) in metadata::mappings() {
                self.resident.cache_bytes += residency.bytes(start, bytes);
            }
            #[cfg(feature = "hardened")]
            for (start, bytes) in crate::hardened::tables_in_use(heap.committed_bytes() / heap.page_size()) {
                self.resident.table_bytes += residency.bytes(start, bytes);
            }
            self.guarded = guarded::stats(&mut residency);
        }
        self.add_up();
        self
    }

    /// Tells the blocks in thread caches, which the page table takes for live, from those that the program holds.
    fn tell_caches_apart(&mut self) {
        let cached = thread_cache::totals();
        let (mut blocks, mut bytes) = (0, 0);
        for (class, cached) in self.classes.iter_mut().zip(&cached[1..]) {
            // The caches are counted after the pages. More than was live then cannot be told apart.
            class.cached_blocks = class.live_blocks.min(*cached);
            class.live_blocks -= class.cached_blocks;
            blocks += class.cached_blocks;
            bytes += class.cached_blocks * class.block;
        }
        let summary = &mut self.summary;
        (summary.cached_blocks, summary.cached_bytes) = (blocks, bytes);
        summary.live_blocks -= blocks;
        summary.live_bytes -= bytes;
        summary.add_tables_beside_the_page_table();
    }

    /// Sums up the parts of the resident size, and what remains of it.
    fn add_up(&mut self) {
        let parts = &mut self.resident;
        for class in &self.classes[..self.class_count] {
            parts.live_block_bytes += class.live_resident_bytes();
            parts.cached_block_bytes += class.cached_resident_bytes();
            parts.free_block_bytes += class.free_resident_bytes;
        }
        parts.live_run_bytes = self.runs.resident_bytes;
        parts.free_page_bytes = self.free.resident_bytes;
        parts.guarded_bytes = self.guarded.resident_bytes;
        let own = parts.own_bytes();
        // While threads allocate, the parts may come to more than the process had a moment later.
        parts.process_bytes = sys::resident::process_bytes().unwrap_or(0).max(own);
        parts.other_bytes = parts.process_bytes - own;
    }
}

/// Whose thread caches hold blocks of a heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caches {
    /// Nobody's: a heap of one's own.
    None,
    /// Those of the process's threads.
    OfProcess,
}

impl Resident {
    /// All parts but `other_bytes`: what is resident of the heap, its guarded blocks and its tables.
    pub const fn own_bytes(&self) -> usize {
        self.arena_bytes() + self.guarded_bytes + self.table_bytes + self.cache_bytes
    }

    /// What is resident of the arena: blocks, tails, runs and free pages.
    pub const fn arena_bytes(&self) -> usize {
        self.live_block_bytes
            + self.cached_block_bytes
            + self.free_block_bytes
            + self.tail_bytes
            + self.live_run_bytes
            + self.free_page_bytes
    }
}

impl<G: Geometry> Heap<G> {
    /// Takes the resident size of the process apart: what this heap has of it, and the rest. Nothing is allocated, and
    /// no lock is held for longer than it takes to look at one page or run.
    ///
    /// The system is asked about every OS page that is committed: some milliseconds for each gigabyte.
    pub fn stats(&self) -> Stats {
        Stats::of(self, Caches::None)
    }
}

impl PageAllocator {
    /// Takes the resident size of the process apart. Blocks in thread caches are told from live ones. Nothing is
    /// allocated, and no lock is held for longer than it takes to look at one page or run; but threads begin and end before or
    /// after their caches are counted.
    ///
    /// The system is asked about every OS page that is committed: some milliseconds for each gigabyte. Where that is
    /// too much, [`summary`](Self::summary) reads the page table only.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     let megabyte = vec![1u8; 1 << 20];
    ///     let stats = HEAP.stats();
    ///     assert!(stats.resident.live_run_bytes >= megabyte.len());
    ///     assert!(stats.resident.process_bytes > stats.resident.live_run_bytes);
    ///     println!("{stats}");
    /// }
    /// ```
    pub fn stats(&self) -> Stats {
        self.heap().map_or_else(Stats::none, |heap| Stats::of(heap, Caches::OfProcess))
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (resident, summary) = (&self.resident, &self.summary);
        let whole = resident.process_bytes;
        writeln!(f, "Resident size:     {:10}", Bytes(whole))?;
        let mut line = |name: &str, bytes: usize, count: usize, of: &'static str| {
            write!(f, "  {name:<17}{:10} {}", Bytes(bytes), Share { part: bytes, whole })?;
            if of.is_empty() { writeln!(f) } else { writeln!(f, " {:>12}", Count(count, of)) }
        };
        line("Live blocks", resident.live_block_bytes, summary.live_blocks, "block")?;
        line("Live runs", resident.live_run_bytes, self.runs.runs, "run")?;
        line("In thread caches", resident.cached_block_bytes, summary.cached_blocks, "block")?;
        line("Free blocks", resident.free_block_bytes, summary.free_blocks, "block")?;
        line("Page tails", resident.tail_bytes, summary.divided_pages.get(), "page")?;
        line("Free pages", resident.free_page_bytes, self.free.resident_pages.get(), "page")?;
        if self.guarded != GuardedStats::default() {
            line("Guarded blocks", resident.guarded_bytes, self.guarded.live_blocks, "block")?;
        }
        line("Own tables", resident.table_bytes + resident.cache_bytes, 0, "")?;
        line("All else", resident.other_bytes, 0, "")?;
        let asked = Bytes(self.least_asked_bytes());
        writeln!(
            f,
            "Handed out:        {:10}, of which at least {asked} were asked for",
            Bytes(summary.live_bytes)
        )?;
        let purged = Count(self.free.purged_pages().get(), "page");
        writeln!(
            f,
            "Committed:         {:10}, of which {purged} free and not resident",
            Bytes(summary.committed_bytes)
        )?;
        write!(f, "Reserved:          {:10}", Bytes(summary.reserved_bytes))
    }
}
