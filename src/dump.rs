//! The page table in print.
//!
//! The text goes out in pieces while the walk over the table goes on. Nothing is allocated, and no lock is held
//! while anything is written: the writer may allocate from the very heap that it shows.

#[cfg(feature = "os")]
use crate::global::PageAllocator;
use crate::heap::Heap;
use crate::page_table::PageState;
use crate::size_class::Geometry;
use crate::spans::Span;
use crate::stats::Summary;
#[cfg(feature = "os")]
use crate::sys;
use crate::units::{ComponentIndex, PageCount, PageIndex};
use core::fmt::{self, Write};

/// A heap of no more pages than this has a line for each; in a larger one, neighbours in the same condition fold.
const MOST_PAGES_UNFOLDED: PageCount = PageCount(64);

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
        StandardOutput::print(|out| self.dump_to(out));
    }

    /// [`dump`](Self::dump) to a writer, which may use this heap.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_to(&self, out: &mut impl Write) -> fmt::Result {
        write_table(self, out).map(|_| ())
    }
}

#[cfg(feature = "os")]
impl PageAllocator {
    /// Prints the page table of the process heap to standard output, in the form of [`Heap::dump`], and behind it
    /// the [`Summary`] of its lines. In the table, blocks in thread caches are not free; the summary tells them from
    /// live ones. Nothing is allocated, and no lock is held while it is written.
    pub fn dump(&self) {
        StandardOutput::print(|out| self.dump_to(out));
    }

    /// [`dump`](Self::dump) to a writer, which may allocate.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_to(&self, out: &mut impl Write) -> fmt::Result {
        match self.heap() {
            Some(heap) => {
                let summary = write_table(heap, out)?.with_caches();
                writeln!(out, "{summary}")?;
                let mut written = Ok(());
                self.components(|stats| {
                    if written.is_ok() {
                        written = writeln!(out, "Component:     {stats}");
                    }
                });
                written
            }
            None => out.write_str("The system refuses the heap its address space.\n"),
        }
    }
}

/// Writes the table, and counts what is written.
fn write_table<G: Geometry>(heap: &Heap<G>, out: &mut dyn Write) -> Result<Summary, fmt::Error> {
    let folds = heap.pages() > MOST_PAGES_UNFOLDED;
    writeln!(out, "|------------Allocator Info------------|")?;
    writeln!(out, "Memory heap: {}", heap.reserved_bytes())?;
    writeln!(out, "Page size: {}", heap.page_size())?;
    writeln!(out, "Amount of pages: {}", heap.pages().get())?;
    writeln!(out, "|--------------Pages Info--------------|")?;
    let mut summary = Summary::of_pages(heap.page_size());
    let mut line: Option<Span> = None;
    for span in heap.spans() {
        summary.add(&span);
        if !folds {
            for page in (span.first.0..span.first.plus(span.pages).0).map(PageIndex) {
                write_line(heap, Span { first: page, pages: PageCount(1), ..span }, out)?;
            }
            continue;
        }
        match &mut line {
            Some(line) if line.owner == span.owner && fold(line.state, span.state) => {
                line.pages.0 += span.pages.0;
            }
            _ => {
                if let Some(line) = line.replace(span) {
                    write_line(heap, line, out)?;
                }
            }
        }
    }
    if let Some(line) = line {
        write_line(heap, line, out)?;
    }
    writeln!(out, "|--------------------------------------|")?;
    Ok(summary.finish(heap))
}

/// Whether a span in state `next` goes on the line of one in state `line` before it.
fn fold(line: PageState, next: PageState) -> bool {
    use PageState::{Divided, Free, MultiHead, MultiTail};
    match (line, next) {
        (Free, Free) => true,
        (
            Divided { block, free_blocks, .. },
            Divided { block: next_block, free_blocks: next_free_blocks, .. },
        ) => (block, free_blocks) == (next_block, next_free_blocks),
        // A run of which a part was seen before it grew.
        (MultiHead { .. } | MultiTail, MultiTail) => true,
        _ => false,
    }
}

fn write_line<G: Geometry>(heap: &Heap<G>, span: Span, out: &mut dyn Write) -> fmt::Result {
    let address = heap.table().address_of(span.first);
    write!(out, "{}", span.first)?;
    if span.pages > PageCount(1) {
        write!(out, "..{}", span.first.0 + span.pages.0 - 1)?;
    }
    match span.state {
        PageState::Free => write!(out, ".Status: Free;Address: {address:#x};")?,
        PageState::Divided { block, free_blocks, next_offset, .. } => {
            let next = address + next_offset;
            write!(
                out,
                ".Status: Divided;Address: {next:#x};Class size: {block};Free blocks: {free_blocks};"
            )?;
        }
        PageState::MultiHead { .. } | PageState::MultiTail => {
            write!(out, ".Status: Multi;Address: {address:#x};")?;
        }
    }
    if span.owner != ComponentIndex::NONE {
        write!(out, "Component: {};", heap.component_name(span.owner))?;
    }
    out.write_str("\n")
}

/// Standard output behind a buffer on the stack.
#[cfg(feature = "os")]
struct StandardOutput {
    text: [u8; 4096],
    len: usize,
}

#[cfg(feature = "os")]
impl StandardOutput {
    /// Prints what `write` writes.
    fn print(write: impl FnOnce(&mut StandardOutput) -> fmt::Result) {
        let mut out = StandardOutput { text: [0; 4096], len: 0 };
        // Writing to the buffer cannot fail.
        let _ = write(&mut out);
        out.flush();
    }

    fn flush(&mut self) {
        sys::write(sys::Stream::Output, &self.text[..self.len]);
        self.len = 0;
    }
}

#[cfg(feature = "os")]
impl Write for StandardOutput {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            if self.len == self.text.len() {
                self.flush();
            }
            let fits = rest.len().min(self.text.len() - self.len);
            self.text[self.len..self.len + fits].copy_from_slice(&rest[..fits]);
            self.len += fits;
            rest = &rest[fits..];
        }
        Ok(())
    }
}
