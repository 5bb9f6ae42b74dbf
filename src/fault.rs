//! The end of a program that misused the allocator: one line on standard error, then SIGABRT.

use crate::line::Line;
use crate::page_table::{Misuse, PageState};
use crate::sys;
use core::fmt::Write as _;

/// Reports `misuse` of `address`, in a page that is `state` (if it is in the arena), and ends the process.
#[cold]
#[inline(never)]
pub(crate) fn misuse(misuse: Misuse, address: usize, state: Option<PageState>) -> ! {
    let mut line = Line::new();
    // Writing to the buffer cannot fail.
    let _ = write!(line, "page_memory_allocator: {misuse}: {address:#x}");
    let _ = match state {
        None => Ok(()),
        Some(PageState::Free) => line.write_str(" (page: Free)"),
        Some(PageState::Divided { block, .. }) => write!(line, " (page: Divided, class size: {block})"),
        Some(PageState::MultiHead { run }) => write!(line, " (page: Multi, of {} pages)", run.0),
        Some(PageState::MultiTail) => line.write_str(" (page: Multi, not the first of its run)"),
    };
    let _ = line.write_str("\n");
    line.report();
    sys::abort()
}
