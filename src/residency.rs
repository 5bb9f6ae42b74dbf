//! Which bytes of a heap are resident, for a reader that goes upward.

use crate::fork;
use crate::heap::Heap;
use crate::page_table::PageState;
use crate::size_class::Geometry;
use crate::spans::Span;
use crate::sys;
use crate::sys::resident::{PageMap, WINDOW};
use crate::units::{PageCount, PageIndex};

/// A window on the process's address space. Wherever a reader looks the window is moved, and the system asked for
/// all OS pages in it; a reader that goes upward asks once for each two megabytes.
#[derive(Debug)]
pub(crate) struct Residency {
    map: PageMap,
    /// Address of the window's first byte.
    start: usize,
    pages: [bool; WINDOW],
    os_page: usize,
}

impl Residency {
    pub(crate) fn new() -> Residency {
        let map = PageMap::open(fork::has_forked());
        Residency { map, start: 0, pages: [false; WINDOW], os_page: sys::page_size() }
    }

    /// Moves the window, if need be, so that it shows the `bytes` from `start` on, as far as a window reaches.
    pub(crate) fn show(&mut self, start: usize, bytes: usize) {
        if start < self.start || start + bytes > self.end() {
            self.start = start - start % self.os_page;
            self.map.read(self.start, &mut self.pages);
        }
    }

    fn end(&self) -> usize {
        self.start + WINDOW * self.os_page
    }

    /// Resident bytes among those from `start` on, as far as the window shows them. Asks nobody.
    pub(crate) fn shown(&self, start: usize, bytes: usize) -> usize {
        let (from, to) = (start.max(self.start), (start + bytes).min(self.end()));
        let (mut at, mut resident) = (from, 0);
        while at < to {
            let page = (at - self.start) / self.os_page;
            let next = (self.start + (page + 1) * self.os_page).min(to);
            resident += if self.pages[page] { next - at } else { 0 };
            at = next;
        }
        resident
    }

    /// Resident bytes among the `bytes` from `start` on.
    pub(crate) fn bytes(&mut self, start: usize, bytes: usize) -> usize {
        let (mut at, end, mut resident) = (start, start + bytes, 0);
        while at < end {
            self.show(at, 1);
            let next = self.end().min(end);
            resident += self.shown(at, next - at);
            at = next;
        }
        resident
    }
}

/// A [`Span`], and what of it is resident. Free pages are in one only with others that are resident too, if they are,
/// or with others that are not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResidentSpan {
    pub(crate) span: Span,
    /// Pages that were committed when the walk began.
    pub(crate) committed_pages: PageCount,
    /// Resident bytes.
    pub(crate) resident: usize,
    /// Of a Divided page, resident bytes in free blocks, and behind the last whole block.
    pub(crate) free_resident: usize,
    pub(crate) tail_resident: usize,
}

impl ResidentSpan {
    /// Resident bytes of a Divided page in blocks that are not free.
    pub(crate) fn taken_resident(&self) -> usize {
        self.resident - self.free_resident - self.tail_resident
    }
}

/// The spans of a heap, upward, and what of each is resident. The system is asked while no lock is held.
pub(crate) struct ResidentSpans<'h, G: Geometry> {
    heap: &'h Heap<G>,
    next: PageIndex,
    /// Pages from here on were not committed when the walk began.
    frontier: PageIndex,
    residency: Residency,
}

impl<'h, G: Geometry> ResidentSpans<'h, G> {
    pub(crate) fn new(heap: &'h Heap<G>) -> ResidentSpans<'h, G> {
        let frontier = heap.frontier();
        ResidentSpans { heap, next: PageIndex(0), frontier, residency: Residency::new() }
    }

    /// Resident bytes of `page`.
    fn page(&mut self, page: PageIndex) -> usize {
        let start = self.heap.table().address_of(page);
        if page < self.frontier { self.residency.bytes(start, self.heap.page_size()) } else { 0 }
    }

    /// Pages of the free span `span` that are resident as the first is, or are not as it is not; and the bytes.
    fn alike(&mut self, span: Span) -> (PageCount, usize) {
        let mut resident = self.page(span.first);
        let is_resident = resident > 0;
        let end = span.first.plus(span.pages);
        for page in (span.first.0 + 1..end.0.min(self.frontier.0)).map(PageIndex) {
            let bytes = self.page(page);
            if (bytes > 0) != is_resident {
                return (PageCount(page.0 - span.first.0), resident);
            }
            resident += bytes;
        }
        let end = if is_resident { end.min(self.frontier) } else { end };
        (PageCount(end.0 - span.first.0), resident)
    }
}

impl<G: Geometry> Iterator for ResidentSpans<'_, G> {
    type Item = ResidentSpan;

    fn next(&mut self) -> Option<ResidentSpan> {
        if self.next.0 >= self.heap.pages().0 {
            return None;
        }
        let (page_size, first) = (self.heap.page_size(), self.next);
        let start = self.heap.table().address_of(first);
        // What is shown of a page is looked up with its bin locked, so it is to be shown before.
        self.residency.show(start, page_size);
        let residency = &self.residency;
        let (mut free_resident, mut tail_resident) = (0, 0);
        let mut span = self.heap.span_with(first, |page| {
            page.for_each_free(|from, to| free_resident += residency.shown(start + from, to - from));
            let end = page.blocks_end();
            tail_resident = residency.shown(start + end, page_size - end);
        });
        let resident = match span.state {
            PageState::Divided { .. } => self.residency.shown(start, page_size),
            PageState::Free => {
                let (pages, resident) = self.alike(span);
                span.pages = pages;
                resident
            }
            PageState::MultiHead { .. } | PageState::MultiTail => {
                self.residency.bytes(start, span.pages.get() * page_size)
            }
        };
        self.next = first.plus(span.pages);
        let committed_pages = PageCount(self.next.min(self.frontier).0.saturating_sub(first.0));
        Some(ResidentSpan { span, committed_pages, resident, free_resident, tail_resident })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_resident_pages_are_counted_by_overlap() {
        let page = sys::page_size();
        let mapped = 3 * WINDOW * page;
        let start = sys::map_zeroed(mapped).unwrap();
        let address = start.addr().get();
        // SAFETY: the pages are of the mapping.
        unsafe {
            start.add(10 * page).write(1);
            start.add(11 * page).write(1);
            start.add((WINDOW + 3) * page).write(1);
        }
        let mut residency = Residency::new();
        assert_eq!(residency.bytes(address, mapped), 3 * page);
        assert_eq!(residency.bytes(address + 9 * page, 2 * page), page);
        assert_eq!(residency.bytes(address + 10 * page + 100, page), page);
        assert_eq!(residency.bytes(address + 11 * page + 100, 2 * page), page - 100);
        assert_eq!(residency.bytes(address + 5, 10 * page - 5), 0);
        residency.show(address, page);
        assert_eq!(residency.shown(address + 10 * page + 1, 7), 7);
        assert_eq!(residency.shown(address, mapped), 2 * page, "no more than the window shows");
        // SAFETY: the mapping is not used any more.
        unsafe { sys::unmap(start, mapped) };
    }
}
