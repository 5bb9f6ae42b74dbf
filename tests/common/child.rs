//! Runs a part of a test in a process of its own: the test binary again, asked for that one test.

use std::any::type_name;
use std::cell::Cell;
use std::process::{self, Command, Output, Stdio, exit};
use std::time::Duration;
use std::{env, fs, panic, str, thread};

/// Set in a child, so that the test takes the child's part.
const CHILD: &str = "PMA_TEST_CHILD";
/// In a child, the number of the case that it is started for: see [`cases`].
const CASE: &str = "PMA_TEST_CASE";

thread_local! {
    /// The case that the test is at.
    static AT: Cell<usize> = const { Cell::new(0) };
}

/// The cases of a test that has a child for each, or in such a child the one that it is for: a child runs the test from its
/// beginning, and would else take the first case for its own.
#[allow(dead_code)] // some tests have one case each
pub fn cases<T: Copy>(all: &[T]) -> impl Iterator<Item = T> {
    let only: Option<usize> = env::var(CASE).ok().map(|case| case.parse().expect("a case has a number"));
    let cases =
        all.iter().copied().enumerate().filter(move |(number, _)| only.is_none_or(|only| only == *number));
    cases.map(|(number, case)| {
        AT.set(number);
        case
    })
}

/// A child that hangs is ended after so many seconds.
const LONGEST: u32 = 120;

/// Waits until the main thread, which has started this one for its test, waits for it: until then it allocates, and what a
/// test measures of the process would not be its own doing.
fn wait_for_the_harness() {
    let status = format!("/proc/self/task/{}/status", process::id());
    // Whether it sleeps, and how often it has begun to.
    let sleep = || {
        let status = fs::read_to_string(&status).ok()?;
        let count = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:"))?;
        status.contains("\nState:\tS ").then(|| count.to_owned())
    };
    for _ in 0..1000 {
        let before = sleep();
        thread::sleep(Duration::from_millis(2));
        if before.is_some() && before == sleep() {
            return;
        }
    }
    panic!("the test harness does not come to rest");
}

/// Runs `body` in a child process that `prepare` may give limits, and returns what became of it. `body` is a closure
/// of the test function itself: its type tells the test's name. Where there is more than one, they are for [`cases`]. A child whose
/// `body` returns exits with success.
pub fn in_child<F: FnOnce()>(prepare: impl FnOnce(&mut Command), body: F) -> Output {
    if env::var_os(CHILD).is_some() {
        // Of std's own hook and unwinding both want memory, of which there may be none.
        panic::set_hook(Box::new(|panic| {
            eprintln!("{panic}");
            exit(101);
        }));
        // SAFETY: alarm has no preconditions.
        unsafe { libc::alarm(LONGEST) };
        wait_for_the_harness();
        body();
        exit(0);
    }
    // "crate::modules::test::{{closure}}"
    let closure = type_name::<F>();
    let name = closure.split_once("::").and_then(|(_, path)| path.strip_suffix("::{{closure}}"));
    let name = name.expect("the closure is one of a test function");
    let mut command = Command::new(env::current_exe().expect("a test knows its binary"));
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env(CASE, AT.get().to_string())
        .stdin(Stdio::null());
    if cfg!(feature = "profile") {
        // A sampled block lies in another page than its neighbours, and what samples need comes whenever one is taken: tests
        // of the profile ask for them.
        command.env("PMA_PROFILE_BYTES", "1000G");
    }
    prepare(&mut command);
    let output = command.output().expect("the test binary can be started");
    // It would have done nothing, and ended well.
    assert!(output.stdout.starts_with(b"\nrunning 1 test\n"), "there is no test {name}");
    output
}

/// What a process wrote, as text.
pub fn text(written: &[u8]) -> &str {
    str::from_utf8(written).expect("the output is text")
}

/// Asserts that a child did its part to the end, and shows what it printed.
#[allow(dead_code)] // some tests have children that are not to end well
pub fn assert_ended_well(output: &Output) {
    print!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}\n{}", output.status, text(&output.stderr));
}
