//! Guarded blocks wanted by the allocator's type, and what the environment says instead.

use page_memory_allocator::PageAllocator;
use std::alloc::Layout;

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new().guard_sample(25);

#[test]
fn the_type_wants_guarded_blocks() {
    let kept: Vec<_> = (0..2000).map(|number| Box::new([number; 50])).collect();
    assert!(HEAP.stats().guarded.live_blocks > 0);
    assert!(kept.iter().enumerate().all(|(number, numbers)| **numbers == [number; 50]));
    assert_eq!(HEAP.room_for(Layout::new::<[u8; 1001]>()), Some(1001));
}

#[test]
fn the_environment_wants_none() {
    let output = in_child(
        |child| _ = child.env("PMA_GUARD_SAMPLE", "0"),
        || {
            let kept: Vec<_> = (0..2000).map(|number| Box::new([number; 50])).collect();
            assert_eq!((kept.len(), HEAP.stats().guarded.live_blocks), (2000, 0));
            assert!(HEAP.room_for(Layout::new::<[u8; 1001]>()) > Some(1001));
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn what_is_no_number_is_ignored() {
    let output = in_child(
        |child| _ = child.env("PMA_GUARD_SAMPLE", "often"),
        || {
            let kept: Vec<_> = (0..2000).map(|number| Box::new([number; 50])).collect();
            assert!(kept.len() == 2000 && HEAP.stats().guarded.live_blocks > 0);
        },
    );
    let said = "page_memory_allocator: PMA_GUARD_SAMPLE=often is ignored: it takes a number below 2^32\n";
    assert_eq!((output.status.success(), text(&output.stderr)), (true, said));
}
