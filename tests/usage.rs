//! The figures that jemalloc's users know, and the room that blocks have.

use page_memory_allocator::{PageAllocator, Usage};
use std::alloc::{GlobalAlloc as _, Layout};

#[path = "common/child.rs"]
mod child;
use child::{assert_ended_well, in_child};

/// Memory goes back only when it is told to.
#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new().purge_after_ms(u32::MAX);

const MIB: usize = 1 << 20;

fn usage() -> Usage {
    let usage = HEAP.usage();
    assert!(usage.allocated <= usage.active && usage.active <= usage.mapped, "{usage}");
    assert!(usage.active + usage.metadata <= usage.resident, "{usage}");
    usage
}

/// `after` is about `bytes` more than `before`.
fn is_more(after: usize, before: usize, bytes: usize) {
    assert!(after.abs_diff(before + bytes) < MIB, "{after} is not {before} and {bytes}");
}

#[test]
fn the_figures_follow_what_is_allocated_freed_and_purged() {
    // In a process of its own: what the threads of other tests leave when they end is seen, too.
    let output = in_child(
        |_| (),
        || {
            HEAP.purge();
            let before = usage();
            for blocks in [false, true] {
                // 40 MiB, as one run or as blocks.
                let (mut run, mut small) = (Vec::new(), Vec::new());
                if blocks {
                    small = (0..40 * 1024).map(|_| vec![1u8; 1024]).collect();
                } else {
                    run = vec![1u8; 40 * MIB];
                }
                let held = usage();
                is_more(held.allocated, before.allocated + small.capacity() * size_of::<Vec<u8>>(), 40 * MIB);
                assert!(
                    held.active >= before.active + 40 * MIB && held.resident >= before.resident + 40 * MIB
                );
                drop((run, small));
                let freed = usage();
                assert!(
                    freed.allocated < before.allocated + MIB && freed.active < before.active + 4 * MIB,
                    "{freed}"
                );
                // It is free, and has memory still.
                assert!(freed.resident >= before.resident + 35 * MIB, "{freed} after {before}");
                HEAP.purge();
                let purged = usage();
                let but_for_tables = |usage: &Usage| usage.resident - usage.metadata;
                assert!(
                    but_for_tables(&purged) < but_for_tables(&before) + 3 * MIB,
                    "{purged} after {before}"
                );
                // A hardened heap has a byte for each that a block could begin at.
                let tables = if cfg!(feature = "hardened") { 8 * MIB } else { MIB };
                assert!(purged.metadata < before.metadata + tables, "{purged} after {before}");
                assert!(held.metadata >= HEAP.stats().resident.table_bytes, "{held}");
                assert!(purged.retained >= before.retained + 35 * MIB, "{purged} after {before}");
            }
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_block_has_the_room_that_its_layout_was_promised() {
    let sizes = (1..300).chain([1000, 4097, 20_000, 32_768, 32_769, 65_536, 100_001, 3 * MIB + 1]);
    for (size, align) in sizes.flat_map(|size| [1, 16, 4096].map(|align| (size, align))) {
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: the size is not zero; the block is as long as it says, and freed with its layout.
        unsafe {
            let block = HEAP.alloc(layout);
            let room = HEAP.usable_size(block);
            assert!(room >= size && HEAP.room_for(layout) == Some(room), "{layout:?}: {room}");
            block.write_bytes(0xEE, room);
            // Any size from that asked for to the room frees it.
            HEAP.dealloc(block, Layout::from_size_align(room, align).unwrap());
        }
    }
    HEAP.check().unwrap();
}

#[test]
fn the_version_is_that_of_the_manifest() {
    assert_eq!(PageAllocator::version(), env!("CARGO_PKG_VERSION"));
}
