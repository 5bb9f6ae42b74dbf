//! Memory for the allocator's own use: thread caches, their stacks, and what leads from one of a thread's caches to the
//! others. It lies apart from user memory, and is reused but never given back to the system.

use crate::lock::Lock;
use crate::sys;
use core::mem;
use core::ptr::NonNull;

/// Sizes handed out: powers of two from the least to the most.
const LEAST: usize = 32;
pub(crate) const MOST: usize = 16 << 10;
const SIZES: usize = (MOST / LEAST).ilog2() as usize + 1;
/// The first mapping; each is as large as all before it, so that few are needed.
const FIRST_MAPPING: usize = 256 << 10;
/// More mappings than fit an address space, each as large as all before it.
const MOST_MAPPINGS: usize = usize::BITS as usize;

/// Pieces never used, and pieces given back, by size.
struct Pool {
    unused: Option<NonNull<u8>>,
    unused_bytes: usize,
    mapped: usize,
    /// The mappings, in the order they were made.
    mappings: Mappings,
    /// Heads of lists that are linked through the first word of each piece.
    free: [Option<NonNull<u8>>; SIZES],
}

// SAFETY: the pool owns what its pointers lead to.
unsafe impl Send for Pool {}

static POOL: Lock<Pool> = Lock::new(Pool {
    unused: None,
    unused_bytes: 0,
    mapped: 0,
    mappings: [(0, 0); MOST_MAPPINGS],
    free: [None; SIZES],
});

/// Start and length of mappings; length 0 for none.
pub(crate) type Mappings = [(usize, usize); MOST_MAPPINGS];

fn index_of(bytes: usize) -> usize {
    (usable_size(bytes) / LEAST).ilog2() as usize
}

/// The bytes that a piece of `bytes` bytes has room for.
pub(crate) const fn usable_size(bytes: usize) -> usize {
    let bytes = bytes.next_power_of_two();
    if bytes < LEAST { LEAST } else { bytes }
}

/// `bytes` bytes of zeros, aligned to their power of two or to an OS page, whichever is less; `None` when the
/// system has no more, or for more than 16 KiB.
pub(crate) fn alloc(bytes: usize) -> Option<NonNull<u8>> {
    let index = index_of(bytes);
    let size = LEAST << index;
    if size > MOST {
        return None;
    }
    let piece = {
        let mut pool = POOL.lock();
        if let Some(piece) = pool.free[index] {
            // SAFETY: a free piece holds the link to the next.
            pool.free[index] = unsafe { piece.cast().read() };
            piece
        } else {
            return pool.cut(size);
        }
    };
    // SAFETY: the piece is the caller's to be, and `size` bytes long.
    unsafe { piece.write_bytes(0, size) };
    Some(piece)
}

/// Gives a piece back.
///
/// # Safety
/// The piece was allocated by [`alloc`] with the same `bytes`, and is not used any more.
pub(crate) unsafe fn free(piece: NonNull<u8>, bytes: usize) {
    let index = index_of(bytes);
    let mut pool = POOL.lock();
    // SAFETY: the piece is the pool's again, and long enough for a link.
    unsafe { piece.cast().write(pool.free[index]) };
    pool.free[index] = Some(piece);
}

/// Locks the pool until [`unlock_pool`].
pub(crate) fn lock_pool() {
    mem::forget(POOL.lock());
}

/// Opens the pool again.
///
/// # Safety
/// This thread, or in a child process the one that forked, locked it.
pub(crate) unsafe fn unlock_pool() {
    // SAFETY: the caller's lock; no reference to the pool was kept.
    unsafe { POOL.unlock_leaked() };
}

/// Bytes mapped for the allocator's own use, for the most part untouched.
pub(crate) fn mapped_bytes() -> usize {
    POOL.lock().mapped
}

/// Where the memory for the allocator's own use is.
pub(crate) fn mappings() -> Mappings {
    POOL.lock().mappings
}

impl Pool {
    /// A piece never used, which is zero.
    fn cut(&mut self, size: usize) -> Option<NonNull<u8>> {
        let padding =
            |start: NonNull<u8>| start.addr().get().wrapping_neg() & (size.min(sys::page_size()) - 1);
        if self.unused.is_none_or(|start| padding(start) + size > self.unused_bytes) {
            let bytes = self.mapped.max(FIRST_MAPPING);
            self.unused = Some(sys::map_zeroed(bytes)?);
            self.unused_bytes = bytes;
            self.mapped += bytes;
            if let Some(mapping) = self.mappings.iter_mut().find(|(_, len)| *len == 0) {
                *mapping = (self.unused?.addr().get(), bytes);
            }
        }
        let start = self.unused?;
        let padding = padding(start);
        // SAFETY: padding and piece lie within the unused part of the mapping.
        unsafe {
            self.unused = Some(start.add(padding + size));
            self.unused_bytes -= padding + size;
            Some(start.add(padding))
        }
    }
}
