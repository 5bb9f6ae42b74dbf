//! Signal handlers that allocate and free interrupt their thread anywhere, in the allocator too. They work, or the program
//! stops with a line; it does not hang, and no block has two owners.

use page_memory_allocator::PageAllocator;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{env, ptr, thread};

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MICROSECONDS: i64 = 50;
const SIZES: [usize; 8] = [8, 64, 64, 200, 1000, 5000, 40_000, 300_000];

static HANDLED: AtomicUsize = AtomicUsize::new(0);
static RANDOM: AtomicU32 = AtomicU32::new(1);

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn size(random: &mut u32) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    SIZES[*random as usize % SIZES.len()]
}

/// A block that has its address written at both ends.
fn alloc(size: usize) -> *mut u8 {
    // SAFETY: the block is as long as its layout.
    unsafe {
        let block = HEAP.alloc(layout(size));
        assert!(!block.is_null());
        block.cast::<usize>().write(block.addr());
        block.add(size - 8).cast::<usize>().write(block.addr());
        block
    }
}

/// Frees a block, which must have its address at both ends still.
fn free(block: *mut u8, size: usize) {
    // SAFETY: the block is live and has that size.
    unsafe {
        let ends = (block.cast::<usize>().read(), block.add(size - 8).cast::<usize>().read());
        if ends != (block.addr(), block.addr()) {
            // Nothing that allocates.
            libc::write(2, c"two owners\n".as_ptr().cast(), 11);
            libc::_exit(3);
        }
        HEAP.dealloc(block, layout(size));
    }
}

/// Frees what it allocates, the last first.
extern "C" fn in_order(_: libc::c_int) {
    let mut random = RANDOM.load(Relaxed);
    let sizes = [size(&mut random), size(&mut random), size(&mut random)];
    RANDOM.store(random, Relaxed);
    let blocks = sizes.map(alloc);
    blocks.iter().zip(sizes).rev().for_each(|(&block, size)| free(block, size));
    HANDLED.fetch_add(1, Relaxed);
}

/// Blocks that outlive the call that allocated them. One thread's handler has them, which does not interrupt itself.
struct Kept(UnsafeCell<[(*mut u8, usize); 64]>);
// SAFETY: as said there.
unsafe impl Sync for Kept {}
static KEPT: Kept = Kept(UnsafeCell::new([(ptr::null_mut(), 0); 64]));

/// Frees what an earlier call allocated, large blocks alone, which no thread's cache holds.
extern "C" fn large_kept(_: libc::c_int) {
    let call = HANDLED.fetch_add(1, Relaxed);
    // SAFETY: as said there.
    let (block, size) = unsafe { &mut (&mut *KEPT.0.get())[call % 64] };
    if !block.is_null() {
        free(*block, *size);
    }
    *size = 40_000 + call % 100 * 1000;
    *block = alloc(*size);
}

fn handle(handler: extern "C" fn(libc::c_int)) {
    let every = libc::timeval { tv_sec: 0, tv_usec: MICROSECONDS };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: zeros are a valid value of the struct; the handler is to be safe, which is what is tested.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGALRM, &action, ptr::null_mut());
        libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut());
    }
}

fn stop() {
    // SAFETY: zeros are a valid value of the struct: no timer.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &std::mem::zeroed(), ptr::null_mut()) };
}

/// Allocates and frees for as long as `PMA_TEST_SIGNALS` says, in seconds, while the handler interrupts it.
fn interrupted(handler: extern "C" fn(libc::c_int)) {
    let seconds =
        env::var("PMA_TEST_SIGNALS").map_or(1.5, |seconds| seconds.parse().expect("it is a number"));
    let mut held: Vec<(*mut u8, usize)> = Vec::with_capacity(2000);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut random = 99;
    handle(handler);
    while Instant::now() < end {
        for _ in 0..1000 {
            let size = size(&mut random);
            if held.len() == held.capacity() || (held.len() > 100 && random % 16 < 8) {
                let (block, size) = held.swap_remove(random as usize / 16 % held.len());
                free(block, size);
            } else {
                held.push((alloc(size), size));
            }
        }
        if random % 64 == 0 {
            while held.len() > 10 {
                let (block, size) = held.pop().unwrap();
                free(block, size);
            }
            HEAP.purge();
        }
    }
    stop();
    held.drain(..).for_each(|(block, size)| free(block, size));
    HEAP.check().expect("the heap is in order");
    println!("handled {}", HANDLED.load(Relaxed));
}

/// The child ended well, or with a line that says why.
fn ended_with_reason(output: &Output) {
    let said = text(&output.stderr);
    println!("{}: {said}{}", output.status, text(&output.stdout));
    let stopped =
        output.status.signal() == Some(libc::SIGABRT) && said.starts_with("page_memory_allocator: ");
    assert!(output.status.success() || stopped, "{}: {said}", output.status);
}

#[test]
fn a_handler_that_frees_what_it_allocates_works_or_the_program_stops_with_a_line() {
    for _ in 0..4 {
        ended_with_reason(&in_child(|_| (), || interrupted(in_order)));
    }
}

/// Frees what it allocates, the last first: blocks of one class.
#[cfg(not(feature = "hardened"))]
extern "C" fn small_in_order(_: libc::c_int) {
    let blocks = [(); 3].map(|()| alloc(64));
    blocks.into_iter().rev().for_each(|block| free(block, 64));
    HANDLED.fetch_add(1, Relaxed);
}

#[test]
#[cfg(not(feature = "hardened"))]
fn a_handler_that_frees_what_it_allocates_leaves_a_threads_cache_as_it_was() {
    let output = in_child(
        |_| (),
        || {
            // From here on the cache has blocks, and room.
            let mut blocks: Vec<_> = (0..300).map(|_| alloc(64)).collect();
            blocks.drain(..200).for_each(|block| free(block, 64));
            let end = Instant::now() + Duration::from_secs(2);
            handle(small_in_order);
            while Instant::now() < end {
                for number in 0..1000 {
                    let other = alloc(64);
                    free(std::mem::replace(&mut blocks[number % 100], other), 64);
                }
            }
            stop();
            blocks.drain(..).for_each(|block| free(block, 64));
            HEAP.check().expect("the heap is in order");
            assert!(HANDLED.load(Relaxed) > 100);
            println!("handled {}", HANDLED.load(Relaxed));
        },
    );
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

/// Does `work` with a SIGTRAP after each of its instructions.
#[cfg(target_arch = "x86_64")]
fn step_by_step(handler: extern "C" fn(libc::c_int), work: impl FnOnce()) {
    // SAFETY: the trap flag is the thread's; below the red zone the stack is free.
    unsafe {
        libc::signal(libc::SIGTRAP, handler as *const () as usize);
        std::arch::asm!("sub rsp, 128", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "add rsp, 128");
        work();
        std::arch::asm!("sub rsp, 128", "pushfq", "and qword ptr [rsp], ~0x100", "popfq", "add rsp, 128");
    }
}

#[test]
#[cfg(all(target_arch = "x86_64", not(feature = "hardened")))]
fn a_handler_may_come_after_any_instruction_of_a_fast_path() {
    let output = in_child(
        |_| (),
        || {
            let mut blocks: Vec<_> = (0..100).map(|_| alloc(64)).collect();
            blocks.drain(..50).for_each(|block| free(block, 64));
            step_by_step(small_in_order, || {
                for number in 0..200 {
                    let other = alloc(64);
                    free(std::mem::replace(&mut blocks[number % 50], other), 64);
                }
            });
            assert!(HANDLED.load(Relaxed) > 10_000);
            blocks.drain(..).for_each(|block| free(block, 64));
            HEAP.check().expect("the heap is in order");
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

/// Allocates and frees where its thread may have the locks.
#[cfg(target_arch = "x86_64")]
extern "C" fn of_all_kinds(_: libc::c_int) {
    for size in [64, 40_000] {
        free(alloc(size), size);
    }
    HANDLED.fetch_add(1, Relaxed);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_handler_that_comes_with_a_lock_held_ends_the_program_with_a_line() {
    let output = in_child(|_| (), || step_by_step(of_all_kinds, || free(alloc(50_000), 50_000)));
    let said = "page_memory_allocator: a signal handler allocated or freed while its thread was inside the allocator\n";
    assert_eq!((output.status.signal(), text(&output.stderr)), (Some(libc::SIGABRT), said));
}

#[test]
fn a_handler_that_keeps_large_blocks_works_or_the_program_stops_with_a_line() {
    for _ in 0..4 {
        ended_with_reason(&in_child(|_| (), || interrupted(large_kept)));
    }
}

#[test]
fn a_handler_that_frees_what_it_allocates_works_in_threads_that_come_and_go() {
    let output = in_child(
        |_| (),
        || {
            handle(in_order);
            let end = Instant::now() + Duration::from_secs(1);
            while Instant::now() < end {
                let blocks: Vec<_> = (0..100).map(|number| vec![number; 100]).collect();
                // SAFETY: the mask is initialised before it is used.
                unsafe {
                    let mut all = std::mem::zeroed();
                    libc::sigfillset(&mut all);
                    libc::pthread_sigmask(libc::SIG_BLOCK, &all, ptr::null_mut());
                    // The new thread takes signals from its first allocation on.
                    let thread = thread::spawn(move || {
                        libc::pthread_sigmask(libc::SIG_UNBLOCK, &all, ptr::null_mut());
                        drop(blocks);
                    });
                    thread.join().unwrap();
                    libc::pthread_sigmask(libc::SIG_UNBLOCK, &all, ptr::null_mut());
                }
            }
            stop();
            HEAP.check().expect("the heap is in order");
        },
    );
    ended_with_reason(&output);
}
