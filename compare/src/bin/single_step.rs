//! Counts the instructions of a program by executing them one at a time.
//!
//! `scripts/instructions.sh` falls back to it where valgrind cannot run an allocator: valgrind's
//! address space is too small for some reservations. It is slow, and it follows one thread. The
//! program says by a SIGURG to itself where counting begins.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: single_step <program> [argument...]");
        return ExitCode::from(2);
    };
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    // Stops the child before its first instruction.
    let child = match command.spawn() {
        Ok(child) => Pid::from_raw(child.id() as i32),
        Err(error) => {
            eprintln!("cannot start the program: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut counting = false;
    let mut instructions: u64 = 0;
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => {}
            Ok(WaitStatus::Stopped(_, Signal::SIGURG)) => counting = true,
            Ok(WaitStatus::Exited(_, 0)) => {
                println!("{instructions}");
                return ExitCode::SUCCESS;
            }
            other => {
                eprintln!("the program did not end well: {other:?}");
                return ExitCode::FAILURE;
            }
        }
        let resumed = if counting { ptrace::step(child, None) } else { ptrace::cont(child, None) };
        if let Err(error) = resumed {
            eprintln!("cannot trace: {error}");
            return ExitCode::FAILURE;
        }
        instructions += u64::from(counting);
    }
}
