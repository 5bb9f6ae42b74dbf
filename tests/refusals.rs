//! The system refuses memory at any one call, or from that call on for a while: null is returned, what is live stays
//! as it is, and all is served again once the system does.
//!
//! The calls of the library are answered by this binary, whose `mmap`, `mprotect`, `madvise` and `mremap` stand before
//! those of the C library and pass on what they do not refuse. So the code that is tested is the code that runs.
//!
//! `PMA_TEST_REFUSALS` says up to which call each is refused once.

use page_memory_allocator::size_class::{SizeClasses, built};
use page_memory_allocator::{Heap, HeapOptions, PageAllocator};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::{env, io, ptr, thread};

#[path = "common/pattern.rs"]
mod pattern;
use pattern::{fill, verify};
#[path = "common/random.rs"]
mod random;
use random::Random;

/// The test itself allocates elsewhere.
#[global_allocator]
static ELSEWHERE: System = System;

/// The allocator under test, of which this process never makes use itself: each child finds it untouched.
static HEAP: PageAllocator = PageAllocator::new();

/// Which calls to the system are refused.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// The first call that is, counted from 1, from the moment that the plan is set.
    first: usize,
    /// How many are.
    count: usize,
}

mod system {
    //! The calls to the system, counted and refused.

    use super::Plan;
    use libc::{c_int, c_long, c_void, off_t, size_t};
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    static CALLS: AtomicUsize = AtomicUsize::new(0);
    static REFUSED: AtomicUsize = AtomicUsize::new(0);
    static FIRST: AtomicUsize = AtomicUsize::new(usize::MAX);
    static COUNT: AtomicUsize = AtomicUsize::new(0);

    thread_local! {
        /// Whether the thread is inside the allocator under test.
        static COUNTED: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn set(plan: Plan) {
        COUNT.store(plan.count, Relaxed);
        FIRST.store(CALLS.load(Relaxed).saturating_add(plan.first), Relaxed);
    }

    pub(super) fn calls() -> usize {
        CALLS.load(Relaxed)
    }

    pub(super) fn refused() -> usize {
        REFUSED.load(Relaxed)
    }

    /// Does `work`, whose calls to the system are counted.
    pub(super) fn counted<R>(work: impl FnOnce() -> R) -> R {
        let before = COUNTED.replace(true);
        let result = work();
        COUNTED.set(before);
        result
    }

    /// Whether this call is refused.
    fn refuses() -> bool {
        if !COUNTED.get() {
            return false;
        }
        let call = CALLS.fetch_add(1, Relaxed) + 1;
        let first = FIRST.load(Relaxed);
        let refuses = call >= first && call - first < COUNT.load(Relaxed);
        if refuses {
            REFUSED.fetch_add(1, Relaxed);
            // SAFETY: this thread's errno can always be written.
            unsafe { *libc::__errno_location() = libc::ENOMEM };
        }
        refuses
    }

    // The system's own calls; `syscall` sets errno as the C library's functions do.

    #[unsafe(no_mangle)]
    unsafe extern "C" fn mmap(
        start: *mut c_void,
        bytes: size_t,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: off_t,
    ) -> *mut c_void {
        if refuses() {
            return libc::MAP_FAILED;
        }
        // SAFETY: as the caller says.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mmap,
                start,
                bytes,
                protection as c_long,
                flags as c_long,
                file as c_long,
                offset,
            )
        };
        std::ptr::with_exposed_provenance_mut(result as usize)
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn mprotect(start: *mut c_void, bytes: size_t, protection: c_int) -> c_int {
        if refuses() {
            return -1;
        }
        // SAFETY: as the caller says.
        unsafe { libc::syscall(libc::SYS_mprotect, start, bytes, protection as c_long) as c_int }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn madvise(start: *mut c_void, bytes: size_t, advice: c_int) -> c_int {
        if refuses() {
            return -1;
        }
        // SAFETY: as the caller says.
        unsafe { libc::syscall(libc::SYS_madvise, start, bytes, advice as c_long) as c_int }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn mremap(
        start: *mut c_void,
        bytes: size_t,
        new_bytes: size_t,
        flags: c_int,
        new_start: *mut c_void,
    ) -> *mut c_void {
        if refuses() {
            return libc::MAP_FAILED;
        }
        // SAFETY: as the caller says; the last argument is read only if the flags ask for it.
        let result =
            unsafe { libc::syscall(libc::SYS_mremap, start, bytes, new_bytes, flags as c_long, new_start) };
        std::ptr::with_exposed_provenance_mut(result as usize)
    }
}

/// Where blocks come from: the process heap, or a heap of one's own.
trait Source {
    fn alloc(&self, layout: Layout, zeroed: bool) -> *mut u8;
    /// # Safety
    /// The block is live and has that layout.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8;
    /// # Safety
    /// The block is live and has that layout.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout);
}

impl Source for PageAllocator {
    fn alloc(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        // SAFETY: no size of the test is zero.
        unsafe {
            if zeroed { GlobalAlloc::alloc_zeroed(self, layout) } else { GlobalAlloc::alloc(self, layout) }
        }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        unsafe { GlobalAlloc::realloc(self, block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { GlobalAlloc::dealloc(self, block, layout) }
    }
}

impl Source for Heap {
    fn alloc(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        if zeroed { self.alloc_zeroed(layout) } else { self.alloc(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        unsafe { self.realloc(block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { self.dealloc(block, layout) }
    }
}

/// Of a block, only so many bytes are looked at, and none of the longest: they need not be backed by memory.
fn looked_at(layout: Layout) -> usize {
    if layout.size() < LONG.size() { layout.size().min(256) } else { 0 }
}

/// A live block, and what it was filled with.
struct Block<'s> {
    source: &'s dyn Source,
    start: *mut u8,
    layout: Layout,
    seed: usize,
}

/// Whether the system refused the process heap all but a small part of the address space that it asked for. It then
/// stays as small as that.
fn is_cramped() -> bool {
    HEAP.summary().reserved_bytes < 4 << 30
}

/// Calls the allocator; it may only fail when the system refused it something meanwhile.
fn served(call: impl FnOnce() -> *mut u8) -> Option<ptr::NonNull<u8>> {
    let before = system::refused();
    let block = ptr::NonNull::new(system::counted(call));
    assert!(
        block.is_some() || system::refused() > before || is_cramped(),
        "null, although nothing was refused"
    );
    block
}

impl<'s> Block<'s> {
    fn new(source: &'s dyn Source, layout: Layout, seed: usize) -> Option<Block<'s>> {
        let zeroed = seed.is_multiple_of(4);
        let start = served(|| source.alloc(layout, zeroed))?.as_ptr();
        assert!(start.addr().is_multiple_of(layout.align()));
        let looked_at = looked_at(layout);
        // SAFETY: the block is as long as its layout.
        unsafe {
            assert!(!zeroed || (0..looked_at).all(|at| start.add(at).read() == 0), "memory is not zero");
            fill(start, looked_at, seed);
        }
        Some(Block { source, start, layout, seed })
    }

    fn resize(&mut self, size: usize) {
        self.verify();
        // SAFETY: the block is live and has that layout.
        let resized = served(|| unsafe { self.source.realloc(self.start, self.layout, size) });
        if let Some(start) = resized {
            self.start = start.as_ptr();
            let new_layout = Layout::from_size_align(size, self.layout.align()).unwrap();
            // SAFETY: the block is as long as both layouts, in its old and in its new place.
            unsafe {
                verify(self.start, looked_at(self.layout).min(looked_at(new_layout)), self.seed);
                fill(self.start, looked_at(new_layout), self.seed);
            }
            self.layout = new_layout;
        }
        self.verify();
    }

    fn verify(&self) {
        // SAFETY: the block is live and was filled.
        unsafe { verify(self.start, looked_at(self.layout), self.seed) };
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        self.verify();
        // SAFETY: the block is live, has that layout, and is given up.
        system::counted(|| unsafe { self.source.dealloc(self.start, self.layout) });
    }
}

/// Sizes of blocks from all classes, and of runs, few of them long.
fn some_layout(random: &mut Random) -> Layout {
    let most_shift = if random.below(8) == 0 { 23 } else { 13 };
    let shift = random.below(most_shift);
    let align = if random.below(8) == 0 { 1 << random.below(17) } else { 1 };
    Layout::from_size_align(1 + random.below(1 << shift), align).unwrap()
}

/// Mixed operations on one source.
fn churn<'s>(source: &'s dyn Source, blocks: &mut Vec<Block<'s>>, random: &mut Random, operations: usize) {
    for _ in 0..operations {
        match random.below(8) {
            0 if !blocks.is_empty() => {
                let at = random.below(blocks.len());
                let size = some_layout(random).size();
                blocks[at].resize(size);
            }
            1..4 if !blocks.is_empty() => {
                let at = random.below(blocks.len());
                drop(blocks.swap_remove(at));
            }
            _ => blocks.extend(Block::new(source, some_layout(random), random.below(1 << 20))),
        }
    }
}

/// Runs of 64 MiB: each is more than is committed at a time.
const LONG: Layout = match Layout::from_size_align(64 << 20, 1) {
    Ok(layout) => layout,
    Err(_) => panic!("64 MiB is a valid size"),
};

/// Everything that makes the allocator call the system: the first use, small and large blocks, caches of threads,
/// heaps of one's own, memory given back.
fn mixed_run(seed: u64) {
    let mut random = Random::new(seed);
    let mut blocks = Vec::new();
    churn(&HEAP, &mut blocks, &mut random, 300);
    thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let mut random = Random::new(seed + thread + 1);
                churn(&HEAP, &mut Vec::new(), &mut random, 200);
            });
        }
    });
    blocks.extend((0..20).filter_map(|_| Block::new(&HEAP, LONG, 1)));
    blocks.truncate(random.below(blocks.len() + 1));
    churn(&HEAP, &mut blocks, &mut random, 300);
    for _ in 0..400 {
        let options =
            HeapOptions::new().capacity(16 << 20).page_size(4096).classes(SizeClasses::POWERS_OF_TWO);
        let before = system::refused();
        let Ok(heap) = system::counted(|| options.build()) else {
            assert!(system::refused() > before, "no heap, although nothing was refused");
            continue;
        };
        let mut own = Vec::new();
        churn(&heap, &mut own, &mut random, 20);
        churn(&HEAP, &mut blocks, &mut random, 5);
        drop(own);
        heap.check().unwrap();
    }
    blocks.iter().for_each(Block::verify);
    if let Err(violation) = system::counted(|| HEAP.check()) {
        panic!("{violation:?}");
    }
    // The system has come round.
    system::set(Plan { first: usize::MAX, count: 0 });
    for &size in &built::BLOCK_SIZES[1..] {
        let layout = Layout::from_size_align(size as usize, 1).unwrap();
        blocks.extend(Block::new(&HEAP, layout, 1));
    }
    blocks.extend(Block::new(&HEAP, LONG, 1));
    drop(blocks);
    if let Err(violation) = system::counted(|| HEAP.check()) {
        panic!("{violation:?}");
    }
}

/// A child that hangs is ended after so many seconds.
const LONGEST: u32 = 60;

/// Does a mixed run in a child process with that plan. Returns how many calls it made of the system, at most 250
/// hundreds, by the way of the exit status.
fn in_child(plan: Plan, seed: u64) -> usize {
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "no child: {}", io::Error::last_os_error());
    if child == 0 {
        // SAFETY: alarm has no preconditions.
        unsafe { libc::alarm(LONGEST) };
        system::set(plan);
        let done = std::panic::catch_unwind(|| mixed_run(seed)).is_ok();
        let hundreds = (system::calls() / 100).min(250) as i32;
        // SAFETY: the child ends without the parent's handlers.
        unsafe { libc::_exit(if done { hundreds } else { 255 }) };
    }
    let mut status = 0;
    // SAFETY: the status is written.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 255,
        "{plan:?}, seed {seed}: the child ended with status {status:#x}"
    );
    libc::WEXITSTATUS(status) as usize * 100
}

fn main() {
    // The library's calls come by here, or nothing is tested.
    let probe = Cell::new(ptr::null_mut());
    system::counted(|| {
        // SAFETY: a mapping at an address of the kernel's choice touches nothing that is in use.
        probe.set(unsafe {
            libc::mmap(ptr::null_mut(), 4096, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        });
    });
    assert!(system::calls() == 1 && probe.get() != libc::MAP_FAILED);

    let each = match env::var("PMA_TEST_REFUSALS") {
        Ok(number) => number.parse().expect("PMA_TEST_REFUSALS is a number"),
        Err(_) => 100,
    };
    let calls = in_child(Plan { first: usize::MAX, count: 0 }, 1);
    assert!(calls >= 1_000, "a mixed run makes only about {calls} calls");
    for first in 1..=each {
        in_child(Plan { first, count: 1 }, 1);
    }
    // Any that was passed over above is met by one of these; a different run each.
    for first in (1..1_000).step_by(if each < 1_000 { 17 } else { 1 }) {
        in_child(Plan { first, count: 1 }, first as u64);
        in_child(Plan { first, count: 50 }, first as u64);
        in_child(Plan { first, count: usize::MAX / 2 }, first as u64);
    }
    println!("about {calls} calls in a run; each of the first {each} refused");
}
