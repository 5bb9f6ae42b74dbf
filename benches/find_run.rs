//! What it costs to find, claim and release a run of pages, in a fragmented arena of 64 GiB against one of 256 MiB.
//!
//! Both are page tables without an arena: pure data. They are filled at random until they are as fragmented as a heap
//! that ran for long: Divided pages, runs of many lengths, and holes of all sizes between them, up to more than 1,000
//! pages. The cost must not grow to twice as much for 256 times as many pages; the ratios are printed at the end.

use criterion::{BenchmarkId, Criterion, Throughput};
use page_memory_allocator::page_table::{Bin, PageTable, Tag};
use page_memory_allocator::runs::Runs;
use page_memory_allocator::size_class::{BuildGeometry, Geometry};
use page_memory_allocator::units::{ClassIndex, PageCount, PageIndex, ShardIndex};
use std::hint::black_box;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Pages of 64 KiB in 256 MiB and in 64 GiB.
const SIZES: [u32; 2] = [4_096, 1_048_576];
/// Pages of the runs that are looked for.
const COUNTS: [u32; 3] = [1, 16, 1_000];
/// Growth of the cost that is still accepted.
const BAR: f64 = 2.0;

#[path = "../tests/common/random.rs"]
mod random;
use random::Random;

/// What begins at some page.
#[derive(Clone, Copy)]
enum Piece {
    Divided(PageIndex),
    Run(PageIndex, PageCount),
}

struct Arena {
    table: PageTable<BuildGeometry>,
    runs: Runs<'static>,
    bin: Bin,
    pieces: Vec<Piece>,
    random: Random,
}

impl Arena {
    const TAG: Tag = Tag::new(ShardIndex(0), ClassIndex(20));

    fn new(pages: u32) -> Arena {
        let pages = PageCount(pages);
        // Most of it is never touched. The arenas live as long as the program.
        let storage = vec![0u64; PageTable::storage(BuildGeometry, pages).div_ceil(size_of::<u64>())].leak();
        // SAFETY: the storage is zeroed, aligned, long enough, leaked, and used by nothing else; there is one bin.
        let (table, mut runs) =
            unsafe { PageTable::new(BuildGeometry, 1 << 40, pages, NonNull::from(storage).cast()) };
        runs.grow(pages);
        let (bin, pieces, random) = (Bin::new(), Vec::new(), Random::new(pages.0 as u64));
        let mut arena = Arena { table, runs, bin, pieces, random };
        arena.fragment();
        arena
    }

    /// Fills the arena, frees pieces wherever they are and fills half of the holes, twice, frees again, and cleans some
    /// ranges altogether.
    fn fragment(&mut self) {
        let all = self.runs.free_pages().get();
        while self.add_piece() {}
        for refill in [true, true, false] {
            for _ in 0..self.pieces.len() / 4 {
                self.remove_random();
            }
            let target = if refill { self.runs.free_pages().get() / 2 } else { all };
            while self.runs.free_pages().get() > target && self.add_piece() {}
        }
        // One hole of more than 1,000 pages for every GiB, at least one, and two of more than 200.
        for hole in 0..(all / 16_384).max(1) * 3 {
            let pages = if hole % 3 == 0 { 1_200 } else { 300 } + self.random.below(200);
            let start = self.random.below(all - pages) as u32;
            let end = start + pages as u32;
            let (table, runs, bin) = (&self.table, &mut self.runs, &mut self.bin);
            self.pieces.retain(|piece| {
                let inside = match *piece {
                    Piece::Divided(page) | Piece::Run(page, _) => (start..end).contains(&page.0),
                };
                if inside {
                    release(table, runs, bin, *piece);
                }
                !inside
            });
        }
    }

    /// Adds a Divided page or a run of 1 to 200 pages at the lowest place.
    fn add_piece(&mut self) -> bool {
        let count = match self.random.below(10) {
            0..6 => 1,
            6..9 => self.random.below(16) + 1,
            _ => self.random.below(200) + 1,
        };
        let Some(start) = self.runs.find(PageCount(count as u32)) else { return false };
        if count == 1 && self.random.below(4) > 0 {
            self.table.claim_divided(&mut self.runs, &mut self.bin, Self::TAG, start);
            self.pieces.push(Piece::Divided(start));
        } else {
            self.claim(start, PageCount(count as u32));
        }
        true
    }

    fn claim(&mut self, start: PageIndex, count: PageCount) {
        self.table.claim_multi(&mut self.runs, start, count);
        self.pieces.push(Piece::Run(start, count));
    }

    fn remove_random(&mut self) -> Piece {
        let at = self.random.below(self.pieces.len());
        let piece = self.pieces.swap_remove(at);
        release(&self.table, &mut self.runs, &mut self.bin, piece);
        piece
    }

    fn put_back(&mut self, piece: Piece) {
        match piece {
            Piece::Divided(page) => {
                self.table.claim_divided(&mut self.runs, &mut self.bin, Self::TAG, page);
            }
            Piece::Run(start, count) => self.table.claim_multi(&mut self.runs, start, count),
        }
        self.pieces.push(piece);
    }

    /// A walk over all pages: how many are free, and how many holes of which length there are.
    fn describe(&self) -> String {
        let (mut holes, mut longest, mut hole) = ([0; 5], 0, 0u32);
        for page in 0..=self.table.capacity().0 {
            if page < self.table.capacity().0 && self.runs.is_free(PageIndex(page)) {
                hole += 1;
            } else if hole > 0 {
                holes[[2, 16, 200, 1_000].iter().filter(|&&bound| hole >= bound).count()] += 1;
                longest = longest.max(hole);
                hole = 0;
            }
        }
        let [one, to_15, to_199, to_999, more] = holes;
        format!(
            "{} pages, {} free in holes of 1: {one}, to 15: {to_15}, to 199: {to_199}, to 999: {to_999}, more: {more} \
             (longest {longest})",
            self.table.capacity().0,
            self.runs.free_pages().0,
        )
    }
}

fn release(table: &PageTable<BuildGeometry>, runs: &mut Runs<'static>, bin: &mut Bin, piece: Piece) {
    match piece {
        Piece::Divided(page) => table.release_divided(runs, bin, page),
        Piece::Run(start, count) => table.release_multi(runs, start, count),
    }
}

/// Something that is measured, for runs of so many pages.
type Round = fn(&mut Arena, PageCount);

const FIND: Round = |arena, count| {
    black_box(arena.runs.find(black_box(count)));
};

/// Runs that are claimed one after the other, each in the lowest hole that is left, before they are released.
fn in_a_row(count: PageCount) -> usize {
    if count.0 < 100 { 32 } else { 1 }
}

const CLAIM: Round = |arena, count| {
    let mut starts = [PageIndex(0); 32];
    let starts = &mut starts[..in_a_row(count)];
    for start in &mut *starts {
        *start = arena.runs.find(black_box(count)).expect("the arena has such holes");
        arena.table.claim_multi(&mut arena.runs, *start, count);
    }
    for start in starts {
        arena.table.release_multi(&mut arena.runs, *start, count);
    }
};

/// Something goes from anywhere, and is put back. What that costs grows with the caches it misses.
const CHANGE: Round = |arena, _| {
    let piece = arena.remove_random();
    arena.put_back(piece);
};

/// While something is gone, a run is claimed and released: much of what was known the last time has changed.
const CLAIM_AND_CHANGE: Round = |arena, count| {
    let piece = arena.remove_random();
    let start = arena.runs.find(black_box(count)).expect("the arena has such holes");
    arena.table.claim_multi(&mut arena.runs, start, count);
    arena.table.release_multi(&mut arena.runs, start, count);
    arena.put_back(piece);
};

/// How many runs of so many pages a round is about.
type RunsOfRound = fn(PageCount) -> usize;

const ROUNDS: [(&str, Round, RunsOfRound); 4] = [
    ("find", FIND, |_| 1),
    ("find, claim, release", CLAIM, in_a_row),
    ("a random change", CHANGE, |_| 1),
    ("the same amid a random change", CLAIM_AND_CHANGE, |_| 1),
];

/// Rounds that are timed at a time.
const BATCH: u32 = 1_000;
const BATCHES: usize = 401;

/// Nanoseconds a run: the median of batches, taken by turns from all arenas so that noise falls on all alike.
fn medians(arenas: &mut [Arena], round: Round, count: PageCount, runs: usize) -> Vec<f64> {
    let mut times = vec![Vec::new(); arenas.len()];
    for _ in 0..BATCHES {
        for (arena, times) in arenas.iter_mut().zip(&mut times) {
            let start = Instant::now();
            (0..BATCH).for_each(|_| round(arena, count));
            times.push(start.elapsed());
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[BATCHES / 2].as_secs_f64() * 1e9 / f64::from(BATCH) / runs as f64
    };
    times.iter_mut().map(median).collect()
}

fn print_ratios(arenas: &mut [Arena]) {
    println!(
        "\nnanoseconds a run, medians of {BATCHES} batches of {BATCH} rounds, by turns; the bar is {BAR} x"
    );
    println!("{:32} {:>6} {:>10} {:>10} {:>8}", "", "pages", "256 MiB", "64 GiB", "ratio");
    let print = |name, count, medians: &[f64]| {
        let ratio = medians[1] / medians[0];
        let verdict = if ratio < BAR { "" } else { "  over the bar" };
        println!("{name:32} {count:>6} {:>10.1} {:>10.1} {ratio:>7.2}x{verdict}", medians[0], medians[1]);
    };
    for count in COUNTS {
        let [find, cycle, change, both] =
            ROUNDS.map(|(_, round, runs)| medians(arenas, round, PageCount(count), runs(PageCount(count))));
        print(ROUNDS[0].0, count, &find);
        print(ROUNDS[1].0, count, &cycle);
        let net: Vec<f64> = both.iter().zip(&change).map(|(both, change)| both - change).collect();
        print("  amid a random change, net", count, &net);
        println!("  (that change {:30} {:>10.1} {:>10.1})", "", change[0], change[1]);
    }
}

fn main() {
    assert_eq!(BuildGeometry.page_size(), 64 << 10, "the figures are those of pages of 64 KiB");
    let mut arenas = SIZES.map(Arena::new);
    for arena in &arenas {
        println!("{}", arena.describe());
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for (name, round, runs) in ROUNDS {
        let mut group = criterion.benchmark_group(name);
        for count in COUNTS {
            group.throughput(Throughput::Elements(runs(PageCount(count)) as u64));
            for arena in &mut arenas {
                let gib = f64::from(arena.table.capacity().0) / 16_384.0;
                let id = BenchmarkId::new(format!("{count} pages"), format!("{gib} GiB"));
                group.bench_function(id, |bencher| bencher.iter(|| round(arena, PageCount(count))));
            }
        }
        group.finish();
    }
    criterion.final_summary();
    // Under `cargo test` everything runs once, and nothing is measured.
    if std::env::args().any(|argument| argument == "--bench") {
        print_ratios(&mut arenas);
    }
}
