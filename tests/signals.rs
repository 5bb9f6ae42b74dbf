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

const LINE: &str =
    "page_memory_allocator: a signal handler allocated or freed while its thread was inside the allocator\n";

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

fn set_handler(handler: extern "C" fn(libc::c_int)) {
    // SAFETY: zeros are a valid value of the struct; the handler is to be safe, which is what is tested.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()), 0);
    }
}

/// Interrupts this thread, and no other, as long as it lives: the harness has a thread more, which would get some of the
/// process's signals, and be in the handler at the same time.
struct Interruptions(libc::timer_t);

impl Interruptions {
    fn new(handler: extern "C" fn(libc::c_int)) -> Interruptions {
        set_handler(handler);
        let every = libc::timespec { tv_sec: 0, tv_nsec: MICROSECONDS * 1000 };
        let timer = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: zeros are valid values of both; the pointers lead to what the functions expect.
        unsafe {
            let (mut event, mut id): (libc::sigevent, libc::timer_t) = (std::mem::zeroed(), ptr::null_mut());
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGALRM;
            event.sigev_notify_thread_id = libc::gettid();
            assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut id), 0);
            assert_eq!(libc::timer_settime(id, 0, &timer, ptr::null_mut()), 0);
            Interruptions(id)
        }
    }
}

impl Drop for Interruptions {
    fn drop(&mut self) {
        // SAFETY: the timer is there.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Allocates and frees for as long as `PMA_TEST_SIGNALS` says, in seconds, while the handler interrupts it.
fn interrupted(handler: extern "C" fn(libc::c_int)) {
    let seconds =
        env::var("PMA_TEST_SIGNALS").map_or(1.5, |seconds| seconds.parse().expect("it is a number"));
    let mut held: Vec<(*mut u8, usize)> = Vec::with_capacity(2000);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut random = 99;
    let interruptions = Interruptions::new(handler);
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
    drop(interruptions);
    held.drain(..).for_each(|(block, size)| free(block, size));
    HEAP.check().expect("the heap is in order");
    assert!(HANDLED.load(Relaxed) > 0);
    println!("handled {}", HANDLED.load(Relaxed));
}

/// The child ended well, or with a line that says why.
fn ended_with_reason(output: &Output) {
    let said = text(&output.stderr);
    println!("{}: {said}{}", output.status, text(&output.stdout));
    let stopped = output.status.signal() == Some(libc::SIGABRT) && said == LINE;
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
            let interruptions = Interruptions::new(small_in_order);
            while Instant::now() < end {
                for number in 0..1000 {
                    let other = alloc(64);
                    free(std::mem::replace(&mut blocks[number % 100], other), 64);
                }
            }
            drop(interruptions);
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

/// A run that no thread keeps for itself, which would take no lock.
#[cfg(target_arch = "x86_64")]
const LONG_RUN: usize = 2_000_000;

/// Allocates and frees where its thread may have the locks.
#[cfg(target_arch = "x86_64")]
extern "C" fn of_all_kinds(_: libc::c_int) {
    for size in [64, LONG_RUN] {
        free(alloc(size), size);
    }
    HANDLED.fetch_add(1, Relaxed);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_handler_that_comes_with_a_lock_held_ends_the_program_with_a_line() {
    let output = in_child(|_| (), || step_by_step(of_all_kinds, || free(alloc(LONG_RUN), LONG_RUN)));
    assert_eq!((output.status.signal(), text(&output.stderr)), (Some(libc::SIGABRT), LINE));
}

/// One call of a handler that is made in the middle of another call of its thread.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    /// Allocates a block, and keeps it.
    Keep,
    /// Frees a block that was there before.
    Free,
    /// Frees the first block that the handler has kept.
    FreeKept,
}

/// What is interrupted at one instruction of a call to the allocator, and who has which block, written down where the
/// allocator has no part in it. One thread's, whose handler waits for nobody.
#[cfg(target_arch = "x86_64")]
struct Interrupted {
    /// Instructions so far, and that at which the handler does something.
    step: usize,
    at: usize,
    calls: &'static [Call],
    /// All blocks that somebody has; the handler's own are at the end.
    owned: Vec<*mut u8>,
    /// How many of them were there before.
    before: usize,
}

#[cfg(target_arch = "x86_64")]
impl Interrupted {
    /// Blocks of a class that nothing else here makes use of.
    const SIZE: usize = 200;

    fn own(&mut self, block: *mut u8) {
        if self.owned.contains(&block) {
            // SAFETY: the string is readable; the process ends.
            unsafe {
                libc::write(2, c"two owners\n".as_ptr().cast(), 11);
                libc::_exit(3);
            }
        }
        self.owned.push(block);
    }

    fn alloc(&mut self) {
        let block = alloc(Self::SIZE);
        self.own(block);
    }

    fn free(&mut self, at: usize) {
        free(self.owned.remove(at), Self::SIZE);
    }
}

#[cfg(target_arch = "x86_64")]
struct OfOneThread(UnsafeCell<Interrupted>);
// SAFETY: as its type says.
#[cfg(target_arch = "x86_64")]
unsafe impl Sync for OfOneThread {}
#[cfg(target_arch = "x86_64")]
static INTERRUPTED: OfOneThread =
    OfOneThread(UnsafeCell::new(Interrupted { step: 0, at: 0, calls: &[], owned: Vec::new(), before: 0 }));

#[cfg(target_arch = "x86_64")]
extern "C" fn at_one_step(_: libc::c_int) {
    // SAFETY: what it interrupts has no reference to it.
    let interrupted = unsafe { &mut *INTERRUPTED.0.get() };
    interrupted.step += 1;
    if interrupted.step != interrupted.at {
        return;
    }
    for &call in interrupted.calls {
        match call {
            Call::Keep => interrupted.alloc(),
            Call::Free => {
                interrupted.free(0);
                interrupted.before -= 1;
            }
            Call::FreeKept => interrupted.free(interrupted.before),
        }
    }
}

/// Allocates or frees a block while the handler makes `calls` after its `at`-th instruction, then has every block handed
/// out that is free. Returns how many instructions there were. The stack of that class is neither empty nor full; its
/// blocks were in use before, or not.
#[cfg(target_arch = "x86_64")]
fn interrupt(at: usize, calls: &'static [Call], frees: bool, used: bool) -> usize {
    let state = INTERRUPTED.0.get();
    let layout = layout(Interrupted::SIZE);
    // SAFETY: no reference is kept over the step by step part; what is freed there is live.
    unsafe {
        (*state).owned.reserve(2_000);
        (0..if used { 50 } else { 30 }).for_each(|_| (*state).alloc());
        while (*state).owned.len() > 30 {
            (*state).free(30);
        }
        let freed = if frees { (*state).owned.pop() } else { None };
        (*state).before = (*state).owned.len();
        ((*state).step, (*state).at, (*state).calls) = (0, at, calls);
        let mut block = ptr::null_mut();
        step_by_step(at_one_step, || match freed {
            Some(freed) => HEAP.dealloc(freed, layout),
            None => block = HEAP.alloc(layout),
        });
        let steps = (*state).step;
        if !frees {
            (*state).own(block);
            block.cast::<usize>().write(block.addr());
            block.add(Interrupted::SIZE - 8).cast::<usize>().write(block.addr());
        }
        (0..1_000).for_each(|_| (*state).alloc());
        while !(*state).owned.is_empty() {
            (*state).free((*state).owned.len() - 1);
        }
        steps
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_handler_that_keeps_or_frees_small_blocks_never_has_one_handed_out_twice() {
    use Call::{Free, FreeKept, Keep};
    const HANDLERS: [&[Call]; 8] = [
        &[Keep],
        &[Keep, Keep],
        &[Free],
        &[Free, Free],
        &[Keep, Free],
        &[Free, Keep],
        &[Keep, Keep, FreeKept],
        &[Keep, Free, FreeKept],
    ];
    let output = in_child(
        |_| (),
        || {
            let (mut worked, mut stopped) = (0, 0);
            for (calls, frees, used) in HANDLERS.into_iter().flat_map(|calls| {
                [(false, false), (false, true), (true, false), (true, true)].map(|(a, b)| (calls, a, b))
            }) {
                // The first is not interrupted, and counts.
                let (mut at, mut steps) = (0, 0);
                while at <= steps {
                    let mut pipe = [0; 2];
                    // SAFETY: this process has one thread; the child ends here.
                    let status = unsafe {
                        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
                        let child = libc::fork();
                        if child == 0 {
                            let steps = interrupt(at, calls, frees, used);
                            let sound = HEAP.check().is_ok();
                            libc::write(pipe[1], (&raw const steps).cast(), size_of::<usize>());
                            libc::_exit(if sound { 0 } else { 4 });
                        }
                        libc::close(pipe[1]);
                        let mut status = 0;
                        assert_eq!(libc::waitpid(child, &mut status, 0), child);
                        if at == 0 {
                            libc::read(pipe[0], (&raw mut steps).cast(), size_of::<usize>());
                        }
                        libc::close(pipe[0]);
                        status
                    };
                    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
                    // musl blocks all signals in `abort`: the next trap ends the process.
                    let aborted = signal == Some(libc::SIGABRT)
                        || (cfg!(target_env = "musl") && signal == Some(libc::SIGTRAP));
                    assert!(
                        status == 0 || aborted,
                        "{calls:?} after instruction {at} of {steps}, {frees}, {used}: {status:#x}"
                    );
                    *if aborted { &mut stopped } else { &mut worked } += 1;
                    // Of the many that a hardened call takes, some: it has no fast path.
                    at += if cfg!(feature = "hardened") { 1 + steps / 20 } else { 1 };
                }
                // A free without assertions has 15, with what is around it here.
                let least = if cfg!(debug_assertions) { 21 } else { 15 };
                assert!(steps >= least, "only {steps} instructions");
            }
            println!("{worked} worked, {stopped} stopped");
            // Else no handler came where it is felt: between what a fast path reads and what it writes.
            assert!(worked > 0 && (stopped > 0 || cfg!(feature = "hardened")));
        },
    );
    let said = text(&output.stderr);
    let result = text(&output.stdout);
    assert!(output.status.success(), "{}: {said}", output.status);
    let stopped = said.lines().count();
    assert!(said.lines().all(|line| line.starts_with("page_memory_allocator: ")), "{said}");
    assert!(result.contains(&format!(" {stopped} stopped")), "{result}{said}");
    println!("{}", result.lines().last().unwrap_or_default());
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
            set_handler(in_order);
            let every = libc::timeval { tv_sec: 0, tv_usec: MICROSECONDS };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            // SAFETY: the timer is one, and zeros are none.
            let set = |timer| unsafe { libc::setitimer(libc::ITIMER_REAL, timer, ptr::null_mut()) };
            // One of the process's: whichever thread lets it come has it.
            assert_eq!(set(&timer), 0);
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
            // SAFETY: zeros are a valid value of the struct.
            set(&unsafe { std::mem::zeroed() });
            HEAP.check().expect("the heap is in order");
            assert!(HANDLED.load(Relaxed) > 0);
        },
    );
    ended_with_reason(&output);
}
