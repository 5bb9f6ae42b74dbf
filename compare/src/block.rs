//! A raw block of a size known only at run time.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::hint::black_box;
use std::ptr::NonNull;

/// A block from the global allocator, freed when dropped.
///
/// Lighter than a `Vec<u8>` (no capacity of its own) and never initialised beyond the word that
/// [`Block::write`] sets, so that a workload measures the allocator and not `memset`.
pub struct Block {
    address: NonNull<u8>,
    size: usize,
}

// SAFETY: a block is owned memory without interior references; any thread may read or free it.
unsafe impl Send for Block {}

impl Block {
    /// The smallest size: a block holds at least the word that is written to it.
    pub const MIN_SIZE: usize = size_of::<u64>();

    /// Allocates `size` bytes, at least [`Block::MIN_SIZE`], and writes `value` to the first word.
    #[inline]
    pub fn new(size: usize, value: u64) -> Block {
        assert!(size >= Block::MIN_SIZE);
        // Hidden from the optimiser, or it would fold the size class into the call.
        let layout = Block::layout(black_box(size));
        // SAFETY: the size is not zero, by the assertion above.
        let address = unsafe { alloc(layout) };
        let Some(address) = NonNull::new(address) else { handle_alloc_error(layout) };
        let mut block = Block { address, size };
        block.write(value);
        block
    }

    /// Writes the first word.
    #[inline]
    pub fn write(&mut self, value: u64) {
        // SAFETY: the block holds at least a word, is aligned to one, and is ours alone.
        unsafe { self.address.cast::<u64>().write_volatile(value) }
    }

    /// Reads the first word back.
    #[inline]
    pub fn read(&self) -> u64 {
        // SAFETY: as in `write`; `new` has initialised it.
        unsafe { self.address.cast::<u64>().read_volatile() }
    }

    /// Writes a byte to every OS page of the block, sparing the first word.
    pub fn touch(&mut self) {
        const OS_PAGE: usize = 4096;
        for offset in (OS_PAGE..self.size).step_by(OS_PAGE) {
            // SAFETY: `offset` is below the size of the block, which is ours alone.
            unsafe { self.address.add(offset).write_volatile(1) }
        }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, align_of::<u64>()).expect("workloads ask for sane sizes")
    }
}

impl Drop for Block {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this very layout, and dropped once.
        unsafe { dealloc(self.address.as_ptr(), Block::layout(self.size)) }
    }
}
