//! The table itself: a line for each page, or for neighbours in the same condition.

use crate::heap::Heap;
use crate::human::Name;
use crate::page_table::PageState;
use crate::size_class::Geometry;
use crate::spans::Span;
use crate::units::{ComponentIndex, PageCount, PageIndex};
use core::fmt::{self, Write};

pub(super) fn write<G: Geometry>(heap: &Heap<G>, folds: bool, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "|------------Allocator Info------------|")?;
    writeln!(out, "Memory heap: {}", heap.reserved_bytes())?;
    writeln!(out, "Page size: {}", heap.page_size())?;
    writeln!(out, "Amount of pages: {}", heap.pages().get())?;
    writeln!(out, "|--------------Pages Info--------------|")?;
    let mut line: Option<Span> = None;
    for span in heap.spans() {
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
    writeln!(out, "|--------------------------------------|")
}

/// Whether a span in state `next` goes on the line of one in state `line` before it.
pub(crate) fn fold(line: PageState, next: PageState) -> bool {
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
        write!(out, "Component: {};", Name(heap.component_name(span.owner)))?;
    }
    out.write_str("\n")
}
