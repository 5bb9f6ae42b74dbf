//! Contents for blocks, by which a block that was given away twice, moved wrongly or scribbled on is known.

/// The byte at `index` of a block filled with `seed`.
fn byte(seed: usize, index: usize) -> u8 {
    (seed.wrapping_mul(0x9E37_79B1) >> 8) as u8 ^ (index as u8).wrapping_mul(0x35) ^ (index >> 8) as u8
}

/// Fills a block.
///
/// # Safety
/// The block belongs to the caller and is `len` bytes long.
pub unsafe fn fill(block: *mut u8, len: usize, seed: usize) {
    for index in 0..len {
        // SAFETY: the byte is one of the block's.
        unsafe { block.add(index).write(byte(seed, index)) };
    }
}

/// Panics unless the first `len` bytes of a block are those that it was filled with.
///
/// # Safety
/// The block belongs to the caller, is `len` bytes long, and was filled.
pub unsafe fn verify(block: *const u8, len: usize, seed: usize) {
    for index in 0..len {
        // SAFETY: the byte is one of the block's.
        let found = unsafe { block.add(index).read() };
        assert_eq!(found, byte(seed, index), "byte {index} of {len} in the block at {block:p}");
    }
}
