//! The end of a program that misused the allocator: one line on standard error, then SIGABRT.

use crate::page_table::{Misuse, PageState};
use crate::sys;
use core::fmt::{self, Write as _};

/// Text in a fixed buffer; what does not fit is cut off.
struct Line {
    text: [u8; 240],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.text[self.len..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}

/// Reports `misuse` of `address`, in a page that is `state` (if it is in the arena), and ends the process.
#[cold]
#[inline(never)]
pub(crate) fn misuse(misuse: Misuse, address: usize, state: Option<PageState>) -> ! {
    let mut line = Line { text: [0; 240], len: 0 };
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
    sys::write(sys::Stream::Error, &line.text[..line.len]);
    sys::abort()
}
