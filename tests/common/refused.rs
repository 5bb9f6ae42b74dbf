//! Processes whose calls to the system are refused.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Has the system refuse one of its calls, with an error.
pub fn without(command: &mut Command, call: libc::c_long, error: i32) {
    let statement =
        |code: u32, value: u32, jump: u8| libc::sock_filter { code: code as u16, jt: 0, jf: jump, k: value };
    // The number of the call is the first word of what is looked at.
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | error as u32, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    // SAFETY: no more is called between fork and exec than these two, with a program of that length.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
            let done = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0;
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        })
    };
}
