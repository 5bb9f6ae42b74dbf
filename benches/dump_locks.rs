//! How long a dump of a large heap keeps others waiting: 16 GiB of live runs and blocks, none of it touched, so that it
//! is the allocator that is measured. Fails if that is more than [`LONGEST`], in the median.
//!
//! One thread dumps, again and again; another allocates and frees runs and blocks beyond its cache all the while, which
//! takes the lock of the pages and those of bins, and notes the longest time that took. Each has a processor of its own:
//! on the same one they would wait for each other's turn, some milliseconds. Times in which the system took the processor
//! away from the one that waits are left out: with both at work, others have no processor but theirs.

use page_memory_allocator::{DumpOptions, PageAllocator, View};
use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new().huge_pages(false);

const BYTES: usize = 16 << 30;
const ROUNDS: usize = 21;
const LONGEST: Duration = Duration::from_millis(5);

/// A writer that keeps nothing.
struct Nowhere;

impl fmt::Write for Nowhere {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        black_box(text);
        Ok(())
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a size of this bench")
}

/// Runs of 256 KiB to 1.25 MiB, every third freed again, and blocks of all classes among them.
fn fill() {
    let (mut bytes, mut number) = (0, 0);
    while bytes < BYTES {
        let run = layout((1 + number % 5) << 18);
        // SAFETY: no size is zero; what is freed has this layout. All else is kept.
        unsafe {
            // Kept from the compiler, who leaves an allocation out that nobody looks at.
            let start = black_box(alloc(run));
            assert!(!start.is_null(), "the system refuses {BYTES} bytes of addresses");
            if number % 3 == 0 {
                dealloc(start, run);
            } else {
                bytes += run.size();
            }
            for _ in 0..4 {
                black_box(alloc(layout(8 + number * 997 % (32 << 10))));
            }
        }
        number += 1;
    }
}

/// How often the system has taken the processor away from this thread.
fn preemptions() -> libc::c_long {
    // SAFETY: the figures are plain data, and written.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage.ru_nivcsw
    }
}

/// The longest of many times that the locks were taken, until `stop`.
fn longest_wait(stop: &AtomicBool) -> Duration {
    let (run, block) = (layout(100_000), layout(30_000));
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let (before, start) = (preemptions(), Instant::now());
        // SAFETY: no size is zero; all is freed with its layout.
        unsafe {
            dealloc(black_box(alloc(run)), run);
            let blocks = [(); 16].map(|()| black_box(alloc(block)));
            for one in blocks {
                dealloc(one, block);
            }
        }
        let took = start.elapsed();
        if took > longest && preemptions() == before {
            longest = took;
        }
    }
    longest
}

/// Has the calling thread run on one processor only, if there is such.
fn stay_on(processor: usize) {
    // SAFETY: a set is plain data, and of the length that is said; where the system refuses, nothing changes.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// Does `work` beside a thread that takes the locks; how long the longest wait was, and the work.
fn beside(work: impl Fn()) -> (Duration, Duration) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            stay_on(1);
            longest_wait(&stop)
        });
        let start = Instant::now();
        work();
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        (other.join().expect("nothing there panics"), took)
    })
}

/// Prints how long others waited; whether that was no longer than it may be.
fn report(name: &str, work: impl Fn()) -> bool {
    let mut rounds: Vec<_> = (0..ROUNDS).map(|_| beside(&work)).collect();
    rounds.sort();
    let (median, most, took) = (rounds[ROUNDS / 2].0, rounds[ROUNDS - 1].0, rounds[ROUNDS / 2].1);
    println!(
        "{name:12} waits of at most {median:?} (median of {ROUNDS} rounds; {most:?} the worst), {took:?} a round"
    );
    median <= LONGEST
}

fn main() -> ExitCode {
    fill();
    stay_on(0);
    let dump = || HEAP.dump_to(&mut Nowhere).expect("nothing is refused");
    let worst = DumpOptions::new().view(View::Worst(20));
    let start = Instant::now();
    dump();
    let took = start.elapsed();
    let summary = HEAP.summary();
    println!("{} Divided pages, {} pages of runs", summary.divided_pages.0, summary.multi_pages.0);
    report("no dump", || thread::sleep(took));
    let short = [
        report("dump", dump),
        report("worst pages", || HEAP.dump_with(worst, &mut Nowhere).expect("nothing is refused")),
        report("JSON", || HEAP.dump_json(&mut Nowhere).expect("nothing is refused")),
        report("HTML", || HEAP.dump_html(&mut Nowhere).expect("nothing is refused")),
    ];
    if short.contains(&false) {
        eprintln!("others waited for more than {LONGEST:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
