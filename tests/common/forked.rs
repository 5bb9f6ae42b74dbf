//! Runs a part of a test in a child that is forked, and goes on with what this process has.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A child that takes so many seconds hangs.
pub const CHILD_SECONDS: u32 = 60;

/// Forks, has the child do `body` and end, and waits for it; `Err` says how it ended otherwise than well.
pub fn run_forked(body: impl FnOnce()) -> Result<(), String> {
    // SAFETY: the child goes on in a copy of this thread, and ends without returning from here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().to_string()),
        0 => {
            // SAFETY: alarm and _exit have no preconditions.
            unsafe {
                libc::alarm(CHILD_SECONDS);
                let ended_well = catch_unwind(AssertUnwindSafe(body)).is_ok();
                libc::_exit(i32::from(!ended_well))
            }
        }
        child => {
            let mut status = 0;
            // SAFETY: the status can be written.
            let waited = unsafe { libc::waitpid(child, &mut status, 0) };
            if waited != child {
                Err(io::Error::last_os_error().to_string())
            } else if libc::WIFSIGNALED(status) {
                Err(format!("the child ended by signal {}", libc::WTERMSIG(status)))
            } else if libc::WEXITSTATUS(status) != 0 {
                Err(format!("the child ended with status {}", libc::WEXITSTATUS(status)))
            } else {
                Ok(())
            }
        }
    }
}
