//! Guarded blocks: an overflow, an underflow or a use after free of one is a fault, and a line says of what.

use page_memory_allocator::{Component, PageAllocator, set_fault_handler};
use std::alloc::{GlobalAlloc, Layout};
use std::mem;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{self, Command};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[path = "common/child.rs"]
mod child;
use child::{assert_ended_well, in_child, text};
#[path = "common/forked.rs"]
mod forked;
use forked::run_forked;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// No block of the heap ends where a page does with this layout: blocks begin at multiples of 8.
const ODD: Layout = Layout::new::<[u8; 100]>();

fn page() -> usize {
    // SAFETY: sysconf has no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn guard_one_in(n: u32) -> impl FnOnce(&mut Command) {
    move |child| _ = child.env("PMA_GUARD_SAMPLE", n.to_string())
}

fn switched_off(child: &mut Command) {
    child.env_remove("PMA_GUARD_SAMPLE");
}

/// Blocks of 100 bytes of which some are guarded, if any are; others stay allocated.
fn odd_blocks() -> impl Iterator<Item = *mut u8> {
    // SAFETY: the size is not zero.
    (0..20_000).map(|_| unsafe { HEAP.alloc(ODD) })
}

fn ends_a_page(block: *mut u8) -> bool {
    (block.addr() + ODD.size()).is_multiple_of(page())
}

/// A guarded block of 100 bytes; without guards, any.
fn guarded() -> *mut u8 {
    let mut last = std::ptr::null_mut();
    odd_blocks().inspect(|&block| last = block).find(|&block| ends_a_page(block)).unwrap_or(last)
}

/// Runs `misuse` in a child with guards, where it is a fault, with a line that has all of `said` in it; and in one without
/// them, where nobody notices.
fn faults<F: FnOnce() + Copy>(said: &[&str], misuse: F) {
    let output = in_child(guard_one_in(50), misuse);
    let line = text(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}: {line}", output.status);
    assert_eq!(line.lines().count(), 1, "{line}");
    for said in said {
        assert!(line.contains(said), "{line}");
    }
    let output = in_child(switched_off, misuse);
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
}

/// Runs `misuse` in a child with guards, which must die of it by SIGABRT and say `said`.
fn is_refused<F: FnOnce()>(said: &str, misuse: F) {
    let output = in_child(guard_one_in(50), misuse);
    let line = text(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {line}", output.status);
    assert!(line.contains(said) && line.contains("(guarded: a block of 100 bytes"), "{line}");
}

fn survived() -> ! {
    eprintln!("the misuse went unnoticed");
    process::exit(2);
}

#[test]
fn the_byte_behind_a_block_cannot_be_written() {
    faults(&["overflow at", ", 0 bytes past a block of 100 bytes, align 1, at 0x", "by thread"], || {
        let block = guarded();
        // SAFETY: none, that is the point. Without guards the heap has 4 bytes more for a block of 100.
        unsafe { block.add(100).write_volatile(1) };
    });
}

#[test]
fn the_byte_behind_a_block_cannot_be_read() {
    faults(&["overflow at", ", 3 bytes past a block of 100 bytes"], || {
        let block = guarded();
        // SAFETY: none, that is the point; as above.
        unsafe { block.add(103).read_volatile() };
    });
}

#[test]
fn the_page_before_a_block_cannot_be_touched() {
    faults(&["underflow at", "bytes before a block of 100 bytes"], || {
        let block = guarded();
        let before = block.wrapping_sub(if ends_a_page(block) { page() } else { 0 });
        // SAFETY: none, that is the point.
        unsafe { before.read_volatile() };
    });
}

#[test]
fn a_block_that_was_freed_cannot_be_read() {
    faults(&["use after free at", "a block of 100 bytes", "freed by thread"], || {
        let block = guarded();
        // SAFETY: none for the second line, that is the point.
        unsafe {
            HEAP.dealloc(block, ODD);
            block.add(50).read_volatile();
        }
    });
}

#[test]
fn a_block_that_was_freed_is_not_used_again_before_all_others() {
    faults(&["use after free at"], || {
        let block = guarded();
        // SAFETY: none for the last line, that is the point.
        unsafe {
            HEAP.dealloc(block, ODD);
            // Fewer than there are slots.
            odd_blocks().filter(|&block| ends_a_page(block)).take(100).for_each(|other| {
                if other == block {
                    survived();
                }
                HEAP.dealloc(other, ODD);
            });
            block.read_volatile();
        }
    });
}

#[test]
fn a_block_freed_twice() {
    is_refused("freed a block twice", || {
        let block = guarded();
        // SAFETY: none for the second call, that is the point.
        unsafe {
            HEAP.dealloc(block, ODD);
            HEAP.dealloc(block, ODD);
        }
        survived();
    });
}

#[test]
fn a_block_freed_by_a_pointer_into_its_middle() {
    is_refused("freed a pointer into the middle of a block", || {
        // SAFETY: none, that is the point.
        unsafe { HEAP.free(guarded().add(1)) };
        survived();
    });
}

#[test]
fn a_block_freed_with_the_layout_of_another_size() {
    is_refused("freed with a layout that the block or run does not have", || {
        // SAFETY: none, that is the point.
        unsafe { HEAP.dealloc(guarded(), Layout::new::<[u8; 200]>()) };
        survived();
    });
}

#[test]
fn a_byte_written_before_a_block_is_found_when_that_is_freed() {
    is_refused("wrote beyond the ends of a block", || {
        let block = guarded();
        // SAFETY: none for the first line, that is the point.
        unsafe {
            block.sub(1).write_volatile(0);
            HEAP.dealloc(block, ODD);
        }
        survived();
    });
}

/// Of blocks for `layout`, how many are guarded while they are live; and whether all are what they are to be.
fn guarded_of(layout: Layout, count: usize) -> usize {
    let before = HEAP.stats().guarded;
    // SAFETY: blocks are as long as their layouts, and freed once.
    unsafe {
        let blocks: Vec<_> = (0..count).map(|_| HEAP.alloc_zeroed(layout)).collect();
        for &block in &blocks {
            assert!(!block.is_null() && block.addr().is_multiple_of(layout.align()));
            let bytes = std::slice::from_raw_parts_mut(block, layout.size());
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(0xEE);
        }
        let live = HEAP.stats().guarded;
        assert!(live.resident_bytes >= live.live_bytes && live.live_bytes >= live.live_blocks);
        assert_eq!(HEAP.stats().resident.guarded_bytes, live.resident_bytes);
        assert!(live.live_blocks == 0 || format!("{}", HEAP.stats()).contains("Guarded blocks"));
        blocks.iter().for_each(|&block| HEAP.dealloc(block, layout));
        HEAP.check().expect("the heap is in order");
        live.live_blocks - before.live_blocks
    }
}

#[test]
fn blocks_of_all_sizes_and_alignments_up_to_a_page_are_guarded() {
    let output = in_child(guard_one_in(20), || {
        for align in [1, 8, 16, 64, 512, 4096] {
            for size in [1, 24, 100, 1000, 4096, 10_000, 40_000, 65_536] {
                let count = guarded_of(Layout::from_size_align(size, align).unwrap(), 1000);
                assert!(count > 5, "{count} of size {size}, align {align}");
            }
        }
        assert_eq!(guarded_of(Layout::new::<[u8; 70_000]>(), 500), 0, "too long for a slot");
    });
    assert_ended_well(&output);
}

#[test]
fn about_as_many_are_guarded_as_are_wanted() {
    const FRESH: usize = 200_000;
    let output = in_child(guard_one_in(5000), || {
        let count = guarded_of(ODD, FRESH);
        assert!((FRESH / 5000 / 2..FRESH / 5000 * 2).contains(&count), "{count}");
    });
    assert_ended_well(&output);
}

#[test]
fn a_block_is_resized_with_its_contents_wherever_it_lies() {
    let output = in_child(guard_one_in(10), || {
        for turn in 0..2000_usize {
            let mut numbers: Vec<u16> = Vec::with_capacity(1 + turn % 7);
            (0..turn as u16).for_each(|number| numbers.push(number));
            numbers.shrink_to_fit();
            assert!(numbers.iter().copied().eq(0..turn as u16));
        }
        let mut block = HEAP.malloc(10);
        for size in (10..3000).step_by(7) {
            // SAFETY: the block has at least the size that it was given last.
            unsafe {
                block.add(size - 1).write(size as u8);
                block = HEAP.realloc_unsized(block, size + 7);
                assert_eq!(block.add(size - 1).read(), size as u8);
                assert!(HEAP.usable_size(block) >= size + 7);
            }
        }
        // SAFETY: the block is live.
        unsafe { HEAP.free(block) };
    });
    assert_ended_well(&output);
}

#[test]
fn guarded_blocks_count_against_the_limit() {
    let limited = |child: &mut Command| _ = child.env("PMA_GUARD_SAMPLE", "3").env("PMA_LIMIT", "8M");
    let output = in_child(limited, || {
        let layout = Layout::new::<[u8; 30_000]>();
        // SAFETY: the size is not zero.
        let served =
            std::iter::repeat_with(|| unsafe { HEAP.alloc(layout) }).take_while(|block| !block.is_null());
        let bytes = served.count() * layout.size();
        assert!(bytes < 8 << 20, "{bytes}");
    });
    assert_ended_well(&output);
}

#[test]
fn a_child_process_has_its_own_guarded_blocks() {
    let output = in_child(guard_one_in(50), || {
        let block = guarded();
        assert!(ends_a_page(block));
        // SAFETY: the child only reads, allocates, frees, and faults where it is told to.
        unsafe {
            block.write(7);
            run_forked(|| {
                assert_eq!(block.read(), 7);
                HEAP.dealloc(block, ODD);
                assert!(ends_a_page(guarded()));
            })
            .unwrap();
            let touched = run_forked(|| {
                HEAP.dealloc(block, ODD);
                block.read_volatile();
            });
            assert_eq!(touched, Err(format!("the child ended by signal {}", libc::SIGSEGV)));
            assert_eq!(block.read(), 7);
            HEAP.dealloc(block, ODD);
        }
    });
    assert_ended_well(&output);
    assert!(text(&output.stderr).contains("use after free"), "{output:?}");
}

/// What an earlier handler saw.
static SEEN: AtomicUsize = AtomicUsize::new(0);

/// Installs a handler of the type that the flags say, for faults that are what is tested.
fn handle_faults(handler: libc::sighandler_t, flags: libc::c_int) {
    // SAFETY: zeros are a valid value of the struct.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()), 0);
    }
}

#[test]
fn an_earlier_handler_of_the_signal_is_called_as_before() {
    extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system hands a handler what it is to know.
        let address = unsafe { (*info).si_addr() }.addr();
        process::exit(if address == SEEN.load(Relaxed) { 42 } else { 43 });
    }
    let output = in_child(guard_one_in(100_000), || {
        handle_faults(handler as *const () as usize, libc::SA_SIGINFO);
        let block = (0..20).map(|_| guarded()).find(|&block| ends_a_page(block)).expect("one is guarded");
        let behind = block.wrapping_add(100);
        SEEN.store(behind.addr(), Relaxed);
        // SAFETY: none, that is the point.
        unsafe { behind.read_volatile() };
    });
    assert_eq!(output.status.code(), Some(42), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("overflow at"));
}

#[test]
fn an_earlier_handler_for_one_signal_only_is_called_once() {
    extern "C" fn handler(_: libc::c_int) {
        if SEEN.fetch_add(1, Relaxed) > 0 {
            process::exit(43);
        }
        eprintln!("called");
    }
    let output = in_child(guard_one_in(100_000), || {
        handle_faults(handler as *const () as usize, libc::SA_RESETHAND);
        // Not before that a guarded block, with which the allocator's handler is installed.
        assert!((0..20).map(|_| guarded()).any(ends_a_page));
        // SAFETY: none, that is the point.
        unsafe { std::hint::black_box(std::ptr::without_provenance_mut::<u8>(4096)).write_volatile(1) };
    });
    assert_eq!((output.status.signal(), text(&output.stderr)), (Some(libc::SIGSEGV), "called\n"));
}

#[test]
fn what_lies_before_a_block_is_that_ones_though_the_one_before_was_freed() {
    let output = in_child(guard_one_in(50), || {
        // Such blocks begin where their slots do, which are taken one after the other.
        let layout = Layout::new::<[u8; 64 << 10]>();
        // SAFETY: the layout is the blocks', which are live; the last line has no excuse, that is the point.
        unsafe {
            let blocks: Vec<*mut u8> = (0..2_000).map(|_| HEAP.alloc(layout)).collect();
            // Others lie side by side, or apart by more than a page.
            let is_next = |before: *mut u8, block: *mut u8| {
                block.addr().wrapping_sub(before.addr()) == layout.size() + page()
            };
            let pairs = blocks.iter().flat_map(|&before| blocks.iter().map(move |&block| (before, block)));
            let (before, block) = pairs.into_iter().find(|&(before, block)| is_next(before, block)).unwrap();
            HEAP.dealloc(before, layout);
            block.sub(1).read_volatile();
        }
    });
    let line = text(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{line}");
    assert!(line.contains("underflow at") && line.contains(", 1 bytes before a block of 65536"), "{line}");
}

#[test]
fn inside_components_caches_are_filled_as_without_guards() {
    static PART: Component = Component::new("part");
    let output = in_child(guard_one_in(1), || {
        let held = |blocks: usize| {
            let kept: Vec<*mut u8> = PART.enter(|| odd_blocks().take(blocks).collect());
            let stats = PART.stats();
            // SAFETY: the blocks are live, and of that layout.
            kept.into_iter().for_each(|block| unsafe { HEAP.dealloc(block, ODD) });
            stats
        };
        // Of a batch the first is handed out, and the rest waits.
        assert!(held(1).cached_bytes >= 2 * ODD.size(), "{}", PART.stats());
    });
    assert_ended_well(&output);
}

#[test]
fn a_fault_elsewhere_is_none_of_the_allocators_business() {
    let output = in_child(guard_one_in(50), || {
        assert!(ends_a_page(guarded()));
        let nowhere: Range<*mut u8> = std::ptr::without_provenance_mut(4096)..std::ptr::null_mut();
        // SAFETY: none, that is the point.
        unsafe { std::hint::black_box(nowhere).start.write_volatile(1) };
    });
    assert_eq!((output.status.signal(), text(&output.stderr)), (Some(libc::SIGSEGV), ""));
}

#[test]
fn a_live_block_that_is_executed_is_named() {
    let output = in_child(guard_one_in(50), || {
        // SAFETY: none, that is the point.
        let code = unsafe { mem::transmute::<*mut u8, extern "C" fn()>(guarded()) };
        code();
    });
    let line = text(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}: {line}", output.status);
    assert!(line.contains("fault at 0x") && line.contains(", in a block of 100 bytes"), "{line}");
}

#[test]
fn a_block_is_zero_where_the_system_does_not_take_memory_back() {
    let output = in_child(guard_one_in(20), || {
        // SAFETY: the call has no preconditions.
        if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
            return eprintln!("this process may not lock its memory");
        }
        // Until guarded blocks have been used again.
        for _ in 0..20 {
            // SAFETY: the size is not zero, and the blocks are live until they are freed.
            unsafe {
                let blocks: Vec<*mut u8> = (0..5_000).map(|_| HEAP.alloc_zeroed(ODD)).collect();
                for &block in &blocks {
                    assert!((0..ODD.size()).all(|at| block.add(at).read() == 0));
                    block.write_bytes(1, ODD.size());
                }
                blocks.iter().for_each(|&block| HEAP.dealloc(block, ODD));
            }
        }
    });
    assert_ended_well(&output);
}

/// The handler of the standard library tells an overflow of the stack from other faults. It has a stack of its own, as
/// who stands before it must have.
#[test]
fn an_overflow_of_the_stack_is_told_as_before() {
    #[allow(unconditional_recursion)]
    fn endless(depth: usize) -> usize {
        std::hint::black_box(&[depth; 100]);
        endless(depth + 1) + 1
    }
    let output = in_child(guard_one_in(50), || {
        guarded();
        endless(0);
    });
    let said = text(&output.stderr);
    assert!(said.contains("has overflowed its stack"), "{}: {said}", output.status);
}

/// What guarded blocks have of the limit, and of what is in use, as pages of the heap have the rest.
fn in_use_by_guarded() -> usize {
    let summary = HEAP.summary();
    HEAP.usage().active - (summary.divided_pages.get() + summary.multi_pages.get()) * summary.page_size
}

#[test]
fn guarded_blocks_that_were_freed_are_in_use_no_more() {
    let output = in_child(guard_one_in(2), || {
        // None of these comes from a cache, so about every other one is guarded.
        let layout = Layout::new::<[u8; 40_000]>();
        let before = in_use_by_guarded();
        // SAFETY: each is live, and has this layout.
        (0..1_000).for_each(|_| unsafe { HEAP.dealloc(HEAP.alloc(layout), layout) });
        let after = in_use_by_guarded();
        assert!(after < before + 64 * page(), "{before} bytes before, {after} after");
    });
    assert_ended_well(&output);
}

#[test]
fn guarded_blocks_are_counted_with_the_others() {
    let output = in_child(guard_one_in(2), || {
        let layout = Layout::new::<[u8; 40_000]>();
        // Of what is free, some has no memory.
        drop(vec![1u8; 16 << 20]);
        HEAP.purge();
        let (before, guarded) = (HEAP.usage(), in_use_by_guarded());
        // SAFETY: the size is not zero.
        (0..100).for_each(|_| _ = unsafe { HEAP.alloc(layout) });
        let (after, live) = (HEAP.usage(), HEAP.stats().guarded);
        assert!(in_use_by_guarded() > guarded + 20 * layout.size(), "{before}, then {after}");
        assert!(after.allocated >= before.allocated + 100 * layout.size(), "{before}, then {after}");
        assert!(after.allocated == HEAP.summary().live_bytes + live.live_bytes, "{live:?}, {after}");
        let all = HEAP.summary().committed_bytes + in_use_by_guarded();
        assert_eq!(after.resident - after.metadata + after.retained, all, "{after}");
    });
    assert_ended_well(&output);
}

#[test]
fn guarded_blocks_are_within_the_limit() {
    const LIMIT: usize = 8 << 20;
    let output = in_child(
        |child| _ = child.envs([("PMA_GUARD_SAMPLE", "10"), ("PMA_LIMIT", "8M")]),
        || {
            // Too long to be guarded.
            let long = Layout::new::<[u8; 128 << 10]>();
            // SAFETY: the sizes are not zero.
            while !unsafe { HEAP.alloc(long) }.is_null() {}
            _ = odd_blocks().count();
            assert!(HEAP.usage().active <= LIMIT, "{}", HEAP.usage());
        },
    );
    assert_ended_well(&output);
}

#[test]
fn what_cannot_be_guarded_is_not() {
    static INSIDE: Component = Component::new("not guarded");
    let output = in_child(guard_one_in(10), || {
        let before = in_use_by_guarded();
        let is_not_guarded = |layout: Layout| {
            for _ in 0..500 {
                // SAFETY: the block is live, and has this layout.
                unsafe {
                    let block = HEAP.alloc(layout);
                    assert_eq!((in_use_by_guarded(), block.addr() % layout.align()), (before, 0));
                    HEAP.dealloc(block, layout);
                }
            }
        };
        // It would begin before a slot does, to end where that does.
        is_not_guarded(Layout::from_size_align(40_000, 64 << 10).unwrap());
        // A component is charged for what it has of the heap.
        INSIDE.enter(|| is_not_guarded(Layout::from_size_align(40_000, 8).unwrap()));
    });
    assert_ended_well(&output);
}

#[test]
fn the_size_of_a_block_that_was_freed_is_refused() {
    is_refused("asked for the size of what is not a block", || {
        let block = guarded();
        // SAFETY: none for the last line, that is the point.
        unsafe {
            HEAP.dealloc(block, ODD);
            HEAP.usable_size(block);
        }
        survived();
    });
}

#[test]
fn no_lock_is_held_while_a_handler_is_told_of_a_guarded_block() {
    let output = in_child(guard_one_in(50), || {
        set_fault_handler(|_| {
            guarded();
            process::exit(7)
        });
        let block = guarded();
        // SAFETY: none for the second call, that is the point.
        unsafe {
            HEAP.dealloc(block, ODD);
            HEAP.dealloc(block, ODD);
        }
        survived();
    });
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
}
