//! A program may choose how misuse ends it.

use page_memory_allocator::{Heap, HeapOptions, set_fault_handler};
use std::alloc::Layout;
use std::os::unix::process::ExitStatusExt as _;
use std::process::exit;

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};

const LAYOUT: Layout = Layout::new::<[u8; 100]>();

/// Frees a block of `heap` twice.
fn misuse(heap: &Heap) {
    let block = heap.alloc(LAYOUT);
    // SAFETY: none, that is the point: the second call ends the process.
    unsafe {
        heap.dealloc(block, LAYOUT);
        heap.dealloc(block, LAYOUT);
    }
}

fn heap() -> Heap {
    HeapOptions::new().build().expect("the system has 64 MiB of addresses")
}

#[test]
fn the_handler_is_told_in_one_line_what_was_wrong() {
    let output = in_child(
        |_| (),
        || {
            set_fault_handler(|line| {
                eprint!("handled: {line}");
                exit(7)
            });
            misuse(&heap());
        },
    );
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.starts_with("handled: page_memory_allocator: freed a pointer into a page"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn no_lock_is_held_while_the_handler_runs() {
    static HEAP: std::sync::OnceLock<Heap> = std::sync::OnceLock::new();
    let output = in_child(
        |_| (),
        || {
            set_fault_handler(|_| {
                let heap = HEAP.get().expect("it was made");
                exit(if heap.check().is_ok() && !heap.alloc(LAYOUT).is_null() { 7 } else { 8 })
            });
            let heap = HEAP.get_or_init(heap);
            // So that the page stays in use.
            heap.alloc(LAYOUT);
            misuse(heap);
        },
    );
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
}

#[test]
fn a_handler_that_unwinds_ends_the_process() {
    let output = in_child(
        |_| (),
        || {
            std::panic::set_hook(Box::new(|_| ()));
            set_fault_handler(|line| panic!("{line}"));
            let unwound = std::panic::catch_unwind(|| misuse(&heap()));
            exit(if unwound.is_err() { 3 } else { 4 });
        },
    );
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", output.status);
}
