//! Many threads, little address space, few mappings: what each costs, and that it is given back.
//!
//! `PMA_TEST_THREADS` says how many threads come and go.

use page_memory_allocator::PageAllocator;
use page_memory_allocator::size_class::built;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Arc, Barrier, Mutex};
use std::{env, fs, io, thread};

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};
#[path = "common/random.rs"]
mod random;
use random::Random;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// Fails unless a child did its part to the end.
fn succeeds<F: FnOnce()>(prepare: impl FnOnce(&mut Command), body: F) {
    let output = in_child(prepare, body);
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    print!("{}", text(&output.stdout));
}

/// Bytes of the process that are in memory.
fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages: usize =
        pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("the second figure");
    // SAFETY: sysconf has no preconditions.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}

/// Threads with stacks that are large enough for a little work.
fn small_thread<F: FnOnce() + Send + 'static>(body: F) -> thread::JoinHandle<()> {
    thread::Builder::new().stack_size(64 << 10).spawn(body).expect("one more thread")
}

#[test]
fn threads_that_come_and_go_and_leave_blocks_for_others_strand_nothing() {
    succeeds(
        |_| (),
        || {
            // SAFETY: alarm has no preconditions.
            unsafe { libc::alarm(1_200) };
            let threads = match env::var("PMA_TEST_THREADS") {
                Ok(number) => number.parse().expect("PMA_TEST_THREADS is a number"),
                Err(_) => 3_000,
            };
            let left: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
            let mut at_a_tenth = 0;
            for wave in 0..threads / 10 {
                let ten: Vec<_> = (0..10)
                    .map(|thread| {
                        let left = Arc::clone(&left);
                        small_thread(move || {
                            let mut random = Random::new(wave * 10 + thread + 1);
                            let own: Vec<Vec<u8>> = (0..30).map(|_| vec![1; 1 + random.below(600)]).collect();
                            let mut left = left.lock().expect("no thread panicked");
                            left.extend(own);
                            // What others left is freed here.
                            let keep = left.len().min(1_000);
                            let theirs = left.split_off(keep);
                            left.rotate_left(keep / 2);
                            drop(theirs);
                        })
                    })
                    .collect();
                ten.into_iter().for_each(|thread| thread.join().expect("the thread ends well"));
                if wave == threads / 100 {
                    at_a_tenth = resident();
                }
            }
            let grown = resident().saturating_sub(at_a_tenth);
            left.lock().expect("no thread panicked").clear();
            HEAP.purge();
            let summary = HEAP.summary();
            println!(
                "{threads} threads: {grown} bytes more resident than after a tenth of them; {} live, {} cached",
                summary.live_bytes, summary.cached_bytes
            );
            assert!(grown < 4 << 20, "resident size grew by {grown} bytes");
            assert!(summary.live_bytes + summary.cached_bytes < 1 << 20, "{summary}");
            HEAP.check().expect("the table is sound");
        },
    );
}

#[test]
fn an_idle_thread_has_little_memory() {
    succeeds(
        |_| (),
        || {
            const THREADS: usize = 1_000;
            /// What a thread has of the system and of std: two OS pages of stack, its descriptor, and what std keeps of it.
            const WITHOUT_CACHE: usize = 24 << 10;
            let (all, done) = (Arc::new(Barrier::new(THREADS + 1)), Arc::new(Barrier::new(THREADS + 1)));
            drop(thread::spawn(|| ()).join());
            let before = resident();
            let threads: Vec<_> = (0..THREADS)
                .map(|number| {
                    let (all, done) = (Arc::clone(&all), Arc::clone(&done));
                    small_thread(move || {
                        drop(vec![number; 10]);
                        all.wait();
                        done.wait();
                    })
                })
                .collect();
            all.wait();
            let each = resident().saturating_sub(before) / THREADS;
            println!("{each} bytes resident for each of {THREADS} idle threads, stacks included");
            done.wait();
            threads.into_iter().for_each(|thread| thread.join().expect("the thread ends well"));
            assert!(each < WITHOUT_CACHE + (16 << 10), "{each} bytes for a thread");
        },
    );
}

/// Mixed operations, of which some may fail; returns how many were served.
fn churn(operations: usize) -> usize {
    let mut random = Random::new(1);
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(10_000);
    let mut served = 0;
    for _ in 0..operations {
        let shift = if random.below(100) == 0 { 22 } else { 12 };
        let shift = random.below(shift);
        let size = 1 + random.below(1 << shift);
        if blocks.len() == blocks.capacity() || random.below(2) == 0 && !blocks.is_empty() {
            blocks.swap_remove(random.below(blocks.len()));
            continue;
        }
        let mut block = Vec::new();
        if block.try_reserve_exact(size).is_ok() {
            block.push(1);
            blocks.push(block);
            served += 1;
        }
    }
    served
}

#[test]
fn a_million_operations_leave_few_mappings() {
    succeeds(
        |_| (),
        || {
            let mappings = || fs::read_to_string("/proc/self/maps").expect("Linux tells").lines().count();
            let before = mappings();
            churn(1_000_000);
            let more = mappings().saturating_sub(before);
            println!("{more} mappings more after a million operations");
            assert!(more <= 64 || cfg!(feature = "hardened"), "{more} mappings");
        },
    );
}

#[test]
fn address_spaces_of_any_size_serve_what_fits() {
    for shift in 26..=30 {
        let limit = libc::rlimit { rlim_cur: 1 << shift, rlim_max: 1 << shift };
        let output = in_child(
            |command| {
                // SAFETY: setrlimit is all that is called between fork and exec.
                unsafe {
                    command.env("PMA_TEST_SHIFT", shift.to_string()).pre_exec(move || {
                        match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                            0 => Ok(()),
                            _ => Err(io::Error::last_os_error()),
                        }
                    })
                };
            },
            || {
                let shift: usize = env::var("PMA_TEST_SHIFT").expect("it is set").parse().expect("a number");
                let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(1 << 16);
                loop {
                    let mut block = Vec::new();
                    if block.try_reserve_exact(built::PAGE_SIZE).is_err() {
                        break;
                    }
                    block.push(1u8);
                    blocks.push(block);
                }
                let served = blocks.len() * built::PAGE_SIZE;
                blocks.clear();
                assert!(served >= (1 << shift) / 8, "little is served");
                assert!(churn(20_000) > 5_000, "it does not go on");
                assert!(HEAP.check().is_ok(), "the table is not sound");
            },
        );
        assert!(output.status.success(), "2^{shift} bytes: {}{}", output.status, text(&output.stderr));
    }
}
