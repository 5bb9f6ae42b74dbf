//! Dumps and summaries: what they say of a known heap, and that they neither allocate nor lock while they write.

use page_memory_allocator::units::{PageCount, PageIndex};
use page_memory_allocator::{DumpOptions, Heap, HeapOptions, PageAllocator, SizeClasses, Summary, View};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::fmt::{self, Write};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{hint, thread};

#[path = "common/child.rs"]
mod child;

use child::{assert_ended_well, in_child, text};

/// The process heap, with the calls of each thread counted.
struct Counting;

static HEAP: PageAllocator = PageAllocator::new();

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn count_call() {
    CALLS.with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call is handed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_call();
        // SAFETY: the caller's contract is the same.
        unsafe { HEAP.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count_call();
        // SAFETY: the caller's contract is the same.
        unsafe { HEAP.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_call();
        // SAFETY: the caller's contract is the same.
        unsafe { HEAP.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count_call();
        // SAFETY: the caller's contract is the same.
        unsafe { HEAP.realloc(ptr, layout, new_size) }
    }
}

/// Calls of the global allocator that this thread makes in `work`.
fn calls_in(work: impl FnOnce()) -> usize {
    let before = CALLS.with(Cell::get);
    work();
    CALLS.with(Cell::get) - before
}

/// Runs `body`, a closure of the test function itself, in a process where no other thread allocates. A deadlock of the
/// process heap, which takes its whole process with it, is thus a failed test.
fn alone(body: impl FnOnce()) -> Output {
    let output = in_child(|_| (), body);
    assert_ended_well(&output);
    output
}

const PAGE: usize = 4096;

fn heap_of(pages: usize) -> Heap {
    let options = HeapOptions::new().page_size(PAGE).classes(SizeClasses::POWERS_OF_TWO);
    options.capacity(pages * PAGE).build().expect("the system has the addresses")
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn alloc(heap: &Heap, size: usize) -> *mut u8 {
    let block = heap.alloc(layout(size));
    assert!(!block.is_null());
    block
}

fn free(heap: &Heap, block: *mut u8, size: usize) {
    // SAFETY: each test frees its blocks once, with the size that it allocated them with.
    unsafe { heap.dealloc(block, layout(size)) };
}

/// The dump's page lines, with addresses as offsets from the heap's start.
fn page_lines(heap: &Heap) -> Vec<String> {
    let mut text = String::new();
    heap.dump_to(&mut text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "|------------Allocator Info------------|");
    assert_eq!(lines[1], format!("Memory heap: {}", heap.pages().get() * PAGE));
    assert_eq!(lines[2], format!("Page size: {PAGE}"));
    assert_eq!(lines[3], format!("Amount of pages: {}", heap.pages().get()));
    assert_eq!(lines[4], "|--------------Pages Info--------------|");
    assert_eq!(lines[lines.len() - 1], "|--------------------------------------|");
    assert!(text.ends_with("|\n"));
    lines[5..lines.len() - 1]
        .iter()
        .map(|line| {
            let (before, after) = line.split_once("0x").unwrap();
            let (address, after) = after.split_once(';').unwrap();
            let offset = usize::from_str_radix(address, 16).unwrap() - heap.start().addr();
            format!("{before}{offset:#x};{after}")
        })
        .collect()
}

/// Asserts that the dump's lines cover the pages from 0 to `pages` in order, each once.
fn assert_covers(dump: &str, pages: usize) {
    let table =
        dump.split_once("|--------------Pages Info--------------|\n").expect("the table has a heading").1;
    let table =
        table.split_once("|--------------------------------------|\n").expect("the table has an end").0;
    let mut next = 0;
    for line in table.lines() {
        let (range, state) = line.split_once(".Status: ").expect(line);
        let (first, last) = range.split_once("..").unwrap_or((range, range));
        assert_eq!(first.parse(), Ok(next), "{line}");
        let last: usize = last.parse().expect(line);
        assert!(last >= next, "{line}");
        next = last + 1;
        let fields: Vec<&str> = state.split(';').collect();
        assert_eq!(fields.len(), if fields[0] == "Divided" { 5 } else { 3 }, "{line}");
        assert!(["Free", "Divided", "Multi"].contains(&fields[0]), "{line}");
        assert!(fields[1].starts_with("Address: 0x"), "{line}");
    }
    assert_eq!(next, pages);
}

#[test]
fn neighbours_in_the_same_condition_fold_on_a_large_heap() {
    let heap = heap_of(1_000_000);
    assert_eq!(page_lines(&heap), ["0..999999.Status: Free;Address: 0x0;"]);

    // Pages 0 to 2: full of blocks of 1024. Pages 3 and 4: half of their blocks of 2048.
    let small: Vec<_> = (0..12).map(|_| alloc(&heap, 1024)).collect();
    let halves: Vec<_> = (0..4).map(|_| alloc(&heap, 2048)).collect();
    free(&heap, halves[0], 2048);
    free(&heap, halves[2], 2048);
    // Page 5: the same number of free blocks, but of another size. Page 6: the same size, but more of them.
    let quarter: Vec<_> = (0..5).map(|_| alloc(&heap, 512)).collect();
    let other = (0..8).map(|_| alloc(&heap, 512)).collect::<Vec<_>>();
    free(&heap, quarter[0], 512);
    // Two runs side by side, one of them of a single page, and a third behind a hole of two pages.
    let runs = [alloc(&heap, 3 * PAGE), alloc(&heap, PAGE), alloc(&heap, 2 * PAGE), alloc(&heap, 100 * PAGE)];
    free(&heap, runs[2], 2 * PAGE);
    assert_eq!(
        page_lines(&heap),
        [
            "0..2.Status: Divided;Address: 0x0;Class size: 1024;Free blocks: 0;",
            "3..4.Status: Divided;Address: 0x3000;Class size: 2048;Free blocks: 1;",
            "5.Status: Divided;Address: 0x5000;Class size: 512;Free blocks: 1;",
            "6.Status: Divided;Address: 0x6a00;Class size: 512;Free blocks: 3;",
            "7..9.Status: Multi;Address: 0x7000;",
            "10.Status: Multi;Address: 0xa000;",
            "11..12.Status: Free;Address: 0xb000;",
            "13..112.Status: Multi;Address: 0xd000;",
            "113..999999.Status: Free;Address: 0x71000;",
        ]
    );
    drop((small, other));
}

#[test]
fn a_free_run_longer_than_one_look_at_it_is_one_line() {
    let heap = heap_of(400_000);
    let low = alloc(&heap, 300_000 * PAGE);
    alloc(&heap, PAGE);
    free(&heap, low, 300_000 * PAGE);
    assert_eq!(
        page_lines(&heap),
        [
            "0..299999.Status: Free;Address: 0x0;",
            "300000.Status: Multi;Address: 0x493e0000;",
            "300001..399999.Status: Free;Address: 0x493e1000;",
        ]
    );
}

#[test]
fn a_small_heap_has_a_line_for_each_page() {
    let heap = heap_of(64);
    alloc(&heap, 3 * PAGE);
    let lines = page_lines(&heap);
    assert_eq!(lines.len(), 64);
    assert_eq!(lines[2], "2.Status: Multi;Address: 0x2000;");
    assert_eq!(lines[63], "63.Status: Free;Address: 0x3f000;");

    let heap = heap_of(65);
    alloc(&heap, 3 * PAGE);
    assert_eq!(
        page_lines(&heap),
        ["0..2.Status: Multi;Address: 0x0;", "3..64.Status: Free;Address: 0x3000;"]
    );
}

/// What is dumped of `heap` as `view`, line by line.
fn lines_of(heap: &Heap, view: View) -> Vec<String> {
    let mut text = String::new();
    heap.dump_with(DumpOptions::new().view(view), &mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_view_decides_whether_pages_fold() {
    let (small, large) = (heap_of(8), heap_of(100));
    alloc(&small, 3 * PAGE);
    alloc(&large, 3 * PAGE);
    assert_eq!(lines_of(&small, View::BySize).len(), 6 + 8);
    assert_eq!(lines_of(&small, View::Folded).len(), 6 + 2);
    assert_eq!(lines_of(&large, View::BySize).len(), 6 + 2);
    assert_eq!(lines_of(&large, View::EveryPage).len(), 6 + 100);
}

#[test]
fn the_classes_that_have_pages_are_listed_and_the_runs() {
    let heap = heap_of(100);
    for size in [100, 100, 2000] {
        // SAFETY: the block is that long.
        unsafe { alloc(&heap, size).write_bytes(1, size) };
    }
    alloc(&heap, 3 * PAGE - 1000);
    let lines = lines_of(&heap, View::Classes);
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert_eq!(columns(&lines[2]), "128 1 2 256 B >= 130 B 0 B 3.7 KiB 4.0 KiB 256 B");
    assert_eq!(columns(&lines[3]), "2048 1 1 2.0 KiB >= 1.0 KiB 0 B 2.0 KiB 4.0 KiB 2.0 KiB");
    assert_eq!(columns(&lines[4]), "runs 3 1 12.0 KiB 11.0 KiB 0 B 0 B 0 B 0 B");
    assert_eq!(lines.len(), 6);
}

#[test]
fn the_worst_pages_are_those_that_keep_most_for_the_fewest_live_blocks() {
    let heap = heap_of(1000);
    // Pages of 64 blocks, all of them touched: page n keeps n + 1 of its blocks.
    let blocks: Vec<_> = (0..64 * 40).map(|_| alloc(&heap, 64)).collect();
    for (page, blocks) in blocks.chunks(64).enumerate() {
        for (at, &block) in blocks.iter().enumerate() {
            // SAFETY: the block is that long.
            unsafe { block.write_bytes(1, 64) };
            if at > page {
                free(&heap, block, 64);
            }
        }
    }
    let lines = lines_of(&heap, View::Worst(3));
    assert_eq!(
        lines[1],
        "In 16 pages, at most a quarter of the bytes are live: 8.5 KiB of 136 blocks keep 64.0 KiB resident."
    );
    let named = |line: &String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (page, line) in lines[3..6].iter().map(named).enumerate() {
        assert_eq!((line[0].as_str(), line[2].as_str()), (page.to_string().as_str(), "64"), "{line:?}");
        assert_eq!(line[3..].join(" "), format!("{} of 64 4.0 KiB", page + 1));
    }
    assert_eq!(lines.len(), 7);
    assert_eq!(lines_of(&heap, View::Worst(1000)).len(), 4 + 40);
    assert_eq!(lines_of(&heap, View::Worst(0)).len(), 4);
}

#[test]
fn the_address_of_a_divided_page_is_that_of_the_block_handed_out_next() {
    let heap = heap_of(8);
    let blocks: Vec<_> = (0..30).map(|_| alloc(&heap, 128)).collect();
    for freed in [7, 3, 20] {
        free(&heap, blocks[freed], 128);
    }
    for free_blocks in (1..=5).rev() {
        let next = page_lines(&heap).remove(0);
        let offset = alloc(&heap, 128).addr() - heap.start().addr();
        assert_eq!(
            next,
            format!("0.Status: Divided;Address: {offset:#x};Class size: 128;Free blocks: {free_blocks};")
        );
    }
    assert_eq!(page_lines(&heap)[0], "0.Status: Divided;Address: 0x0;Class size: 128;Free blocks: 0;");
}

/// Takes what is written and keeps nothing but its length.
#[derive(Default)]
struct Sink {
    bytes: usize,
}

impl Write for Sink {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes += text.len();
        Ok(())
    }
}

#[test]
fn nothing_is_allocated_for_a_dump_or_a_summary() {
    let heap = heap_of(1000);
    alloc(&heap, 100);
    let mut sink = Sink::default();
    assert_eq!(calls_in(|| HEAP.dump_to(&mut sink).unwrap()), 0);
    assert!(sink.bytes > 500);
    assert_eq!(calls_in(|| heap.dump_to(&mut sink).unwrap()), 0);
    assert_eq!(calls_in(|| write!(sink, "{}", hint::black_box(HEAP.summary())).unwrap()), 0);
    for view in [View::EveryPage, View::Folded, View::Classes, View::Worst(9)] {
        let options = DumpOptions::new().sums(true).view(view);
        assert_eq!(calls_in(|| heap.dump_with(options, &mut sink).unwrap()), 0);
    }
    assert_eq!(calls_in(|| HEAP.dump_json(&mut sink).unwrap()), 0);
    assert_eq!(calls_in(|| HEAP.dump_html(&mut sink).unwrap()), 0);
    assert_eq!(calls_in(|| heap.dump_html(&mut sink).unwrap()), 0);
    assert_eq!(calls_in(|| write!(sink, "{}", hint::black_box(HEAP.stats())).unwrap()), 0);
    assert_eq!(calls_in(|| write!(sink, "{}", hint::black_box(heap.stats())).unwrap()), 0);
    let before = HEAP.snapshot();
    assert_eq!(calls_in(|| HEAP.dump_json_since(&before, &mut sink).unwrap()), 0);
    assert_eq!(calls_in(|| HEAP.dump_html_since(&before, &mut sink).unwrap()), 0);
    assert_eq!(calls_in(|| write!(sink, "{}", HEAP.snapshot().diff(&before)).unwrap()), 0);
    assert_eq!(calls_in(|| drop(hint::black_box(Box::new(1)))), 2, "calls are counted");
}

/// Has room for so many bytes, and is not to be used after it has refused some.
struct Full {
    room: usize,
    refused: bool,
}

impl Write for Full {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        assert!(!self.refused);
        self.refused = text.len() > self.room;
        self.room = self.room.saturating_sub(text.len());
        if self.refused { Err(fmt::Error) } else { Ok(()) }
    }
}

#[test]
fn a_writers_error_ends_the_dump_and_is_returned() {
    for pages in [8, 1000] {
        let heap = heap_of(pages);
        alloc(&heap, 100);
        let mut sink = Sink::default();
        heap.dump_to(&mut sink).unwrap();
        for room in 0..sink.bytes {
            assert_eq!(heap.dump_to(&mut Full { room, refused: false }), Err(fmt::Error));
        }
        assert_eq!(heap.dump_to(&mut Full { room: sink.bytes, refused: false }), Ok(()));
    }
    assert_eq!(HEAP.dump_to(&mut Full { room: 100, refused: false }), Err(fmt::Error));
}

/// Makes a run longer when the line before it is written, which is after the run was looked at.
struct Growing<'h> {
    heap: &'h Heap,
    run: *mut u8,
    text: String,
}

impl Write for Growing<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.contains("Divided") {
            // SAFETY: the run is live and of two pages.
            let grown = unsafe { self.heap.realloc(self.run, layout(2 * PAGE), 4 * PAGE) };
            assert_eq!(grown, self.run);
        }
        self.text.push_str(text);
        Ok(())
    }
}

#[test]
fn a_run_that_grows_while_it_is_dumped_stays_one_line() {
    alone(|| {
        let heap = heap_of(1000);
        alloc(&heap, 100);
        let mut writer = Growing { heap: &heap, run: alloc(&heap, 2 * PAGE), text: String::new() };
        heap.dump_to(&mut writer).unwrap();
        assert_covers(&writer.text, 1000);
        assert!(writer.text.contains("\n1..4.Status: Multi;"), "{}", writer.text);
        assert!(writer.text.contains("\n5..999.Status: Free;"), "{}", writer.text);
    });
}

/// Uses every lock of a heap, and looks at it, whenever something is written.
struct Allocating<'h> {
    heap: &'h Heap,
    text: String,
}

impl Write for Allocating<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for size in [8, 64, 100, 1024, 2048, 3 * PAGE] {
            let block = alloc(self.heap, size);
            free(self.heap, block, size);
        }
        assert_eq!(self.heap.check().unwrap().free_pages, self.heap.summary().free_pages.get());
        // A piece of its own, so that the text grows by allocations of all sizes.
        self.text = [self.text.as_str(), text].concat();
        Ok(())
    }
}

#[test]
fn a_writer_may_use_the_heap_that_is_dumped() {
    alone(|| {
        for pages in [64, 1000] {
            let heap = heap_of(pages);
            let held: Vec<_> = [8, 64, 1024, 2 * PAGE].map(|size| (alloc(&heap, size), size)).into();
            let mut writer = Allocating { heap: &heap, text: String::new() };
            heap.dump_to(&mut writer).unwrap();
            assert_covers(&writer.text, pages);
            for (block, size) in held {
                free(&heap, block, size);
            }
        }
    });
}

/// Allocates from the process heap, in every class and in runs, and verifies it whenever something is written: that
/// takes every lock there is.
struct AllocatingGlobally {
    text: String,
}

impl Write for AllocatingGlobally {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for shift in 3..20 {
            hint::black_box(Vec::<u8>::with_capacity(1 << shift));
        }
        HEAP.check().unwrap();
        hint::black_box(HEAP.summary());
        self.text.push_str(text);
        self.text.shrink_to_fit();
        Ok(())
    }
}

#[test]
fn a_writer_may_use_the_global_allocator_that_is_dumped() {
    alone(|| {
        let mut writer = AllocatingGlobally { text: String::new() };
        HEAP.dump_to(&mut writer).unwrap();
        let summary = HEAP.summary();
        assert_covers(&writer.text, summary.reserved_bytes / summary.page_size);
    });
}

#[test]
fn the_process_heap_is_printed_to_standard_output_without_an_allocation() {
    let ended = alone(|| {
        let blocks: Vec<Vec<u8>> = (1..1000).map(|size| vec![0; size * 100]).collect();
        let calls = calls_in(|| HEAP.dump());
        assert_eq!((blocks.len(), calls), (999, 0));
    });
    let text = text(&ended.stdout);
    let summary = HEAP.summary();
    assert_covers(text, summary.reserved_bytes / summary.page_size);
    assert!(text.len() > 8192, "the text is longer than the buffer it goes through");
    assert!(text.contains("\n  All else "), "the sums stand above the table");
}

/// Asserts that the sums of a summary are what its documentation says.
fn assert_adds_up(summary: &Summary) {
    let pages = summary.free_pages.get() + summary.divided_pages.get() + summary.multi_pages.get();
    assert_eq!(pages * summary.page_size, summary.reserved_bytes, "{summary:?}");
    let bytes = summary.live_bytes + summary.cached_bytes + summary.free_block_bytes + summary.tail_bytes;
    assert_eq!(bytes + summary.free_pages.get() * summary.page_size, summary.reserved_bytes, "{summary:?}");
    assert!(summary.committed_bytes <= summary.reserved_bytes, "{summary:?}");
}

#[test]
fn the_summary_of_a_known_heap_is_exact_and_adds_up() {
    let heap = HeapOptions::new().capacity(1000 * PAGE).page_size(PAGE).build().unwrap();
    // Classes of 48 (with 16 bytes behind 85 of them) and of 1024 bytes, and two runs of 4 pages in all.
    for size in [48; 100].into_iter().chain([1024; 3]).chain([3 * PAGE, PAGE]) {
        alloc(&heap, size);
    }
    let summary = heap.summary();
    assert_adds_up(&summary);
    assert_eq!(summary.free_pages, PageCount(1000 - 3 - 4));
    assert_eq!((summary.divided_pages, summary.multi_pages), (PageCount(3), PageCount(4)));
    assert_eq!((summary.live_blocks, summary.live_runs), (103, 2));
    assert_eq!(summary.live_bytes, 100 * 48 + 3 * 1024 + 4 * PAGE);
    assert_eq!((summary.cached_blocks, summary.cached_bytes), (0, 0));
    assert_eq!((summary.free_blocks, summary.free_block_bytes), (70 + 1, 70 * 48 + 1024));
    assert_eq!(summary.tail_bytes, 2 * 16);
    assert_eq!((summary.reserved_bytes, summary.committed_bytes), (1000 * PAGE, heap.committed_bytes()));
    let census = heap.check().unwrap();
    assert_eq!((census.live_blocks, census.runs), (summary.live_blocks, summary.live_runs));
}

#[test]
fn the_summary_is_printed_in_aligned_lines() {
    let heap = heap_of(1000);
    alloc(&heap, 3 * PAGE);
    alloc(&heap, 100);
    let text = heap.summary().to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..8],
        [
            "Free pages:       3.8 MiB        996 pages",
            "Divided pages:    4.0 KiB          1 page",
            "Multi pages:     12.0 KiB          3 pages in 1 run",
            "Live:            12.1 KiB          1 block and 1 run",
            "Cached:             0   B          0 blocks",
            "Free blocks:      3.8 KiB         31 blocks",
            "Page tails:         0   B",
            "Reserved:         3.9 MiB",
        ]
    );
    assert_eq!(lines.len(), 10);
    for (line, label) in [(lines[8], "Committed:     "), (lines[9], "Own tables:    ")] {
        assert!(line.starts_with(label) && line.ends_with("iB") && line.len() == label.len() + 10, "{line}");
    }
}

#[test]
fn blocks_in_a_thread_cache_are_not_live() {
    alone(|| {
        let mut held: Vec<Box<[u8; 40]>> = Vec::with_capacity(400);
        let before = HEAP.summary();
        held.extend((0..400).map(|_| Box::new([1; 40])));
        let full = HEAP.summary();
        held.clear();
        let after = HEAP.summary();
        for summary in [&before, &full, &after] {
            assert_adds_up(summary);
        }
        assert_eq!(full.live_blocks, before.live_blocks + 400);
        assert_eq!(full.live_bytes, before.live_bytes + 400 * 40);
        assert_eq!((after.live_blocks, after.live_bytes), (before.live_blocks, before.live_bytes));
        assert_eq!(after.cached_blocks > full.cached_blocks, cfg!(feature = "std"), "{full:?} {after:?}");
    });
}

#[test]
fn above_the_process_heaps_table_stand_its_stats() {
    alone(|| {
        // Blocks that are freed into the thread's cache: their pages have no more free blocks for it.
        drop((0..100).map(|_| Box::new([1; 40])).collect::<Vec<_>>());
        // Written to before, so that it is resident already.
        let mut text = "-".repeat(1 << 20);
        // The system may map more of the program at any time: what counts is a dump during which it does not.
        let stats = (0..1000).find_map(|_| {
            text.clear();
            let before = HEAP.stats();
            HEAP.dump_to(&mut text).unwrap();
            (HEAP.stats() == before).then_some(before)
        });
        let (stats, summary) = (stats.expect("the resident size comes to rest"), HEAP.summary());
        let (above, _) = text.split_once("|------------Allocator Info------------|\n").unwrap();
        assert_eq!(above, format!("{stats}\n"));
        assert_eq!(stats.summary, summary);
        assert_eq!(stats.summary.cached_blocks > 0, cfg!(feature = "std"));
    });
}

#[test]
fn the_process_heaps_summary_agrees_with_its_census() {
    alone(|| {
        let run = vec![1u8; 3 << 20];
        let (summary, census) = (HEAP.summary(), HEAP.check().unwrap());
        assert_adds_up(&summary);
        assert!(summary.live_bytes >= run.len() && summary.live_runs >= 1);
        assert_eq!(summary.live_blocks + summary.cached_blocks, census.live_blocks);
        assert_eq!(summary.free_pages.get(), census.free_pages);
        assert_eq!(summary.divided_pages.get(), census.divided_pages);
        assert_eq!((summary.multi_pages.get(), summary.live_runs), (census.multi_pages, census.runs));
    });
}

/// A simple generator; each seed has a sequence of its own.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }
}

/// Allocates, resizes and frees at random until `stop`, then frees all.
fn churn(heap: &Heap, seed: u64, stop: &AtomicBool) {
    let mut random = Random(seed);
    let mut held: Vec<(*mut u8, usize)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let size = if random.below(4) == 0 { random.below(20 * PAGE) } else { random.below(2048) } + 1;
        let turn = random.below(held.len() + 20);
        match held.get_mut(turn) {
            Some((block, old_size)) if turn.is_multiple_of(2) => {
                // SAFETY: the block is live and has the old size.
                let moved = unsafe { heap.realloc(*block, layout(*old_size), size) };
                if !moved.is_null() {
                    (*block, *old_size) = (moved, size);
                }
            }
            Some(_) => {
                let (block, size) = held.swap_remove(turn);
                free(heap, block, size);
            }
            None => {
                let block = heap.alloc(layout(size));
                if !block.is_null() {
                    held.push((block, size));
                }
            }
        }
    }
    held.into_iter().for_each(|(block, size)| free(heap, block, size));
}

#[test]
fn dumps_while_threads_allocate_show_every_page_once() {
    for pages in [60, 2000] {
        let heap = heap_of(pages);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (heap, stop) = (&heap, &stop);
            for seed in 0..3 {
                scope.spawn(move || churn(heap, seed, stop));
            }
            let dumpers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(move || {
                        for _ in 0..200 {
                            let mut text = String::new();
                            heap.dump_to(&mut text).unwrap();
                            assert_covers(&text, pages);
                            assert_adds_up(&heap.summary());
                            assert_adds_up(&HEAP.summary());
                        }
                    })
                })
                .collect();
            let ends: Vec<_> = dumpers.into_iter().map(|dumper| dumper.join()).collect();
            stop.store(true, Ordering::Relaxed);
            assert!(ends.iter().all(Result::is_ok));
        });
        assert_eq!(heap.check().unwrap().free_pages, pages);
        assert_eq!(heap.page_state(PageIndex(0)), page_memory_allocator::page_table::PageState::Free);
    }
}

#[test]
fn the_process_heap_is_dumped_while_threads_allocate_from_it() {
    alone(|| {
        let stop = AtomicBool::new(false);
        let pages = HEAP.summary().reserved_bytes / HEAP.summary().page_size;
        thread::scope(|scope| {
            for seed in 0..3 {
                let stop = &stop;
                scope.spawn(move || {
                    let mut random = Random(seed);
                    let mut held: Vec<Vec<u8>> = vec![Vec::new(); 200];
                    while !stop.load(Ordering::Relaxed) {
                        let size =
                            if random.below(10) == 0 { random.below(1 << 20) } else { random.below(4096) };
                        let slot = random.below(held.len());
                        held[slot] = vec![0; size];
                    }
                });
            }
            let dumper = scope.spawn(move || {
                for _ in 0..100 {
                    let mut text = String::new();
                    HEAP.dump_to(&mut text).unwrap();
                    assert_covers(&text, pages);
                    assert_adds_up(&HEAP.summary());
                }
            });
            let end = dumper.join();
            stop.store(true, Ordering::Relaxed);
            assert!(end.is_ok());
        });
        HEAP.check().unwrap();
    });
}
