//! The sampled profile: what it estimates, what it names, and that sampled blocks are blocks like others.

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};
#[path = "common/forked.rs"]
mod forked;
use forked::run_forked;
use page_memory_allocator::{Component, HeapOptions, PageAllocator, Summary};
use std::alloc::{GlobalAlloc as _, Layout};
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{env, fs, io, ptr, slice, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const MIB: usize = 1 << 20;

/// Runs `body` in a process that samples one byte in so many.
fn sampling<F: FnOnce()>(interval: &str, body: F) {
    let output = in_child(
        |command| {
            command.env("PMA_PROFILE_BYTES", interval);
        },
        body,
    );
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[allow(clippy::vec_box)] // each block is an allocation
#[inline(never)]
fn keep_small() -> Vec<Box<[u8; 500]>> {
    (0..100_000).map(|_| Box::new([1; 500])).collect()
}

#[allow(clippy::vec_box)] // as above
trait Keep {
    fn keep() -> Vec<Box<[u8; 500]>>;
}

struct Small;

impl Keep for Small {
    #[allow(clippy::vec_box)] // as above
    #[inline(never)]
    fn keep() -> Vec<Box<[u8; 500]>> {
        (0..100_000).map(|_| Box::new([1; 500])).collect()
    }
}

#[inline(never)]
fn keep_large() -> Vec<Vec<u8>> {
    (0..200).map(|_| vec![1; 200_000]).collect()
}

/// Live bytes of the stacks that a function is in.
fn bytes_in(folded: &str, function: &str) -> usize {
    let lines = folded.lines().filter(|line| line.contains(function));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap()).sum()
}

#[track_caller]
fn assert_near(estimated: usize, expected: usize) {
    assert!(estimated.abs_diff(expected) * 7 < expected, "{estimated} estimated, {expected} expected");
}

#[test]
fn the_profile_estimates_what_is_live_by_the_functions_that_allocated_it() {
    sampling("32K", || {
        let (small, large) = (keep_small(), keep_large());
        let folded = HEAP.profile().folded();
        assert_near(bytes_in(&folded, "profile::keep_small"), 100_000 * 508);
        assert_near(bytes_in(&folded, "profile::keep_large"), 200 * 200_000);
        assert_near(HEAP.profile().live_bytes(), 100_000 * 508 + 200 * 200_000);
        assert!(!folded.contains("page_memory_allocator::"), "the allocator itself is left out: {folded}");
        drop(small);
        assert_eq!(bytes_in(&HEAP.profile().folded(), "profile::keep_small"), 0);
        drop(large);
        assert!(HEAP.profile().live_bytes() < MIB);
        HEAP.check().unwrap();
    });
}

#[test]
fn the_profile_is_a_gzipped_document_with_the_names_in_it() {
    sampling("32K", || {
        let kept = keep_small();
        let pprof = HEAP.profile().pprof();
        assert!(pprof.starts_with(&[0x1F, 0x8B]));
        let mut gzip =
            Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = gzip.stdin.take().unwrap();
        let writer = thread::spawn(move || input.write_all(&pprof));
        let output = gzip.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "length and checksum are right");
        let document = String::from_utf8_lossy(&output.stdout);
        for string in ["inuse_objects", "inuse_space", "profile::keep_small", "tests/profile.rs"] {
            assert!(document.contains(string), "{string}");
        }
        black_box(kept);
    });
}

#[test]
fn go_tool_pprof_reads_the_profile() {
    sampling("32K", || {
        let kept = Small::keep();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("heap.pb.gz");
        fs::write(&path, HEAP.profile().pprof()).unwrap();
        let mut go = Command::new("go");
        match go.args(["tool", "pprof", "-top", "-cum", "-sample_index=inuse_space"]).arg(&path).output() {
            Ok(output) => {
                assert!(output.status.success(), "{}", text(&output.stderr));
                let top = text(&output.stdout);
                assert!(top.contains("Type: inuse_space"), "{top}");
                assert!(top.contains("<profile::Small as profile::Keep>::keep"), "{top}");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "there is no go, and CI needs one");
                eprintln!("skipped: there is no go");
            }
            Err(error) => panic!("{go:?}: {error}"),
        }
        black_box(kept);
    });
}

#[test]
fn to_write_the_profile_leaves_nothing_in_the_heap() {
    sampling("32K", || {
        let kept = keep_small();
        let before = HEAP.summary().live_bytes;
        drop((HEAP.profile().pprof(), HEAP.profile().folded()));
        let after = HEAP.summary().live_bytes;
        assert!(after < before + MIB, "{before} bytes live, {after} after two documents");
        black_box(kept);
    });
}

#[test]
fn sampled_blocks_are_resized_and_freed_like_others() {
    // Nearly everything is sampled.
    sampling("1", || {
        thread::scope(|scope| {
            for seed in 0..3u64 {
                scope.spawn(move || {
                    let mut random = seed;
                    let mut held: Vec<Vec<u8>> = vec![Vec::new(); 50];
                    for _ in 0..3_000 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        let (turn, size) = ((random >> 33) as usize % 50, (random >> 40) as usize % 150_000);
                        let held = &mut held[turn];
                        let before = held.len().min(size);
                        held.resize(size, turn as u8);
                        if random % 3 == 0 {
                            held.shrink_to_fit();
                        }
                        assert!(held[..before].iter().all(|&byte| byte == turn as u8));
                        if random % 5 == 0 {
                            *held = vec![turn as u8; size % 3000];
                        }
                        let zeros = vec![0u8; size % 100_000];
                        assert!(zeros.iter().all(|&byte| byte == 0));
                    }
                });
            }
        });
        HEAP.check().unwrap();
        assert!(HEAP.profile().live_bytes() < MIB, "what is freed is forgotten");

        // Blocks of callers that know no layouts.
        for size in [1, 100, 40_000, MIB] {
            let mut block = HEAP.malloc(size);
            for factor in [2, 5, 1, 100] {
                // SAFETY: the block is live.
                block = unsafe { HEAP.realloc_unsized(block, size * factor) };
                assert!(!block.is_null());
                // SAFETY: as above.
                assert!(unsafe { HEAP.usable_size(block) } >= size * factor);
            }
            // SAFETY: as above; it is not used after this.
            unsafe { HEAP.free(block) };
        }
        HEAP.check().unwrap();
        assert!(HEAP.profile().live_bytes() < MIB);
    });
}

#[inline(never)]
fn grow(bytes: usize) -> Vec<u8> {
    let mut grown = Vec::new();
    while grown.len() < bytes {
        grown.extend_from_slice(&[1; 4096]);
    }
    grown
}

#[test]
fn a_run_that_grows_is_sampled_with_the_size_that_it_has() {
    sampling("256K", || {
        let all: Vec<_> = (0..5).map(|_| grow(20 * MIB)).collect();
        let expected: usize = all.iter().map(Vec::capacity).sum();
        let estimated = bytes_in(&HEAP.profile().folded(), "profile::grow");
        assert!(estimated.abs_diff(expected) * 50 < expected, "{estimated} estimated, {expected} expected");
    });
}

#[test]
fn a_child_process_goes_on_with_the_profile() {
    sampling("32K", || {
        let kept = keep_small();
        run_forked(|| {
            let more = keep_large();
            let folded = HEAP.profile().folded();
            assert_near(bytes_in(&folded, "profile::keep_small"), 100_000 * 508);
            assert_near(bytes_in(&folded, "profile::keep_large"), 200 * 200_000);
            drop(more);
        })
        .unwrap();
        drop(kept);
    });
}

#[test]
fn sampled_blocks_share_pages() {
    // Nearly everything is sampled.
    sampling("1", || {
        let before = HEAP.summary();
        let kept: Vec<Box<[u8; 200]>> = (0..10_000).map(|_| Box::new([1; 200])).collect();
        let after = HEAP.summary();
        assert!(HEAP.profile().live_bytes() >= 10_000 * 200);
        let more = |pages: fn(&Summary) -> usize| pages(&after) - pages(&before);
        assert!(more(|summary| summary.divided_pages.get()) < 100, "{after}");
        assert!(more(|summary| summary.multi_pages.get()) < 20, "{after}");
        drop(kept);
        HEAP.check().unwrap();
    });
}

#[test]
fn sampled_blocks_are_forgotten_whoever_frees_them_and_however() {
    sampling("1", || {
        for size in [8, 200, 4_000, 20_000, 100_000] {
            for round in 0..200 {
                let layout = Layout::from_size_align(size, 8).unwrap();
                // SAFETY: the block has a size.
                let (sized, unsized_) = unsafe { (HEAP.alloc(layout).addr(), HEAP.malloc(size).addr()) };
                thread::spawn(move || {
                    let [sized, unsized_] = [sized, unsized_].map(ptr::with_exposed_provenance_mut::<u8>);
                    // A thread that has a cache, and one that has none yet.
                    drop(black_box((round % 2 == 0).then(|| Box::new(1u64))));
                    // SAFETY: the blocks are live, the first has this layout, and they are not used after this.
                    unsafe {
                        HEAP.dealloc(sized, layout);
                        if !HEAP.free_cached(unsized_) && !HEAP.free_cached_for_others(unsized_) {
                            HEAP.free(unsized_);
                        }
                    }
                })
                .join()
                .unwrap();
            }
        }
        assert!(HEAP.profile().live_bytes() < MIB / 4, "{}", HEAP.profile().folded());
        HEAP.check().unwrap();
    });
}

#[test]
fn sampled_blocks_are_forgotten_among_others_of_another_thread() {
    sampling("16K", || {
        let before = HEAP.profile().live_bytes();
        let blocks: Vec<Vec<u8>> = (0..10_000).map(|_| vec![1; 200]).collect();
        assert!(HEAP.profile().live_bytes() > before + MIB);
        // The others wait in its cache until they go home.
        thread::spawn(|| drop(blocks)).join().unwrap();
        assert!(HEAP.profile().live_bytes() < before + MIB / 4, "{}", HEAP.profile().folded());
        HEAP.check().unwrap();
    });
}

#[test]
fn blocks_without_layouts_are_sampled_as_others_are() {
    sampling("32K", || {
        let before = HEAP.profile().live_bytes();
        let blocks: Vec<*mut u8> = (0..40_000)
            .map(|number| if number % 2 == 0 { HEAP.malloc(512) } else { HEAP.malloc_zeroed_cached(512) })
            .filter(|block| !block.is_null())
            .collect();
        assert_near(HEAP.profile().live_bytes() - before, blocks.len() * 512);
        // SAFETY: the blocks are live.
        blocks.into_iter().for_each(|block| unsafe { HEAP.free(block) });
        assert!(HEAP.profile().live_bytes() < before + MIB);
    });
}

#[test]
fn a_soft_limit_is_told_of_what_is_sampled() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    static LISTENING: Component =
        Component::new("listening").soft_limit(8 * MIB, |_| TOLD.store(true, Relaxed));
    sampling("1", || {
        let run = LISTENING.enter(|| vec![1u8; 9 * MIB]);
        assert!(TOLD.load(Relaxed), "{} of {} bytes", run.len(), LISTENING.held_bytes());
    });
}

#[test]
fn that_there_is_no_room_for_more_samples_is_said_once() {
    let output = in_child(
        |command| _ = command.env("PMA_PROFILE_BYTES", "16"),
        || {
            let block = Layout::new::<[u8; 500]>();
            // SAFETY: the size is not zero.
            (0..80_000).for_each(|_| _ = unsafe { HEAP.alloc(block) });
            HEAP.check().unwrap();
        },
    );
    let said = text(&output.stderr);
    assert!(
        output.status.success()
            && said.starts_with("page_memory_allocator: the profile is full, with 65536 samples"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_small_limit_is_left_to_the_program() {
    let output = in_child(
        |command| {
            command.env("PMA_LIMIT", "8M");
        },
        || {
            let mut blocks = Vec::new();
            while blocks.len() < 2 * MIB / 1000 && blocks.try_reserve(1).is_ok() {
                let mut block = Vec::new();
                if block.try_reserve_exact(1000).is_err() {
                    break;
                }
                block.push(1u8);
                blocks.push(block);
            }
            assert_eq!(blocks.len(), 2 * MIB / 1000);
        },
    );
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_sampled_block_that_is_freed_twice_ends_the_process() {
    let output = in_child(
        |command| {
            command.env("PMA_PROFILE_BYTES", "1");
        },
        || {
            let layout = Layout::new::<[u8; 300]>();
            // One that keeps the page.
            let _other = Box::new([1u8; 300]);
            // SAFETY: the block has a size. It is freed twice to see what comes of it.
            unsafe {
                let block = HEAP.alloc(layout);
                HEAP.dealloc(block, layout);
                HEAP.dealloc(block, layout);
            }
        },
    );
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("page_memory_allocator"), "{}", text(&output.stderr));
}

#[test]
fn a_sampled_run_that_is_freed_with_the_layout_of_another_length_ends_the_process() {
    let output = in_child(
        |command| {
            command.env("PMA_PROFILE_BYTES", "1");
        },
        || {
            // SAFETY: the run has a size. It is freed with another one to see what comes of it.
            unsafe { HEAP.dealloc(HEAP.alloc(Layout::new::<[u8; 4 * MIB]>()), Layout::new::<[u8; MIB]>()) };
        },
    );
    assert!(!output.status.success());
    let expected = "freed with a layout that the block or run does not have";
    assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
}

#[test]
fn blocks_of_a_heap_in_sampled_memory_stay_where_they_are() {
    sampling("1", || {
        let pages = Layout::from_size_align(MIB, 64 << 10).unwrap();
        // SAFETY: the layout has a size; zeros are bytes, and nobody else has them.
        let memory = unsafe { slice::from_raw_parts_mut(HEAP.alloc_zeroed(pages), pages.size()) };
        let heap = HeapOptions::new().build_apart(memory, vec![0; MIB].leak()).unwrap();
        let layout = Layout::new::<[u8; 1000]>();
        let first = heap.alloc(layout);
        assert_eq!(first.addr() % pages.align(), 0, "it is where the sampled run begins");
        // SAFETY: the block is live, and has that layout.
        assert_eq!(unsafe { heap.realloc(first, layout, 999) }, first);
    });
}

#[test]
fn a_process_may_fork_while_other_threads_take_samples() {
    sampling("1", || {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        black_box([100, 200, 300].map(Vec::<u8>::with_capacity));
                    }
                });
            }
            for _ in 0..100 {
                // A child that waits for a lock of a thread that is not there is ended.
                run_forked(|| _ = black_box([100, 200, 300].map(Vec::<u8>::with_capacity))).unwrap();
            }
            stop.store(true, Relaxed);
        });
    });
}

#[test]
fn runs_that_shrink_and_grow_stand_for_as_many_as_when_they_were_sampled() {
    sampling("256K", || {
        // Nearly all are sampled, of which one in seven would be by what is left.
        let mut runs: Vec<Vec<u8>> = (0..300).map(|_| Vec::with_capacity(MIB)).collect();
        runs.iter_mut().for_each(|run| run.shrink_to(40_000));
        assert_near(HEAP.profile().live_bytes(), 300 * 40_000);
        // A byte more is the same number of runs.
        runs.iter_mut().for_each(|run| run.reserve_exact(40_001));
        assert_near(HEAP.profile().live_bytes(), 300 * 40_001);
        drop(runs);
        // Few are sampled at first, all in the end.
        let mut runs: Vec<Vec<u8>> = (0..300).map(|_| Vec::with_capacity(40_000)).collect();
        runs.iter_mut().for_each(|run| run.reserve_exact(MIB));
        assert_near(HEAP.profile().live_bytes(), 300 * MIB);
        drop(runs);
        assert!(HEAP.profile().live_bytes() < MIB);
        HEAP.check().unwrap();
    });
}

static PART: Component = Component::new("part");

#[test]
fn what_is_sampled_in_a_component_is_the_components() {
    sampling("1", || {
        let before = PART.stats().held_bytes;
        let kept = PART.enter(|| (0..100).map(|_| vec![1u8; 1000]).collect::<Vec<_>>());
        assert!(PART.stats().held_bytes >= before + 100 * 1000);
        assert!(HEAP.profile().live_bytes() >= 100 * 1000);
        // A block that was sampled as a run is resized.
        let resized: Vec<_> = kept
            .into_iter()
            .map(|mut block| {
                block.reserve_exact(8);
                block.push(2);
                assert!(block[..1000].iter().all(|&byte| byte == 1));
                block
            })
            .collect();
        drop(resized);
        assert!(HEAP.profile().live_bytes() < MIB);
        HEAP.check().unwrap();
    });
}

#[test]
fn samples_are_no_reason_to_refuse_what_a_component_may_have() {
    sampling("64", || {
        let small = Component::new("of little").limit(4 * 65536);
        let mut kept = Vec::with_capacity(1000);
        small.enter(|| kept.extend((0..1000).map(|_| vec![1u8; 256])));
        let stats = small.stats();
        assert!(stats.refusals == 0 && (256_000..=4 * 65536).contains(&stats.held_bytes), "{stats}");
        drop(kept);
        // What is left is the program's, to the last block.
        let large = Component::new("of more").limit(8 * MIB);
        let mut kept = Vec::with_capacity(1000);
        let run = large.enter(|| vec![1u8; 8 * MIB - 2 * 65536]);
        large.enter(|| kept.extend((0..500).map(|_| vec![1u8; 256])));
        let stats = large.stats();
        assert!(stats.refusals == 0 && stats.held_bytes >= run.len() + 500 * 256, "{stats}");
        // A run that is sampled, and refused, is refused once.
        let refused = large.enter(|| Vec::<u8>::new().try_reserve_exact(MIB));
        assert!(refused.is_err());
        assert_eq!(large.stats().refusals, 1);
    });
}

#[test]
fn what_a_sampled_block_of_a_component_has_room_for_stays() {
    sampling("1", || {
        // Aligned, so that the block has room for more OS pages than are asked for.
        let layout = Layout::from_size_align(100, 16 << 10).unwrap();
        let room = HEAP.room_for(layout).expect("there is room");
        assert_eq!(room, 16 << 10);
        // SAFETY: the blocks have a size and so much room, and are freed with their layout.
        unsafe {
            let blocks: Vec<_> = PART.enter(|| (0..20).map(|_| HEAP.alloc(layout)).collect());
            for &block in &blocks {
                assert_eq!(HEAP.usable_size(block), room);
                block.write_bytes(1, room);
            }
            HEAP.purge();
            for block in blocks {
                assert!((0..room).all(|at| block.add(at).read() == 1));
                HEAP.dealloc(block, layout);
            }
        }
    });
}

#[test]
fn pages_for_sampled_blocks_are_there_before_they_are_needed() {
    sampling("1", || {
        let layout = Layout::new::<[u8; 3000]>();
        let before = HEAP.summary().divided_pages.get();
        // SAFETY: the block has a size, and is freed with its layout.
        let after = unsafe {
            let block = HEAP.alloc(layout);
            let after = HEAP.summary().divided_pages.get();
            HEAP.dealloc(block, layout);
            after
        };
        // One page for the blocks of the thread's cache, and none for the sampled one.
        assert!(after <= before + 1, "{before} pages before, {after} after");
    });
}
