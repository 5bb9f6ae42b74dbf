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

/// Who looks at memory faults, and what was done about them before.
static FAULTS: spin::Once<(fn(usize), libc::sigaction)> = spin::Once::new();

/// Has `look` called with the address whenever the process touches memory that it may not. Whatever was to happen then
/// happens afterwards, as if nobody had looked: an earlier handler is called, or the process ends at the same
/// instruction, with a core dump if it is to leave one. To be called once.
///
/// `look` does nothing that is not safe in a signal handler.
pub(crate) fn on_fault(look: fn(usize)) -> bool {
    // SAFETY: zeros are a valid value of the struct; the handler is one, and does what `look` and an earlier one do.
    unsafe {
        let mut former: libc::sigaction = core::mem::zeroed();
        if libc::sigaction(libc::SIGSEGV, ptr::null(), &mut former) != 0 {
            return false;
        }
        // Signals are blocked meanwhile, and calls to the system go on, as an earlier handler would have it.
        let mut action = former;
        action.sa_sigaction = handle_fault as *const () as usize;
        let kept = libc::SA_NODEFER | libc::SA_RESTART;
        action.sa_flags = former.sa_flags & kept | libc::SA_SIGINFO | libc::SA_ONSTACK;
        FAULTS.call_once(|| (look, former));
        libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()) == 0
    }
}

extern "C" fn handle_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some((look, former)) = FAULTS.get() else { return };
    // SAFETY: the system hands a handler what it is to know. What it did not find itself, but was sent, has no address.
    let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr().addr()) };
    if let Some(address) = address {
        keeping_errno(|| look(address));
    }
    match former.sa_sigaction {
        libc::SIG_IGN if address.is_none() => {}
        // SAFETY: the action is what it was. Then the instruction is executed again, or the signal comes again.
        libc::SIG_DFL | libc::SIG_IGN => unsafe {
            libc::sigaction(signal, former, ptr::null_mut());
            if address.is_none() {
                libc::raise(signal);
            }
        },
        // SAFETY: what is neither is a handler, of the one type or the other.
        handler => unsafe {
            if former.sa_flags & libc::SA_RESETHAND != 0 {
                libc::signal(signal, libc::SIG_DFL);
            }
            if former.sa_flags & libc::SA_SIGINFO != 0 {
                type WithInfo = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                core::mem::transmute::<usize, WithInfo>(handler)(signal, info, context);
            } else {
                core::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal);
            }
        },
    }
}

/// Does `work`, which returns whether it has raised `signal` for the calling thread; the program does not come to know of that.
pub(crate) fn without(signal: libc::c_int, work: impl FnOnce() -> bool) {
    /// Bytes of a set of signals, as the kernel has it.
    const SET: usize = 8;
    let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the sets are initialised before they are used. What is raised while it is blocked waits to be taken.
    unsafe {
        let (mut blocked, mut before) = (core::mem::zeroed(), core::mem::zeroed());
        libc::sigemptyset(&mut blocked);
        libc::sigaddset(&mut blocked, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, &mut before);
        // If the program has blocked it itself, another may have waited there before.
        if work() && libc::sigismember(&before, signal) == 0 {
            // Not by the C library's function, in which threads are cancelled.
            let nowhere = ptr::null_mut::<libc::siginfo_t>();
            libc::syscall(libc::SYS_rt_sigtimedwait, &raw const blocked, nowhere, &raw const no_time, SET);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
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
