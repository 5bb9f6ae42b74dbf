//! The operating system, and the only place where `libc` is used: [memory], [threads], the [environment](mod@environment),
//! [files](mod@file), [signals]; here, time, output and the end of the process.

mod environment;
pub(crate) mod file;
mod loaded;
mod memory;
#[cfg(all(feature = "profile", target_arch = "x86_64", not(miri)))]
pub(crate) mod objects;
mod remapped;
pub(crate) mod resident;
pub(crate) mod signals;
mod threads;

pub(crate) use environment::environment;
pub(crate) use loaded::stay_loaded;
#[cfg(feature = "profile")]
pub(crate) use memory::map_all_zeroed;
pub(crate) use memory::{
    advise_dump, advise_huge, commit, commit_part, machine_memory, map_over, map_zeroed, page_size, protect,
    purge, remap, reserve, reserve_tables, unmap,
};
#[cfg(feature = "hardened")]
pub(crate) use memory::{guard, unguard};
pub(crate) use remapped::Remapped;
pub(crate) use threads::{
    TELLS_THREADS, ThreadKey, at_fork, fence_all_threads, lock_streams, new_thread_key, processors,
    reset_streams, set_thread_value, spawn, this_thread, thread_number, thread_value, unlock_streams, wait,
    wake, yield_now,
};

use core::ptr;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that nobody can know beforehand, if the system has any.
#[cfg(feature = "hardened")]
pub(crate) fn random() -> u64 {
    let mut number = 0;
    number ^= milliseconds() ^ (&raw const number).addr() as u64;
    // As in `sleep`: the C library's function is one in which threads are cancelled.
    // SAFETY: the number is long enough. It stays as it is if the system has none yet.
    unsafe { libc::syscall(libc::SYS_getrandom, &raw mut number, size_of::<u64>(), libc::GRND_NONBLOCK) };
    number
}

/// Sleeps for about `nanoseconds`.
pub(crate) fn sleep(nanoseconds: u64) {
    let time = libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as _,
        tv_nsec: (nanoseconds % 1_000_000_000) as _,
    };
    // Not by the C library's function: it would end a thread that is to be cancelled in here, which may hold locks.
    // SAFETY: the kernel reads the time; an early return does no harm.
    unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, ptr::null_mut::<libc::timespec>()) };
}

/// Nanoseconds on a clock that never goes back.
#[cfg(feature = "profile")]
pub(crate) fn nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written. The clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Milliseconds on a clock that never goes back, to the nearest few. The system is called once in that time at most.
///
/// The C library's function needs no system call, but a small program often needs nothing else of the 64 KiB of text that are
/// mapped with it. So it is used only where the system refuses the call.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) fn milliseconds() -> u64 {
    /// Less than a millisecond on any processor.
    const TICKS: u64 = 1 << 19;
    static ASKED_AT: AtomicU64 = AtomicU64::new(0);
    static ANSWER: AtomicU64 = AtomicU64::new(0);
    // SAFETY: reading the counter has no preconditions. Where those of two processors differ, the system is asked once more.
    let ticks = unsafe { core::arch::x86_64::_rdtsc() };
    if ticks.wrapping_sub(ASKED_AT.load(Relaxed)) >= TICKS {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time is written. The clock exists on every Linux.
        unsafe {
            if libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC_COARSE, &raw mut time) != 0 {
                libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time);
            }
        }
        // Who asked before may be here later.
        ANSWER.fetch_max(in_milliseconds(&time), Relaxed);
        ASKED_AT.store(ticks, Relaxed);
    }
    ANSWER.load(Relaxed)
}

/// Milliseconds on a clock that never goes back, to the nearest few. It is read without a system call.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(crate) fn milliseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written. The clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    in_milliseconds(&time)
}

fn in_milliseconds(time: &libc::timespec) -> u64 {
    time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
}

/// A standard stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    Output = libc::STDOUT_FILENO as isize,
    Error = libc::STDERR_FILENO as isize,
}

/// Writes all of `bytes`, without buffers and without std. What the stream refuses is lost.
pub(crate) fn write(stream: Stream, bytes: &[u8]) {
    write_all(stream as libc::c_int, bytes);
}

/// Writes all of `bytes` to a descriptor; false if it refuses some. No signal says that nobody reads a pipe any more, or that a
/// file may not be as long: the program has written nothing.
fn write_all(descriptor: libc::c_int, mut bytes: &[u8]) -> bool {
    signals::without(libc::SIGPIPE, || {
        signals::without(libc::SIGXFSZ, || {
            write_some(descriptor, &mut bytes);
            !bytes.is_empty() && errno() == libc::EFBIG
        });
        !bytes.is_empty() && errno() == libc::EPIPE
    });
    bytes.is_empty()
}

/// Writes of `bytes` what the descriptor takes, and leaves the rest.
fn write_some(descriptor: libc::c_int, bytes: &mut &[u8]) {
    while !bytes.is_empty() {
        // As in `sleep`: the C library's function is one in which threads are cancelled.
        // SAFETY: the slice is readable for its length.
        let written = unsafe { libc::syscall(libc::SYS_write, descriptor, bytes.as_ptr(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) => *bytes = &bytes[written.min(bytes.len())..],
            Err(_) if interrupted() => {}
            Err(_) => return,
        }
    }
}

fn interrupted() -> bool {
    errno() == libc::EINTR
}

fn errno() -> libc::c_int {
    // SAFETY: the C library's errno of this thread can always be read.
    unsafe { *libc::__errno_location() }
}

/// Ends the process by SIGABRT.
pub(crate) fn abort() -> ! {
    // SAFETY: abort has no preconditions.
    unsafe { libc::abort() }
}
