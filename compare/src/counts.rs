//! Loops whose instructions are counted by `scripts/instructions.sh`.
//!
//! Called as `<allocator> count-<shape> N` and `<allocator> bare-<shape> N`. Start-up and set-up
//! cost the same for every N, so the difference of two counts, divided by the difference of their
//! Ns, is the cost of one pair. `bare-` is the same loop around two functions that do nothing and
//! are not inlined: what is left after subtracting it is the allocator's own.

use std::alloc::{Layout, alloc, dealloc};
use std::arch::asm;
use std::hint::black_box;
use std::process::ExitCode;

use fastrand::Rng;
use nix::sys::signal::{Signal, raise};

use crate::workloads::{SizeTable, random_below};

/// The size of the blocks in the loops of one size.
const SIZE: usize = 64;
/// Blocks in the working set of the random loop.
const SET: usize = 1000;

/// Whether `name` names one of the loops.
pub fn is_loop(name: &str) -> bool {
    name.starts_with("count-") || name.starts_with("bare-")
}

/// Runs the loop `name` for `count` pairs.
pub fn run(name: &str, count: &str) -> ExitCode {
    let Ok(pairs) = count.parse::<usize>() else {
        eprintln!("the number of pairs must be a number, not {count:?}");
        return ExitCode::from(2);
    };
    // Ignored, unless the process is traced: `single_step` runs up to here at full speed.
    raise(Signal::SIGURG).expect("a process may signal itself");
    match name {
        "count-pair" => pair::<Global>(pairs),
        "bare-pair" => pair::<Nothing>(pairs),
        "count-burst400" => burst::<Global>(400, pairs),
        "bare-burst400" => burst::<Nothing>(400, pairs),
        "count-random1000" => random::<Global>(pairs),
        "bare-random1000" => random::<Nothing>(pairs),
        _ => {
            eprintln!("no loop is named {name:?}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Where a loop gets its blocks from.
///
/// # Safety
/// `dealloc` is called once for each result of `alloc`, with the same layout.
unsafe trait Source {
    /// A block of `layout`, whose size is not zero.
    unsafe fn alloc(layout: Layout) -> *mut u8;
    /// Takes the block back.
    unsafe fn dealloc(block: *mut u8, layout: Layout);
}

/// The global allocator of the binary.
struct Global;

// SAFETY: both forward to the global allocator.
unsafe impl Source for Global {
    #[inline(always)]
    unsafe fn alloc(layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout has a size.
        unsafe { alloc(layout) }
    }

    #[inline(always)]
    unsafe fn dealloc(block: *mut u8, layout: Layout) {
        // SAFETY: the caller returns what `alloc` gave it.
        unsafe { dealloc(block, layout) }
    }
}

/// Two calls that do nothing.
struct Nothing;

// SAFETY: there are no blocks to give or take; the loops never read through the pointers.
unsafe impl Source for Nothing {
    #[inline(always)]
    unsafe fn alloc(layout: Layout) -> *mut u8 {
        bare_alloc(layout.size(), layout.align())
    }

    #[inline(always)]
    unsafe fn dealloc(block: *mut u8, layout: Layout) {
        bare_dealloc(block, layout.size(), layout.align());
    }
}

// An empty `asm!` takes the arguments, or the optimiser would drop them, and with them the
// instructions in the caller that load them. `black_box` would go through the stack.
#[inline(never)]
fn bare_alloc(size: usize, align: usize) -> *mut u8 {
    let mut block = size as *mut u8;
    // SAFETY: no instructions.
    unsafe {
        asm!("/* {} {} */", inout(reg) block, in(reg) align, options(nostack, preserves_flags));
    }
    block
}

#[inline(never)]
fn bare_dealloc(block: *mut u8, size: usize, align: usize) {
    // SAFETY: no instructions.
    unsafe {
        asm!("/* {} {} {} */", in(reg) block, in(reg) size, in(reg) align, options(nostack, preserves_flags));
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(black_box(size), 8).expect("a small size")
}

/// Allocates a block and frees it at once, and repeats.
#[inline(never)]
fn pair<S: Source>(pairs: usize) {
    let layout = layout(SIZE);
    for _ in 0..pairs {
        // Hidden from the optimiser, which may leave out a pair that nobody looks at.
        // SAFETY: the layout has a size, and the block goes back with the same.
        unsafe { S::dealloc(black_box(S::alloc(layout)), layout) };
    }
}

/// Allocates `length` blocks, frees them in the order they came, and repeats.
#[inline(never)]
fn burst<S: Source>(length: usize, pairs: usize) {
    let layout = layout(SIZE);
    let mut blocks = vec![std::ptr::null_mut(); length];
    for _ in 0..pairs / length {
        for block in &mut blocks {
            // SAFETY: the layout has a size.
            *block = unsafe { S::alloc(layout) };
        }
        for block in &blocks {
            // SAFETY: allocated in the loop above, with the same layout.
            unsafe { S::dealloc(*block, layout) };
        }
    }
    black_box(blocks);
}

/// Replaces a random block of a set by one of a random size.
#[inline(never)]
fn random<S: Source>(pairs: usize) {
    let mut rng = Rng::with_seed(7);
    let sizes = SizeTable::log_uniform(8, 4096);
    let mut blocks: Vec<(*mut u8, Layout)> = (0..SET)
        .map(|_| {
            let layout = layout(sizes.pick(&mut rng));
            // SAFETY: no size of the table is zero.
            (unsafe { S::alloc(layout) }, layout)
        })
        .collect();
    for _ in 0..pairs {
        let slot = &mut blocks[random_below(&mut rng, SET)];
        // SAFETY: each block of the set is freed once, with the layout it came with.
        unsafe { S::dealloc(slot.0, slot.1) };
        let layout = layout(sizes.pick(&mut rng));
        // SAFETY: no size of the table is zero.
        *slot = (unsafe { S::alloc(layout) }, layout);
    }
    for (block, layout) in blocks {
        // SAFETY: each block of the set is freed once, with the layout it came with.
        unsafe { S::dealloc(block, layout) };
    }
}
