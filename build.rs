//! Generates the size-class tables of the process heap from a few parameters, each of which can be
//! set by an environment variable at build time (the README lists them).

use std::{env, fmt::Write as _, fs, path::Path, process};

/// The bottom of the size classes: 8-byte steps up to `8 * steps_per_doubling * 2`.
const GRANULE: usize = 8;

/// Above this size there are half as many classes to a doubling: each of them has a page of its own in use, which few of
/// such blocks fill, and a block that grows step by step is copied for each.
const COARSE: usize = 2 << 10;

/// No block has this size, but the next one, which is a multiple of 16. It is what the standard library allocates for a panic,
/// until 2026 with an alignment of 8, although unwinders rely on 16: LLVM's does, which programs linked with musl have
/// (<https://github.com/rust-lang/rust/pull/161368>).
const PANIC: usize = 56;

/// `offset / block == (offset * reciprocal) >> RECIPROCAL_SHIFT` for every offset within a page.
const RECIPROCAL_SHIFT: usize = 44;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rustc-check-cfg=cfg(pma_sanitized)");
    // Builds without one of the checks, which show what each is for: `tests/unchecked.sh`.
    println!(
        "cargo::rustc-check-cfg=cfg(pma_unchecked, values(\"tag\", \"mark\", \"bit\", \"put\", \"run\", \"holder\", \"atfork\", \"release\", \"take\", \"top\"))"
    );
    let page_size = parameter("PMA_PAGE_SIZE", 64 << 10, 4 << 10, 1 << 20);
    // Heaps over given memory are for pointers of 32 bits, too.
    let wide = env::var("CARGO_CFG_TARGET_POINTER_WIDTH").is_ok_and(|width| width == "64");
    let (usual, most) = if wide { (16 << 40, 64 << 40) } else { (1 << 30, 1 << 31) };
    let arena_bytes = parameter("PMA_ARENA_BYTES", usual, 64 << 20, most);
    let largest = parameter("PMA_LARGEST_CLASS", page_size / 2, 1 << 10, page_size / 2);
    let steps = parameter("PMA_STEPS_PER_DOUBLING", 8, 8, 16);
    let shards = parameter("PMA_SHARDS", 16, 1, 128);

    let blocks = block_sizes(steps, largest);
    let class_of: Vec<usize> = (1..=largest / GRANULE)
        .map(|granules| blocks.partition_point(|&block| block < granules * GRANULE))
        .collect();
    verify_reciprocals(&blocks, page_size);

    let mut out = String::new();
    constant(&mut out, "PAGE_SIZE", "Bytes in a page of the process heap.", page_size);
    constant(&mut out, "ARENA_BYTES", "Most bytes of address space the process heap reserves.", arena_bytes);
    constant(
        &mut out,
        "LARGEST_CLASS",
        "Largest block size, in bytes; more than that is a run of pages.",
        largest,
    );
    constant(
        &mut out,
        "STEPS_PER_DOUBLING",
        "Size classes between a power of two and the next, up to 2 KiB; half as many above.",
        steps,
    );
    constant(
        &mut out,
        "SHARDS",
        "Most shards that the threads of the process are spread over; two a processor are used.",
        shards,
    );
    constant(
        &mut out,
        "GRANULE",
        "Bytes from one of the smallest block sizes to the next; sizes are looked up in units of this.",
        GRANULE,
    );
    constant(
        &mut out,
        "COARSE",
        "Above this size, in bytes, there are half as many classes to a doubling.",
        COARSE,
    );
    constant(
        &mut out,
        "RECIPROCAL_SHIFT",
        "Shift of the reciprocals: exact for offsets up to 1 MiB, and no product exceeds 64 bits.",
        RECIPROCAL_SHIFT,
    );
    constant(
        &mut out,
        "CLASS_COUNT",
        "Entries of the class tables: the classes, and entry 0, which is none.",
        blocks.len(),
    );
    let capacities = blocks.iter().map(|&block| page_size.checked_div(block).unwrap_or(0));
    table(&mut out, "BLOCK_SIZES", "Bytes in a block, by class.", "u32", blocks.iter().copied());
    table(&mut out, "BLOCKS_PER_PAGE", "Blocks in a page of the process heap, by class.", "u32", capacities);
    table(
        &mut out,
        "RECIPROCALS",
        "`ceil(2^RECIPROCAL_SHIFT / block size)`, by class.",
        "u64",
        blocks.iter().map(|&block| reciprocal(block)),
    );
    table(
        &mut out,
        "CLASS_OF",
        "The class of a size, by `(size - 1) / GRANULE`.",
        "u8",
        class_of.into_iter(),
    );

    let path = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("size_classes.rs");
    fs::write(path, out).expect("OUT_DIR can be written");
}

/// Block sizes in ascending order; entry 0 is the class that is none.
///
/// `GRANULE` steps as long as one is no more than `1 / steps` of the size, then `steps` classes to a
/// doubling, `steps / 2` above [`COARSE`]: a request wastes less than `1 / (steps + 1)` of its block, or
/// `1 / (steps / 2 + 1)`. [`PANIC`] is left out.
fn block_sizes(steps: usize, largest: usize) -> Vec<usize> {
    let mut blocks = vec![0];
    let mut block = GRANULE;
    while block <= largest {
        if block != PANIC {
            blocks.push(block);
        }
        let doubling = 1 << block.ilog2();
        let steps = if block < COARSE { steps } else { steps / 2 };
        block += GRANULE.max(doubling / steps);
    }
    blocks.sort_unstable();
    assert!(blocks.len() <= 256, "a class index must fit in a byte");
    blocks
}

fn reciprocal(block: usize) -> usize {
    if block == 0 { 0 } else { (1usize << RECIPROCAL_SHIFT).div_ceil(block) }
}

fn verify_reciprocals(blocks: &[usize], page_size: usize) {
    for &block in &blocks[1..] {
        for offset in (0..=page_size / block).flat_map(|n| [n * block, (n * block).saturating_sub(1)]) {
            assert_eq!((offset * reciprocal(block)) >> RECIPROCAL_SHIFT, offset / block);
        }
    }
}

/// The value of the environment variable `name`, or `default` when it is not set; anything that is
/// not a power of two within the bounds ends the build.
fn parameter(name: &str, default: usize, least: usize, most: usize) -> usize {
    println!("cargo::rerun-if-env-changed={name}");
    let Ok(text) = env::var(name) else { return default };
    match text.trim().parse::<usize>() {
        Ok(value) if value.is_power_of_two() && (least..=most).contains(&value) => value,
        _ => {
            println!(
                "cargo::error={name}={text:?} is not accepted: it takes a power of two from {least} to {most}, in digits."
            );
            process::exit(1);
        }
    }
}

fn constant(out: &mut String, name: &str, doc: &str, value: usize) {
    writeln!(out, "/// {doc}\npub const {name}: usize = {value};").expect("a String can be written");
}

fn table(out: &mut String, name: &str, doc: &str, of: &str, values: impl ExactSizeIterator<Item = usize>) {
    let len = values.len();
    let list: Vec<String> = values.map(|value| value.to_string()).collect();
    writeln!(out, "/// {doc}\npub static {name}: [{of}; {len}] = [{}];", list.join(", "))
        .expect("a String can be written");
}
