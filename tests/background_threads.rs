//! The allocator's own threads in programs that do not make it easy for them: with thread-local storage that takes nearly all of the
//! stack that such a thread asks for, and without thread caches.

#[path = "common/background.rs"]
mod background;
#[path = "common/child.rs"]
mod child;

use background::{OF_THE_HARNESS, becomes_true, threads};
use child::{in_child, text};
use page_memory_allocator::PageAllocator;
use std::cell::Cell;
use std::path::PathBuf;
use std::{env, fs, hint, mem, process};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

thread_local! {
    /// What every thread of this program has.
    static LARGE: Cell<[u8; 240 << 10]> = const { Cell::new([0; 240 << 10]) };
}

#[test]
fn the_thread_that_gives_memory_back_starts_in_a_program_with_much_thread_local_storage() {
    let output = in_child(
        |command| _ = command.env("PMA_BACKGROUND_PURGE", "1"),
        || {
            LARGE.with(|large| hint::black_box(large.as_ptr()));
            drop(vec![1u8; 1 << 20]);
            assert_eq!(threads(), OF_THE_HARNESS + 1);
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_thread_that_writes_dumps_starts_in_a_program_with_much_thread_local_storage() {
    let directory = env::temp_dir().join(format!("pma-background-{}", process::id()));
    fs::create_dir_all(&directory).unwrap();
    let output = in_child(
        |command| _ = command.env("PMA_DUMP_SIGNAL", "USR1").env("PMA_DUMP_DIR", &directory),
        || {
            drop(vec![1u8; 1 << 20]);
            let directory = PathBuf::from(env::var("PMA_DUMP_DIR").unwrap());
            // SAFETY: the signal is handled.
            unsafe { libc::raise(libc::SIGUSR1) };
            assert!(becomes_true(|| fs::read_dir(&directory).unwrap().count() == 3));
        },
    );
    fs::remove_dir_all(&directory).unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn blocks_alone_start_the_thread_that_gives_memory_back() {
    let output = in_child(
        |command| _ = command.env("PMA_BACKGROUND_PURGE", "1"),
        || {
            // More than a thread's cache holds, if there is one.
            let mut blocks = vec![Some(Box::new([1u8; 1000])); 10_000];
            blocks.iter_mut().for_each(|block| *block = None);
            mem::forget(blocks);
            assert_eq!(threads(), OF_THE_HARNESS + 1);
        },
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
}
