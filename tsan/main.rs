//! Threads that do all there is to do on the process heap, for ThreadSanitizer: `tests/thread_sanitizer.sh`.
//!
//! The standard library that is installed is not instrumented, so its threads, locks and channels would be taken for
//! races. These are threads of the C library; what they hand to each other goes through atomics of this file.

use page_memory_allocator::{Component, Heap, HeapOptions, PageAllocator};
use std::alloc::{GlobalAlloc, Layout};
use std::fmt;
use std::hint::black_box;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// The allocator under test, which the standard library does not use here.
static HEAP: PageAllocator = PageAllocator::new().purge_after_ms(2).background_purge(true);
static PART: Component = Component::new("part").limit(64 << 20);

/// Threads at a time, how many times they come and go, and what each does meanwhile.
const THREADS: usize = 6;
const WAVES: usize = 12;
const OPERATIONS: usize = 1_500;

/// Blocks on their way to whichever thread comes by.
static EXCHANGE: [AtomicPtr<Block>; 64] = [const { AtomicPtr::new(null_mut()) }; 64];
/// The same for a heap of its own, which all share.
static OWN_EXCHANGE: [AtomicPtr<Block>; 16] = [const { AtomicPtr::new(null_mut()) }; 16];
static OWN: AtomicPtr<Heap> = AtomicPtr::new(null_mut());
static SEED: AtomicUsize = AtomicUsize::new(1);

/// What a block begins with.
struct Block {
    layout: Layout,
    check: usize,
}

struct Random(usize);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// Of blocks and, not often, runs, of which few are long.
    fn layout(&mut self) -> Layout {
        let most_shift = match self.below(64) {
            0 => 22,
            1..4 => 18,
            _ => 12,
        };
        let shift = 5 + self.below(most_shift - 5);
        let align = 8 << self.below(4);
        Layout::from_size_align((1 << shift) + self.below(1 << shift), align).expect("a small size")
    }
}

fn note(block: *mut u8, layout: Layout) -> *mut Block {
    let block = block.cast::<Block>();
    if !block.is_null() {
        // SAFETY: the block is live and as long as the layout, which is longer than what is written.
        unsafe {
            block.write(Block { layout, check: block.addr() });
            block.cast::<u8>().add(layout.size() - 1).write(7);
        }
    }
    block
}

/// Reads a block that another thread may have written, and returns how it was allocated.
unsafe fn read(block: *mut Block) -> Layout {
    // SAFETY: the block is live; see `note`.
    unsafe {
        assert_eq!((*block).check, block.addr(), "a block has two owners");
        black_box(block.cast::<u8>().add((*block).layout.size() - 1).read());
        (*block).layout
    }
}

fn alloc(layout: Layout, zeroed: bool) -> *mut Block {
    // SAFETY: the size is not zero.
    note(unsafe { if zeroed { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) } }, layout)
}

unsafe fn free(block: *mut Block) {
    if !block.is_null() {
        // SAFETY: the block is live, and has the layout that it says.
        unsafe { HEAP.dealloc(block.cast(), read(block)) };
    }
}

/// Hands a block to whoever comes by next, and takes the one that waits there.
fn exchange(places: &[AtomicPtr<Block>], at: usize, block: *mut Block) -> *mut Block {
    places[at % places.len()].swap(block, Ordering::AcqRel)
}

fn own_heap() -> &'static Heap {
    // SAFETY: the heap is made before the threads are, and lives as long as the process.
    unsafe { &*OWN.load(Ordering::Acquire) }
}

/// A writer that keeps nothing.
struct Nowhere;

impl fmt::Write for Nowhere {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        black_box(text);
        Ok(())
    }
}

fn one_operation(random: &mut Random, held: &mut [*mut Block; 64]) {
    let layout = random.layout();
    let at = random.below(1 << 16);
    let slot = &mut held[at % 64];
    // SAFETY: what is in a slot or comes out of an exchange is live, and this thread's.
    unsafe {
        match random.below(32) {
            0..12 => {
                free(*slot);
                *slot = alloc(layout, at.is_multiple_of(8));
            }
            12..22 => free(exchange(&EXCHANGE, at, alloc(layout, false))),
            22..24 if !slot.is_null() => {
                let old = read(*slot);
                let layout = Layout::from_size_align(layout.size(), old.align()).expect("a small size");
                let new = HEAP.realloc((*slot).cast(), old, layout.size());
                if !new.is_null() {
                    *slot = note(new, layout);
                }
            }
            24..28 => PART.enter(|| free(exchange(&EXCHANGE, at, alloc(layout, false)))),
            28..31 => {
                let heap = own_heap();
                let block = exchange(&OWN_EXCHANGE, at, note(heap.alloc(layout), layout));
                if !block.is_null() {
                    heap.dealloc(block.cast(), read(block));
                }
            }
            _ => free(std::mem::replace(slot, null_mut())),
        }
    }
}

/// Looks at the heap from outside while others are at work in it.
fn look(number: usize) {
    let sink = &mut Nowhere;
    match number % 8 {
        0 => _ = black_box(HEAP.stats()),
        1 => HEAP.dump_to(sink).expect("nothing fails"),
        2 => HEAP.dump_json(sink).expect("nothing fails"),
        3 => _ = black_box((HEAP.summary(), HEAP.usage(), PART.stats())),
        4 => _ = HEAP.check().expect("the heap is in order"),
        5 => _ = HEAP.purge(),
        6 => _ = own_heap().purge() + own_heap().summary().live_bytes,
        _ => HEAP.dump_html(sink).expect("nothing fails"),
    }
}

/// Frees a block when its thread ends, after the thread's cache may be gone.
unsafe extern "C" fn at_end(block: *mut libc::c_void) {
    // SAFETY: the value is a block of the thread's.
    unsafe { free(block.cast()) };
}

static KEY: AtomicUsize = AtomicUsize::new(0);

extern "C" fn work(_: *mut libc::c_void) -> *mut libc::c_void {
    let mut random = Random(SEED.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut held = [null_mut(); 64];
    for number in 0..OPERATIONS {
        one_operation(&mut random, &mut held);
        if number % 256 == 255 {
            look(random.below(8));
        }
    }
    let last = alloc(random.layout(), false);
    // SAFETY: the key is valid; the blocks are this thread's, and given up.
    unsafe {
        libc::pthread_setspecific(KEY.load(Ordering::Relaxed) as libc::pthread_key_t, last.cast());
        held.iter().for_each(|&block| free(block));
    }
    null_mut()
}

fn main() {
    let heap = HeapOptions::new().capacity(64 << 20).build().expect("there is address space");
    OWN.store(Box::into_raw(Box::new(heap)), Ordering::Release);
    // SAFETY: threads are joined once; the key's function is called with blocks.
    unsafe {
        let mut key = 0;
        assert_eq!(libc::pthread_key_create(&mut key, Some(at_end)), 0);
        KEY.store(key as usize, Ordering::Relaxed);
        // The first of them make the heap.
        for wave in 0..WAVES {
            let mut threads: [libc::pthread_t; THREADS] = zeroed();
            for thread in &mut threads {
                assert_eq!(libc::pthread_create(thread, std::ptr::null(), work, null_mut()), 0);
            }
            look(wave);
            for thread in threads {
                assert_eq!(libc::pthread_join(thread, null_mut()), 0);
            }
        }
        for place in &EXCHANGE {
            free(place.swap(null_mut(), Ordering::AcqRel));
        }
    }
    HEAP.purge();
    HEAP.check().expect("the heap is in order");
    println!(
        "{} operations by {} threads, {THREADS} at a time",
        WAVES * THREADS * OPERATIONS,
        WAVES * THREADS
    );
}
