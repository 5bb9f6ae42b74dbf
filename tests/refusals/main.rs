//! The system refuses memory at any one call, or from that call on for a while: null is returned, what is live stays
//! as it is, and memory is served again once the system does.
//!
//! The calls of the library are answered by this binary, whose `mmap`, `mprotect`, `madvise` and `mremap` stand before
//! those of the C library and pass on what they do not refuse. So the code that is tested is the code that runs.
//!
//! `PMA_TEST_REFUSALS` says up to which call each is refused once.

use page_memory_allocator::PageAllocator;
use std::alloc::System;
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::{env, io, ptr};
use system::{KINDS, Kind, Plan};

mod blocks;
mod cases;
mod mixed;
#[path = "../common/pattern.rs"]
mod pattern;
#[path = "../common/random.rs"]
mod random;
mod system;
#[path = "../common/target.rs"]
mod target;

/// The test itself allocates elsewhere.
#[global_allocator]
static ELSEWHERE: System = System;

/// The allocator under test, of which this process never makes use itself: each child finds it untouched.
static HEAP: PageAllocator = PageAllocator::new();

/// A child that hangs is ended after so many seconds.
const LONGEST: u32 = 60;

/// Calls of each kind to the system that a child made, and how many of them were among its first 1,000.
type Calls = [(usize, usize); KINDS.len()];

/// Does `work` in a child process with that plan.
fn in_child(plan: Plan, what: &str, work: impl FnOnce()) -> Calls {
    let mut pipe = [0; 2];
    let mut calls = [(0, 0); KINDS.len()];
    let bytes = size_of::<Calls>();
    // SAFETY: the descriptors are written; this process has one thread.
    let child = unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        libc::fork()
    };
    assert!(child >= 0, "no child: {}", io::Error::last_os_error());
    if child == 0 {
        // SAFETY: alarm has no preconditions.
        unsafe { libc::alarm(LONGEST) };
        system::set(plan);
        let done = std::panic::catch_unwind(AssertUnwindSafe(work)).is_ok();
        calls = KINDS.map(system::calls_of);
        // SAFETY: the calls are that long; the child ends without the parent's handlers.
        unsafe {
            libc::write(pipe[1], calls.as_ptr().cast(), bytes);
            libc::_exit(if done { 0 } else { 255 });
        }
    }
    let mut status = 0;
    // SAFETY: the status is written, and so are the calls, which are plain numbers.
    unsafe {
        libc::close(pipe[1]);
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        let read = libc::read(pipe[0], calls.as_mut_ptr().cast(), bytes);
        libc::close(pipe[0]);
        assert!(
            status == 0 && read == bytes as isize,
            "{plan:?}, {what}: the child ended with status {status:#x}"
        );
    }
    calls
}

/// Does a mixed run in a child process with that plan.
fn run_in_child(plan: Plan, seed: u64) -> Calls {
    in_child(plan, &format!("seed {seed}"), || mixed::run(seed))
}

fn main() {
    // Who runs each test in a process of its own, as cargo-nextest does, asks for their names first.
    if env::args().any(|argument| argument == "--list") {
        if env::args().all(|argument| argument != "--ignored") {
            println!("refusals: test");
        }
        return;
    }
    // The library's calls come by here, or nothing is tested.
    let probe = Cell::new(ptr::null_mut());
    system::counted(|| {
        // SAFETY: a mapping at an address of the kernel's choice touches nothing that is in use.
        probe.set(unsafe {
            libc::mmap(ptr::null_mut(), 4096, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        });
    });
    assert!(system::calls() == 1 && probe.get() != libc::MAP_FAILED);

    for left in [0, 6, 20] {
        in_child(Plan::NONE, "few mappings", || cases::the_first_use_with_few_mappings(left));
    }
    for (taken, is_own) in [(false, false), (true, false), (false, true), (true, true)] {
        in_child(Plan::NONE, "a hole", || {
            cases::what_a_refused_move_unmapped_is_not_taken_from_others(taken, is_own)
        });
    }
    in_child(Plan::NONE, "an account", cases::a_refused_move_leaves_the_account_of_the_component_right);
    in_child(Plan::NONE, "mapped anew", cases::what_is_refused_to_be_mapped_anew_has_no_memory);
    in_child(Plan::NONE, "lost places", cases::few_places_are_lost_to_runs_that_shrink);
    in_child(
        Plan::NONE,
        "a handler",
        cases::who_waits_for_who_waits_for_what_its_thread_had_ends_the_process,
    );
    in_child(Plan::NONE, "no keys", cases::without_keys_for_ends_of_threads);
    for refused in [false, true] {
        in_child(Plan::NONE, "a little at a time", || cases::what_goes_back_goes_a_little_at_a_time(refused));
    }

    let each = match env::var("PMA_TEST_REFUSALS") {
        Ok(number) => number.parse().expect("PMA_TEST_REFUSALS is a number"),
        Err(_) => 100,
    };
    let calls = run_in_child(Plan::NONE, 1);
    let all: usize = calls.iter().map(|(all, _)| all).sum();
    assert!(all >= 1_000, "a mixed run makes only {all} calls");
    let early = |kind: Kind| calls[kind as usize].1;
    assert!(early(Kind::Remap) >= 20 && early(Kind::Purge) >= 50, "of the first 1,000 calls: {calls:?}");
    for first in 1..=each {
        run_in_child(Plan { kind: None, first, count: 1 }, 1);
    }
    // Any that was passed over above is met by one of these; a different run each.
    for first in (1..1_000).step_by(if each < 1_000 { 17 } else { 1 }) {
        run_in_child(Plan { kind: None, first, count: 1 }, first as u64);
        run_in_child(Plan { kind: None, first, count: 50 }, first as u64);
        run_in_child(Plan { kind: None, first, count: usize::MAX / 2 }, first as u64);
    }
    for kind in KINDS {
        let most = calls[kind as usize].1;
        for first in (1..=most).step_by(if each < 1_000 { most.div_ceil(8) } else { 1 }) {
            run_in_child(Plan { kind: Some(kind), first, count: 1 }, 1);
            run_in_child(Plan { kind: Some(kind), first, count: usize::MAX / 2 }, 1);
        }
        println!(
            "{kind:?}: {} calls in a run, {} of them among the first 1,000",
            calls[kind as usize].0, calls[kind as usize].1
        );
    }
    println!("{all} calls in a run; each of the first {each} refused");
}
