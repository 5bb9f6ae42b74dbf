//! Counts the words of files over several threads, with [`PageAllocator`] as the global allocator, and shows the
//! heap while the counts are in memory.
//!
//! ```text
//! cargo run --release --example heap_map [FILE OR DIRECTORY]...
//! ```
//!
//! Without arguments it reads the sources of this crate.

use page_memory_allocator::PageAllocator;
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// How often each word occurs.
type Counts = HashMap<String, usize>;

/// The most frequent words are printed.
const SHOWN: usize = 10;
/// Text that a thread counts at a time.
const PIECE_BYTES: usize = 1 << 20;
const MOST_THREADS: usize = 8;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("heap_map: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut named: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    if named.is_empty() {
        named.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    }
    let mut texts = Vec::new();
    for path in &named {
        read(path, &mut texts).map_err(|(path, error)| format!("cannot read {}: {error}", path.display()))?;
    }
    let threads = thread::available_parallelism().map_or(2, usize::from).clamp(2, MOST_THREADS);
    let counts = merge(count(&texts, threads));
    let mut sorted: Vec<(&String, &usize)> = counts.iter().collect();
    sorted.sort_unstable_by(|(word, count), (next_word, next_count)| {
        next_count.cmp(count).then_with(|| word.cmp(next_word))
    });
    print(&texts, &sorted, threads).map_err(|error| format!("cannot write to standard output: {error}"))?;
    // The words and their counts are in memory still: this is what they look like.
    HEAP.dump();
    Ok(())
}

fn print(texts: &[String], sorted: &[(&String, &usize)], threads: usize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let words: usize = sorted.iter().map(|(_, count)| **count).sum();
    let (files, different) = (texts.len(), sorted.len());
    writeln!(out, "Files: {files}; words: {words}; different words: {different}; threads: {threads}")?;
    for (word, count) in sorted.iter().take(SHOWN) {
        writeln!(out, "{count:>10} {word}")?;
    }
    writeln!(out)?;
    out.flush()
}

/// Appends the text of a file, or of every file in a directory and below it; fails with the path that cannot be read.
fn read(path: &Path, texts: &mut Vec<String>) -> Result<(), (PathBuf, io::Error)> {
    let at_path = |error| (path.to_path_buf(), error);
    if !path.is_dir() {
        let bytes = fs::read(path).map_err(at_path)?;
        // Words are counted in whatever is text.
        texts.push(String::from_utf8_lossy(&bytes).into_owned());
        return Ok(());
    }
    let mut inside = Vec::new();
    for entry in fs::read_dir(path).map_err(at_path)? {
        let inner = entry.map_err(at_path)?.path();
        // A link may lead back to where it is.
        if !inner.is_symlink() || inner.is_file() {
            inside.push(inner);
        }
    }
    inside.sort();
    inside.iter().try_for_each(|path| read(path, texts))
}

/// Counts the words of all texts, which the threads share out among themselves piece by piece.
fn count(texts: &[String], threads: usize) -> Vec<Counts> {
    let pieces: Vec<&str> = texts.iter().flat_map(|text| pieces(text)).collect();
    let taken = AtomicUsize::new(0);
    let work = || {
        let mut counts = Counts::new();
        while let Some(piece) = pieces.get(taken.fetch_add(1, Ordering::Relaxed)) {
            count_words(piece, &mut counts);
        }
        counts
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("counting does not panic")).collect()
    })
}

/// Cuts a text between words, into pieces of at least [`PIECE_BYTES`] but for the last.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let cut = text
            .char_indices()
            .find_map(|(at, letter)| (at >= PIECE_BYTES && !is_of_word(letter)).then_some(at))
            .unwrap_or(text.len());
        let (piece, rest) = text.split_at(cut);
        text = rest;
        Some(piece)
    })
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn count_words(text: &str, counts: &mut Counts) {
    for word in text.split(|letter| !is_of_word(letter)).filter(|word| !word.is_empty()) {
        match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                counts.insert(word.to_owned(), 1);
            }
        }
    }
}

fn merge(parts: Vec<Counts>) -> Counts {
    let mut whole = Counts::new();
    for (word, count) in parts.into_iter().flatten() {
        *whole.entry(word).or_default() += count;
    }
    whole
}
