//! A program with a limit for its whole heap, and a cache that it gives up when there is no more.
//!
//! ```text
//! cargo run --release --example memory_limit
//! PMA_LIMIT=128M cargo run --release --example memory_limit
//! ```

use page_memory_allocator::PageAllocator;
use std::alloc::Layout;
use std::mem;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new().limit(64 << 20).on_out_of_memory(give_the_cache_up);

/// Pages that could be read again.
static CACHE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
static GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

/// Called when an allocation is refused: has it tried again if there was something to free. It must not wait for whoever
/// is refused, who may be the one that holds the cache.
fn give_the_cache_up(_: Layout) -> bool {
    let Ok(mut cache) = CACHE.try_lock() else { return false };
    let pages = mem::take(&mut *cache);
    GIVEN_UP.fetch_add(pages.len(), Ordering::Relaxed);
    !pages.is_empty()
}

fn main() {
    println!("page_memory_allocator {}", PageAllocator::version());

    for number in 0..40 {
        // Allocated before the cache is locked, so that it could be given up for it.
        let page = vec![number; 1 << 20];
        CACHE.lock().expect("nobody panics").push(page);
    }
    println!("with a cache of 40 pages: {}", HEAP.usage());
    println!("{} pages of the cache were given up for others", GIVEN_UP.load(Ordering::Relaxed));

    let table = vec![1u8; 50 << 20];
    println!("with a table of 50 MiB:   {}", HEAP.usage());
    println!("{} pages of the cache were given up for it", GIVEN_UP.load(Ordering::Relaxed));

    // Refused for good, unless the environment allows for more: nothing is left to be given up.
    let mut more = Vec::<u8>::new();
    match more.try_reserve_exact(50 << 20) {
        Ok(()) => println!("50 MiB more, and {} pages given up so far", GIVEN_UP.load(Ordering::Relaxed)),
        Err(refused) => println!("50 MiB more: {refused}"),
    }

    let word = Box::new([0u8; 100]);
    // SAFETY: the block is live.
    let room = unsafe { HEAP.usable_size(word.as_ptr()) };
    println!("a block of 100 bytes has room for {room}; the table is {} bytes long", table.len());
}
