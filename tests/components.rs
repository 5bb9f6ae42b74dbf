//! Components: what is allocated inside them is theirs, wherever it is freed; limits are kept, and told.

use page_memory_allocator::size_class::built;
use page_memory_allocator::{Component, ComponentStats, PageAllocator, SoftLimitExceeded};
use std::alloc::{GlobalAlloc as _, Layout};
use std::cell::RefCell;
use std::collections::HashSet;
use std::future::Future;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::process::exit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::{mem, thread};

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};
#[path = "common/forked.rs"]
mod forked;
use forked::run_forked;
#[path = "common/mappings.rs"]
mod mappings;
use mappings::{advice_for, bytes_with_huge_pages};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;

/// Allocates blocks of one layout inside `component` until it refuses, but no more than `most`.
fn fill(component: &Component, layout: Layout, most: usize) -> Vec<*mut u8> {
    let mut blocks = Vec::with_capacity(most);
    component.enter(|| {
        while blocks.len() < most {
            // SAFETY: the layout's size is not zero.
            let block = unsafe { HEAP.alloc(layout) };
            if block.is_null() {
                break;
            }
            blocks.push(block);
        }
    });
    blocks
}

fn free_all(blocks: Vec<*mut u8>, layout: Layout) {
    for block in blocks {
        // SAFETY: the block is live and was allocated with this layout.
        unsafe { HEAP.dealloc(block, layout) };
    }
}

/// Does `work` in a thread of its own, whose caches are flushed when it is done.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn blocks_and_runs_belong_to_where_they_were_allocated() {
    static INSIDE: Component = Component::new("belonging");
    let layouts = [1, 64, 100, 5000, 32768, 40_000, 300_000].map(|size| Layout::array::<u8>(size).unwrap());
    let held = in_thread(|| {
        for layout in layouts {
            let blocks = fill(&INSIDE, layout, 20);
            let stats = INSIDE.stats();
            assert!(stats.held_bytes >= 20 * layout.size(), "{stats} after {layout:?}");
            // Outside, by another thread: they go home.
            let addresses: Vec<usize> = blocks.iter().map(|block| block.expose_provenance()).collect();
            in_thread(move || {
                for address in addresses {
                    // SAFETY: the block is live and was allocated with this layout.
                    unsafe { HEAP.dealloc(std::ptr::with_exposed_provenance_mut(address), layout) };
                }
            });
            HEAP.check().unwrap();
        }
        INSIDE.held_bytes()
    });
    // What was left waited in the thread's cache.
    assert!(held <= MIB / 2, "{held}");
    let stats = INSIDE.stats();
    assert_eq!((stats.held_bytes, stats.cached_bytes, stats.live_bytes), (0, 0, 0), "{stats}");
    assert_eq!((stats.divided_pages.get(), stats.multi_pages.get()), (0, 0), "{stats}");
    assert!(stats.peak_bytes >= 20 * 300_000, "{stats}");
}

#[test]
fn what_a_component_holds_is_a_line() {
    static LINED: Component = Component::new("lined").limit(64 << 20);
    let held = LINED.enter(|| Vec::<u8>::with_capacity(2 * MIB));
    let pages = 2 * MIB / built::PAGE_SIZE;
    let expected = format!("lined: 2.0 MiB live, 0 B cached, in {pages} pages (2.0 MiB), at most 64.0 MiB");
    assert_eq!(LINED.stats().to_string(), expected);
    drop(held);
}

#[test]
fn nothing_outside_is_counted() {
    static QUIET: Component = Component::new("quiet");
    in_thread(|| {
        QUIET.enter(|| ());
        let numbers: Vec<Vec<u64>> = (1..200).map(|len| vec![7; len]).collect();
        assert_eq!(QUIET.held_bytes(), 0);
        // Neither when the component frees it.
        QUIET.enter(|| drop(numbers));
        assert_eq!(QUIET.held_bytes(), 0);
    });
    HEAP.check().unwrap();
}

#[test]
fn pages_are_not_shared_with_components() {
    static APART: Component = Component::new("apart");
    let layout = Layout::new::<[u8; 3000]>();
    let page = |block: &*mut u8| block.addr() / built::PAGE_SIZE;
    in_thread(|| {
        let mut blocks = fill(&APART, layout, 1000);
        // Most pages of the component have room; another thread looks for some.
        let going = blocks.split_off(100);
        let kept: HashSet<usize> = blocks.iter().map(page).collect();
        free_all(going, layout);
        in_thread(|| {
            // SAFETY: the layout's size is not zero.
            let others: Vec<*mut u8> = (0..2000).map(|_| unsafe { HEAP.alloc(layout) }).collect();
            assert!(others.iter().map(page).all(|page| !kept.contains(&page)));
            // A component does not take pages of threads, though they have room.
            let (kept_by_thread, going): (Vec<_>, Vec<_>) =
                others.into_iter().enumerate().partition(|(number, _)| number % 10 == 0);
            let pages: HashSet<usize> = kept_by_thread.iter().map(|(_, block)| page(block)).collect();
            free_all(going.into_iter().map(|(_, block)| block).collect(), layout);
            let of_another = fill(&Component::new("apart too"), layout, 500);
            assert!(of_another.iter().map(page).all(|page| !pages.contains(&page) && !kept.contains(&page)));
            free_all(of_another, layout);
            free_all(kept_by_thread.into_iter().map(|(_, block)| block).collect(), layout);
        });
        free_all(blocks, layout);
    });
    HEAP.check().unwrap();
}

#[test]
fn what_is_refused_for_a_limit_is_counted_once_and_what_is_not_is_not() {
    static COUNTED: Component = Component::new("counted").limit(MIB);
    in_thread(|| {
        let refusals = || COUNTED.stats().refusals;
        let is_refused = |bytes| COUNTED.enter(|| Vec::<u8>::new().try_reserve_exact(bytes).is_err());
        assert_eq!((is_refused(2 * MIB), refusals()), (true, 1));
        let mut growing = COUNTED.enter(|| vec![1u8; MIB / 2]);
        let is_refused_more = COUNTED.enter(|| growing.try_reserve_exact(2 * MIB).is_err());
        assert_eq!((is_refused_more, refusals()), (true, 2));
        drop(growing);
        // It is served once what waits in the cache has gone back.
        COUNTED.enter(|| drop((0..8).map(|_| Box::new([1u8; 30_000])).collect::<Vec<_>>()));
        assert!(COUNTED.stats().held_bytes > 0);
        assert_eq!((is_refused(MIB), refusals()), (false, 2));
    });
}

#[test]
fn a_limit_is_kept_to_the_last_block() {
    static LIMITED: Component = Component::new("limited").limit(MIB);
    in_thread(|| {
        for size in [8, 64, 100, 1000, 4096, 20_000, 65_536, 200_000] {
            let layout = Layout::array::<u8>(size).unwrap();
            // Blocks are held by their class, runs by their pages.
            let room = match HEAP.room_for(layout).unwrap() {
                run if run > built::LARGEST_CLASS => run.next_multiple_of(built::PAGE_SIZE),
                block => block,
            };
            let refusals = LIMITED.stats().refusals;
            let blocks = fill(&LIMITED, layout, MIB);
            // What waits in the thread's cache from the round before is given back before anything is refused.
            assert_eq!(blocks.len(), MIB / room, "blocks of {size}");
            let stats = LIMITED.stats();
            assert!(stats.held_bytes <= MIB && stats.live_bytes == blocks.len() * room, "{stats}");
            assert!(stats.refusals > refusals);
            HEAP.check().unwrap();
            // Outside it does not matter.
            // SAFETY: the layout's size is not zero; the block has this layout.
            unsafe {
                let block = HEAP.alloc(layout);
                assert!(!block.is_null());
                HEAP.dealloc(block, layout);
            }
            // Wherever they are freed, they wait in one of the thread's caches.
            if size % 3 == 0 { free_all(blocks, layout) } else { LIMITED.enter(|| free_all(blocks, layout)) }
        }
    });
}

#[test]
fn collections_are_told_of_a_limit() {
    static SMALL: Component = Component::new("small").limit(150_000);
    SMALL.enter(|| {
        let mut bytes = Vec::<u8>::new();
        assert!(bytes.try_reserve_exact(200_000).is_err());
        bytes.try_reserve_exact(70_000).unwrap();
        // It would grow where it stands, but for the limit.
        assert!(bytes.try_reserve_exact(140_000).is_err());
        assert!(bytes.capacity() >= 70_000);
        SMALL.set_limit(400_000);
        bytes.try_reserve_exact(140_000).unwrap();
        bytes.shrink_to(10);
        drop(bytes);
    });
    assert!(SMALL.held_bytes() < 10_000);
    HEAP.check().unwrap();
}

#[test]
fn runs_that_grow_and_shrink_in_place_are_counted_by_their_length() {
    static RUNS: Component = Component::new("runs");
    let mut bytes: Vec<u8> = RUNS.enter(|| Vec::with_capacity(100_000));
    let mut least = 100_000;
    for target in [200_000, 1_000_000, 3_000_000] {
        RUNS.enter(|| bytes.reserve_exact(target));
        least = least.max(target);
        HEAP.check().unwrap();
        assert!((least..least + built::PAGE_SIZE).contains(&RUNS.held_bytes()), "{}", RUNS.stats());
    }
    // Resized outside, it stays with its component.
    bytes.shrink_to(2_000_000);
    HEAP.check().unwrap();
    assert_eq!(RUNS.held_bytes(), 2_000_000usize.next_multiple_of(built::PAGE_SIZE));
    bytes.reserve_exact(5_000_000);
    HEAP.check().unwrap();
    assert_eq!(RUNS.held_bytes(), 5_000_000usize.next_multiple_of(built::PAGE_SIZE));
    drop(bytes);
    assert_eq!(RUNS.held_bytes(), 0);
}

#[test]
fn a_soft_limit_is_told_outside_the_component_and_without_locks() {
    static TOLD: Mutex<Vec<(usize, String)>> = Mutex::new(Vec::new());
    static SOFT: Component = Component::new("soft").soft_limit(MIB, |exceeded: &SoftLimitExceeded| {
        let before = SOFT.held_bytes();
        // It allocates, and frees, and even inside the component, without being told of that.
        let text = format!("{} {}", exceeded.name, exceeded.soft_limit);
        assert_eq!(SOFT.held_bytes(), before);
        SOFT.enter(|| drop(vec![0u8; 2 * MIB]));
        HEAP.check().unwrap();
        TOLD.lock().unwrap().push((exceeded.held_bytes, text));
    });
    in_thread(|| {
        let layout = Layout::new::<[u8; 1000]>();
        let count = MIB / 1024;
        let mut blocks = fill(&SOFT, layout, count - 100);
        assert_eq!(TOLD.lock().unwrap().len(), 0);
        blocks.extend(fill(&SOFT, layout, 200));
        {
            let told = TOLD.lock().unwrap();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].0 > MIB && told[0].1 == format!("soft {MIB}"), "{told:?}");
        }
        // Once, until it is exceeded anew.
        blocks.extend(fill(&SOFT, layout, 500));
        assert_eq!(TOLD.lock().unwrap().len(), 1);
        free_all(mem::take(&mut blocks), layout);
        free_all(fill(&SOFT, layout, 2 * count), layout);
        assert_eq!(TOLD.lock().unwrap().len(), 2);
    });
}

/// Runs of a component, grown where they stand and by moving their memory, inside and outside of it. In a process of its
/// own, where nobody else has the pages behind them.
#[test]
fn a_soft_limit_is_told_when_a_run_grows() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    fn listen(exceeded: &SoftLimitExceeded) {
        // It may allocate, and is outside.
        drop(black_box(vec![exceeded.name; 1000]));
        TOLD.fetch_add(1, Ordering::Relaxed);
    }
    let output = in_child(
        |_| (),
        || {
            let mut in_holes = Vec::new();
            for (name, moved, inside) in [
                ("grown inside", false, true),
                ("grown outside", false, false),
                ("moved inside", true, true),
                ("moved outside", true, false),
            ] {
                // Shorter runs than a MiB are moved by copying them.
                let (soft_limit, before) = if moved { (3 * MIB, 2 * MIB) } else { (MIB, 500_000) };
                let component = Component::new(name).soft_limit(soft_limit, listen);
                // The run lies above all holes, and nothing behind it but what comes after.
                in_holes.extend((0..64).map(|_| Vec::<u8>::with_capacity(before)));
                let mut run: Vec<u8> = component.enter(|| Vec::with_capacity(before));
                let behind: Vec<u8> = Vec::with_capacity(if moved { before } else { 10 });
                let start = run.as_ptr();
                let mut grow = || run.reserve_exact(2 * soft_limit);
                if inside {
                    component.enter(grow)
                } else {
                    grow()
                }
                assert_eq!(run.as_ptr() != start, moved, "{name}");
                assert_eq!(TOLD.swap(0, Ordering::Relaxed), 1, "{name}");
                // Not told again, as it is still exceeded.
                run.reserve_exact(3 * soft_limit);
                assert_eq!(TOLD.load(Ordering::Relaxed), 0, "{name}");
                drop((run, behind));
                HEAP.check().unwrap();

                // The same for those who know no layouts.
                let run = component.enter(|| HEAP.malloc(before));
                let behind = if moved { HEAP.malloc(before) } else { std::ptr::null_mut() };
                let grow = || {
                    // SAFETY: the run is live, and not used after this.
                    unsafe { HEAP.realloc_unsized(run, 2 * soft_limit) }
                };
                let longer = if inside { component.enter(grow) } else { grow() };
                assert_eq!(longer != run, moved, "{name}");
                assert_eq!(TOLD.swap(0, Ordering::Relaxed), 1, "{name}");
                // SAFETY: both are live or null.
                unsafe {
                    HEAP.free(longer);
                    HEAP.free(behind);
                }
            }
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

/// A run that is moved counts once against the limit of its component.
#[test]
fn a_run_is_moved_within_a_limit_that_has_no_room_for_two() {
    let output = in_child(
        |_| (),
        || {
            static LIMITED: Component = Component::new("moves").limit(10 * MIB);
            let mut run: Vec<u8> = LIMITED.enter(|| Vec::with_capacity(6 * MIB));
            // It cannot grow where it is.
            let in_holes: Vec<Vec<u8>> = (0..8).map(|_| Vec::with_capacity(MIB)).collect();
            let behind = run.as_ptr().addr() + 6 * MIB..run.as_ptr().addr() + 9 * MIB;
            assert!(in_holes.iter().any(|hole| behind.contains(&hole.as_ptr().addr())));
            let start = run.as_ptr();
            run.extend([1, 2, 3]);
            run.reserve_exact(9 * MIB);
            assert!(run.as_ptr() != start && run[..] == [1, 2, 3]);
            HEAP.check().unwrap();
            assert!(LIMITED.enter(|| Vec::<u8>::new().try_reserve_exact(2 * MIB)).is_err());
            drop(run);
            HEAP.check().unwrap();
            assert!(LIMITED.enter(|| Vec::<u8>::new().try_reserve_exact(9 * MIB)).is_ok());
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

/// What waits in the thread's caches is given back before a run may not grow for it.
#[test]
fn a_run_grows_to_the_last_page_of_a_limit() {
    let output = in_child(
        |_| (),
        || {
            for (name, inside) in [("to the limit, inside", true), ("to the limit, outside", false)] {
                let component = Component::new(name).limit(MIB);
                let mut run: Vec<u8> = component.enter(|| Vec::with_capacity(MIB - built::PAGE_SIZE));
                component.enter(|| drop((1..100usize).map(|len| vec![1u8; len]).collect::<Vec<_>>()));
                let waiting = component.enter(|| vec![1u8; 3000]);
                drop(waiting);
                assert!(component.stats().cached_bytes > 0);
                let start = run.as_ptr();
                let mut grow = || run.try_reserve_exact(MIB);
                let grown = if inside { component.enter(grow) } else { grow() };
                assert_eq!((grown, run.as_ptr()), (Ok(()), start), "{name}: {}", component.stats());
                assert_eq!(component.held_bytes(), MIB, "{name}");
                HEAP.check().unwrap();
            }
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

#[test]
fn a_listener_that_unwinds_ends_the_process() {
    static RUDE: Component = Component::new("rude").soft_limit(1000, |_| panic!("too much"));
    let output = in_child(
        |_| (),
        || {
            std::panic::set_hook(Box::new(|_| ()));
            let unwound = catch_unwind(|| RUDE.enter(|| vec![1u8; 5000]));
            exit(if unwound.is_err() { 3 } else { 4 });
        },
    );
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", output.status);
}

#[test]
fn components_nest_and_are_left_by_panics() {
    static OUTER: Component = Component::new("outer");
    static INNER: Component = Component::new("inner");
    in_thread(|| {
        let block = || vec![1u8; 100_000];
        let (first, second, third) = OUTER.enter(|| {
            let first = block();
            let second = INNER.enter(|| OUTER.enter(|| INNER.enter(block)));
            let unwound =
                catch_unwind(AssertUnwindSafe(|| INNER.enter(|| resume_unwind(Box::new("out of here")))));
            assert!(unwound.is_err());
            (first, second, block())
        });
        let fourth = block();
        let runs = 2 * 64 * 1024;
        assert_eq!(OUTER.stats().multi_pages.get() << 16, 2 * runs, "{}", OUTER.stats());
        assert_eq!(INNER.stats().multi_pages.get() << 16, runs, "{}", INNER.stats());
        drop((first, second, third, fourth));
    });
    assert_eq!(OUTER.stats().multi_pages.get(), 0);
}

#[test]
fn one_name_is_one_component() {
    static ONE: Component = Component::new("namesake");
    static OTHER: Component = Component::new("namesake");
    let bytes = ONE.enter(|| vec![0u8; 200_000]);
    assert_eq!(OTHER.held_bytes(), ONE.held_bytes());
    assert!(OTHER.held_bytes() >= bytes.len());
}

/// Ready when polled for the second time.
#[derive(Default)]
struct Pause(bool);

impl Future for Pause {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[test]
fn a_future_is_inside_whenever_it_is_polled() {
    static TASK: Component = Component::new("task");
    static OTHER: Component = Component::new("other task");
    async fn work() -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        for _ in 0..4 {
            blocks.push(vec![1u8; 100_000]);
            Pause::default().await;
        }
        blocks
    }
    let (task, other) = (TASK.wrap(work()), OTHER.wrap(work()));
    let poll = |future: Pin<&mut (dyn Future<Output = Vec<Vec<u8>>> + Send)>| {
        in_thread(|| future.poll(&mut Context::from_waker(Waker::noop())))
    };
    let (mut task, mut other) = (pin!(task), pin!(other));
    for polls in 1..=4 {
        // Each time on another thread, and in turns.
        assert!(poll(task.as_mut()).is_pending());
        let between = vec![1u8; 100_000];
        assert!(poll(other.as_mut()).is_pending());
        for component in [&TASK, &OTHER] {
            assert_eq!(component.stats().multi_pages.get(), 2 * polls, "{}", component.stats());
        }
        drop(between);
    }
    let (Poll::Ready(blocks), Poll::Ready(others)) = (poll(task.as_mut()), poll(other.as_mut())) else {
        panic!("both are done");
    };
    drop((blocks, others));
    assert_eq!((TASK.stats().multi_pages.get(), OTHER.stats().multi_pages.get()), (0, 0));
}

#[test]
fn a_thread_that_ends_inside_leaves_nothing_behind() {
    static LEFT: Component = Component::new("left");
    thread_local! {
        static GUARD: RefCell<Option<page_memory_allocator::Inside>> = const { RefCell::new(None) };
        static LATE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    }
    for _ in 0..50 {
        in_thread(|| {
            LATE.with_borrow_mut(|late| late.push(vec![1; 10]));
            let guard = LEFT.inside();
            LATE.with_borrow_mut(|late| late.extend((1..100).map(|len| vec![2; len])));
            GUARD.with_borrow_mut(|place| *place = Some(guard));
        });
        in_thread(|| mem::forget(LEFT.inside()));
    }
    assert_eq!(LEFT.held_bytes(), 0, "{}", LEFT.stats());
    HEAP.check().unwrap();
}

/// The last that a thread does is to call the destructors of its keys, one of which empties its caches.
#[test]
fn a_component_may_be_left_after_the_caches_are_gone() {
    static LATE: Component = Component::new("late");
    extern "C" fn leave(guard: *mut libc::c_void) {
        // SAFETY: the value is the guard, given up by the thread that ends.
        drop(unsafe { Box::from_raw(guard.cast::<page_memory_allocator::Inside>()) });
        LATE.enter(|| drop((1..100usize).map(|len| vec![1u8; len]).collect::<Vec<_>>()));
    }
    // The allocator's own key is older than this one, and comes first.
    let mut key = 0;
    // SAFETY: the key is written.
    assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(leave)) }, 0);
    for _ in 0..20 {
        in_thread(|| {
            let guard = Box::into_raw(Box::new(LATE.inside()));
            drop((1..100usize).map(|len| vec![1u8; len]).collect::<Vec<_>>());
            // SAFETY: the key exists; its function takes such a guard.
            unsafe { libc::pthread_setspecific(key, guard.cast()) };
        });
    }
    assert_eq!(LATE.held_bytes(), 0, "{}", LATE.stats());
    HEAP.check().unwrap();
}

#[test]
fn a_purge_leaves_nothing_in_the_cache_for_a_component_of_the_thread_that_asks_for_it() {
    static INSIDE: Component = Component::new("purged");
    in_thread(|| {
        INSIDE.enter(|| drop([16, 100, 1_000, 5_000].map(|size| black_box(vec![1u8; size]))));
        assert!(INSIDE.held_bytes() > 0);
        HEAP.purge();
        assert_eq!(INSIDE.held_bytes(), 0);
    });
}

#[test]
fn threads_share_a_component() {
    static SHARED: Component = Component::new("shared").limit(8 * MIB);
    static EXCHANGE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 1..=4usize {
            let (stop, refused) = (&stop, &refused);
            scope.spawn(move || {
                let mut size = seed;
                while !stop.load(Ordering::Relaxed) {
                    let mut held = Vec::with_capacity(600);
                    for _ in 0..500 {
                        size = (size * 31 + 7) % 20_000;
                        let mut bytes = Vec::<u8>::new();
                        match SHARED.enter(|| bytes.try_reserve_exact(1 + size)) {
                            Ok(()) => held.push(bytes),
                            Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                        }
                    }
                    let mut exchange = EXCHANGE.lock().unwrap();
                    exchange.append(&mut held);
                    let kept = exchange.len() / 2;
                    let theirs = exchange.split_off(kept);
                    drop(exchange);
                    drop(theirs);
                }
            });
        }
        for _ in 0..30 {
            HEAP.check().unwrap();
            let stats = SHARED.stats();
            assert!(stats.held_bytes <= 8 * MIB && stats.peak_bytes <= 8 * MIB, "{stats}");
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    EXCHANGE.lock().unwrap().clear();
    HEAP.check().unwrap();
}

#[test]
fn who_gives_memory_up_is_not_refused_for_a_limit() {
    static LOWERED: Component = Component::new("of which the limit is lowered").limit(64 * MIB);
    let output = in_child(
        |_| (),
        || {
            let mut all: Vec<Vec<u8>> =
                LOWERED.enter(|| (0..200).map(|number| vec![number as u8; 20_000]).collect());
            let before = LOWERED.held_bytes();
            LOWERED.set_limit(MIB);
            LOWERED.enter(|| {
                for block in &mut all {
                    block.truncate(1_000);
                    block.shrink_to_fit();
                }
                assert!(Vec::<u8>::new().try_reserve_exact(MIB).is_err(), "more is refused");
            });
            for (number, block) in all.iter().enumerate() {
                assert!(block.capacity() == 1_000 && block.iter().all(|&byte| byte == number as u8));
            }
            HEAP.purge();
            assert!(LOWERED.held_bytes() < before / 2, "{}", LOWERED.stats());
            drop(all);
            HEAP.check().unwrap();
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

#[test]
fn what_is_freed_outside_is_not_live_though_it_waits_to_go_home() {
    let component = Component::new("freed outside");
    for size in (1..=100).map(|number| number * 64) {
        let blocks: Vec<Vec<u8>> = component.enter(|| (0..10).map(|_| vec![1u8; size]).collect());
        let kept = component.enter(|| vec![1u8; size]);
        // The list, too, is freed here.
        drop(blocks);
        let stats = component.stats();
        // SAFETY: the block is live.
        let held = unsafe { HEAP.usable_size(kept.as_ptr()) };
        // One that is sampled has a page of its own.
        let is_held =
            stats.live_bytes == held || (cfg!(feature = "profile") && stats.live_bytes == built::PAGE_SIZE);
        assert!(is_held, "{size}: {stats}");
    }
}

#[test]
fn a_child_process_has_the_components_of_its_parent() {
    static FORKED: Component = Component::new("forked");
    let output = in_child(
        // However long it takes, what waits in caches stays there.
        |command| _ = command.env("PMA_PURGE_MS", "never"),
        || {
            let stop = AtomicBool::new(false);
            // Something waits in a cache that this thread is not using when it forks.
            let third = Component::new("forked, too, and apart");
            third.enter(|| drop(vec![0u8; 100]));
            assert!(third.stats().cached_bytes > 0);
            thread::scope(|scope| {
                for size in [100usize, 3000, 100_000] {
                    let stop = &stop;
                    scope.spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            let name: &str = if size % 200 == 0 { "forked" } else { "forked too" };
                            let component = Component::new(name);
                            drop(component.enter(|| (1..50).map(|_| vec![1u8; size]).collect::<Vec<_>>()));
                        }
                    });
                }
                for _ in 0..40 {
                    let kept = FORKED.enter(|| vec![3u8; 1000]);
                    let inside = FORKED.inside();
                    run_forked(|| {
                        HEAP.check().unwrap();
                        let more: Vec<Vec<u8>> = (1..500).map(|len| vec![4; len]).collect();
                        thread::spawn(|| FORKED.enter(|| black_box(vec![5u8; 100]))).join().unwrap();
                        let new = Component::new("of the child").enter(|| vec![6u8; 100]);
                        drop((more, new));
                        assert_eq!(kept.len(), 1000);
                        assert!(third.stats().cached_bytes > 0);
                        HEAP.check().unwrap();
                    })
                    .unwrap();
                    drop(inside);
                }
                stop.store(true, Ordering::Relaxed);
            });
            HEAP.check().unwrap();
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

#[test]
fn a_child_process_is_told_of_a_soft_limit_though_another_thread_was_being_told_as_it_forked() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    static GO_ON: AtomicBool = AtomicBool::new(false);
    static SOFT: Component = Component::new("told of in a child").soft_limit(MIB, |_| {
        TOLD.fetch_add(1, Ordering::Relaxed);
        while !GO_ON.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    });
    let output = in_child(
        |_| (),
        || {
            let some = || SOFT.enter(|| vec![1u8; 600_000]);
            let first = some();
            thread::scope(|scope| {
                scope.spawn(|| drop(some()));
                while TOLD.load(Ordering::Relaxed) == 0 {
                    thread::yield_now();
                }
                let ended = run_forked(|| {
                    GO_ON.store(true, Ordering::Relaxed);
                    drop(first);
                    drop(some());
                    assert_eq!(TOLD.load(Ordering::Relaxed), 2, "the child was told of nothing");
                });
                GO_ON.store(true, Ordering::Relaxed);
                ended.unwrap();
            });
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

/// Others keep their huge pages.
#[test]
fn blocks_of_components_do_without_huge_pages() {
    static SPARSE: Component = Component::new("sparse");
    if std::fs::metadata("/sys/kernel/mm/transparent_hugepage").is_err() {
        return eprintln!("this system has no huge pages");
    }
    let output = in_child(
        |_| (),
        || {
            let layout = Layout::new::<[u8; 4096]>();
            // SAFETY: the size is not zero.
            let others = |count| (0..count).map(|_| unsafe { HEAP.alloc(layout) }).collect::<Vec<_>>();
            let mut kept = others(32_000);
            let before = bytes_with_huge_pages();
            assert!(before > 60 * MIB, "{before}");
            let blocks = fill(&SPARSE, Layout::new::<[u8; 100]>(), 10);
            let (after, at_block) = (bytes_with_huge_pages(), advice_for(blocks[0].addr()));
            assert!(after + 2 * MIB >= before, "{after} of {before}");
            assert_eq!(at_block, "nh");
            let most = fill(&SPARSE, layout, 80_000);
            assert_eq!(advice_for(most[79_999].addr()), "nh");
            kept.extend(others(32_000));
            for number in [16_000, 31_999, 63_999] {
                assert_eq!(advice_for(kept[number].addr()), "hg", "{number}");
            }
            free_all(blocks, Layout::new::<[u8; 100]>());
            free_all([kept, most].concat(), layout);
            HEAP.check().unwrap();
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

#[test]
fn dump_and_statistics_name_components() {
    static SHOWN: Component = Component::new("shown in dumps").limit(64 * MIB);
    let kept = SHOWN.enter(|| (vec![1u8; 777], vec![1u8; 500_000]));
    let mut dump = String::new();
    HEAP.dump_to(&mut dump).unwrap();
    let lines = |what: &str| dump.lines().filter(|line| line.contains(what)).count();
    assert!(lines(".Status: Divided;") > 1);
    let named: Vec<&str> =
        dump.lines().filter(|line| line.ends_with(";Component: shown in dumps;")).collect();
    assert_eq!(named.len(), 2, "{dump}");
    assert!(named.iter().any(|line| line.contains("Divided") && line.contains("Class size: 832")), "{dump}");
    assert!(named.iter().any(|line| line.contains(".Status: Multi;")), "{dump}");
    let last = dump.lines().find(|line| line.starts_with("Component: shown in dumps: "));
    assert!(last.is_some_and(|line| line.ends_with("at most 64.0 MiB")), "{dump}");

    let mut seen: Option<ComponentStats> = None;
    HEAP.components(|stats| seen = seen.or((stats.name == "shown in dumps").then_some(stats)));
    let stats = seen.expect("it was entered");
    assert_eq!((stats.limit, stats.soft_limit), (Some(64 * MIB), None));
    assert!(stats.live_bytes >= kept.0.len() + kept.1.len());
    assert_eq!((stats.divided_pages.get(), stats.multi_pages.get()), (1, 8));
}

#[test]
fn a_name_stays_on_its_line() {
    let output = in_child(
        |_| (),
        || {
            let kept = Component::new("two\nlines: \u{1b}[1m, and \"é\"").enter(|| vec![1u8; 777]);
            let mut dump = String::with_capacity(1 << 20);
            HEAP.dump_to(&mut dump).unwrap();
            let name = r#"two\nlines: \u{1b}[1m, and "é""#;
            let ending = format!(";Component: {name};");
            assert_eq!(dump.lines().filter(|line| line.ends_with(&ending)).count(), 1, "{dump}");
            assert!(dump.contains(&format!("Component: {name}: ")), "{dump}");
            drop(kept);
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

/// Two components have a page each, in the same condition and side by side.
#[test]
fn pages_of_different_components_have_lines_of_their_own() {
    let output = in_child(
        |_| (),
        || {
            let names = ["first", "second"];
            let kept = names.map(|name| Component::new(name).enter(|| vec![1u8; 20_000]));
            let mut dump = String::with_capacity(1 << 20);
            HEAP.dump_to(&mut dump).unwrap();
            for name in names {
                let ending = format!(";Component: {name};");
                assert_eq!(dump.lines().filter(|line| line.ends_with(&ending)).count(), 1, "{dump}");
            }
            drop(kept);
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

#[test]
fn when_there_are_too_many_components_the_rest_is_outside() {
    let output = in_child(
        |_| (),
        || {
            let names: Vec<&'static str> = (0..300).map(|n| &*format!("number {n}").leak()).collect();
            let components: Vec<Component> = names.iter().map(|name| Component::new(name)).collect();
            let kept: Vec<Vec<u8>> =
                components.iter().map(|component| component.enter(|| vec![1; 100])).collect();
            let known = components.iter().filter(|component| component.held_bytes() > 0).count();
            assert_eq!(known, 256 - built::SHARDS - usize::from(cfg!(feature = "profile")));
            HEAP.check().unwrap();
            drop(kept);
            HEAP.check().unwrap();
        },
    );
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}
