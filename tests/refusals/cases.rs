//! What follows one refusal, or what interrupts a call to the system, case by case.

use crate::HEAP;
use crate::blocks::{Block, looked_at};
use crate::pattern::fill;
use crate::system::{self, Kind, Plan};
use crate::target::Target;
use page_memory_allocator::size_class::built;
use page_memory_allocator::{Component, HeapOptions};
use std::alloc::Layout;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{fs, ptr, thread};

/// A move of memory that is refused may have unmapped its destination, and another thread may have mapped a page of its
/// own there: that stays as it is. So it does if the heap is one of the program's own, and dropped.
pub fn what_a_refused_move_unmapped_is_not_taken_from_others(taken: bool, is_own: bool) {
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

/// A move of memory that is refused leaves what the component holds as it is, and the copy is its own.
pub fn a_refused_move_leaves_the_account_of_the_component_right() {
    static COMPONENT: Component = Component::new("of a test");
    let layout = |size| Layout::from_size_align(size, 1).unwrap();
    let held = || {
        let mut held = 0;
        HEAP.components(|component| held += component.live_bytes);
        held
    };
    // The heap is to be there.
    drop(Block::new(&HEAP, layout(64), 1));
    COMPONENT.enter(|| {
        let mut run = Block::new(&HEAP, layout(2 << 20), 1).expect("nothing is refused");
        let in_the_way = Block::new(&HEAP, layout(2 << 20), 2);
        assert_eq!(held(), 4 << 20);
        system::set(Plan { kind: Some(Kind::Remap), first: 1, count: 100 });
        run.resize(8 << 20);
        assert!(system::refused() > 0, "nothing was moved");
        system::set(Plan::NONE);
        assert_eq!(held(), 10 << 20);
        HEAP.check().unwrap();
        drop((run, in_the_way));
    });
    assert_eq!(held(), 0);
    HEAP.check().unwrap();
}

/// A run that was moved is not mapped anew when it is freed, as the system refuses: it has no memory for all that.
pub fn what_is_refused_to_be_mapped_anew_has_no_memory() {
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
pub fn few_places_are_lost_to_runs_that_shrink() {
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
pub fn who_waits_for_who_waits_for_what_its_thread_had_ends_the_process() {
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
pub fn without_keys_for_ends_of_threads() {
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
pub fn the_first_use_with_few_mappings(left: usize) {
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
pub fn what_goes_back_goes_a_little_at_a_time(refused: bool) {
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
