//! What waits in the caches of threads that are asleep is taken from them, and nothing else.

use page_memory_allocator::PageAllocator;
use page_memory_allocator::size_class::built;
use std::alloc::{GlobalAlloc, Layout};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{env, hint, ptr, thread};

#[path = "common/child.rs"]
mod child;
#[path = "common/pattern.rs"]
mod pattern;
#[path = "common/random.rs"]
mod random;
#[path = "common/refused.rs"]
mod refused;
use child::{assert_ended_well, in_child};
use pattern::{fill, verify};
use random::Random;
use refused::without;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// What an idle cache may hold.
const IDLE_BYTES: usize = 256 << 10;

fn cached_bytes() -> usize {
    HEAP.summary().cached_bytes
}

/// Waits until all caches together hold no more than one idle thread's may; the calling thread goes on with `work` meanwhile.
fn becomes_small(work: impl Fn()) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if cached_bytes() <= IDLE_BYTES {
            return true;
        }
        work();
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Blocks of every size, as many as a stack takes.
fn of_every_size() -> Vec<Vec<u8>> {
    let sizes = built::BLOCK_SIZES[1..].iter().map(|&size| size as usize);
    sizes.flat_map(|size| (0..(64 << 10) / size).map(move |_| Vec::with_capacity(size))).collect()
}

/// A thread with blocks of every size in its cache, its own and those of another, that sleeps until it is told to go on, and
/// allocates nothing for that.
struct Sleeper {
    thread: thread::JoinHandle<()>,
    goes_on: Arc<AtomicBool>,
}

impl Sleeper {
    /// Starts it, and waits until it sleeps. Returns how many bytes it holds, too.
    fn new(then: impl FnOnce() + Send + 'static) -> (Sleeper, usize) {
        HEAP.purge();
        let before = cached_bytes();
        let (asleep, goes_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (sleeps, told) = (Arc::clone(&asleep), Arc::clone(&goes_on));
        // Another thread, of another shard as long as both are there; its cache ends with it.
        let (blocks, of_another) = channel();
        let (end, ends): (_, Receiver<()>) = channel();
        let another = thread::spawn(move || {
            blocks.send(of_every_size()).unwrap();
            ends.recv().unwrap();
        });
        let thread = thread::spawn(move || {
            let of_another = of_another.recv().unwrap();
            let own = of_every_size();
            end.send(()).unwrap();
            another.join().unwrap();
            drop(of_another);
            drop(own);
            sleeps.store(true, Ordering::SeqCst);
            while !told.load(Ordering::SeqCst) {
                thread::park();
            }
            then();
        });
        while !asleep.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        let held = cached_bytes() - before;
        println!("a thread that sleeps holds {held} bytes");
        (Sleeper { thread, goes_on }, held)
    }

    fn ends_well(self) {
        self.goes_on.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        self.thread.join().unwrap();
        HEAP.check().unwrap();
    }
}

#[test]
fn a_purge_takes_what_waits_in_the_cache_of_a_thread_that_sleeps() {
    let output = in_child(
        |_| (),
        || {
            let (sleeper, held) = Sleeper::new(|| {
                // What was left is served, and the cache is filled and used again.
                (0..3).for_each(|_| drop(of_every_size()));
            });
            assert!(held > 1 << 20, "{held}");
            HEAP.purge();
            let left = cached_bytes();
            println!("{left} bytes after a purge");
            assert!(left <= IDLE_BYTES, "{left} bytes of {held} are left");
            HEAP.check().unwrap();
            // A second one finds nothing.
            HEAP.purge();
            assert!(cached_bytes() <= left);
            sleeper.ends_well();
        },
    );
    assert_ended_well(&output);
}

fn with_period(command: &mut Command, background: &str) {
    command.envs([("PMA_PURGE_MS", "20"), ("PMA_BACKGROUND_PURGE", background)]);
}

#[test]
fn the_background_thread_takes_what_waits_in_the_cache_of_a_thread_that_sleeps() {
    let output = in_child(
        |command| with_period(command, "1"),
        || {
            let (sleeper, held) = Sleeper::new(|| drop(of_every_size()));
            assert!(becomes_small(|| ()), "{} bytes of {held} are left", cached_bytes());
            sleeper.ends_well();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn slow_paths_of_other_threads_take_what_waits_in_the_cache_of_a_thread_that_sleeps() {
    let output = in_child(
        |command| with_period(command, "0"),
        || {
            let (sleeper, held) = Sleeper::new(|| drop(of_every_size()));
            let work = || drop(hint::black_box(vec![0u8; 100_000]));
            assert!(becomes_small(work), "{} bytes of {held} are left", cached_bytes());
            sleeper.ends_well();
        },
    );
    assert_ended_well(&output);
}

/// A block whose contents tell whether it has another owner.
struct Parcel {
    start: *mut u8,
    layout: Layout,
    seed: usize,
}

impl Parcel {
    fn new(random: &mut Random, sizes: &[usize]) -> Parcel {
        let layout = Layout::from_size_align(sizes[random.below(sizes.len())], 8).unwrap();
        let seed = random.below(1 << 30);
        // SAFETY: the size is not zero, and the block is filled as far as it reaches.
        unsafe {
            let start = HEAP.alloc(layout);
            assert!(!start.is_null());
            fill(start, layout.size(), seed);
            Parcel { start, layout, seed }
        }
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        // SAFETY: the block is live, has that layout, and is given up.
        unsafe {
            verify(self.start, self.layout.size(), self.seed);
            HEAP.dealloc(self.start, self.layout);
        }
    }
}

/// Takes and frees blocks in bursts of few sizes, so that stacks go up and down past where others take from, passes some on,
/// and sleeps now and then, in between.
fn burst(seed: u64, shelf: &[AtomicPtr<Parcel>], ends: &AtomicBool) {
    let mut random = Random::new(seed);
    let mut own: Vec<Parcel> = Vec::with_capacity(1_000);
    while !ends.load(Ordering::Relaxed) {
        let sizes: Vec<usize> =
            (0..1 + random.below(3)).map(|_| [24, 64, 200, 1_000, 5_000, 20_000][random.below(6)]).collect();
        for _ in 0..random.below(50) {
            for _ in 0..random.below(12) {
                own.push(Parcel::new(&mut random, &sizes));
            }
            for _ in 0..random.below(12).min(own.len()) {
                drop(own.swap_remove(random.below(own.len())));
            }
        }
        if random.below(4) == 0 {
            own.truncate(random.below(30));
        }
        for place in &shelf[..random.below(shelf.len())] {
            if let Some(parcel) = own.pop() {
                let found = place.swap(Box::into_raw(Box::new(parcel)), Ordering::AcqRel);
                if !found.is_null() {
                    // SAFETY: what is on the shelf is somebody's box, and the caller's by now.
                    own.push(*unsafe { Box::from_raw(found) });
                }
            }
        }
        match random.below(8) {
            0 => thread::sleep(Duration::from_micros(random.below(500) as u64)),
            1 => thread::yield_now(),
            _ => {}
        }
    }
}

/// Takes and frees few blocks of one size as fast as can be, about where others take from.
fn hurry(number: usize, size: usize, ends: &AtomicBool) {
    let layout = Layout::from_size_align(size, 8).unwrap();
    let mut random = Random::new(number as u64);
    while !ends.load(Ordering::Relaxed) {
        let mut blocks = [ptr::null_mut::<usize>(); 12];
        for _ in 0..200 {
            let blocks = &mut blocks[..1 + random.below(12)];
            // SAFETY: the layout has room for two words. Blocks are freed as they were allocated.
            unsafe {
                for block in blocks.iter_mut() {
                    *block = HEAP.alloc(layout).cast();
                    block.write_volatile(number);
                    block.add(1).write_volatile(block.addr() ^ number);
                }
                for &block in blocks.iter() {
                    assert_eq!(block.read_volatile(), number, "a block has two owners");
                    assert_eq!(block.add(1).read_volatile(), block.addr() ^ number, "a block has two owners");
                    HEAP.dealloc(block.cast(), layout);
                }
            }
        }
    }
}

/// For how long threads are at it.
fn milliseconds() -> u64 {
    env::var("PMA_TEST_MILLISECONDS").map_or(2_000, |value| value.parse().unwrap())
}

#[test]
fn blocks_have_one_owner_while_others_take_from_the_caches_of_threads_in_haste() {
    let output = in_child(
        |_| (),
        || {
            let ends = AtomicBool::new(false);
            thread::scope(|scope| {
                for number in 1..=4 {
                    let ends = &ends;
                    scope.spawn(move || hurry(number, 48, ends));
                }
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(milliseconds()) {
                    HEAP.purge();
                }
                ends.store(true, Ordering::Relaxed);
            });
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

#[test]
fn blocks_have_one_owner_while_others_take_from_the_caches_of_threads_at_work() {
    let output = in_child(
        |command| _ = command.env("PMA_PURGE_MS", "2"),
        || {
            const THREADS: u64 = 6;
            let shelf = [const { AtomicPtr::new(ptr::null_mut()) }; 16];
            let ends = AtomicBool::new(false);
            thread::scope(|scope| {
                for seed in 1..=THREADS {
                    let (shelf, ends) = (&shelf, &ends);
                    scope.spawn(move || burst(seed, shelf, ends));
                }
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !ends.load(Ordering::Relaxed) {
                            HEAP.purge();
                        }
                    });
                }
                thread::sleep(Duration::from_millis(milliseconds()));
                ends.store(true, Ordering::Relaxed);
            });
            for place in &shelf {
                let found = place.load(Ordering::Acquire);
                if !found.is_null() {
                    // SAFETY: as above; the threads have ended.
                    drop(unsafe { Box::from_raw(found) });
                }
            }
            HEAP.check().unwrap();
        },
    );
    assert_ended_well(&output);
}

/// Has the system know no fence in all threads, as some do not.
fn without_membarrier(command: &mut Command) {
    without(command, libc::SYS_membarrier, libc::ENOSYS);
}

#[test]
fn where_nothing_can_be_taken_from_others_nobody_waits_for_who_tried() {
    let output = in_child(without_membarrier, || {
        let (sleeper, held) = Sleeper::new(|| (0..3).for_each(|_| drop(of_every_size())));
        HEAP.purge();
        assert!(cached_bytes() >= held / 2, "{} of {held}", cached_bytes());
        sleeper.ends_well();
        HEAP.check().unwrap();
    });
    assert_ended_well(&output);
}
