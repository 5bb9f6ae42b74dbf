//! Random operations beside a plain model: the heap, its page table as pure data, and the index of free runs.

mod heap;
mod runs;
mod table;

use proptest::test_runner::{Config, FileFailurePersistence};
use std::cell::RefCell;
use std::panic;
use std::sync::Once;

/// Few cases of many operations: what goes wrong needs a history.
fn config(cases: u32) -> Config {
    report_panics_once();
    Config {
        cases,
        max_shrink_iters: 20_000,
        max_shrink_time: 20_000, // milliseconds
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..Config::default()
    }
}

/// Keeps quiet about the panics of the cases that are tried on the way to a minimal one, but for where the last was.
fn report_panics_once() {
    static QUIET: Once = Once::new();
    thread_local! {
        static LAST: RefCell<String> = const { RefCell::new(String::new()) };
    }
    QUIET.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let text = panic.payload().downcast_ref::<String>();
            if text.is_some_and(|text| text.contains("minimal failing input")) {
                LAST.with_borrow(|last| eprintln!("panicked {last}"));
                usual(panic);
            } else {
                LAST.set(panic.location().map(|at| format!("at {at}")).unwrap_or_default());
            }
        }));
    });
}
