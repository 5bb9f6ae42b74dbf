//! Panics unwind: what the standard library allocates for them lies where unwinders expect it.

use page_memory_allocator::PageAllocator;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{panic, thread};

/// How every exception of Rust begins.
const CLASS: [u8; 8] = *b"MOZ\0RUST";
/// What the C++ ABI for exceptions asks for: the largest alignment of any type, where pointers have 64 bits.
const ALIGN: usize = 16;

static EXCEPTIONS: AtomicUsize = AtomicUsize::new(0);
static MISALIGNED: AtomicUsize = AtomicUsize::new(0);

/// The allocator under test, which looks for exceptions among what is freed.
struct Watched(PageAllocator);

// SAFETY: all is passed on.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is as long as its layout, and its owner gives it up.
        unsafe {
            if layout.size() >= 32 && block.cast::<[u8; 8]>().read() == CLASS {
                EXCEPTIONS.fetch_add(1, Relaxed);
                MISALIGNED.fetch_add(usize::from(!block.addr().is_multiple_of(ALIGN)), Relaxed);
            }
            self.0.dealloc(block, layout);
        }
    }
}

#[global_allocator]
static HEAP: Watched = Watched(PageAllocator::new());

#[test]
fn an_exception_lies_at_a_multiple_of_sixteen() {
    const PANICS: usize = 20;
    panic::set_hook(Box::new(|_| ()));
    let unwound = thread::spawn(|| {
        // Between the exceptions lie other blocks of that length.
        let held = (0..PANICS).map(|number| {
            assert!(panic::catch_unwind(|| panic!("number {number}")).is_err());
            Box::new([number; 7])
        });
        held.collect::<Vec<_>>().len()
    });
    assert_eq!(unwound.join().unwrap(), PANICS);
    let _ = panic::take_hook();
    assert!(EXCEPTIONS.load(Relaxed) >= PANICS, "no exceptions were seen");
    assert_eq!(MISALIGNED.load(Relaxed), 0, "of {}", EXCEPTIONS.load(Relaxed));
}
