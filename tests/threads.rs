//! The process heap under many threads: as they are born, at work, and beyond their end.

use page_memory_allocator::size_class::built;
use page_memory_allocator::{Component, PageAllocator};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::RefCell;
use std::ffi::c_void;
use std::iter;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};
#[path = "common/pattern.rs"]
mod pattern;
use pattern::{fill, verify};
#[path = "common/random.rs"]
mod random;
use random::Random;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// Held by the test that runs: each wants to know what it does to the heap by itself.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes in blocks and runs, thread caches included.
fn live_bytes() -> usize {
    let census = HEAP.check().unwrap();
    census.live_block_bytes + census.multi_pages * built::PAGE_SIZE
}

/// Runs `work` in a thread of its own. Once that has ended, the heap must hold what it held before, give or take what
/// the test harness does meanwhile.
fn nothing_is_stranded(work: impl FnOnce() + Send + 'static) {
    // Guard pages, which stay where they are, count as live.
    const ELSEWHERE: usize = if cfg!(feature = "hardened") { 8 << 20 } else { 64 << 10 };
    // The caller's own cache has what threads are made of.
    thread::spawn(|| ()).join().unwrap();
    let before = live_bytes();
    thread::spawn(work).join().unwrap();
    let after = live_bytes();
    assert!(after < before + ELSEWHERE, "{before} bytes live before, {after} after");
}

/// A block that any thread may look at and free.
struct Parcel {
    start: *mut u8,
    layout: Layout,
    seed: usize,
}

// SAFETY: a parcel owns its block.
unsafe impl Send for Parcel {}

impl Parcel {
    fn new(random: &mut Random) -> Parcel {
        let size = match random.below(100) {
            0 => random.below(3 * built::PAGE_SIZE),
            1..10 => random.below(8_000),
            10..30 => random.below(1_000),
            _ => random.below(100),
        };
        let align = if random.below(8) == 0 { 1 << random.below(9) } else { 1 };
        let layout = Layout::from_size_align(size + 1, align).unwrap();
        let seed = random.below(1 << 30);
        // SAFETY: the size is not zero, and the block is filled as far as it reaches.
        unsafe {
            let start = if seed.is_multiple_of(16) { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) };
            assert!(!start.is_null() && start.addr().is_multiple_of(align));
            fill(start, layout.size(), seed);
            Parcel { start, layout, seed }
        }
    }

    fn resized(mut self, size: usize) -> Parcel {
        // SAFETY: the block is live and has that layout, then the new one; it is as long as what is looked at.
        unsafe {
            self.start = HEAP.realloc(self.start, self.layout, size);
            assert!(!self.start.is_null());
            verify(self.start, size.min(self.layout.size()), self.seed);
            self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
            fill(self.start, size, self.seed);
        }
        self
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        // SAFETY: the block is live, has that layout, and is given up.
        unsafe {
            verify(self.start, self.layout.size(), self.seed);
            HEAP.dealloc(self.start, self.layout);
        }
    }
}

#[test]
fn threads_that_exchange_blocks_find_them_as_they_were() {
    const THREADS: u64 = 20;
    let _turn = turn();
    nothing_is_stranded(|| {
        let shelf: Arc<Vec<Mutex<Option<Parcel>>>> = Arc::new((0..400).map(|_| Mutex::new(None)).collect());
        let threads: Vec<_> = (0..THREADS)
            .map(|seed| {
                let shelf = Arc::clone(&shelf);
                thread::spawn(move || {
                    let mut random = Random::new(seed + 1);
                    let mut own: Vec<Parcel> = Vec::new();
                    for _ in 0..15_000 {
                        let parcel = Parcel::new(&mut random);
                        match random.below(4) {
                            0 => own.push(parcel),
                            1 => drop(parcel),
                            _ => {
                                // Others find it, and free it or pass it on.
                                let found = shelf[random.below(shelf.len())].lock().unwrap().replace(parcel);
                                if let Some(parcel) = found {
                                    match random.below(8) {
                                        0 => own.push(parcel.resized(random.below(2_000) + 1)),
                                        1 => own.push(parcel),
                                        _ => drop(parcel),
                                    }
                                }
                            }
                        }
                        if own.len() > 300 {
                            own.truncate(random.below(300));
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        HEAP.check().unwrap();
    });
}

#[test]
fn thousands_of_threads_come_and_go_and_leave_blocks_behind() {
    let _turn = turn();
    nothing_is_stranded(|| {
        let left: Arc<Mutex<Vec<Parcel>>> = Arc::default();
        for wave in 0..150u64 {
            let threads: Vec<_> = (0..20)
                .map(|thread| {
                    let left = Arc::clone(&left);
                    thread::spawn(move || {
                        let mut random = Random::new(wave * 100 + thread);
                        let own: Vec<Parcel> = (0..40).map(|_| Parcel::new(&mut random)).collect();
                        let mut left = left.lock().unwrap();
                        for parcel in own {
                            if random.below(2) == 0 {
                                left.push(parcel);
                            }
                            // What threads before this one left is freed here.
                            if left.len() > 500 {
                                let at = random.below(left.len());
                                drop(left.swap_remove(at));
                            }
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        HEAP.check().unwrap();
        assert!(left.lock().unwrap().len() >= 500);
    });
}

#[test]
fn the_caches_of_threads_that_ended_are_used_by_the_next() {
    static INSIDE: Component = Component::new("of threads");
    let _turn = turn();
    let some = || drop((1..300).map(|size| vec![1u8; size]).collect::<Vec<_>>());
    let work = move || {
        some();
        INSIDE.enter(some);
    };
    let several = |count: usize| (0..count).for_each(|_| thread::spawn(work).join().unwrap());
    // What is mapped for them doubles each time: more than once, if each left something behind.
    several(10);
    let before = HEAP.summary().table_bytes;
    several(500);
    let more = HEAP.summary().table_bytes.saturating_sub(before);
    assert!(more < 1 << 20, "{more} bytes more");
}

#[test]
fn blocks_that_always_go_one_way_do_not_pile_up() {
    let _turn = turn();
    nothing_is_stranded(|| {
        let (sender, receiver) = mpsc::sync_channel::<Box<[usize; 25]>>(1_000);
        let producer = thread::spawn(move || {
            for number in 0..300_000 {
                sender.send(Box::new([number; 25])).unwrap();
            }
        });
        let start = HEAP.check().unwrap().divided_pages;
        for (number, block) in receiver.into_iter().enumerate() {
            assert_eq!(*block, [number; 25]);
            drop(block);
            if number % 10_000 == 0 {
                let pages = HEAP.check().unwrap().divided_pages;
                assert!(pages < start + (8 << 20) / built::PAGE_SIZE, "{start} pages at first, {pages} now");
            }
        }
        producer.join().unwrap();
    });
}

/// Counts what ran.
static RAN: AtomicUsize = AtomicUsize::new(0);

/// Allocates, keeps nothing, and is content with what it finds.
fn use_heap(seed: u64) {
    let mut random = Random::new(seed);
    let parcels: Vec<Parcel> = (0..60).map(|_| Parcel::new(&mut random)).collect();
    drop(parcels);
    RAN.fetch_add(1, Ordering::Relaxed);
}

/// Uses the heap when it is dropped, and frees what it held until then.
struct Late(#[allow(dead_code)] Vec<Parcel>);

impl Drop for Late {
    fn drop(&mut self) {
        use_heap(1);
    }
}

thread_local! {
    static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
    static LATER: RefCell<Option<Late>> = const { RefCell::new(None) };
}

fn be_late() {
    let late = |seed| Some(Late((0..10).map(|_| Parcel::new(&mut Random::new(seed))).collect()));
    LATE.set(late(2));
    LATER.set(late(3));
}

#[test]
fn destructors_of_thread_locals_use_the_heap() {
    let _turn = turn();
    nothing_is_stranded(|| {
        let before = RAN.load(Ordering::Relaxed);
        for _ in 0..200 {
            thread::spawn(be_late).join().unwrap();
        }
        assert_eq!(RAN.load(Ordering::Relaxed), before + 2 * 200);
        HEAP.check().unwrap();
    });
}

/// Keys of the C library whose destructors use the heap: one made before the allocator made its own, one after that.
static KEYS: OnceLock<[libc::pthread_key_t; 2]> = OnceLock::new();

/// The same, whose values are numbers of rounds: in the last of them the destructor uses the heap, not before.
static LAST_ROUND_KEYS: OnceLock<[libc::pthread_key_t; 2]> = OnceLock::new();

fn new_key(destructor: unsafe extern "C" fn(*mut c_void)) -> libc::pthread_key_t {
    let mut key = 0;
    // SAFETY: the key is written; the destructor takes the values that are set.
    assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(destructor)) }, 0);
    key
}

unsafe extern "C" fn in_the_last_round(value: *mut c_void) {
    // Four bits for the key, the rest for the round.
    let (key, rounds) = (value.addr() & 15, value.addr() >> 4);
    if rounds > 1 {
        let key = LAST_ROUND_KEYS.get().expect("the keys were made before main")[key];
        set_key(key, value.wrapping_byte_sub(1 << 4));
    } else {
        use_heap(rounds as u64);
    }
}

/// So many times the C library calls the destructors of values that are set anew.
const ROUNDS: u64 = 4;

/// The value of a key, whose destructor runs `rounds` times.
struct AtKey {
    key: libc::pthread_key_t,
    rounds: u64,
    kept: String,
}

impl AtKey {
    fn value(key: libc::pthread_key_t, rounds: u64) -> *mut c_void {
        Box::into_raw(Box::new(AtKey { key, rounds, kept: String::from("until the end") })).cast()
    }
}

fn set_key(key: libc::pthread_key_t, value: *mut c_void) {
    // SAFETY: the key exists, and the value is what its destructor takes.
    assert_eq!(unsafe { libc::pthread_setspecific(key, value) }, 0);
}

fn set_keys() {
    for &key in KEYS.get().expect("the keys were made before main") {
        set_key(key, AtKey::value(key, ROUNDS));
    }
}

unsafe extern "C" fn at_key(value: *mut c_void) {
    // SAFETY: every value of a key is one of `AtKey::value`, and is passed on once.
    let AtKey { key, rounds, kept } = *unsafe { Box::from_raw(value.cast::<AtKey>()) };
    assert_eq!(kept, "until the end");
    use_heap(rounds);
    if rounds > 1 {
        set_key(key, AtKey::value(key, rounds - 1));
    }
}

#[test]
fn destructors_of_the_c_librarys_keys_use_the_heap_when_the_cache_is_gone() {
    let _turn = turn();
    nothing_is_stranded(|| {
        let before = RAN.load(Ordering::Relaxed);
        for round in 0..200 {
            let thread = thread::spawn(move || {
                set_keys();
                if round % 2 == 0 {
                    be_late();
                }
            });
            thread.join().unwrap();
        }
        assert_eq!(RAN.load(Ordering::Relaxed), before + 2 * ROUNDS as usize * 200 + 2 * 100);
        HEAP.check().unwrap();
    });
}

#[test]
fn a_thread_of_the_c_library_that_first_allocates_in_a_destructor_strands_nothing() {
    extern "C" fn allocate_nothing(value: *mut c_void) -> *mut c_void {
        set_key(KEYS.get().unwrap()[1], value);
        ptr::null_mut()
    }
    let _turn = turn();
    nothing_is_stranded(|| {
        let before = RAN.load(Ordering::Relaxed);
        for _ in 0..200 {
            let value = AtKey::value(KEYS.get().unwrap()[1], 2);
            let mut thread = MaybeUninit::uninit();
            // SAFETY: the thread is joined, and its value is one of a key.
            unsafe {
                let made = libc::pthread_create(thread.as_mut_ptr(), ptr::null(), allocate_nothing, value);
                assert_eq!(made, 0);
                assert_eq!(libc::pthread_join(thread.assume_init(), ptr::null_mut()), 0);
            }
        }
        assert_eq!(RAN.load(Ordering::Relaxed), before + 2 * 200);
        HEAP.check().unwrap();
    });
}

#[test]
fn a_thread_that_first_allocates_in_any_round_of_destructors_is_served() {
    extern "C" fn allocate_nothing(value: *mut c_void) -> *mut c_void {
        set_key(LAST_ROUND_KEYS.get().unwrap()[value.addr() & 15], value);
        ptr::null_mut()
    }
    // What stays behind would be in the way of other tests.
    let output = in_child(
        |_| (),
        || {
            let last = (1, ROUNDS as usize);
            for (key, rounds) in (0..2).flat_map(|key| (1..=last.1).map(move |rounds| (key, rounds))) {
                let threads = if (key, rounds) == last { 5 } else { 100 };
                let (before, ran) = (live_bytes(), RAN.load(Ordering::Relaxed));
                for _ in 0..threads {
                    let mut thread = MaybeUninit::uninit();
                    // SAFETY: the thread is joined, and its value is one of a key.
                    unsafe {
                        let value = ptr::without_provenance_mut(rounds << 4 | key);
                        let made =
                            libc::pthread_create(thread.as_mut_ptr(), ptr::null(), allocate_nothing, value);
                        assert_eq!(made, 0);
                        assert_eq!(libc::pthread_join(thread.assume_init(), ptr::null_mut()), 0);
                    }
                }
                assert_eq!(RAN.load(Ordering::Relaxed), ran + threads);
                let each = live_bytes().saturating_sub(before) / threads;
                println!("round {rounds}, key {key}: {each} bytes stay behind for each thread");
                // The allocator's own destructor comes between these two. After its last call nobody empties a cache.
                let most = if (key, rounds) == last { 512 << 10 } else { 1 << 10 };
                assert!(each <= most, "round {rounds}, key {key}: {each} bytes for each thread");
                HEAP.check().unwrap();
            }
        },
    );
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// What was allocated before `main`.
static EARLY: OnceLock<(Vec<String>, Mutex<Vec<Parcel>>)> = OnceLock::new();

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    // The allocator makes its key when it first serves this thread: in between.
    let first = [new_key(at_key), new_key(in_the_last_round)];
    let words = (0..1_000).map(|number| number.to_string()).collect();
    let mut parcels: Vec<Parcel> = (0..500).map(|seed| Parcel::new(&mut Random::new(seed))).collect();
    parcels.truncate(300);
    EARLY.get_or_init(|| (words, Mutex::new(parcels)));
    KEYS.get_or_init(|| [first[0], new_key(at_key)]);
    LAST_ROUND_KEYS.get_or_init(|| [first[1], new_key(in_the_last_round)]);
}

#[test]
fn what_was_allocated_before_main_is_there_and_can_be_freed() {
    let _turn = turn();
    let (words, parcels) = EARLY.get().expect("it ran before main");
    assert!(words.iter().enumerate().all(|(at, word)| word.parse() == Ok(at)));
    parcels.lock().unwrap().clear();
    HEAP.check().unwrap();
}

extern "C" fn at_exit() {
    use_heap(4);
    HEAP.check().unwrap();
    println!("{} at exit", RAN.load(Ordering::Relaxed));
}

#[test]
fn handlers_at_the_exit_of_the_process_use_the_heap() {
    let output = in_child(
        |_| (),
        || {
            be_late();
            set_keys();
            // SAFETY: the handler takes nothing.
            assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
        },
    );
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    // After the thread-locals of the thread that ends the process, if those are not kept by a key; keys are passed over.
    let ran = if cfg!(target_env = "musl") { "1 at exit" } else { "3 at exit" };
    assert!(text(&output.stdout).contains(ran), "{}", text(&output.stdout));
}

/// Bytes of blocks that each of so many threads keeps in its cache, on average, after it has freed far more of every
/// size.
fn cached_by_each_of(threads: usize) -> usize {
    const OF_EACH_SIZE: usize = 128 << 10;
    let (one_at_a_time, barrier) = (Mutex::new(()), Barrier::new(threads + 1));
    let sizes: Vec<usize> = HEAP.stats().classes().iter().map(|class| class.block).collect();
    let mut cached = 0;
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // A first block, so that all have their caches.
                drop(Box::new(0));
                barrier.wait();
                let turn = one_at_a_time.lock().unwrap();
                for _ in 0..2 {
                    let blocks = sizes.iter().flat_map(|&size| iter::repeat_n(size, OF_EACH_SIZE / size));
                    drop(blocks.map(Vec::<u8>::with_capacity).collect::<Vec<_>>());
                }
                drop(turn);
                // All have freed, and none has ended.
                barrier.wait();
                barrier.wait();
            });
        }
        barrier.wait();
        barrier.wait();
        cached = HEAP.stats().classes().iter().map(|class| class.cached_blocks * class.block).sum();
        barrier.wait();
    });
    cached / threads
}

#[test]
fn caches_of_many_threads_hold_less() {
    let _turn = turn();
    let of_few = cached_by_each_of(2);
    assert!((1 << 20..=3 << 20).contains(&of_few), "{of_few}");
    // All of them together 64 MiB, or 256 KiB each; the first few blocks of each small class come on top.
    for (threads, most) in [(80, (64 << 20) / 80), (260, 256 << 10)] {
        let of_many = cached_by_each_of(threads);
        assert!(of_many <= most + (96 << 10), "{of_many} of each of {threads}");
    }
}
