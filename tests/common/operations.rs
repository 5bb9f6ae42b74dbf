//! Operations on a heap, decoded from bytes: for a fuzzer, and for those who replay what it found.

use super::pattern::{fill, verify};
use super::target::Target;
use page_memory_allocator::{HeapOptions, PageAllocator};
use std::alloc::Layout;
use std::sync::{Mutex, mpsc};
use std::thread;

/// Blocks that are held at a time.
const SLOTS: usize = 64;

/// A live block.
#[derive(Clone, Copy)]
struct Block {
    start: *mut u8,
    layout: Layout,
    seed: usize,
}

/// Live blocks, by slot.
struct Slots([Option<Block>; SLOTS]);

// SAFETY: a slot owns its block, which any thread may use and free.
unsafe impl Send for Slots {}

/// Does what `bytes` say to a heap of its own, and verifies after each step that blocks hold what was written to them, and
/// at the end that the page table is sound and everything is free again.
///
/// The first byte is the page size, as a power of two; then come operations of five bytes: what to do, with which slot, two
/// bytes of size, and of the alignment a power of two. Bytes that are left over are not looked at.
pub fn run(bytes: &[u8]) {
    let Some((&first, operations)) = bytes.split_first() else { return };
    let page_size = 512 << (first % 8);
    let heap = HeapOptions::new().capacity(64 * page_size).page_size(page_size).build();
    let heap = heap.expect("the system has so many addresses");
    let mut slots = Slots([None; SLOTS]);
    for (number, operation) in operations.chunks_exact(5).enumerate() {
        step(&heap, &mut slots, number, operation);
    }
    slots.0.iter_mut().for_each(|slot| free(&heap, slot));
    let census = heap.check().expect("the table is sound");
    assert_eq!((census.live_block_bytes, census.multi_pages), (0, 0), "all was freed");
}

/// Does what `bytes` say to the process heap, as [`run`] does. Each operation is done by one of two threads, one at a time:
/// a bit of its second byte says by which. So they have caches, and free what the other allocated.
#[allow(dead_code)] // not by the fuzzer, for whom a step is to be quick
pub fn run_in_threads(heap: &'static PageAllocator, bytes: &[u8]) {
    let slots = Mutex::new(Slots([None; SLOTS]));
    let operations = bytes.get(1..).unwrap_or_default();
    thread::scope(|scope| {
        let slots = &slots;
        let threads = [(); 2].map(|()| {
            let (send, receive) = mpsc::channel::<(usize, [u8; 5])>();
            let (done, wait) = mpsc::channel();
            let thread = scope.spawn(move || {
                for (number, operation) in receive {
                    step(
                        heap,
                        &mut slots.lock().expect("the other thread did not panic"),
                        number,
                        &operation,
                    );
                    done.send(()).expect("somebody waits");
                }
            });
            (send, wait, thread)
        });
        for (number, operation) in operations.chunks_exact(5).enumerate() {
            let (send, wait, _) = &threads[usize::from(operation[1] >> 7)];
            send.send((number, operation.try_into().expect("they are five"))).expect("the thread is there");
            wait.recv().expect("the operation went well");
        }
        for (send, _, thread) in threads {
            drop(send);
            // Until its cache is empty, too.
            thread.join().expect("it did not panic");
        }
    });
    slots.into_inner().expect("no thread panicked").0.iter_mut().for_each(|slot| free(heap, slot));
}

fn step(target: &impl Target, slots: &mut Slots, number: usize, operation: &[u8]) {
    let &[what, slot, low, high, align] = operation else { unreachable!("they are five") };
    let size = usize::from(u16::from_le_bytes([low, high]));
    // Small sizes more often than large ones.
    let size = if what & 0x80 == 0 { size % 256 } else { size };
    let layout = Layout::from_size_align(size, 1 << (align % 12)).expect("a small layout");
    let slot = &mut slots.0[usize::from(slot) % SLOTS];
    match what % 8 {
        0..4 => {
            free(target, slot);
            *slot = alloc(target, layout, what % 8 == 3, number);
        }
        4 | 5 => resize(target, slot, size, number),
        6 => free(target, slot),
        _ if what & 0x40 == 0 => target.purge(),
        _ => target.check(),
    }
}

fn alloc(target: &impl Target, layout: Layout, zeroed: bool, seed: usize) -> Option<Block> {
    let start = target.alloc(layout, zeroed);
    if start.is_null() {
        return None;
    }
    assert!(start.addr().is_multiple_of(layout.align()));
    // SAFETY: the block is live and as long as its layout.
    unsafe {
        assert!(!zeroed || (0..layout.size()).all(|at| start.add(at).read() == 0), "a block is not zeroed");
        fill(start, layout.size(), seed);
    }
    Some(Block { start, layout, seed })
}

fn resize(target: &impl Target, slot: &mut Option<Block>, size: usize, seed: usize) {
    let Some(Block { start, layout, seed: old_seed }) = *slot else { return };
    // SAFETY: the block is live and has that layout; it is as long as what is looked at and written.
    unsafe {
        let moved = target.realloc(start, layout, size);
        if moved.is_null() {
            verify(start, layout.size(), old_seed);
            return;
        }
        assert!(moved.addr().is_multiple_of(layout.align()));
        verify(moved, size.min(layout.size()), old_seed);
        fill(moved, size, seed);
        let layout = Layout::from_size_align(size, layout.align()).expect("a small layout");
        *slot = Some(Block { start: moved, layout, seed });
    }
}

fn free(target: &impl Target, slot: &mut Option<Block>) {
    if let Some(Block { start, layout, seed }) = slot.take() {
        // SAFETY: the block is live, has that layout, and is given up.
        unsafe {
            verify(start, layout.size(), seed);
            target.dealloc(start, layout);
        }
    }
}
