//! Collections in heaps of their own, by the allocator trait.

use allocator_api2::alloc::Allocator;
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use hashbrown::{DefaultHashBuilder, HashMap};
use page_memory_allocator::{Heap, HeapOptions, PageAllocator, SizeClasses};
use std::mem;

#[path = "common/contract.rs"]
mod contract;
use contract::keeps_the_contract;

#[global_allocator]
static GLOBAL: PageAllocator = PageAllocator::new();

const PAGE: usize = 4096;

fn heap() -> Heap {
    HeapOptions::new()
        .capacity(64 << 20)
        .page_size(PAGE)
        .classes(SizeClasses::POWERS_OF_TWO)
        .build()
        .expect("the system has 64 MiB of addresses")
}

fn is_empty(heap: &Heap) {
    assert_eq!(heap.check().expect("the heap is in order").free_pages, heap.pages().get());
}

#[test]
fn vectors_grow_shrink_and_end_in_the_heap() {
    let heap = heap();
    {
        let mut numbers = Vec::new_in(&heap);
        for number in 0..100_000u32 {
            numbers.push(number);
            if number.is_power_of_two() {
                heap.check().unwrap();
            }
        }
        let start = heap.start().addr();
        assert!((start..start + heap.reserved_bytes()).contains(&numbers.as_ptr().addr()));
        numbers.truncate(10);
        numbers.shrink_to_fit();
        assert_eq!(&numbers[..], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        numbers.clear();
        numbers.shrink_to_fit();
        numbers.push(7);
        assert_eq!(&numbers[..], &[7]);
    }
    is_empty(&heap);
}

#[test]
fn maps_of_boxes_live_in_the_heap() {
    let heap = heap();
    {
        let mut map = HashMap::with_hasher_in(DefaultHashBuilder::default(), &heap);
        for key in 0..10_000u64 {
            map.insert(key, Box::new_in([key; 5], &heap));
        }
        for key in (0..10_000).step_by(2) {
            assert_eq!(*map.remove(&key).unwrap(), [key; 5]);
        }
        map.shrink_to_fit();
        assert!(map.iter().all(|(&key, value)| key % 2 == 1 && **value == [key; 5]));
        assert_eq!((map.len(), heap.summary().live_bytes > 5000 * 40), (5000, true));
        heap.check().unwrap();
    }
    is_empty(&heap);
}

#[test]
fn a_collection_may_own_its_heap() {
    let mut bytes = Vec::with_capacity_in(1000, heap());
    bytes.extend_from_slice(&[3; 100_000]);
    let moved = bytes;
    moved.allocator().check().unwrap();
    assert!(moved.iter().all(|&byte| byte == 3));
}

#[test]
fn what_is_forgotten_is_gone_with_its_heap() {
    for _ in 0..100 {
        // Were the heaps not unmapped, the addresses of the last would be missing.
        let heap = HeapOptions::new().capacity(1 << 40).build().expect("there are addresses for one");
        mem::forget(Vec::<u8, _>::with_capacity_in(1 << 20, &heap));
    }
}

#[test]
fn a_heap_that_is_full_refuses() {
    let heap = HeapOptions::new().capacity(16 * PAGE).page_size(PAGE).build().unwrap();
    let mut numbers: Vec<u8, _> = Vec::new_in(&heap);
    assert!(numbers.try_reserve(17 * PAGE).is_err());
    numbers.try_reserve(10 * PAGE).unwrap();
    assert!(numbers.try_reserve(16 * PAGE).is_err());
    heap.check().unwrap();
}

#[test]
fn heaps_keep_the_contract_of_the_trait() {
    let heap = heap();
    keeps_the_contract(&heap);
    is_empty(&heap);
    let of_the_build = HeapOptions::new().build().unwrap();
    keeps_the_contract(&of_the_build);
    is_empty(&of_the_build);
    keeps_the_contract(GLOBAL);
    GLOBAL.check().unwrap();
}
