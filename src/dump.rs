//! The page table in print.
//!
//! The text goes out in pieces while the walk over the table goes on. Nothing is allocated, and no lock is held
//! while anything is written: the writer may allocate from the very heap that it shows.

#[cfg(feature = "os")]
mod classes;
mod table;
#[cfg(feature = "os")]
mod worst;

#[cfg(feature = "os")]
pub(crate) use table::fold;

#[cfg(feature = "os")]
use crate::global::PageAllocator;
use crate::heap::Heap;
#[cfg(feature = "os")]
use crate::out::{Out, Target};
use crate::size_class::Geometry;
#[cfg(feature = "os")]
use crate::stats::Stats;
#[cfg(feature = "os")]
use crate::sys::Stream;
use crate::units::PageCount;
use core::fmt::{self, Write};

/// A heap of no more pages than this has a line for each; in a larger one, neighbours in the same condition fold.
const MOST_PAGES_UNFOLDED: PageCount = PageCount(64);

/// What a dump shows of the page table.
#[cfg(feature = "os")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum View {
    /// Every page in heaps of up to 64 pages, neighbours folded in larger ones.
    #[default]
    BySize,
    /// A line for each page.
    EveryPage,
    /// A line for neighbours in the same condition.
    Folded,
    /// The size classes that have pages, a line for each, and the runs: bytes live and the least of them that were
    /// asked for, cached, free, and resident. Of runs it is known how many were asked for.
    Classes,
    /// The pages that keep most memory resident beside the blocks that are live in them: at most so many, and no more
    /// than 64.
    Worst(usize),
}

/// What is dumped.
///
/// ```
/// use page_memory_allocator::{DumpOptions, PageAllocator, View};
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     let mut text = String::new();
///     HEAP.dump_with(DumpOptions::new().sums(true).view(View::Worst(5)), &mut text).unwrap();
///     assert!(text.starts_with("Resident size:"));
/// }
/// ```
#[cfg(feature = "os")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DumpOptions {
    view: View,
    sums: bool,
}

#[cfg(feature = "os")]
impl DumpOptions {
    /// The page table alone, as [`Heap::dump`] shows it.
    pub const fn new() -> DumpOptions {
        DumpOptions { view: View::BySize, sums: false }
    }

    /// What is shown of the page table.
    #[must_use]
    pub const fn view(mut self, view: View) -> DumpOptions {
        self.view = view;
        self
    }

    /// Whether the [`Stats`] stand above it.
    #[must_use]
    pub const fn sums(mut self, sums: bool) -> DumpOptions {
        self.sums = sums;
        self
    }
}

impl<G: Geometry> Heap<G> {
    /// Prints the page table to standard output. Nothing is allocated, and no lock is held while it is written.
    ///
    /// ```text
    /// |------------Allocator Info------------|
    /// Memory heap: 4194304
    /// Page size: 4096
    /// Amount of pages: 1024
    /// |--------------Pages Info--------------|
    /// 0..2.Status: Multi;Address: 0x7fc696cfc000;
    /// 3.Status: Divided;Address: 0x7fc696cff040;Class size: 64;Free blocks: 63;
    /// 4..1023.Status: Free;Address: 0x7fc696d00000;
    /// |--------------------------------------|
    /// ```
    ///
    /// A line stands for one page, or for a range of neighbours (both ends included) in the same condition: Free;
    /// Divided into blocks of one size with equally many free; or one Multi run. Heaps of up to 64 pages have a line
    /// for each page. The address is that of the first page; if it is Divided and has a free block, of the block it
    /// would hand out next.
    ///
    /// While other threads allocate, each page is shown as it was at the moment it was looked at.
    #[cfg(feature = "os")]
    pub fn dump(&self) {
        Out::print(Target::Stream(Stream::Output), |out| self.dump_to(out));
    }

    /// [`dump`](Self::dump) to a writer, which may use this heap.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_to(&self, out: &mut dyn Write) -> fmt::Result {
        table::write(self, self.pages() > MOST_PAGES_UNFOLDED, out)
    }

    /// Writes what `options` ask for, to a writer that may use this heap.
    ///
    /// # Errors
    /// Those of the writer.
    #[cfg(feature = "os")]
    pub fn dump_with(&self, options: DumpOptions, out: &mut dyn Write) -> fmt::Result {
        write(self, options, || self.stats(), out)
    }
}

#[cfg(feature = "os")]
impl PageAllocator {
    /// Prints the [`Stats`] of the process heap to standard output, and below them its page table in the form of
    /// [`Heap::dump`], with a line for each component below that. In the table, blocks in thread caches are not free;
    /// the sums tell them from live ones. Nothing is allocated, and no lock is held while it is written.
    pub fn dump(&self) {
        Out::print(Target::Stream(Stream::Output), |out| self.dump_to(out));
    }

    /// [`dump`](Self::dump) to a writer, which may allocate.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_to(&self, out: &mut dyn Write) -> fmt::Result {
        self.dump_with(DumpOptions::new().sums(true), out)
    }

    /// Writes what `options` ask for, to a writer that may allocate.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_with(&self, options: DumpOptions, out: &mut dyn Write) -> fmt::Result {
        match self.heap() {
            Some(heap) => {
                write(heap, options, || self.stats(), out)?;
                let mut written = Ok(());
                self.components(|stats| {
                    if written.is_ok() {
                        written = writeln!(out, "Component: {stats}");
                    }
                });
                written
            }
            None => out.write_str("The system refuses the heap its address space.\n"),
        }
    }
}

#[cfg(feature = "os")]
fn write<G: Geometry>(
    heap: &Heap<G>,
    options: DumpOptions,
    stats: impl Fn() -> Stats,
    out: &mut dyn Write,
) -> fmt::Result {
    let known = (options.sums || options.view == View::Classes).then(stats);
    if let Some(stats) = &known
        && options.sums
    {
        writeln!(out, "{stats}")?;
    }
    match (options.view, known) {
        (View::BySize, _) => table::write(heap, heap.pages() > MOST_PAGES_UNFOLDED, out),
        (View::EveryPage, _) => table::write(heap, false, out),
        (View::Folded, _) => table::write(heap, true, out),
        (View::Classes, Some(stats)) => classes::write(&stats, out),
        (View::Classes, None) => Ok(()),
        (View::Worst(most), _) => worst::write(heap, most, out),
    }
}
