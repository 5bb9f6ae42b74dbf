//! The end of a program that misused the allocator: one line on standard error, then SIGABRT.

use crate::line::Line;
use crate::page_table::{Misuse, PageState};
use crate::sys;
use core::fmt::Write as _;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// What a program is ended by: null, or a `fn(&str) -> !`.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Has `handler` called, with one line of text, when the allocator finds that it was misused. The handler must not return.
/// By default the line is written to standard error and the process ends by SIGABRT; without the feature `os`, by an
/// instruction that the processor refuses.
///
/// The handler may allocate, but not purge: no lock is held when it is called, except, if the misuse was found while blocks
/// were taken from the cache of another thread, the lock for doing that. The heap that was misused stands as before, but
/// some other part of the program is out of order: it is safe to print, to reset the machine, or to jump into a debugger; it
/// is not safe to go on. A handler that unwinds ends the process. Traps of guarded blocks are signals, and not told to it;
/// nor is that a signal handler allocated while its thread was inside the allocator, as locks may be held then.
///
/// ```
/// page_memory_allocator::set_fault_handler(|line| {
///     // On a board: write the line to the serial port, and wait for the watchdog.
///     eprint!("{line}");
///     std::process::exit(2)
/// });
/// ```
pub fn set_fault_handler(handler: fn(&str) -> !) {
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Ends the process when it is dropped, which is when what it guards unwinds.
pub(crate) struct NoWayBack;

impl Drop for NoWayBack {
    fn drop(&mut self) {
        sys::abort();
    }
}

/// Calls the handler, if there is one.
fn handle(line: &str) {
    let handler = HANDLER.load(Ordering::Acquire);
    if !handler.is_null() {
        // SAFETY: what is not null is a function of that type.
        let handler = unsafe { mem::transmute::<*mut (), fn(&str) -> !>(handler) };
        let _no_way_back = NoWayBack;
        handler(line);
    }
}

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
    end(&line)
}

/// Ends the process with a line that says why. The caller holds no lock but that of who takes blocks from caches.
pub(crate) fn end(line: &Line) -> ! {
    handle(line.text());
    line.report();
    sys::abort()
}
