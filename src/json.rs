//! The heap as one JSON document. `docs/json.md` describes it; [`VERSION`] changes with what that says.

use crate::component::ComponentStats;
use crate::dump::fold;
use crate::global::PageAllocator;
use crate::heap::Heap;
use crate::page_table::PageState;
use crate::residency::{ResidentSpan, ResidentSpans};
use crate::size_class::Geometry;
use crate::snapshot::Snapshot;
use crate::stats::{Caches, ClassStats, Stats};
use crate::sys;
use core::fmt::{self, Write};

/// The version of the document.
const VERSION: u32 = 1;

impl<G: Geometry> Heap<G> {
    /// Writes the page table and the [`Stats`] as one JSON document, described in `docs/json.md`. Nothing is
    /// allocated, and no lock is held while it is written: the writer may use this heap.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_json(&self, out: &mut dyn Write) -> fmt::Result {
        write(self, Caches::None, None, out)
    }

    /// [`dump_json`](Self::dump_json), with the figures of `before` in its member `before`.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_json_since(&self, before: &Snapshot, out: &mut dyn Write) -> fmt::Result {
        write(self, Caches::None, Some(before), out)
    }
}

impl PageAllocator {
    /// Writes the page table of the process heap and the [`Stats`] as one JSON document, described in
    /// `docs/json.md`. Nothing is allocated, and no lock is held while it is written: the writer may allocate.
    ///
    /// ```
    /// use page_memory_allocator::PageAllocator;
    ///
    /// #[global_allocator]
    /// static HEAP: PageAllocator = PageAllocator::new();
    ///
    /// fn main() {
    ///     let mut document = String::new();
    ///     HEAP.dump_json(&mut document).unwrap();
    ///     assert!(document.starts_with('{') && document.contains("\"version\":1"));
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of the writer; and [`fmt::Error`] when the system refuses the heap its address space.
    pub fn dump_json(&self, out: &mut dyn Write) -> fmt::Result {
        write(self.heap().ok_or(fmt::Error)?, Caches::OfProcess, None, out)
    }

    /// [`dump_json`](Self::dump_json), with the figures of `before` in its member `before`.
    ///
    /// # Errors
    /// As for [`dump_json`](Self::dump_json).
    pub fn dump_json_since(&self, before: &Snapshot, out: &mut dyn Write) -> fmt::Result {
        write(self.heap().ok_or(fmt::Error)?, Caches::OfProcess, Some(before), out)
    }
}

/// Writes the document, with the figures of `before` beside those of the heap.
pub(crate) fn write<G: Geometry>(
    heap: &Heap<G>,
    caches: Caches,
    before: Option<&Snapshot>,
    out: &mut dyn Write,
) -> fmt::Result {
    write!(out, "{{\"format\":\"page_memory_allocator heap\",\"version\":{VERSION},")?;
    write!(
        out,
        "\"heap\":{{\"start\":\"{:#x}\",\"page_size\":{},\"os_page_size\":{},\"pages\":{}}},",
        heap.start().addr(),
        heap.page_size(),
        sys::page_size(),
        heap.pages().0,
    )?;
    out.write_str("\"columns\":[\"first\",\"pages\",\"state\",\"block\",\"live_blocks\",\"free_blocks\",\"resident_bytes\",\"component\"],\n")?;
    out.write_str("\"spans\":[\n")?;
    let mut stats = Stats::of_no_pages(heap);
    let mut line: Option<ResidentSpan> = None;
    let mut first = true;
    for span in ResidentSpans::new(heap) {
        stats.add(&span);
        match &mut line {
            Some(line) if folds(line, &span) => {
                line.span.pages.0 += span.span.pages.0;
                line.resident += span.resident;
            }
            _ => {
                if let Some(line) = line.replace(span) {
                    write_span(&line, core::mem::take(&mut first), out)?;
                }
            }
        }
    }
    if let Some(line) = line {
        write_span(&line, first, out)?;
    }
    out.write_str("\n],\n")?;
    write_stats(&stats.finish(heap, caches), out)?;
    out.write_str(",\n\"components\":[")?;
    if caches == Caches::OfProcess {
        write_components(out)?;
    }
    out.write_str("],\n\"before\":")?;
    match before {
        None => out.write_str("null")?,
        Some(before) => {
            out.write_str("{")?;
            write_stats(before.stats(), out)?;
            out.write_str("}")?;
        }
    }
    out.write_str("}\n")
}

/// Writes an object for each component.
fn write_components(out: &mut dyn Write) -> fmt::Result {
    let (mut written, mut first) = (Ok(()), true);
    PageAllocator::new().components(|stats| {
        if written.is_ok() {
            written = write_component(&stats, core::mem::take(&mut first), out);
        }
    });
    written
}

fn write_component(stats: &ComponentStats, first: bool, out: &mut dyn Write) -> fmt::Result {
    out.write_str(if first { "\n{\"name\":\"" } else { ",\n{\"name\":\"" })?;
    for part in stats.name.chars() {
        match part {
            '"' | '\\' => write!(out, "\\{part}")?,
            // Such as end a script in a page.
            '<' | '\0'..=' ' => write!(out, "\\u{:04x}", part as u32)?,
            _ => out.write_char(part)?,
        }
    }
    out.write_str("\",")?;
    let members = [
        ("live_bytes", stats.live_bytes),
        ("cached_bytes", stats.cached_bytes),
        ("held_bytes", stats.held_bytes),
        ("peak_bytes", stats.peak_bytes),
        ("divided_pages", stats.divided_pages.get()),
        ("multi_pages", stats.multi_pages.get()),
        ("refusals", stats.refusals),
    ];
    write_members(&members, out)?;
    for (name, limit) in [("limit_bytes", stats.limit), ("soft_limit_bytes", stats.soft_limit)] {
        match limit {
            Some(limit) => write!(out, ",\"{name}\":{limit}")?,
            None => write!(out, ",\"{name}\":null")?,
        }
    }
    out.write_str("}")
}

/// Whether `next` goes into one entry with `line` before it.
fn folds(line: &ResidentSpan, next: &ResidentSpan) -> bool {
    let free = line.span.state == PageState::Free;
    line.span.owner == next.span.owner
        && fold(line.span.state, next.span.state)
        && (!free || (line.resident > 0) == (next.resident > 0))
}

fn write_span(line: &ResidentSpan, first: bool, out: &mut dyn Write) -> fmt::Result {
    let pages = line.span.pages.get();
    let (state, block, live, free) = match line.span.state {
        PageState::Free => ("free", 0, 0, 0),
        PageState::Divided { block, live_blocks, free_blocks, .. } => {
            ("divided", block, live_blocks * pages, free_blocks * pages)
        }
        PageState::MultiHead { .. } => ("multi", 0, 1, 0),
        PageState::MultiTail => ("multi", 0, 0, 0),
    };
    let comma = if first { "" } else { ",\n" };
    let (first, resident) = (line.span.first, line.resident);
    write!(out, "{comma}[{first},{pages},\"{state}\",{block},{live},{free},{resident},")?;
    // Components are listed in the order of their indices, from 1 on.
    match line.span.owner.0.checked_sub(1) {
        Some(component) => write!(out, "{component}]"),
        None => out.write_str("null]"),
    }
}

/// Writes a member that is an object of figures, and no comma behind it.
fn write_object(name: &str, members: &[(&str, usize)], out: &mut dyn Write) -> fmt::Result {
    write!(out, "\"{name}\":{{")?;
    write_members(members, out)?;
    out.write_str("}")
}

/// Writes members that are figures, and no comma behind the last.
fn write_members(members: &[(&str, usize)], out: &mut dyn Write) -> fmt::Result {
    for (at, (name, value)) in members.iter().enumerate() {
        write!(out, "{}\"{name}\":{value}", if at == 0 { "" } else { "," })?;
    }
    Ok(())
}

/// Writes the members of `stats`, and no comma behind the last.
fn write_stats(stats: &Stats, out: &mut dyn Write) -> fmt::Result {
    let Stats { summary, resident, runs, free, .. } = stats;
    write_object(
        "resident",
        &[
            ("process_bytes", resident.process_bytes),
            ("live_block_bytes", resident.live_block_bytes),
            ("cached_block_bytes", resident.cached_block_bytes),
            ("free_block_bytes", resident.free_block_bytes),
            ("tail_bytes", resident.tail_bytes),
            ("live_run_bytes", resident.live_run_bytes),
            ("free_page_bytes", resident.free_page_bytes),
            ("guarded_bytes", resident.guarded_bytes),
            ("table_bytes", resident.table_bytes),
            ("cache_bytes", resident.cache_bytes),
            ("other_bytes", resident.other_bytes),
        ],
        out,
    )?;
    out.write_str(",\n")?;
    write_object(
        "summary",
        &[
            ("free_pages", summary.free_pages.get()),
            ("divided_pages", summary.divided_pages.get()),
            ("multi_pages", summary.multi_pages.get()),
            ("live_blocks", summary.live_blocks),
            ("live_runs", summary.live_runs),
            ("live_bytes", summary.live_bytes),
            ("least_asked_bytes", stats.least_asked_bytes()),
            ("cached_blocks", summary.cached_blocks),
            ("cached_bytes", summary.cached_bytes),
            ("free_blocks", summary.free_blocks),
            ("free_block_bytes", summary.free_block_bytes),
            ("tail_bytes", summary.tail_bytes),
            ("reserved_bytes", summary.reserved_bytes),
            ("committed_bytes", summary.committed_bytes),
            ("table_bytes", summary.table_bytes),
        ],
        out,
    )?;
    out.write_str(",\n")?;
    write_object(
        "runs",
        &[
            ("runs", runs.runs),
            ("pages", runs.pages.get()),
            ("live_bytes", runs.live_bytes),
            ("asked_bytes", runs.asked_bytes),
            ("resident_bytes", runs.resident_bytes),
        ],
        out,
    )?;
    out.write_str(",\n")?;
    write_object(
        "free",
        &[
            ("pages", free.pages.get()),
            ("resident_pages", free.resident_pages.get()),
            ("purged_pages", free.purged_pages().get()),
            ("resident_bytes", free.resident_bytes),
        ],
        out,
    )?;
    out.write_str(",\n")?;
    write_classes(stats, out)
}

/// Writes a member with an object for each class in use.
fn write_classes(stats: &Stats, out: &mut dyn Write) -> fmt::Result {
    out.write_str("\"classes\":[")?;
    let in_use = |class: &&ClassStats| class.pages.0 > 0;
    for (at, class) in stats.classes().iter().filter(in_use).enumerate() {
        out.write_str(if at == 0 { "\n{" } else { ",\n{" })?;
        let members = [
            ("block", class.block),
            ("pages", class.pages.get()),
            ("live_blocks", class.live_blocks),
            ("cached_blocks", class.cached_blocks),
            ("free_blocks", class.free_blocks),
            ("live_bytes", class.live_bytes()),
            ("least_asked_bytes", class.least_asked_bytes()),
            ("resident_bytes", class.resident_bytes),
            ("live_resident_bytes", class.live_resident_bytes()),
            ("cached_resident_bytes", class.cached_resident_bytes()),
            ("free_resident_bytes", class.free_resident_bytes),
        ];
        write_members(&members, out)?;
        out.write_str("}")?;
    }
    out.write_str("]")
}
