//! Threads with real-time priorities: a thread that waits for a lock lets the one that holds it run, whichever of them
//! comes first for the system.
//!
//! Where real-time priorities are not granted (they are to root), there is nothing to test, and a message says so.
//! `PMA_TEST_REAL_TIME` says for how many seconds each allocator is measured, and has the C library's be the measure.

use page_memory_allocator::PageAllocator;
use std::alloc::{GlobalAlloc, Layout};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, io, mem, ptr, thread};

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};
#[path = "common/random.rs"]
mod random;
use random::Random;

/// The allocator under test. All else is allocated by the system's.
static HEAP: PageAllocator = PageAllocator::new();

const THREADS: usize = 32;
/// The longest that any call may take.
const LONGEST: Duration = Duration::from_secs(1);
/// A thread does so much work, then sleeps so long: together they do not ask for more than two processors have.
const BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(2);

/// Gives the calling thread a real-time priority: it runs before all of lower priority, for as long as it likes.
fn set_priority(priority: i32) -> Result<(), io::Error> {
    // SAFETY: zeros are valid parameters.
    let mut parameters: libc::sched_param = unsafe { mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: the parameters are read.
    match unsafe { libc::pthread_setschedparam(libc::pthread_self(), libc::SCHED_FIFO, &parameters) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Keeps the process on the first processor that it may run on.
fn use_one_processor() {
    // SAFETY: zeros are an empty set; both calls are given its size.
    unsafe {
        let mut all: libc::cpu_set_t = mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&all), &mut all), 0);
        let first = (0..libc::CPU_SETSIZE as usize).find(|&processor| libc::CPU_ISSET(processor, &all));
        let mut one: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(first.expect("this runs somewhere"), &mut one);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&one), &one), 0);
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Allocator {
    This,
    OfTheCLibrary,
}

impl Allocator {
    fn alloc(self, size: usize) -> *mut u8 {
        // SAFETY: no size is zero.
        unsafe {
            match self {
                Allocator::This => HEAP.alloc(Layout::from_size_align_unchecked(size, 8)),
                Allocator::OfTheCLibrary => libc::malloc(size).cast(),
            }
        }
    }

    /// # Safety
    /// The block is live, from this allocator, and of that size.
    unsafe fn free(self, block: *mut u8, size: usize) {
        // SAFETY: as the caller says.
        unsafe {
            match self {
                Allocator::This => HEAP.dealloc(block, Layout::from_size_align_unchecked(size, 8)),
                Allocator::OfTheCLibrary => libc::free(block.cast()),
            }
        }
    }
}

/// How long calls took: their number, by eighths of each power of two of nanoseconds.
struct Times([u32; 64 * 8]);

impl Times {
    fn note(&mut self, time: Duration) {
        let nanoseconds = time.as_nanos() as u64 | 8;
        let power = nanoseconds.ilog2();
        self.0[power as usize * 8 + (nanoseconds >> (power - 3) & 7) as usize] += 1;
    }

    fn count(&self) -> u32 {
        self.0.iter().sum()
    }

    /// The time that so many of a thousand calls take at most.
    fn quantile(&self, of_a_thousand: u32) -> Duration {
        let wanted = u64::from(self.count()) * u64::from(of_a_thousand) / 1_000;
        let mut passed = 0;
        let place = self.0.iter().position(|&calls| {
            passed += u64::from(calls);
            passed > wanted
        });
        let place = place.unwrap_or(self.0.len() - 1);
        Duration::from_nanos((9 + place as u64 % 8) << (place / 8).saturating_sub(3))
    }
}

/// One thread's calls: blocks of all sizes come and go, one in sixteen of them a run, until time is over.
fn work(allocator: Allocator, seed: u64, over: &AtomicBool) -> (Times, Duration) {
    let mut random = Random::new(seed);
    let mut times = Times([0; 64 * 8]);
    let mut longest = Duration::ZERO;
    let mut blocks = [(ptr::null_mut::<u8>(), 0); 64];
    while !over.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            let (block, size) = &mut blocks[random.below(64)];
            let next_size = if random.below(16) == 0 { 40_000 } else { 16 };
            let next_size = next_size + random.below(next_size * 4);
            let start = Instant::now();
            if block.is_null() {
                *block = allocator.alloc(next_size);
            } else {
                // SAFETY: the block is live, and given up.
                unsafe { allocator.free(mem::replace(block, ptr::null_mut()), *size) };
            }
            let time = start.elapsed();
            times.note(time);
            longest = longest.max(time);
            if !block.is_null() {
                *size = next_size;
                // SAFETY: the block is live and not empty.
                unsafe { block.write(1) };
            }
        }
        thread::sleep(PAUSE);
    }
    // SAFETY: what is there is live.
    blocks
        .iter()
        .filter(|(block, _)| !block.is_null())
        .for_each(|&(block, size)| unsafe { allocator.free(block, size) });
    (times, longest)
}

/// Has all threads work for a while. Every call must be served within [`LONGEST`].
fn measure(allocator: Allocator, length: Duration) -> Times {
    let over = AtomicBool::new(false);
    let mut all = Times([0; 64 * 8]);
    let longest = thread::scope(|scope| {
        let over = &over;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    set_priority(1 + thread as i32).expect("another was granted");
                    work(allocator, thread as u64 + 1, over)
                })
            })
            .collect();
        thread::sleep(length);
        over.store(true, Ordering::Relaxed);
        let done = threads.into_iter().map(|thread| {
            let (times, longest) = thread.join().expect("the thread ends well");
            assert!(times.count() > 0, "a thread never came to do anything");
            all.0.iter_mut().zip(times.0).for_each(|(all, more)| *all += more);
            longest
        });
        done.max().expect("there are threads")
    });
    println!(
        "{allocator:?}: {} calls, p50 {:?}, p99.9 {:?}, longest {longest:?}",
        all.count(),
        all.quantile(500),
        all.quantile(999)
    );
    assert!(longest < LONGEST, "{allocator:?}: a call took {longest:?}");
    all
}

/// What a child does that is granted real-time priorities.
fn compete() {
    // Whoever ends the others comes before them.
    if let Err(error) = set_priority(THREADS as i32 + 1) {
        println!("skipped: no real-time priorities here ({error})");
        return;
    }
    let seconds =
        env::var("PMA_TEST_REAL_TIME").ok().map(|number| number.parse().expect("a number of seconds"));
    let length = seconds.map_or(Duration::from_millis(500), Duration::from_secs_f64);
    let [theirs, ours] =
        [Allocator::OfTheCLibrary, Allocator::This].map(|allocator| measure(allocator, length).quantile(999));
    println!("p99.9 is {:.2} times the C library's", ours.as_secs_f64() / theirs.as_secs_f64());
    // Half a second beside other tests tells only what is far off.
    let most = if seconds.is_some() { theirs * 10 } else { (theirs * 100).max(Duration::from_millis(20)) };
    assert!(ours <= most, "p99.9: {ours:?}, of the C library's {theirs:?}");
    HEAP.check().expect("the table is sound");
}

/// Fails unless a child did its part to the end, and shows what it measured.
fn show(output: &Output) {
    print!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}{}", output.status, text(&output.stderr));
}

#[test]
#[allow(clippy::redundant_closure)] // its type tells the test's name
fn threads_of_all_priorities_go_on() {
    show(&in_child(|_| (), || compete()));
}

#[test]
fn threads_of_all_priorities_go_on_where_they_share_one_processor() {
    show(&in_child(
        |_| (),
        || {
            use_one_processor();
            compete();
        },
    ));
}
