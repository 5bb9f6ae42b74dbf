//! The standard library's collections in heaps of their own, by its unstable allocator trait.

#![feature(allocator_api)]

use page_memory_allocator::{HeapOptions, PageAllocator};
use std::alloc::Allocator;

#[path = "common/contract.rs"]
mod contract;
use contract::keeps_the_contract;

#[global_allocator]
static GLOBAL: PageAllocator = PageAllocator::new();

#[test]
fn standard_collections_live_in_heaps() {
    let heap = HeapOptions::new().build().expect("the system has 64 MiB of addresses");
    {
        let mut numbers = Vec::new_in(&heap);
        numbers.extend(0..10_000u16);
        let boxed = Box::new_in([1u8; 9000], &heap);
        assert_eq!((numbers[9_999], boxed[8_999]), (9_999, 1));
        assert!(heap.summary().live_bytes >= 29_000);
    }
    assert_eq!(heap.check().expect("the heap is in order").free_pages, heap.pages().get());
}

#[test]
fn heaps_keep_the_contract_of_the_trait() {
    let heap = HeapOptions::new().build().expect("the system has 64 MiB of addresses");
    keeps_the_contract(&heap);
    heap.check().expect("the heap is in order");
    keeps_the_contract(&GLOBAL);
    GLOBAL.check().expect("the heap is in order");
}
