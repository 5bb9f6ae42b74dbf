//! What a running process is asked for from outside, by environment variables at its start.
//!
//! | variable | value | effect |
//! |---|---|---|
//! | `PMA_REPORT` | `exit` | at the end of the process, what is live is written to standard error, by class |
//! | `PMA_DUMP_SIGNAL` | `USR1`, `USR2`, `HUP` or `QUIT` | when the signal comes, the heap is dumped to files |
//! | `PMA_DUMP_DIR` | a directory | where these files are; the working directory unless set |
//!
//! A signal may interrupt a thread that holds any lock of the heap, or of the C library. Its handler therefore only
//! counts the signal and wakes a thread of the allocator's own, by a system call: both are safe in a handler. That
//! thread writes the dump as any other thread may. Where it is not there yet, as in a child process before its first
//! slow path, the dump is written when it is. It has a small stack, all signals blocked, and never allocates.

use crate::dump::{DumpOptions, View};
use crate::global::{PageAllocator, heap};
use crate::human::{Bytes, Count};
use crate::line::Line;
use crate::lock::Once;
use crate::options::{ignore, set};
use crate::out::{Out, Target};
use crate::stats::{ClassStats, Stats};
use crate::sys::signals::{self, Signal};
use crate::sys::{self, Stream, file::File, file::Identity};
use core::ffi::CStr;
use core::fmt::{self, Write};
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::Relaxed};
use static_assertions::const_assert;

/// Bytes of a file's path, the zero at its end included.
const LONGEST_PATH: usize = 512;
/// Bytes of the directory's: `pma-PROCESS-NUMBER.EXTENSION` has room behind it.
const LONGEST_DIRECTORY: usize = 464;
const_assert!(LONGEST_DIRECTORY == 464); // else change what `Path::of_directory` says, and docs/tuning.md
const_assert!(LONGEST_DIRECTORY + "/pma-4294967295-4294967295.html\0".len() <= LONGEST_PATH);
/// A dump that finds so many files of its name gives up.
const MOST_DUMPS: u32 = 10_000;

/// Whether the thread is to be started.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Whether dumps are written on a signal at all.
static ON_SIGNAL: AtomicBool = AtomicBool::new(false);
/// Signals so far.
static SIGNALS: AtomicU32 = AtomicU32::new(0);
/// Those of them that were answered.
static ANSWERED: AtomicU32 = AtomicU32::new(0);

/// The directory for dumps; a program may change its environment later.
static DIRECTORY: Once<Path> = Once::new();

/// Which file standard error was at the start, if it was open. Nothing is written to another that has its place: it may be any.
static STANDARD_ERROR: spin::Once<Identity> = spin::Once::new();
/// One more descriptor of it, as programs may close theirs before the report at exit; or less than zero. Not in child processes:
/// who reads what they write would wait for their ends.
static KEPT: AtomicI32 = AtomicI32::new(-1);

/// Looks at the environment. To be called once, when the heap is in use.
pub(crate) fn start() {
    let (mut at_exit, mut signal) = (false, None);
    set(&mut at_exit, c"PMA_REPORT", "it takes exit", |value| (value == "exit").then_some(true));
    set(&mut signal, c"PMA_DUMP_SIGNAL", "it takes USR1, USR2, HUP or QUIT", |value| {
        Signal::named(value).map(Some)
    });
    if at_exit || signal.is_some() {
        File::lent(Stream::Error as i32).identity().map(|identity| STANDARD_ERROR.call_once(|| identity));
    }
    if at_exit {
        KEPT.store(File::of_standard_error().map_or(-1, File::into_descriptor), Relaxed);
        signals::at_exit(write_live_at_exit);
    }
    if let Some(signal) = signal {
        DIRECTORY.call_once(Path::of_directory);
        // SAFETY: the handler counts and makes a system call, no more.
        let handled = unsafe { signal.handle(on_signal) };
        ON_SIGNAL.store(handled, Relaxed);
        WANTED.store(handled, Relaxed);
    }
}

/// Whether somebody is to [start](start_thread) the thread.
#[inline]
pub(crate) fn is_to_start_thread() -> bool {
    WANTED.load(Relaxed)
}

/// Goes on in a child process, which has no thread but the one that forked.
pub(crate) fn after_fork() {
    WANTED.store(ON_SIGNAL.load(Relaxed), Relaxed);
    ANSWERED.store(SIGNALS.load(Relaxed), Relaxed);
    drop(kept().map(ManuallyDrop::into_inner));
    KEPT.store(-1, Relaxed);
}

/// The file that is standard error, if it is the one that it was at the start.
fn standard_error() -> Option<ManuallyDrop<File>> {
    as_it_was(Stream::Error as i32)
}

/// The same by the descriptor that was kept.
fn kept() -> Option<ManuallyDrop<File>> {
    as_it_was(KEPT.load(Relaxed))
}

fn as_it_was(descriptor: i32) -> Option<ManuallyDrop<File>> {
    // There is none unless a report or dumps were asked for: then a fork makes no system call for it.
    let then = STANDARD_ERROR.get()?;
    let file = File::lent(descriptor);
    (file.identity()? == *then).then_some(file)
}

/// Starts the thread, once, if it is to be there.
#[cold]
pub(crate) fn start_thread() {
    if WANTED.swap(false, Relaxed) && !sys::spawn(answer_signals) {
        // It is not tried again: that is for every slow path to do.
        let mut line = Line::new();
        let _ = line.write_str("page_memory_allocator: there is no thread to write dumps on a signal\n");
        line.report();
    }
}

extern "C" fn on_signal(_: core::ffi::c_int) {
    signals::keeping_errno(|| {
        SIGNALS.fetch_add(1, Relaxed);
        sys::wake(&SIGNALS);
    });
}

/// The thread. Signals that come while it writes are one.
extern "C" fn answer_signals(_: *mut core::ffi::c_void) -> *mut core::ffi::c_void {
    loop {
        let (signals, answered) = (SIGNALS.load(Relaxed), ANSWERED.load(Relaxed));
        if signals == answered {
            sys::wait(&SIGNALS, answered);
        } else {
            ANSWERED.store(signals, Relaxed);
            dump_to_files();
        }
    }
}

/// A path of limited length, ended by a zero.
#[derive(Clone, Copy)]
struct Path {
    bytes: [u8; LONGEST_PATH],
    len: usize,
}

impl Path {
    /// The directory for dumps; the working directory if none is set, or one that has too long a name.
    fn of_directory() -> Path {
        let set = sys::environment(c"PMA_DUMP_DIR").filter(|directory| !directory.is_empty());
        let fits = |directory: &&CStr| {
            let fits = directory.count_bytes() <= LONGEST_DIRECTORY;
            if !fits {
                ignore(c"PMA_DUMP_DIR", directory, "it takes a directory of up to 464 bytes");
            }
            fits
        };
        let directory = set.filter(fits).unwrap_or(c".").to_bytes();
        let mut path = Path { bytes: [0; LONGEST_PATH], len: directory.len() };
        path.bytes[..directory.len()].copy_from_slice(directory);
        path
    }

    /// `pma-PROCESS-NUMBER.EXTENSION` in the directory for dumps; `None` if that is too long.
    fn of_dump(number: u32, extension: &str) -> Option<Path> {
        let mut path = *DIRECTORY.get()?;
        write!(path, "/pma-{}-{number}.{extension}", signals::process()).ok()?;
        Some(path)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl fmt::Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        // One byte is left for the zero.
        if end >= LONGEST_PATH {
            return Err(fmt::Error);
        }
        self.bytes[self.len..end].copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Writes the heap as text, as a document and as a picture, to files that are not there yet, and says where on standard
/// error, unless that is another file than at the start.
#[cold] // so that nothing it calls is written out in here once more
fn dump_to_files() {
    const ALLOCATOR: PageAllocator = PageAllocator::new();
    let mut line = Line::new();
    let new_file = |number| {
        Path::of_dump(number, "txt")
            .and_then(|path| File::create(path.as_c_str()).map(|file| (number, path, file)))
    };
    let Some((number, path, text)) = (1..MOST_DUMPS).find_map(new_file) else {
        let directory =
            DIRECTORY.get().and_then(|path| path.as_c_str().to_str().ok()).unwrap_or("its directory");
        let _ = writeln!(
            line,
            "page_memory_allocator: no dump is written, as there can be no new file in {directory}"
        );
        return tell(&line);
    };
    let is_whole = Out::print(Target::File(&text), |out| {
        for view in [View::Classes, View::Worst(20), View::Folded] {
            ALLOCATOR.dump_with(DumpOptions::new().sums(view == View::Classes).view(view), out)?;
            writeln!(out)?;
        }
        Ok(())
    });
    let beside = |extension, write: fn(&mut Out) -> fmt::Result| {
        Path::of_dump(number, extension)
            .and_then(|path| File::create(path.as_c_str()))
            .is_some_and(|file| Out::print(Target::File(&file), write))
    };
    let document = beside("json", |out| ALLOCATOR.dump_json(out));
    let picture = beside("html", |out| ALLOCATOR.dump_html(out));
    // A line that is too long is cut off.
    let _ = writeln!(
        line,
        "page_memory_allocator: {} is in {}{}",
        if is_whole { "the heap" } else { "the beginning of a dump that the system did not take as a whole" },
        path.as_c_str().to_str().unwrap_or("a file"),
        match (document, picture) {
            (true, true) => ", and beside it as .json and .html",
            (true, false) => ", and beside it as .json",
            (false, true) => ", and beside it as .html",
            (false, false) => "",
        },
    );
    tell(&line);
}

fn tell(line: &Line) {
    if standard_error().is_some() {
        line.report();
    }
}

extern "C" fn write_live_at_exit() {
    if heap().is_none() {
        return;
    }
    let Some(file) = kept().or_else(standard_error) else { return };
    let stats = PageAllocator::new().stats();
    Out::print(Target::File(&file), |out| write_live(&stats, out));
}

/// What is live, by class, those with the most bytes first.
fn write_live(stats: &Stats, out: &mut dyn Write) -> fmt::Result {
    writeln!(
        out,
        "page_memory_allocator: live at exit: {} in {} and {}",
        Bytes(stats.live_bytes() + stats.guarded.live_bytes),
        Count(stats.summary.live_blocks + stats.guarded.live_blocks, "block"),
        Count(stats.runs.runs, "run"),
    )?;
    if stats.runs.runs > 0 {
        writeln!(out, "{:>8} {:>12} {:10}", "runs", stats.runs.runs, Bytes(stats.runs.live_bytes))?;
    }
    if stats.guarded.live_blocks > 0 {
        let (blocks, bytes) = (stats.guarded.live_blocks, Bytes(stats.guarded.live_bytes));
        writeln!(out, "{:>8} {blocks:>12} {bytes:10}", "guarded")?;
    }
    // Sorted without a list to sort: each turn finds what follows the line before.
    let order = |class: &&ClassStats| (core::cmp::Reverse(class.live_bytes()), class.block);
    let live = || stats.classes().iter().filter(|class| class.live_blocks > 0);
    let mut last = None;
    while let Some(class) =
        live().filter(|class| last.is_none_or(|last| order(class) > last)).min_by_key(order)
    {
        last = Some(order(&class));
        writeln!(out, "{:>8} {:>12} {:10}", class.block, class.live_blocks, Bytes(class.live_bytes()))?;
    }
    Ok(())
}
