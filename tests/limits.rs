//! Many threads, little address space, few mappings: what each costs, and that it is given back.
//!
//! `PMA_TEST_THREADS` says how many threads come and go, `PMA_TEST_IDLE_THREADS` how many are idle at a time,
//! `PMA_TEST_OPERATIONS` how many operations may leave mappings behind.

use page_memory_allocator::size_class::built;
use page_memory_allocator::{Component, HeapOptions, PageAllocator};
use std::ffi::c_void;
use std::hint::black_box;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::{env, fs, io, iter, mem, ptr, thread};

#[path = "common/child.rs"]
mod child;
use child::{assert_ended_well, in_child, text};
#[path = "common/random.rs"]
mod random;
use random::Random;
#[path = "common/resident.rs"]
mod resident;
use resident::resident;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// Fails unless a child did its part to the end.
fn succeeds<F: FnOnce()>(prepare: impl FnOnce(&mut Command), body: F) {
    assert_ended_well(&in_child(prepare, body));
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
                Err(_) => 4_000,
            };
            let left: Arc<Mutex<Vec<Vec<u8>>>> = Arc::new(Mutex::new(Vec::with_capacity(2_000)));
            // What a first thread leaves behind is no thread's.
            small_thread(|| ()).join().expect("the thread ends well");
            HEAP.purge();
            let before = HEAP.summary().live_bytes;
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
            // So little that 300 bytes a thread would be seen.
            assert!(grown <= (700 << 10) + threads as usize * 40, "resident size grew by {grown} bytes");
            assert!(summary.live_bytes <= before + (8 << 10), "{summary}; {before} bytes were live before");
            assert!(summary.cached_bytes < 256 << 10, "{summary}");
            HEAP.check().expect("the table is sound");
        },
    );
}

/// Where threads of a test meet: all that were started, and the test.
static MEETING: OnceLock<Barrier> = OnceLock::new();

/// A thread that has a stack, does some small work with the heap when it is told to, and then has nothing to do.
extern "C" fn idle(_: *mut c_void) -> *mut c_void {
    // All the stack that the work below takes.
    black_box([1u8; 16 << 10]);
    let meeting = MEETING.get().expect("it was set before");
    meeting.wait();
    meeting.wait();
    for size in (1..=10).map(|number| number * 16) {
        drop([vec![1u8; size], vec![2; size], vec![3; size]]);
    }
    meeting.wait();
    meeting.wait();
    ptr::null_mut()
}

#[test]
fn an_idle_thread_has_little_memory() {
    succeeds(
        |_| (),
        || {
            let threads = match env::var("PMA_TEST_IDLE_THREADS") {
                Ok(number) => number.parse().expect("PMA_TEST_IDLE_THREADS is a number"),
                Err(_) => 500,
            };
            let meeting = MEETING.get_or_init(|| Barrier::new(threads + 1));
            let mut started = Vec::with_capacity(threads);
            for _ in 0..threads {
                // SAFETY: the attributes are initialised before they are used; the thread is given nothing.
                unsafe {
                    let (mut thread, mut attributes) = (mem::zeroed(), mem::zeroed());
                    assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
                    assert_eq!(libc::pthread_attr_setstacksize(&mut attributes, 64 << 10), 0);
                    assert_eq!(libc::pthread_create(&mut thread, &attributes, idle, ptr::null_mut()), 0);
                    started.push(thread);
                }
            }
            meeting.wait();
            let before = resident();
            meeting.wait();
            meeting.wait();
            let each = resident().saturating_sub(before) / threads;
            println!(
                "{each} bytes resident for the cache of each of {threads} idle threads, its blocks included"
            );
            meeting.wait();
            // SAFETY: each thread was started, and is waited for once.
            started.into_iter().for_each(|thread| unsafe {
                assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
            });
            // In a hardened cache, blocks wait among others.
            let most = if cfg!(feature = "hardened") { 24 << 10 } else { 16 << 10 };
            assert!(each <= most, "{each} bytes for a thread");
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

/// All that may leave mappings behind: blocks and runs, some inside a component; runs that are made longer, and moved for
/// it; runs of many zeros; memory given back.
fn mixed(operations: usize, seed: u64) {
    static PART: Component = Component::new("part");
    let mut random = Random::new(seed);
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(4_000);
    let mut long: Vec<Vec<u8>> = Vec::with_capacity(8);
    for operation in 0..operations {
        match random.below(4_000) {
            0..4 => {
                if long.len() == long.capacity() {
                    long.swap_remove(random.below(8));
                }
                let mut run = Vec::with_capacity((1 + random.below(6)) << 20);
                run.push(1);
                long.push(run);
            }
            4..8 if !long.is_empty() => {
                let at = random.below(long.len());
                long[at].reserve_exact((1 + random.below(16)) << 20);
            }
            8 => long.push(vec![0; (16 + random.below(3)) << 20]),
            9 if operation % 4 == 0 => _ = HEAP.purge(),
            10..500 => drop(PART.enter(|| vec![1u8; 1 + random.below(3_000)])),
            _ if blocks.len() == blocks.capacity() || random.below(2) == 0 && !blocks.is_empty() => {
                blocks.swap_remove(random.below(blocks.len()));
            }
            _ => {
                let shift = if random.below(100) == 0 { 20 } else { 12 };
                let shift = random.below(shift);
                let mut block = Vec::with_capacity(1 + random.below(1 << shift));
                block.push(1);
                blocks.push(block);
            }
        }
        long.truncate(8);
    }
}

#[test]
fn a_million_operations_leave_few_mappings() {
    succeeds(
        |_| (),
        || {
            let mappings = || fs::read_to_string("/proc/self/maps").expect("Linux tells").lines().count();
            let in_threads = |operations: usize| {
                let threads: Vec<_> =
                    (1..=4).map(|seed| small_thread(move || mixed(operations / 4, seed))).collect();
                threads.into_iter().for_each(|thread| thread.join().expect("the thread ends well"));
            };
            // Stacks of threads are mappings, too, and are kept for the next.
            in_threads(0);
            let operations = match env::var("PMA_TEST_OPERATIONS") {
                Ok(number) => number.parse().expect("PMA_TEST_OPERATIONS is a number"),
                Err(_) => 1_000_000,
            };
            let before = mappings();
            churn(200_000);
            in_threads(operations - 200_000);
            let more = mappings().saturating_sub(before);
            println!("{more} mappings more after {operations} operations");
            assert!(more <= 64 || cfg!(feature = "hardened"), "{more} mappings");
        },
    );
}

/// Takes address space, an OS page at a time, each with another protection than its neighbours so that none becomes
/// one with another, until the system grants no more mappings.
fn take_all_mappings(taken: &mut Vec<*mut c_void>) {
    while taken.len() < taken.capacity() {
        let protection = if taken.len().is_multiple_of(2) { libc::PROT_NONE } else { libc::PROT_READ };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a mapping at an address of the kernel's choice touches nothing that is in use.
        let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return;
        }
        taken.push(page);
    }
    panic!("there are always more mappings");
}

/// Blocks of `size` bytes, filled, until none is served.
fn fill_up(blocks: &mut Vec<Vec<u8>>, size: usize) {
    while blocks.len() < blocks.capacity() {
        let mut block = Vec::new();
        if block.try_reserve_exact(size).is_err() {
            return;
        }
        block.resize(size, blocks.len() as u8);
        blocks.push(block);
    }
    panic!("memory does not run out");
}

/// Whether each block holds what it was filled with.
fn are_whole(blocks: &[Vec<u8>]) -> bool {
    blocks.iter().enumerate().all(|(number, block)| block.iter().all(|&byte| byte == number as u8))
}

#[test]
fn a_heap_grows_without_mappings_beyond_where_it_has_huge_pages_too() {
    succeeds(
        |_| (),
        || {
            let most = fs::read_to_string("/proc/sys/vm/max_map_count").expect("Linux tells");
            let most: usize = most.trim().parse().expect("a number");
            if most > 300_000 {
                println!("skipped: a process may have {most} mappings");
                return;
            }
            let mut taken = Vec::with_capacity(most + 1);
            let mut blocks = Vec::with_capacity(50_000);
            let mut grow = |number: usize| {
                for _ in 0..number {
                    let mut block = Vec::new();
                    block.try_reserve_exact(3_000).expect("there is memory");
                    block.resize(3_000, blocks.len() as u8);
                    blocks.push(block);
                }
            };
            grow(15_000);
            take_all_mappings(&mut taken);
            grow(35_000);
            for page in taken.drain(..) {
                // SAFETY: the page was mapped for this test, and nobody uses it.
                assert_eq!(unsafe { libc::munmap(page, 4096) }, 0);
            }
            assert!(are_whole(&blocks), "a block was changed");
            HEAP.check().expect("the table is sound");
        },
    );
}

#[test]
fn without_mappings_what_fits_is_served() {
    const LIMIT: usize = 64 << 20;
    succeeds(
        |command| {
            command.env("PMA_LIMIT", LIMIT.to_string());
        },
        || {
            let most = fs::read_to_string("/proc/sys/vm/max_map_count").expect("Linux tells");
            let most: usize = most.trim().parse().expect("a number");
            if most > 300_000 {
                println!("skipped: a process may have {most} mappings");
                return;
            }
            let mut taken = Vec::with_capacity(most + 1);
            let mut blocks = Vec::with_capacity(100_000);
            for left in [0, 6] {
                take_all_mappings(&mut taken);
                for page in taken.drain(taken.len() - left..) {
                    // SAFETY: the page was mapped for this test, and nobody uses it.
                    assert_eq!(unsafe { libc::munmap(page, 4096) }, 0);
                }
                let mut served = 0;
                for size in [3 << 20, built::PAGE_SIZE, 1_000, 24] {
                    fill_up(&mut blocks, size);
                    assert!(are_whole(&blocks), "a block was changed");
                    served = served.max(blocks.iter().map(Vec::len).sum());
                    // Half of them go, so that the next size has room; some of the rest grow.
                    let kept = blocks.len().div_ceil(2);
                    blocks.truncate(kept);
                    for (number, block) in blocks.iter_mut().enumerate().step_by(5) {
                        if block.try_reserve(block.len()).is_ok() {
                            block.resize(block.len() + block.len() / 2, number as u8);
                        }
                    }
                    HEAP.purge();
                    assert!(are_whole(&blocks), "a block was changed");
                    assert!(HEAP.check().is_ok(), "the table is not sound");
                }
                println!("{served} bytes served with {left} mappings left");
                // A hardened heap takes mappings for what it puts between runs.
                assert!(served > LIMIT / 2 || cfg!(feature = "hardened"), "only {served} bytes are served");
                blocks.clear();
                // A heap of one's own takes more mappings than none.
                assert!(left > 0 || HeapOptions::new().build().is_err());
            }
            for page in taken.drain(..) {
                // SAFETY: as above.
                assert_eq!(unsafe { libc::munmap(page, 4096) }, 0);
            }
            assert!(HeapOptions::new().build().is_ok(), "the system has mappings again");
            assert!(churn(20_000) > 5_000, "it does not go on");
            HEAP.check().expect("the table is sound");
        },
    );
}

/// A block of each size that pages are divided into, freed again by a thread that ends.
fn touch_every_class() {
    let touch = || (8..=32 << 10).step_by(8).for_each(|size| drop(black_box(Vec::<u8>::with_capacity(size))));
    small_thread(touch).join().expect("the thread ends well");
}

#[test]
fn pages_without_a_block_in_use_do_not_count_for_the_limit() {
    // The harness has blocks in 2 MiB of pages, and a thread that touches every class leaves 3.
    const LIMIT: usize = 10 << 20;
    const MOST: usize = 7 << 20;
    succeeds(
        |command| {
            command.env("PMA_LIMIT", LIMIT.to_string());
        },
        || {
            let is_served = |bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok();
            touch_every_class();
            assert!(is_served(MOST), "no run: {}", HEAP.summary());
            let mut run = Vec::<u8>::with_capacity(3 << 20);
            run.push(1);
            touch_every_class();
            assert!(run.try_reserve_exact(MOST).is_ok(), "no longer run: {}", HEAP.summary());
            drop(run);
            // One size has all of it.
            touch_every_class();
            let mut blocks = Vec::with_capacity(LIMIT / 1024);
            fill_up(&mut blocks, 1024);
            assert!(blocks.len() * 1024 > 6 << 20, "{} blocks: {}", blocks.len(), HEAP.summary());
            HEAP.check().expect("the table is sound");
        },
    );
}

#[test]
fn purge_gives_up_pages_without_a_block_in_use() {
    succeeds(
        |_| (),
        || {
            HEAP.purge();
            let before = HEAP.summary().divided_pages.get();
            touch_every_class();
            assert!(HEAP.summary().divided_pages.get() > before + 20, "{}", HEAP.summary());
            HEAP.purge();
            assert!(HEAP.summary().divided_pages.get() < before + 5, "{}", HEAP.summary());
            HEAP.check().expect("the table is sound");
        },
    );
}

#[test]
fn no_thread_is_refused_a_block_while_pages_of_others_have_some() {
    const LIMIT: usize = 16 << 20;
    const THREADS: usize = 4;
    succeeds(
        |command| {
            command.env("PMA_LIMIT", LIMIT.to_string());
        },
        || {
            let meeting = Arc::new(Barrier::new(THREADS + 1));
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let meeting = Arc::clone(&meeting);
                    small_thread(move || {
                        let mut blocks: Vec<Box<[u8; 64]>> = Vec::with_capacity(2_000);
                        meeting.wait();
                        meeting.wait();
                        for turn in 0..200 {
                            while blocks.len() < blocks.capacity() {
                                let mut block = Vec::new();
                                let is_served = block.try_reserve_exact(64).is_ok();
                                assert!(is_served, "block {} of turn {turn} is refused", blocks.len());
                                block.resize(64, turn as u8);
                                blocks.push(block.try_into().expect("the slice has 64 bytes"));
                            }
                            blocks.truncate(turn % 5 * 100);
                        }
                    })
                })
                .collect();
            meeting.wait();
            let mut all = Vec::with_capacity(LIMIT / 64);
            fill_up(&mut all, 64);
            // A fifth of them goes, none of which leaves a page empty, or even a quarter of one.
            let mut number = 0;
            all.retain(|_| {
                number += 1;
                number % 5 != 0
            });
            HEAP.purge();
            meeting.wait();
            threads.into_iter().for_each(|thread| thread.join().expect("no block is refused"));
            assert!(all.len() > LIMIT / 64 / 3 && all.iter().all(|block| block.len() == 64));
            HEAP.check().expect("the table is sound");
        },
    );
}

/// Small blocks in so many bytes, freed in any order: a few hundred of them, in as many pages, wait in the thread's cache.
fn come_and_go(bytes: usize) {
    let mut blocks: Vec<Box<[u8; 64]>> = (0..bytes / 64).map(|_| black_box(Box::new([1; 64]))).collect();
    let mut random = Random::new(7);
    while !blocks.is_empty() {
        drop(blocks.swap_remove(random.below(blocks.len())));
    }
}

/// A limit of 64 MiB. What waits in caches would go back some time later by itself.
fn narrow(command: &mut Command) {
    command.env("PMA_LIMIT", "64M").env("PMA_PURGE_MS", "never");
}

/// Whether most of that is served at once.
fn is_most_served() -> bool {
    black_box(Vec::<u8>::new()).try_reserve_exact(52 << 20).is_ok()
}

#[test]
fn blocks_that_wait_in_the_threads_cache_are_no_reason_to_refuse_what_fits() {
    succeeds(narrow, || {
        come_and_go(40 << 20);
        assert!(is_most_served(), "{}", HEAP.summary());
        // What grows where it is, as it has no room elsewhere.
        let mut growing = vec![1u8; 30 << 20];
        come_and_go(20 << 20);
        assert!(growing.try_reserve_exact(25 << 20).is_ok(), "{}", HEAP.summary());
        assert!(growing.iter().all(|&byte| byte == 1));
        HEAP.check().expect("the table is sound");
    });
}

#[test]
fn nor_to_refuse_growth_of_what_has_no_layout() {
    succeeds(narrow, || {
        let growing = HEAP.malloc(30 << 20);
        assert!(!growing.is_null());
        come_and_go(20 << 20);
        // SAFETY: the run is live.
        assert_eq!(unsafe { HEAP.realloc_unsized(growing, 55 << 20) }, growing, "{}", HEAP.summary());
    });
}

#[test]
fn a_block_shrinks_where_it_is_when_nothing_else_is_to_be_had() {
    succeeds(narrow, || {
        let last_of =
            |size| iter::repeat_with(|| HEAP.malloc(size)).take_while(|block| !block.is_null()).last();
        _ = [1 << 20, 30_000].map(last_of);
        let block = last_of(300).expect("there was room for one");
        last_of(7);
        // SAFETY: the block is live.
        assert_eq!((HEAP.malloc(7), unsafe { HEAP.realloc_unsized(block, 7) }), (ptr::null_mut(), block));
    });
}

#[test]
fn nor_are_those_in_the_cache_of_a_thread_that_sleeps() {
    // SAFETY: a query.
    if unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) } <= 0 {
        println!("skipped: nothing can be taken from the caches of threads that sleep");
        return;
    }
    succeeds(narrow, || {
        let meeting = Arc::new(Barrier::new(2));
        let sleeper = thread::spawn({
            let meeting = Arc::clone(&meeting);
            move || {
                come_and_go(40 << 20);
                meeting.wait();
                meeting.wait();
            }
        });
        meeting.wait();
        let is_served = is_most_served();
        meeting.wait();
        sleeper.join().expect("the thread ends well");
        assert!(is_served);
    });
}

/// Two threads are refused at a time, of which one takes from caches what the other then comes too late for.
#[test]
fn a_thread_that_comes_too_late_to_take_from_caches_asks_again() {
    // SAFETY: a query.
    if unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) } <= 0 {
        println!("skipped: nothing can be taken from the caches of threads that sleep");
        return;
    }
    const SLEEPERS: usize = 6;
    const ROUNDS: usize = 40;
    succeeds(narrow, || {
        let meeting = Arc::new(Barrier::new(SLEEPERS + 2));
        let at_once = Arc::new(Barrier::new(2));
        let fill_a_cache = || {
            for size in [512, 640, 768, 896, 1024, 2048, 4096] {
                drop((0..100_000 / size).map(|_| vec![1u8; size]).collect::<Vec<_>>());
            }
        };
        let sleepers = (0..SLEEPERS).map(|_| {
            let meeting = Arc::clone(&meeting);
            thread::spawn(move || {
                for _ in 0..ROUNDS {
                    fill_a_cache();
                    meeting.wait();
                    meeting.wait();
                }
            })
        });
        let sleepers: Vec<_> = sleepers.collect();
        let page = move || {
            let mut page = Vec::<u8>::new();
            page.try_reserve_exact(built::PAGE_SIZE).map(|()| page)
        };
        let other = thread::spawn({
            let (meeting, at_once) = (Arc::clone(&meeting), Arc::clone(&at_once));
            move || {
                for _ in 0..ROUNDS {
                    meeting.wait();
                    at_once.wait();
                    let page = page();
                    at_once.wait();
                    meeting.wait();
                    assert!(page.is_ok(), "the other thread is refused a page");
                }
            }
        });
        for _ in 0..ROUNDS {
            let mut pages = Vec::with_capacity(2 * (64 << 20) / built::PAGE_SIZE);
            meeting.wait();
            let summary = HEAP.summary();
            let used = summary.divided_pages.get() + summary.multi_pages.get();
            pages.extend((used..(64 << 20) / built::PAGE_SIZE).map(|_| page().expect("it is free")));
            at_once.wait();
            let last = page();
            at_once.wait();
            assert!(last.is_ok(), "a thread is refused a page");
            drop((pages, last));
            HEAP.purge();
            meeting.wait();
        }
        other.join().expect("the thread ends well");
        sleepers.into_iter().for_each(|sleeper| sleeper.join().expect("the thread ends well"));
    });
}

#[test]
fn a_limit_bounds_the_address_space_that_is_reserved() {
    succeeds(
        |command| {
            command.env("PMA_LIMIT", "64M");
        },
        || {
            let blocks: Vec<Vec<u8>> = (0..50).map(|_| vec![1; 1 << 20]).collect();
            assert!(blocks.iter().flatten().all(|&byte| byte == 1));
            let status = fs::read_to_string("/proc/self/status").expect("Linux tells");
            let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB"));
            let kilobytes: usize = size.expect("Linux tells").trim().parse().expect("a number");
            assert!(kilobytes < 1 << 20, "{kilobytes} KiB");
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
                println!("{served} bytes served of 2^{shift}");
                assert!(served >= (1 << shift) / 8, "little is served");
                assert!(churn(20_000) > 5_000, "it does not go on");
                assert!(HEAP.check().is_ok(), "the table is not sound");
            },
        );
        assert!(output.status.success(), "2^{shift} bytes: {}{}", output.status, text(&output.stderr));
        print!("{}", text(&output.stdout));
    }
}
