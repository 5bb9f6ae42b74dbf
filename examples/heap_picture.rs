//! Fills the heap with a mixture of things, some of them in components, frees some, and writes a picture of it: a page of
//! HTML.
//!
//! ```text
//! cargo run --release --example heap_picture [FILE]
//! ```
//!
//! Without an argument the file is `heap.html` in the directory of the build.

use page_memory_allocator::{Component, PageAllocator};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// Parts of the program, whose pages can be told apart: the first threads work in one each.
static PARTS: [Component; 2] = [Component::new("index"), Component::new("cache").limit(256 << 20)];

/// Threads that allocate, and entries that each of them makes.
const THREADS: usize = 4;
const ENTRIES: usize = 60_000;

/// Things of many sizes.
#[derive(Default)]
struct Things {
    names: Vec<String>,
    numbers: HashMap<usize, Box<[usize]>>,
    ordered: BTreeMap<usize, Vec<u8>>,
    large: Vec<Vec<u8>>,
}

fn things(seed: usize) -> Things {
    let mut things = Things::default();
    let mut random = seed as u64;
    for entry in 0..ENTRIES {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let number = (random >> 40) as usize;
        things.names.push("name ".repeat(number % 40 + 1));
        if number.is_multiple_of(3) {
            things.numbers.insert(entry, vec![number; number % 64 + 1].into());
        }
        if number.is_multiple_of(5) {
            things.ordered.insert(number, vec![1; number % 3000]);
        }
        if number.is_multiple_of(500) {
            things.large.push(vec![1; number % 900_000]);
        }
    }
    things
}

/// Frees a part of them, unevenly.
fn thin_out(things: &mut Things) {
    things.names.drain(ENTRIES / 3..ENTRIES / 3 * 2);
    things.names.shrink_to_fit();
    things.numbers.retain(|entry, _| !entry.is_multiple_of(7));
    things.ordered.retain(|number, _| number.is_multiple_of(2));
    let mut position = 0;
    things.large.retain(|_| {
        position += 1;
        position % 3 != 0
    });
}

fn main() -> ExitCode {
    let named = env::args_os().nth(1).map(PathBuf::from);
    let path = named.unwrap_or_else(|| {
        let build = env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
        build.unwrap_or_default().join("heap.html")
    });
    let mut all: Vec<Things> = thread::scope(|scope| {
        let work = |seed: usize| match PARTS.get(seed) {
            Some(part) => part.enter(|| things(seed)),
            None => things(seed),
        };
        let workers: Vec<_> = (0..THREADS).map(|seed| scope.spawn(move || work(seed))).collect();
        workers.into_iter().map(|worker| worker.join().expect("nothing panics")).collect()
    });
    let before = HEAP.snapshot();
    all.iter_mut().skip(1).for_each(thin_out);
    all.push(things(THREADS));

    let mut page = String::new();
    HEAP.dump_html_since(&before, &mut page).expect("a String can be written");
    if let Err(error) = fs::write(&path, page) {
        eprintln!("heap_picture: cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    println!("{}\n\nSince the first half:\n\n{}", HEAP.stats(), HEAP.snapshot().diff(&before));
    println!("\nThe picture is in {}", path.display());
    ExitCode::SUCCESS
}
