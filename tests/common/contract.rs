//! What the allocator trait promises, whichever of the two it is: the test that uses this names it.

use super::Allocator;
use std::alloc::Layout;
use std::ops::Range;
use std::ptr::NonNull;

/// Bytes in a page of the heaps that are tested, or in a part of one.
const PAGE: usize = 4096;

/// Blocks are as long as the slices that are shown, may be freed as any size up to that, and keep their contents.
pub fn keeps_the_contract(allocator: impl Allocator + Copy) {
    let fill = |block: NonNull<[u8]>, byte: u8| {
        // SAFETY: the block is that long.
        unsafe { block.cast::<u8>().write_bytes(byte, block.len()) }
    };
    let holds = |block: NonNull<u8>, range: Range<usize>, byte: u8| {
        for at in range {
            // SAFETY: the byte is one of the block's.
            assert_eq!(unsafe { block.add(at).read() }, byte, "byte {at}");
        }
    };
    let sizes = [0, 1, 7, 8, 9, 100, 2048, 2049, PAGE, 3 * PAGE + 1, 70_000];
    for (size, align) in sizes.iter().flat_map(|&size| [1, 8, 64, PAGE].map(|align| (size, align))) {
        let layout = Layout::from_size_align(size, align).unwrap();
        let block = allocator.allocate(layout).unwrap();
        assert!(block.len() >= size && block.cast::<u8>().addr().get().is_multiple_of(align));
        fill(block, 1);
        let most = Layout::from_size_align(block.len(), align).unwrap();
        // SAFETY: any size from that asked for to that shown fits the block.
        unsafe { allocator.deallocate(block.cast(), most) };

        let zeroed = allocator.allocate_zeroed(layout).unwrap();
        holds(zeroed.cast(), 0..zeroed.len(), 0);
        fill(zeroed, 2);
        let mut block = zeroed.cast::<u8>();
        let mut old = layout;
        for (new_size, new_align) in [(size + 1, align), (2 * size + 300, 2 * align), (5 * size + 90_000, 8)]
        {
            let new = Layout::from_size_align(new_size, new_align).unwrap();
            // SAFETY: the block is live, has the old layout, and the new one is not shorter.
            let grown = unsafe { allocator.grow_zeroed(block, old, new) }.unwrap();
            assert!(grown.len() >= new_size && grown.cast::<u8>().addr().get().is_multiple_of(new_align));
            holds(grown.cast(), 0..old.size(), 2);
            holds(grown.cast(), old.size()..grown.len(), 0);
            fill(grown, 2);
            (block, old) = (grown.cast(), new);
        }
        for (new_size, new_align) in [(size + 200, 128), (size, align), (0, 1)] {
            let new = Layout::from_size_align(new_size, new_align).unwrap();
            // SAFETY: the block is live, has the old layout, and the new one is not longer.
            let shrunk = unsafe { allocator.shrink(block, old, new) }.unwrap();
            assert!(shrunk.cast::<u8>().addr().get().is_multiple_of(new_align));
            holds(shrunk.cast(), 0..new_size, 2);
            (block, old) = (shrunk.cast(), new);
        }
        // SAFETY: the block is live, and has that layout.
        unsafe { allocator.deallocate(block, old) };
    }
}
