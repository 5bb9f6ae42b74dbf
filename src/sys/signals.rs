//! Signals, and what is done at the end of the process.

use core::ptr;

/// A signal that a user may send to a process for a purpose of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Signal(libc::c_int);

impl Signal {
    /// The signal of that name, with or without `SIG` before it.
    pub(crate) fn named(name: &str) -> Option<Signal> {
        Some(Signal(match name.strip_prefix("SIG").unwrap_or(name) {
            "HUP" => libc::SIGHUP,
            "QUIT" => libc::SIGQUIT,
            "USR1" => libc::SIGUSR1,
            "USR2" => libc::SIGUSR2,
            _ => return None,
        }))
    }

    /// Has `handler` called when the signal comes. System calls that it interrupts go on afterwards.
    ///
    /// # Safety
    /// The handler does nothing that is not safe in a signal handler, and leaves `errno` as it was.
    pub(crate) unsafe fn handle(self, handler: extern "C" fn(libc::c_int)) -> bool {
        // SAFETY: zeros are a valid value of the struct, and the handler is one, as the caller says.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(self.0, &action, ptr::null_mut()) == 0
        }
    }
}

/// Does `work`, and leaves `errno` as it was.
pub(crate) fn keeping_errno(work: impl FnOnce()) {
    // SAFETY: the C library's errno of this thread can always be read and written.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        work();
        *errno = before;
    }
}

/// Has `function` called when the process ends by returning from `main` or by `exit`.
pub(crate) fn at_exit(function: extern "C" fn()) -> bool {
    // SAFETY: the function is there for as long as the program, or the library, is.
    unsafe { libc::atexit(function) == 0 }
}

/// The number of the process.
pub(crate) fn process() -> u32 {
    // SAFETY: getpid has no preconditions.
    unsafe { libc::getpid() as u32 }
}
