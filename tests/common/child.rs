//! Runs a part of a test in a process of its own: the test binary again, asked for that one test.

use std::any::type_name;
use std::process::{Command, Output, Stdio, exit};
use std::{env, panic, str};

/// Set in a child, so that the test takes the child's part.
const CHILD: &str = "PMA_TEST_CHILD";
/// A child that hangs is ended after so many seconds.
const LONGEST: u32 = 120;

/// Runs `body` in a child process that `prepare` may give limits, and returns what became of it. `body` is a closure
/// of the test function itself: its type tells the test's name. A child whose `body` returns exits with success.
pub fn in_child<F: FnOnce()>(prepare: impl FnOnce(&mut Command), body: F) -> Output {
    if env::var_os(CHILD).is_some() {
        // Of std's own hook and unwinding both want memory, of which there may be none.
        panic::set_hook(Box::new(|panic| {
            eprintln!("{panic}");
            exit(101);
        }));
        // SAFETY: alarm has no preconditions.
        unsafe { libc::alarm(LONGEST) };
        body();
        exit(0);
    }
    // "crate::modules::test::{{closure}}"
    let closure = type_name::<F>();
    let name = closure.split_once("::").and_then(|(_, path)| path.strip_suffix("::{{closure}}"));
    let name = name.expect("the closure is one of a test function");
    let mut command = Command::new(env::current_exe().expect("a test knows its binary"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, "1").stdin(Stdio::null());
    prepare(&mut command);
    command.output().expect("the test binary can be started")
}

/// What a process wrote, as text.
pub fn text(written: &[u8]) -> &str {
    str::from_utf8(written).expect("the output is text")
}
