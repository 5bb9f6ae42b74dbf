//! Blocks of the allocator under test, which is refused memory; what is in them is verified until they are freed.

use crate::pattern::{fill, verify};
use crate::target::Target;
use crate::{HEAP, system};
use std::alloc::Layout;
use std::ptr;

/// Runs of 64 MiB: each is more than is committed at a time.
pub const LONG: Layout = match Layout::from_size_align(64 << 20, 1) {
    Ok(layout) => layout,
    Err(_) => panic!("64 MiB is a valid size"),
};

/// Of a block, only so many bytes are looked at, and none of the longest: they need not be backed by memory.
pub fn looked_at(layout: Layout) -> usize {
    if layout.size() < LONG.size() { layout.size().min(256) } else { 0 }
}

/// A live block, and what it was filled with.
pub struct Block<'s> {
    pub source: &'s dyn Target,
    pub start: *mut u8,
    pub layout: Layout,
    pub seed: usize,
}

/// Whether the system refused the process heap all but a small part of the address space that it asked for. It then
/// stays as small as that.
fn is_cramped() -> bool {
    HEAP.summary().reserved_bytes < 4 << 30
}

/// Calls the allocator; it may only fail when the system refused it something meanwhile.
fn served(call: impl FnOnce() -> *mut u8) -> Option<ptr::NonNull<u8>> {
    let before = system::refused();
    let block = ptr::NonNull::new(system::counted(call));
    assert!(
        block.is_some() || system::refused() > before || is_cramped(),
        "null, although nothing was refused"
    );
    block
}

impl<'s> Block<'s> {
    pub fn new(source: &'s dyn Target, layout: Layout, seed: usize) -> Option<Block<'s>> {
        let zeroed = seed.is_multiple_of(4);
        let start = served(|| source.alloc(layout, zeroed))?.as_ptr();
        assert!(start.addr().is_multiple_of(layout.align()));
        let looked_at = looked_at(layout);
        // SAFETY: the block is as long as its layout.
        unsafe {
            assert!(!zeroed || (0..looked_at).all(|at| start.add(at).read() == 0), "memory is not zero");
            fill(start, looked_at, seed);
        }
        Some(Block { source, start, layout, seed })
    }

    pub fn resize(&mut self, size: usize) {
        self.verify();
        // SAFETY: the block is live and has that layout.
        let resized = served(|| unsafe { self.source.realloc(self.start, self.layout, size) });
        if let Some(start) = resized {
            self.start = start.as_ptr();
            let new_layout = Layout::from_size_align(size, self.layout.align()).unwrap();
            // SAFETY: the block is as long as both layouts, in its old and in its new place.
            unsafe {
                verify(self.start, looked_at(self.layout).min(looked_at(new_layout)), self.seed);
                fill(self.start, looked_at(new_layout), self.seed);
            }
            self.layout = new_layout;
        }
        self.verify();
    }

    pub fn verify(&self) {
        // SAFETY: the block is live and was filled.
        unsafe { verify(self.start, looked_at(self.layout), self.seed) };
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        self.verify();
        // SAFETY: the block is live, has that layout, and is given up.
        system::counted(|| unsafe { self.source.dealloc(self.start, self.layout) });
    }
}
