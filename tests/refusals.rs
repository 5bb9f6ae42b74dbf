//! The system refuses memory at any one call, or from that call on for a while: null is returned, what is live stays
//! as it is, and memory is served again once the system does.
//!
//! The calls of the library are answered by this binary, whose `mmap`, `mprotect`, `madvise` and `mremap` stand before
//! those of the C library and pass on what they do not refuse. So the code that is tested is the code that runs.
//!
//! `PMA_TEST_REFUSALS` says up to which call each is refused once.

use page_memory_allocator::size_class::{SizeClasses, built};
use page_memory_allocator::{HeapOptions, PageAllocator};
use std::alloc::{Layout, System};
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{env, fs, io, ptr, thread};

#[path = "common/pattern.rs"]
mod pattern;
use pattern::{fill, verify};
#[path = "common/random.rs"]
mod random;
use random::Random;
#[path = "common/target.rs"]
mod target;
use target::Target;

/// The test itself allocates elsewhere.
#[global_allocator]
static ELSEWHERE: System = System;

/// The allocator under test, of which this process never makes use itself: each child finds it untouched.
static HEAP: PageAllocator = PageAllocator::new();

/// What the system is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Map,
    Protect,
    /// `madvise`, but for the next.
    Advise,
    /// `madvise` that gives memory back.
    Purge,
    Remap,
}

const KINDS: [Kind; 5] = [Kind::Map, Kind::Protect, Kind::Advise, Kind::Purge, Kind::Remap];

/// Which calls to the system are refused.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Those of this kind, or all; others are not counted.
    kind: Option<Kind>,
    /// The first call that is, counted from 1, from the moment that the plan is set.
    first: usize,
    /// How many are.
    count: usize,
}

impl Plan {
    const NONE: Plan = Plan { kind: None, first: usize::MAX, count: 0 };
}

mod system {
    //! The calls to the system, counted and refused.

    use super::{KINDS, Kind, Plan};
    use libc::{c_int, c_long, c_void, off_t, size_t};
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};

    /// Of the calls of a run, so many are told apart.
    const TOLD: usize = 1_000;

    /// By kind, all calls and those among the first that are told apart.
    static CALLS: [AtomicUsize; KINDS.len()] = [const { AtomicUsize::new(0) }; KINDS.len()];
    static EARLY: [AtomicUsize; KINDS.len()] = [const { AtomicUsize::new(0) }; KINDS.len()];
    static REFUSED: AtomicUsize = AtomicUsize::new(0);
    /// The plan: the kinds, by bit; the first call, by the number of calls of these kinds; how many.
    static PLANNED: AtomicUsize = AtomicUsize::new(0);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    static FIRST: AtomicUsize = AtomicUsize::new(usize::MAX);
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    /// Whether a move of memory that is refused has unmapped its destination, as the system may do, and another thread
    /// has mapped a page there since: this one.
    pub(super) static UNMAPS: AtomicBool = AtomicBool::new(false);
    pub(super) static TAKES: AtomicBool = AtomicBool::new(false);
    pub(super) static TAKEN: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
    /// Is called once, in the next call that gives memory back.
    static AT_PURGE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

    pub(super) fn at_purge(interruption: fn()) {
        AT_PURGE.store(interruption as *mut (), Relaxed);
    }

    thread_local! {
        /// Whether the thread is inside the allocator under test.
        static COUNTED: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn set(plan: Plan) {
        COUNT.store(plan.count, Relaxed);
        PLANNED.store(plan.kind.map_or(usize::MAX, |kind| 1 << kind as usize), Relaxed);
        SEEN.store(0, Relaxed);
        FIRST.store(plan.first, Relaxed);
    }

    pub(super) fn calls() -> usize {
        CALLS.iter().map(|calls| calls.load(Relaxed)).sum()
    }

    /// Calls of a kind, and how many of them were among the first of all.
    pub(super) fn calls_of(kind: Kind) -> (usize, usize) {
        (CALLS[kind as usize].load(Relaxed), EARLY[kind as usize].load(Relaxed))
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
    fn refuses(kind: Kind) -> bool {
        if !COUNTED.get() {
            return false;
        }
        if calls() < TOLD {
            EARLY[kind as usize].fetch_add(1, Relaxed);
        }
        CALLS[kind as usize].fetch_add(1, Relaxed);
        if PLANNED.load(Relaxed) & 1 << kind as usize == 0 {
            return false;
        }
        let call = SEEN.fetch_add(1, Relaxed) + 1;
        let first = FIRST.load(Relaxed);
        let refuses = call >= first && call - first < COUNT.load(Relaxed);
        if refuses {
            REFUSED.fetch_add(1, Relaxed);
            // SAFETY: this thread's errno can always be written.
            unsafe { *libc::__errno_location() = libc::ENOMEM };
        }
        refuses
    }

    /// Does to the destination of a refused move what [`UNMAPS`] and [`TAKES`] say.
    unsafe fn leave_a_hole(start: *mut c_void, bytes: size_t) {
        if UNMAPS.load(Relaxed) {
            // SAFETY: a move that is refused may do this.
            unsafe { libc::syscall(libc::SYS_munmap, start, bytes) };
        }
        if TAKES.load(Relaxed) {
            let protection = (libc::PROT_READ | libc::PROT_WRITE) as c_long;
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as c_long;
            let page = start.wrapping_byte_add((bytes / 2) & !0xFFFF);
            // SAFETY: nothing is mapped there. The page is this test's, and is filled.
            unsafe {
                libc::syscall(
                    libc::SYS_mmap,
                    page,
                    4096 as c_long,
                    protection,
                    flags,
                    -1 as c_long,
                    0 as c_long,
                );
                page.cast::<u8>().write_bytes(0x5A, 4096);
            }
            TAKEN.store(page.cast(), Relaxed);
        }
        // SAFETY: this thread's errno can always be written.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
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
        if refuses(Kind::Map) {
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
        if refuses(Kind::Protect) {
            return -1;
        }
        // SAFETY: as the caller says.
        unsafe { libc::syscall(libc::SYS_mprotect, start, bytes, protection as c_long) as c_int }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn madvise(start: *mut c_void, bytes: size_t, advice: c_int) -> c_int {
        let kind = if advice == libc::MADV_DONTNEED { Kind::Purge } else { Kind::Advise };
        if kind == Kind::Purge && COUNTED.get() {
            let interruption = AT_PURGE.swap(std::ptr::null_mut(), Relaxed);
            if !interruption.is_null() {
                // SAFETY: what is not null is a function of that type.
                unsafe { std::mem::transmute::<*mut (), fn()>(interruption)() };
            }
        }
        if refuses(kind) {
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
        // Without a place to move to, it is only asked whether there is room.
        if flags & libc::MREMAP_FIXED != 0 && refuses(Kind::Remap) {
            // SAFETY: the destination is the caller's.
            unsafe { leave_a_hole(new_start, new_bytes) };
            return libc::MAP_FAILED;
        }
        // SAFETY: as the caller says; the last argument is read only if the flags ask for it.
        let result =
            unsafe { libc::syscall(libc::SYS_mremap, start, bytes, new_bytes, flags as c_long, new_start) };
        std::ptr::with_exposed_provenance_mut(result as usize)
    }
}

/// Of a block, only so many bytes are looked at, and none of the longest: they need not be backed by memory.
fn looked_at(layout: Layout) -> usize {
    if layout.size() < LONG.size() { layout.size().min(256) } else { 0 }
}

/// A live block, and what it was filled with.
struct Block<'s> {
    source: &'s dyn Target,
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
    fn new(source: &'s dyn Target, layout: Layout, seed: usize) -> Option<Block<'s>> {
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
fn churn<'s>(source: &'s dyn Target, blocks: &mut Vec<Block<'s>>, random: &mut Random, operations: usize) {
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

/// Runs that are made longer where that is not possible, so that their memory is moved; memory given back; many zeros.
fn moves_and_purges(blocks: &mut Vec<Block>, random: &mut Random) {
    let layout = |size| Layout::from_size_align(size, 1).unwrap();
    for round in 0..30 {
        let size = (1 + random.below(4)) << 20;
        let mut run = Block::new(&HEAP, layout(size), 1 + round);
        // In the way.
        let others: Vec<_> = (0..3).map(|_| Block::new(&HEAP, layout(size), 1)).collect();
        if let Some(run) = &mut run {
            run.resize(size + (1 + random.below(4)) * (1 << 20));
        }
        if round % 4 == 0 {
            blocks.extend(run);
        }
        drop(others);
        // The first words of a seed that is a multiple of four are to be zero.
        if round % 4 == 0 {
            drop(Block::new(&HEAP, layout(16 << 20), 4));
        }
        if round % 2 == 0 {
            system::counted(|| HEAP.purge());
        }
    }
}

/// Everything that makes the allocator call the system: the first use, small and large blocks, caches of threads,
/// heaps of one's own, memory given back.
fn mixed_run(seed: u64) {
    let mut random = Random::new(seed);
    let mut blocks = Vec::new();
    churn(&HEAP, &mut blocks, &mut random, 300);
    moves_and_purges(&mut blocks, &mut random);
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
        own.truncate(own.len() / 2);
        system::counted(|| heap.purge());
        drop(own);
        heap.check().unwrap();
    }
    blocks.iter().for_each(Block::verify);
    if let Err(violation) = system::counted(|| HEAP.check()) {
        panic!("{violation:?}");
    }
    // The system has come round.
    system::set(Plan::NONE);
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
    in_child(plan, &format!("seed {seed}"), || mixed_run(seed))
}

/// A move of memory that is refused may have unmapped its destination, and another thread may have mapped a page of its
/// own there: that stays as it is. So it does if the heap is one of the program's own, and dropped.
fn what_a_refused_move_unmapped_is_not_taken_from_others(taken: bool, is_own: bool) {
    let own = is_own.then(|| HeapOptions::new().capacity(1 << 30).build().expect("nothing is refused"));
    let source = own.as_ref().map_or(&HEAP as &dyn Target, |own| own);
    let layout = |size| Layout::from_size_align(size, 1).unwrap();
    let mut run = Block::new(source, layout(2 << 20), 1).expect("nothing is refused");
    let in_the_way = Block::new(source, layout(2 << 20), 2);
    system::UNMAPS.store(true, Relaxed);
    system::TAKES.store(taken, Relaxed);
    system::set(Plan { kind: Some(Kind::Remap), first: 1, count: 100 });
    for size in 3..8 {
        run.resize(size << 20);
        assert_eq!(run.layout.size(), size << 20, "it is copied instead");
    }
    assert!(system::refused() > 0, "nothing was moved");
    let page = system::TAKEN.load(Relaxed);
    let is_whole = || {
        // SAFETY: the page was mapped, and filled, by this test.
        !taken || (0..4096).all(|at| unsafe { page.add(at).read() } == 0x5A)
    };
    assert!(is_whole(), "a page of others was changed");
    drop((run, in_the_way));
    system::counted(|| source.purge());
    assert!(is_whole(), "a page of others was purged");
    let blocks: Vec<_> = (0..20).map(|seed| Block::new(source, layout(8 << 20), seed)).collect();
    assert!(blocks.iter().all(Option::is_some));
    drop(blocks);
    source.check();
    drop(own);
    assert!(is_whole(), "a page of others went with the heap");
}

/// A run that was moved is not mapped anew when it is freed, as the system refuses: it has no memory for all that.
fn what_is_refused_to_be_mapped_anew_has_no_memory() {
    let layout = |size| Layout::from_size_align(size, 1).unwrap();
    let mut run = Block::new(&HEAP, layout(2 << 20), 1).expect("nothing is refused");
    let in_the_way = Block::new(&HEAP, layout(2 << 20), 2);
    let before = run.start;
    run.resize(8 << 20);
    assert_ne!(run.start, before, "it was not moved");
    let (start, bytes) = (run.start, run.layout.size());
    // SAFETY: the run is that long.
    unsafe { start.write_bytes(1, bytes) };
    // SAFETY: as above; what it was filled with is put back.
    unsafe { fill(start, looked_at(run.layout), run.seed) };
    system::set(Plan { kind: Some(Kind::Map), first: 1, count: 1 });
    let refused = system::refused();
    drop(run);
    assert!(system::refused() > refused, "nothing was to be mapped anew");
    system::set(Plan::NONE);
    let mut resident = vec![0u8; bytes / 4096];
    // SAFETY: the range is mapped still, as the call was refused; there is a byte for each OS page.
    assert_eq!(unsafe { libc::mincore(start.cast(), bytes, resident.as_mut_ptr()) }, 0);
    assert!(resident.iter().all(|page| page & 1 == 0));
    drop(in_the_way);
    HEAP.check().unwrap();
}

/// The end of a run that was moved is not mapped anew when that shrinks: its place is lost, but of few runs.
fn few_places_are_lost_to_runs_that_shrink() {
    let heap = HeapOptions::new().capacity(4 << 30).build().expect("nothing is refused");
    let layout = |size| Layout::from_size_align(size, 1).unwrap();
    for seed in 0..600 {
        let mut run = Block::new(&heap, layout(1 << 20), seed).expect("there is room");
        let in_the_way = Block::new(&heap, layout(1 << 20), seed);
        run.resize(2 << 20);
        system::set(Plan { kind: Some(Kind::Map), first: 1, count: 1 });
        run.resize(1 << 20);
        system::set(Plan::NONE);
        drop((run, in_the_way));
    }
    let lost = heap.check().unwrap().runs;
    assert!((1..=256).contains(&lost), "{lost} places are lost");
}

/// Blocks of another thread's pages, as addresses.
static THEIRS: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static GO: AtomicBool = AtomicBool::new(false);
const SMALL: Layout = Layout::new::<[u8; 64]>();

fn small_blocks(count: usize) -> Vec<usize> {
    (0..count).map(|_| HEAP.alloc(SMALL, false).addr()).collect()
}

fn free_small_blocks(blocks: Vec<usize>) {
    // SAFETY: the blocks are live, and have this layout.
    blocks
        .into_iter()
        .for_each(|block| unsafe { Target::dealloc(&HEAP, ptr::with_exposed_provenance_mut(block), SMALL) });
}

/// A thread that has locked the runs is interrupted by who frees blocks of another's bin; that thread has locked it, and waits
/// for the runs. Nobody can go on: the process ends, with a line, and does not hang.
fn who_waits_for_who_waits_for_what_its_thread_had_ends_the_process() {
    // SAFETY: the process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: alarm has no preconditions.
        unsafe { libc::alarm(20) };
        drop(Block::new(&HEAP, Layout::from_size_align(8 << 20, 1).unwrap(), 1));
        let other = thread::spawn(|| {
            let pages = small_blocks(20 * built::PAGE_SIZE / 64);
            *THEIRS.lock().unwrap() = small_blocks(4_000);
            while !GO.load(Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            free_small_blocks(pages);
        });
        while THEIRS.lock().unwrap().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        system::at_purge(|| {
            GO.store(true, Relaxed);
            thread::sleep(Duration::from_millis(200));
            let theirs = std::mem::take(&mut *THEIRS.lock().unwrap());
            free_small_blocks(theirs);
        });
        system::counted(|| HEAP.purge());
        other.join().unwrap();
        // SAFETY: the child ends without the parent's handlers.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the status is written.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    assert_eq!(signal, Some(libc::SIGABRT), "it ended with status {status:#x}");
}

/// The process has no key left for what is done when a thread ends: all goes on without caches, in the children of forks, too.
fn without_keys_for_ends_of_threads() {
    // The standard library needs one, too.
    thread::spawn(|| ()).join().unwrap();
    let mut key = 0;
    // SAFETY: the keys are written, and never used.
    while unsafe { libc::pthread_key_create(&mut key, None) } == 0 {}
    // What is forked while another thread makes the heap is another matter.
    free_small_blocks(small_blocks(1));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(|| {
                while !GO.load(Relaxed) {
                    free_small_blocks(small_blocks(10));
                }
            })
        })
        .collect();
    for _ in 0..50 {
        // SAFETY: the child does nothing but allocate, free and end.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: alarm has no preconditions.
            unsafe { libc::alarm(10) };
            let block = HEAP.alloc(SMALL, false);
            // SAFETY: the block is live, and has this layout; the child ends without the parent's handlers.
            unsafe {
                Target::dealloc(&HEAP, block, SMALL);
                libc::_exit(0);
            }
        }
        let mut status = 0;
        // SAFETY: the status is written.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "a child hangs");
    }
    GO.store(true, Relaxed);
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    HEAP.check().unwrap();
}

/// The heap is first used when the system grants no more than `left` mappings: what fits is served, the rest is null, and
/// all is served when there are mappings again.
fn the_first_use_with_few_mappings(left: usize) {
    let most = fs::read_to_string("/proc/sys/vm/max_map_count").expect("Linux tells");
    let most: usize = most.trim().parse().expect("a number");
    if most > 300_000 {
        println!("skipped: a process may have {most} mappings");
        return;
    }
    let layout = |size| Layout::from_size_align(size, 1).unwrap();
    let mut taken: Vec<*mut libc::c_void> = Vec::with_capacity(most);
    let mut blocks = Vec::with_capacity(100_000);
    // Each with another protection than its neighbours, so that none becomes one with another.
    // SAFETY: mappings at addresses of the kernel's choice touch nothing that is in use; each is given back once.
    unsafe {
        loop {
            let protection = if taken.len().is_multiple_of(2) { libc::PROT_NONE } else { libc::PROT_READ };
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0);
            if page == libc::MAP_FAILED {
                break;
            }
            taken.push(page);
        }
        taken.drain(taken.len() - left..).for_each(|page| assert_eq!(libc::munmap(page, 4096), 0));
        let mut served = 0;
        for size in [64, 1_000, 30_000, 200_000, 4 << 20].into_iter().cycle().take(200) {
            let block = system::counted(|| Target::alloc(&HEAP, layout(size), false));
            if !block.is_null() {
                served += size;
                blocks.push(Block { source: &HEAP, start: block, layout: layout(size), seed: size });
                fill(block, looked_at(layout(size)), size);
            }
        }
        taken.iter().for_each(|&page| assert_eq!(libc::munmap(page, 4096), 0));
        println!("{served} bytes served to a process that begins with {left} mappings");
        assert!(served >= 100 << 20 || left < 20, "only {served} bytes");
    }
    system::set(Plan::NONE);
    assert!(Block::new(&HEAP, layout(100), 1).is_some() && Block::new(&HEAP, layout(1 << 20), 1).is_some());
    drop(blocks);
    HEAP.check().unwrap();
}

/// Every second block is freed, so that memory goes back in many small parts; if that is refused, as of memory that is
/// locked, it is tried again. No call of the allocator does much of it.
fn what_goes_back_goes_a_little_at_a_time(refused: bool) {
    const BLOCKS: usize = 20_000;
    /// Twice what a pass has of free pages, and what it has of parts of others, and a little.
    const MOST: usize = 2 * 256 + 64;
    let layout = |size| Layout::from_size_align(size, 1).unwrap();
    let mut blocks: Vec<_> = (0..BLOCKS).map(|_| Block::new(&HEAP, layout(4096), 1)).collect();
    blocks.iter_mut().step_by(2).for_each(|block| drop(block.take()));
    drop(Block::new(&HEAP, layout(64 << 20), 1));
    let count = if refused { usize::MAX } else { 0 };
    system::set(Plan { kind: Some(Kind::Purge), first: 1, count });
    let begin = system::calls_of(Kind::Purge).0;
    let (mut before, mut most) = (begin, 0);
    // Until as much has been asked for as there is to ask for, at half a period for each part of a refused pass.
    let end = Instant::now() + Duration::from_secs(if refused { 2 } else { 60 });
    while Instant::now() < end && (refused || before - begin < BLOCKS / 4) {
        drop(Block::new(&HEAP, layout(100_000), 1));
        let after = system::calls_of(Kind::Purge).0;
        (before, most) = (after, most.max(after - before));
        thread::sleep(Duration::from_millis(1));
    }
    assert!(before - begin >= if refused { 1 } else { BLOCKS / 4 }, "{} calls", before - begin);
    assert!(most <= MOST, "{most} calls in one");
    system::set(Plan::NONE);
    drop(blocks);
    HEAP.check().unwrap();
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
        in_child(Plan::NONE, "few mappings", || the_first_use_with_few_mappings(left));
    }
    for (taken, is_own) in [(false, false), (true, false), (false, true), (true, true)] {
        in_child(Plan::NONE, "a hole", || {
            what_a_refused_move_unmapped_is_not_taken_from_others(taken, is_own)
        });
    }
    in_child(Plan::NONE, "mapped anew", what_is_refused_to_be_mapped_anew_has_no_memory);
    in_child(Plan::NONE, "lost places", few_places_are_lost_to_runs_that_shrink);
    in_child(Plan::NONE, "a handler", who_waits_for_who_waits_for_what_its_thread_had_ends_the_process);
    in_child(Plan::NONE, "no keys", without_keys_for_ends_of_threads);
    for refused in [false, true] {
        in_child(Plan::NONE, "a little at a time", || what_goes_back_goes_a_little_at_a_time(refused));
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
