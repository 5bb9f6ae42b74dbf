//! What one more run costs in a heap that is full of them: 64 MiB and 16 GiB of live runs of 64 KiB to 1 MiB.
//!
//! The heap's memory is never touched, so that it is the allocator that is measured, not the system.

use criterion::{Criterion, criterion_group, criterion_main};
use page_memory_allocator::PageAllocator;
use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const LEAST: usize = 64 << 10;
const MOST: usize = 1 << 20;

/// Sizes without a pattern (xorshift), the same in each run.
struct Sizes(u64);

impl Iterator for Sizes {
    type Item = Layout;

    fn next(&mut self) -> Option<Layout> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Layout::from_size_align(LEAST + self.0 as usize % (MOST - LEAST), 8).ok()
    }
}

/// Fills the heap to `bytes` of live runs, with holes of all lengths where every fourth of them was.
fn fill(bytes: usize, sizes: &mut Sizes) -> Vec<(*mut u8, Layout)> {
    let (mut runs, mut live) = (Vec::new(), 0);
    for (number, layout) in sizes.enumerate() {
        // SAFETY: the size is not zero.
        let run = unsafe { alloc(layout) };
        assert!(!run.is_null(), "the system refuses {bytes} bytes of addresses");
        runs.push((run, layout));
        live += layout.size();
        if number % 4 == 3 {
            let (run, layout) = runs.swap_remove(number * 7 % runs.len());
            live -= layout.size();
            // SAFETY: the run is live, and has this layout.
            unsafe { dealloc(run, layout) };
        }
        if live >= bytes {
            return runs;
        }
    }
    unreachable!("sizes do not end")
}

fn one_more_run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one more run");
    for (name, bytes) in [("in 64 MiB", 64 << 20), ("in 16 GiB", 16 << 30)] {
        let mut sizes = Sizes(0x9E37_79B9_7F4A_7C15);
        let runs = fill(bytes, &mut sizes);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let layout = sizes.next().expect("sizes do not end");
                // SAFETY: the size is not zero; the run is live, and has this layout.
                unsafe { dealloc(black_box(alloc(layout)), layout) };
            });
        });
        for (run, layout) in runs {
            // SAFETY: the run is live, and has this layout.
            unsafe { dealloc(run, layout) };
        }
    }
    group.finish();
}

criterion_group!(benches, one_more_run);
criterion_main!(benches);
