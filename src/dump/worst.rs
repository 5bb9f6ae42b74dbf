//! The pages that keep memory for few live blocks.

use crate::heap::Heap;
use crate::human::{Bytes, Count};
use crate::page_table::PageState;
use crate::residency::{ResidentSpan, ResidentSpans};
use crate::size_class::Geometry;
use crate::spans::Span;
use core::fmt::{self, Write};

/// Most pages that are named.
const MOST: usize = 64;

/// A Divided page with live blocks, and what it keeps resident.
#[derive(Clone, Copy)]
struct Held {
    span: Span,
    resident: usize,
    /// Those of them that are in no live block.
    beside: usize,
}

/// The worst pages seen, in descending order of what they keep beside their live blocks.
struct Worst {
    pages: [Option<Held>; MOST],
    most: usize,
}

impl Worst {
    fn add(&mut self, mut held: Held) {
        for place in &mut self.pages[..self.most] {
            match place {
                Some(worse) if worse.beside >= held.beside => {}
                Some(better) => core::mem::swap(better, &mut held),
                None => {
                    *place = Some(held);
                    return;
                }
            }
        }
    }
}

/// All pages with live blocks in no more than a quarter of their bytes.
#[derive(Default)]
struct NearlyEmpty {
    pages: usize,
    live_blocks: usize,
    live_bytes: usize,
    resident: usize,
}

pub(super) fn write<G: Geometry>(heap: &Heap<G>, most: usize, out: &mut dyn Write) -> fmt::Result {
    let mut worst = Worst { pages: [None; MOST], most: most.min(MOST) };
    let mut nearly_empty = NearlyEmpty::default();
    for span in ResidentSpans::new(heap) {
        let PageState::Divided { block, live_blocks: live @ 1.., .. } = span.span.state else { continue };
        if live * block <= heap.page_size() / 4 {
            nearly_empty.pages += 1;
            nearly_empty.live_blocks += live;
            nearly_empty.live_bytes += live * block;
            nearly_empty.resident += span.resident;
        }
        let beside = span.free_resident + span.tail_resident;
        let ResidentSpan { span, resident, .. } = span;
        worst.add(Held { span, resident, beside });
    }
    writeln!(out, "|-------------Worst Pages--------------|")?;
    writeln!(
        out,
        "In {}, at most a quarter of the bytes are live: {} of {} keep {} resident.",
        Count(nearly_empty.pages, "page"),
        Bytes(nearly_empty.live_bytes),
        Count(nearly_empty.live_blocks, "block"),
        Bytes(nearly_empty.resident),
    )?;
    writeln!(
        out,
        "{:>8} {:>18} {:>7} {:>15} {:>16}",
        "Page", "Address", "Block", "Live blocks", "Would come back"
    )?;
    for held in worst.pages.iter().flatten() {
        let PageState::Divided { block, live_blocks, free_blocks, .. } = held.span.state else { continue };
        writeln!(
            out,
            "{:>8} {:>#18x} {block:>7} {live_blocks:>7} of {:>4} {:>16}",
            held.span.first.0,
            heap.table().address_of(held.span.first),
            live_blocks + free_blocks,
            Bytes(held.resident),
        )?;
    }
    writeln!(out, "|--------------------------------------|")
}
