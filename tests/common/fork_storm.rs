//! Forks while other threads allocate, and children that go on allocating.

use super::forked::{CHILD_SECONDS, run_forked};
use super::random::Random;
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{env, thread};

const THREADS: usize = 8;
/// What forks are asked for by default; the environment variable `PMA_TEST_FORKS` has another number.
const FORKS: usize = 300;
/// The whole storm may take so many seconds more for each.
const FORK_SECONDS: u32 = 2;

/// Sizes of blocks from all classes, and of runs.
fn size(random: &mut Random) -> usize {
    let most_shift = if random.below(16) == 0 { 18 } else { 12 };
    let shift = random.below(most_shift);
    1 + random.below(1 << shift)
}

/// Allocates and frees until told to stop; every other block is left for another thread to free.
fn work(seed: usize, exchange: &Mutex<Vec<Vec<u8>>>, blocks: &AtomicUsize, stop: &AtomicBool) {
    let mut random = Random::new(seed as u64);
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..random.below(200) {
            held.push(vec![seed as u8; size(&mut random)]);
        }
        blocks.fetch_add(held.len(), Ordering::Relaxed);
        let theirs = {
            let mut exchange = exchange.lock().unwrap();
            exchange.extend(held.drain(..held.len() / 2));
            let left = exchange.len() / 2;
            exchange.split_off(left)
        };
        drop(theirs);
        held.clear();
    }
}

/// What a child does: it allocates and frees 1,000 blocks, and as many in a thread of its own.
fn be_a_child(number: usize) {
    let blocks = |seed: usize| {
        let mut random = Random::new(seed as u64);
        let blocks: Vec<Vec<u8>> =
            (0..1000).map(|block| vec![(seed + block) as u8; size(&mut random)]).collect();
        for (block, bytes) in blocks.iter().enumerate() {
            assert!(black_box(bytes).iter().all(|&byte| byte == (seed + block) as u8));
        }
    };
    blocks(number);
    thread::spawn(move || blocks(number + 1)).join().expect("the thread's blocks are its own");
    blocks(number + 2);
}

/// Forks many times while threads allocate; parent, children and the children of some call `check` in between.
pub fn storm(check: fn()) {
    let forks = match env::var("PMA_TEST_FORKS") {
        Ok(number) => number.parse().expect("PMA_TEST_FORKS is a number"),
        Err(_) => FORKS,
    };
    // SAFETY: alarm has no preconditions.
    unsafe { libc::alarm(CHILD_SECONDS + FORK_SECONDS * forks as u32) };
    let (exchange, blocks, stop) = (Mutex::default(), AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for seed in 1..=THREADS {
            let (exchange, blocks, stop) = (&exchange, &blocks, &stop);
            scope.spawn(move || work(seed, exchange, blocks, stop));
        }
        let result = (0..forks).try_for_each(|number| {
            run_forked(|| {
                check();
                be_a_child(number);
                check();
                if number % 8 == 0 {
                    run_forked(|| be_a_child(number + 1)).expect("a child has children");
                }
            })
            .map_err(|error| format!("fork {number}: {error}"))
        });
        stop.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    assert!(blocks.into_inner() > 0);
    check();
}
