//! The heap as a picture: one page of HTML that needs nothing else. What it shows is the document of
//! [`json`], which it holds; styles and script are files beside this one.

use crate::global::PageAllocator;
use crate::heap::Heap;
use crate::json;
use crate::size_class::Geometry;
use crate::snapshot::Snapshot;
use crate::stats::Caches;
use core::fmt::{self, Write};
use core::str;

/// Makes a static of a file: what has a name can be laid out apart from the constants that every program reads.
macro_rules! part {
    ($name:ident, $file:literal) => {
        static $name: [u8; include_bytes!($file).len()] = *include_bytes!($file);
    };
}
part!(HEAD, "html/head.html");
part!(STYLE, "html/page.css");
part!(BODY, "html/body.html");
part!(SCRIPT, "html/page.js");

impl<G: Geometry> Heap<G> {
    /// Writes a page of HTML that shows the page table as a map, a cell for each page, and the [`Stats`](crate::Stats).
    /// It needs no network, and stays usable with a million pages. Nothing is allocated, and no lock is held while it
    /// is written: the writer may use this heap.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_html(&self, out: &mut dyn Write) -> fmt::Result {
        write(self, Caches::None, None, out)
    }

    /// [`dump_html`](Self::dump_html), with what has changed since `before`.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump_html_since(&self, before: &Snapshot, out: &mut dyn Write) -> fmt::Result {
        write(self, Caches::None, Some(before), out)
    }
}

impl PageAllocator {
    /// Writes a page of HTML that shows the page table of the process heap as a map, a cell for each page, and the
    /// [`Stats`](crate::Stats). It needs no network, and stays usable with a million pages. Nothing is allocated, and
    /// no lock is held while it is written: the writer may allocate.
    ///
    /// # Errors
    /// Those of the writer; and [`fmt::Error`] when the system refuses the heap its address space.
    pub fn dump_html(&self, out: &mut dyn Write) -> fmt::Result {
        write(self.heap().ok_or(fmt::Error)?, Caches::OfProcess, None, out)
    }

    /// [`dump_html`](Self::dump_html), with what has changed since `before`.
    ///
    /// # Errors
    /// As for [`dump_html`](Self::dump_html).
    pub fn dump_html_since(&self, before: &Snapshot, out: &mut dyn Write) -> fmt::Result {
        write(self.heap().ok_or(fmt::Error)?, Caches::OfProcess, Some(before), out)
    }
}

fn write<G: Geometry>(
    heap: &Heap<G>,
    caches: Caches,
    before: Option<&Snapshot>,
    out: &mut dyn Write,
) -> fmt::Result {
    let write_part = |out: &mut dyn Write, part| out.write_str(str::from_utf8(part).map_err(|_| fmt::Error)?);
    write_part(out, &HEAD)?;
    write_part(out, &STYLE)?;
    write_part(out, &BODY)?;
    // Nothing in the document closes the element: in names of components, `json.rs` escapes every `<`.
    json::write(heap, caches, before, out)?;
    out.write_str("</script>\n<script>\n")?;
    write_part(out, &SCRIPT)?;
    out.write_str("</script>\n</body>\n</html>\n")
}
