//! What a process is asked for from outside: a report when it ends, a dump when a signal comes.

#[path = "common/child.rs"]
mod child;
use child::{cases, in_child, text};
#[path = "common/forked.rs"]
mod forked;
use forked::run_forked;
use page_memory_allocator::PageAllocator;
use std::hint::black_box;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, mem, process, ptr, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// The variable names the directory in the child, too.
const DIRECTORY: &str = "PMA_DUMP_DIR";
/// What it takes.
const LONGEST_DIRECTORY: usize = 464;

#[test]
fn what_is_live_at_exit_is_reported_by_class_when_that_is_wanted() {
    let output = in_child(
        |command| {
            command.env("PMA_REPORT", "exit");
        },
        || {
            mem::forget((0..1000).map(|_| Box::new([1u8; 3000])).collect::<Vec<_>>());
            mem::forget(vec![1u8; 10 << 20]);
            drop(black_box(vec![1u8; 20 << 20]));
            drop((0..1000).map(|_| Box::new([1u8; 6000])).collect::<Vec<_>>());
        },
    );
    assert!(output.status.success(), "{output:?}");
    let (_, report) = text(&output.stderr).split_once("page_memory_allocator: live at exit: ").unwrap();
    let lines: Vec<Vec<&str>> = report.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        (lines[1][0], lines[1][1], lines[1][2], lines[1][3]),
        ("runs", "1", "10.0", "MiB"),
        "{report}"
    );
    assert_eq!((lines[2][0], lines[2][1]), ("3072", "1000"), "{report}");
    assert!(!lines.iter().any(|line| line[0] == "6144"), "freed blocks are not live: {report}");
}

#[test]
fn the_report_counts_blocks_that_are_guarded_with_the_others() {
    let output = in_child(
        |command| {
            command.env("PMA_REPORT", "exit").env("PMA_GUARD_SAMPLE", "1");
        },
        || mem::forget((0..100).map(|_| Box::new([1u8; 3000])).collect::<Vec<_>>()),
    );
    assert!(output.status.success(), "{output:?}");
    let (_, report) = text(&output.stderr).split_once("page_memory_allocator: live at exit: ").unwrap();
    let mut lines = report.lines();
    // "3.1 MiB in 1,234 blocks and 2 runs"
    let (_, counts) = lines.next().unwrap().split_once(" in ").unwrap();
    let number = |text: &str| text.replace(',', "").parse::<usize>().unwrap();
    let all = number(counts.split_whitespace().next().unwrap());
    let of_lines = |line: &str| {
        let mut words = line.split_whitespace();
        let what = words.next()?;
        (what == "guarded" || what.parse::<usize>().is_ok()).then(|| number(words.next().unwrap()))
    };
    assert!(report.contains("guarded"), "{report}");
    assert_eq!(all, lines.filter_map(of_lines).sum::<usize>(), "{report}");
}

#[test]
fn nothing_is_reported_unless_it_is_wanted() {
    let output = in_child(|_| (), || mem::forget(black_box(Box::new(1))));
    assert!(!text(&output.stderr).contains("live at exit"));
    let output = in_child(
        |command| {
            command.env("PMA_REPORT", "now");
        },
        || (),
    );
    assert!(text(&output.stderr).contains("PMA_REPORT=now is ignored: it takes exit"), "{output:?}");
    let output = in_child(
        |command| {
            command.env("PMA_DUMP_SIGNAL", "KILL");
        },
        || (),
    );
    assert!(text(&output.stderr).contains("PMA_DUMP_SIGNAL=KILL is ignored"), "{output:?}");
}

#[test]
fn the_report_at_exit_is_in_no_file_of_a_program_that_has_closed_all_descriptors() {
    let theirs = directory("closed").join("theirs");
    let output = in_child(
        |command| {
            command.env("PMA_REPORT", "exit").env("THEIRS", &theirs);
        },
        || {
            let file = fs::File::create(std::env::var_os("THEIRS").unwrap()).unwrap();
            // SAFETY: nobody uses a descriptor above that of the file; all of them are the file's afterwards.
            unsafe {
                (file.as_raw_fd() + 1..1000).for_each(|descriptor| _ = libc::close(descriptor));
                (0..200).for_each(|_| _ = libc::dup(file.as_raw_fd()));
            }
            mem::forget(vec![1u8; 10 << 20]);
        },
    );
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains("live at exit"), "{output:?}");
    assert_eq!(fs::read_to_string(theirs).unwrap(), "");
}

/// Makes the child's standard error another file, as the data file of a daemon may be, which closes what it finds open.
fn replace_standard_error(file: &fs::File, close_all: bool) {
    // SAFETY: nobody uses the descriptors that are closed.
    unsafe {
        if close_all {
            (file.as_raw_fd() + 1..1000).for_each(|descriptor| _ = libc::close(descriptor));
        }
        assert_eq!(libc::dup2(file.as_raw_fd(), libc::STDERR_FILENO), libc::STDERR_FILENO);
    }
}

#[test]
fn nothing_is_said_where_standard_error_was() {
    for report in cases(&[false, true]) {
        let mut theirs = PathBuf::new();
        let output = in_child(
            |command| {
                let directory = directory(if report { "daemon-report" } else { "daemon-dump" });
                theirs = directory.join("theirs");
                command.env("PMA_DUMP_SIGNAL", "USR1").env(DIRECTORY, &directory).env("THEIRS", &theirs);
                if report {
                    command.env("PMA_REPORT", "exit");
                }
            },
            || {
                let file = fs::File::create(std::env::var_os("THEIRS").unwrap()).unwrap();
                drop(black_box(vec![1u8; 1 << 20]));
                replace_standard_error(&file, report);
                signal();
                dump(1);
                // The line comes after the files.
                thread::sleep(Duration::from_millis(200));
            },
        );
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stderr), "");
        assert_eq!(fs::read_to_string(theirs).unwrap(), "");
    }
}

#[test]
fn a_child_process_that_closes_its_standard_error_keeps_nobody_waiting_for_its_end() {
    let start = Instant::now();
    let output = in_child(
        |command| {
            command.env("PMA_REPORT", "exit");
        },
        || {
            // SAFETY: the child closes its streams and sleeps; it is ended by an alarm at the latest.
            unsafe {
                if libc::fork() == 0 {
                    (0..3).for_each(|stream| _ = libc::close(stream));
                    libc::alarm(60);
                    libc::sleep(60);
                    libc::_exit(0);
                }
            }
        },
    );
    assert!(output.status.success() && text(&output.stderr).contains("live at exit"), "{output:?}");
    assert!(start.elapsed() < Duration::from_secs(50), "its standard error was open");
}

/// A descriptor of it is kept, but not for the programs that the process starts.
#[test]
fn the_report_at_exit_is_there_though_the_program_has_closed_its_standard_error() {
    let output = in_child(
        |command| {
            command.env("PMA_REPORT", "exit");
        },
        || {
            let file = |descriptor| {
                // SAFETY: zeros are a valid value, which is written if the descriptor is open.
                unsafe {
                    let mut file: libc::stat = mem::zeroed();
                    (libc::fstat(descriptor, &mut file) == 0).then_some((file.st_dev, file.st_ino))
                }
            };
            let is_it = |descriptor: &i32| file(*descriptor) == file(libc::STDERR_FILENO);
            // SAFETY: a query.
            let closes_on_exec = |kept| unsafe { libc::fcntl(kept, libc::F_GETFD) } & libc::FD_CLOEXEC != 0;
            let kept: Vec<i32> = (3..1000).filter(is_it).collect();
            assert!(!kept.is_empty() && kept.into_iter().all(closes_on_exec));
            // SAFETY: nothing is written there from here on but by the allocator.
            unsafe { libc::close(libc::STDERR_FILENO) };
        },
    );
    assert!(output.status.success() && text(&output.stderr).contains("live at exit"), "{output:?}");
}

#[test]
fn a_report_that_nobody_reads_does_not_end_the_program() {
    for is_blocked in cases(&[false, true]) {
        let output = in_child(
            |command| {
                command.env("PMA_REPORT", "exit");
                if is_blocked {
                    command.env("BLOCKED", "1");
                }
            },
            || {
                let mut ends = [0; 2];
                let is_blocked = std::env::var_os("BLOCKED").is_some();
                // SAFETY: the pipe's ends are this process's, and the sets are initialised before they are used.
                unsafe {
                    libc::signal(libc::SIGPIPE, libc::SIG_DFL);
                    let (mut pipe, mut waiting) = (mem::zeroed(), mem::zeroed());
                    libc::sigemptyset(&mut pipe);
                    libc::sigaddset(&mut pipe, libc::SIGPIPE);
                    if is_blocked {
                        libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, ptr::null_mut());
                        libc::raise(libc::SIGPIPE);
                    }
                    assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
                    libc::close(ends[0]);
                    libc::dup2(ends[1], libc::STDOUT_FILENO);
                    HEAP.dump();
                    libc::sigpending(&mut waiting);
                    assert_eq!(libc::sigismember(&waiting, libc::SIGPIPE) == 1, is_blocked);
                }
            },
        );
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_dump_longer_than_a_file_may_be_does_not_end_the_program() {
    const LONGEST: u64 = 100;
    let directory = directory("short");
    let output = in_child(
        |command| {
            command.env(DIRECTORY, &directory);
        },
        || {
            let file = fs::File::create(directory.join("dump.txt")).unwrap();
            let limit = libc::rlimit { rlim_cur: LONGEST, rlim_max: LONGEST };
            // SAFETY: the limit is read; standard output is this process's.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
                assert!(libc::dup2(file.as_raw_fd(), libc::STDOUT_FILENO) >= 0);
            }
            HEAP.dump();
            // The harness is to write nothing there.
            process::exit(if file.metadata().unwrap().len() == LONGEST { 7 } else { 8 });
        },
    );
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_thread_that_is_to_be_cancelled_is_told_what_there_is() {
    unsafe extern "C" {
        fn pthread_cancel(thread: libc::pthread_t) -> libc::c_int;
    }
    let output = in_child(
        |_| (),
        || {
            // SAFETY: it goes on until it comes to a function in which threads are cancelled; to end the process is none.
            unsafe {
                assert_eq!(pthread_cancel(libc::pthread_self()), 0);
                let resident = HEAP.stats().resident.process_bytes;
                libc::_exit(if resident > 0 { 7 } else { 8 });
            }
        },
    );
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn a_dump_that_is_cut_short_is_called_that() {
    let directory = directory("full");
    let output = in_child(
        |command| {
            command.env("PMA_DUMP_SIGNAL", "USR1").env(DIRECTORY, &directory);
        },
        || {
            let limit = libc::rlimit { rlim_cur: 6000, rlim_max: 6000 };
            // SAFETY: the limit is read; a write beyond it is refused then.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
            }
            let wait_for = |name: &str, len: usize| {
                let file = directory.join(format!("pma-{}-{name}", process::id()));
                let start = Instant::now();
                while fs::metadata(&file).map_or(true, |file| file.len() < len as u64) {
                    assert!(start.elapsed() < Duration::from_secs(60), "no dump");
                    thread::sleep(Duration::from_millis(5));
                }
            };
            signal();
            wait_for("1.html", 6000);
            // The next dump begins when all is said of the first.
            signal();
            wait_for("2.txt", 0);
        },
    );
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stderr);
    let line = said.lines().find(|line| line.starts_with("page_memory_allocator: ")).unwrap();
    assert!(
        line.contains("the beginning of a dump that the system did not take as a whole is in "),
        "{line}"
    );
    assert!(line.ends_with("-1.txt"), "of no other file it is said that it is there: {line}");
}

/// A directory without files.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Sends this process the signal.
fn signal() {
    send(libc::SIGUSR1);
}

fn send(signal: libc::c_int) {
    // SAFETY: the signal is handled.
    assert_eq!(unsafe { libc::kill(libc::getpid(), signal) }, 0);
}

/// The dump of that number of this process, once it is there as a whole.
fn dump(number: u32) -> (String, String, String) {
    let set = std::env::var_os(DIRECTORY).filter(|directory| directory.len() <= LONGEST_DIRECTORY);
    let directory = set.unwrap_or(".".into());
    let path = Path::new(&directory).join(format!("pma-{}-{number}", process::id()));
    let start = Instant::now();
    loop {
        let of_kind = |extension| fs::read_to_string(path.with_extension(extension)).unwrap_or_default();
        // The last to be written.
        let page = of_kind("html");
        if page.ends_with("</html>\n") {
            return (of_kind("txt"), of_kind("json"), page);
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no dump in {}", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_has_the_heap_dumped_to_files() {
    let directory = directory("signal");
    let output = in_child(
        |command| {
            command.env("PMA_DUMP_SIGNAL", "USR1").env(DIRECTORY, &directory);
        },
        || {
            let run = vec![1u8; 10 << 20];
            for number in 1..3 {
                signal();
                let (text, document, page) = dump(number);
                assert!(text.starts_with("Resident size:"), "{text}");
                assert!(text.contains("Size Classes") && text.contains("Worst Pages"), "{text}");
                assert!(text.contains(".Status: Multi;"), "{text}");
                assert!(page.starts_with("<!doctype html>"));
                let document: serde_json::Value = serde_json::from_str(&document).unwrap();
                assert!(document["runs"]["asked_bytes"].as_u64() >= Some(10 << 20), "{}", document["runs"]);
            }
            black_box(run);
        },
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr).matches("page_memory_allocator: the heap is in ").count(), 2);
}

#[test]
fn a_dump_is_for_its_owner_and_a_read_goes_on_after_the_signal_for_it() {
    let directory = directory("private");
    let output = in_child(
        |command| {
            command.env("PMA_DUMP_SIGNAL", "USR1").env(DIRECTORY, &directory);
        },
        || {
            let mut ends = [0; 2];
            // SAFETY: the pipe's ends are this process's; the thread is alive, as it waits for what is written last.
            unsafe {
                assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
                let reader = libc::pthread_self();
                let other = thread::spawn(move || {
                    thread::sleep(Duration::from_millis(100));
                    libc::pthread_kill(reader, libc::SIGUSR1);
                    dump(1);
                    assert_eq!(libc::write(ends[1], [1u8].as_ptr().cast(), 1), 1);
                });
                let mut byte = [0u8];
                assert_eq!(libc::read(ends[0], byte.as_mut_ptr().cast(), 1), 1);
                other.join().unwrap();
            }
            for file in fs::read_dir(std::env::var_os(DIRECTORY).unwrap()).unwrap() {
                let mode = file.unwrap().metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
            }
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn each_of_four_signals_can_be_the_one() {
    let directory = directory("signals");
    let signals =
        [("USR1", libc::SIGUSR1), ("USR2", libc::SIGUSR2), ("HUP", libc::SIGHUP), ("QUIT", libc::SIGQUIT)];
    for (name, _) in signals {
        let output = in_child(
            |command| {
                command.env("PMA_DUMP_SIGNAL", name).env(DIRECTORY, &directory);
            },
            || {
                let name = std::env::var("PMA_DUMP_SIGNAL").unwrap();
                let wanted = signals.iter().find(|(known, _)| *known == name).unwrap();
                send(wanted.1);
                assert!(dump(1).0.starts_with("Resident size:"));
            },
        );
        assert!(output.status.success(), "{name}: {output:?}");
    }
}

#[test]
fn dumps_are_in_the_working_directory_unless_another_is_set() {
    let too_long = "d".repeat(LONGEST_DIRECTORY + 1);
    for (number, set) in cases(&[(0, None), (1, Some("")), (2, Some(too_long.as_str()))]) {
        let mut working = PathBuf::new();
        let output = in_child(
            |command| {
                // Made by the parent alone: the child is in it.
                working = directory(&format!("working-{number}"));
                command.env("PMA_DUMP_SIGNAL", "USR1").env_remove(DIRECTORY).current_dir(&working);
                set.map(|set| command.env(DIRECTORY, set));
            },
            || {
                signal();
                dump(1);
            },
        );
        assert!(output.status.success(), "{output:?}");
        let names = fs::read_dir(&working).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        let ends = ["-1.html", "-1.json", "-1.txt"];
        assert!(names.len() == 3 && (0..3).all(|at| names[at].ends_with(ends[at])), "{names:?}");
        let said = format!(
            "page_memory_allocator: PMA_DUMP_DIR={} is ignored: it takes a directory of up to 464 bytes\n",
            "d".repeat(80)
        );
        assert_eq!(text(&output.stderr).contains(&said), number == 2, "{output:?}");
    }
}

#[test]
fn where_no_dump_can_be_written_the_directory_is_named() {
    let missing = Path::new(env!("CARGO_TARGET_TMPDIR")).join("missing");
    let output = in_child(
        |command| {
            let _ = fs::remove_dir_all(&missing);
            command.env("PMA_DUMP_SIGNAL", "USR1").env(DIRECTORY, &missing);
        },
        || {
            // Those that come while one is answered are one.
            for _ in 0..100 {
                signal();
                thread::sleep(Duration::from_millis(5));
            }
            fs::create_dir(&missing).unwrap();
            signal();
            dump(1);
        },
    );
    assert!(output.status.success(), "{output:?}");
    let said = format!("no dump is written, as there can be no new file in {}\n", missing.display());
    assert!(text(&output.stderr).contains(&said), "{output:?}");
}

#[test]
fn a_signal_that_interrupts_threads_at_work_in_the_heap_does_no_harm() {
    let directory = directory("storm");
    let output = in_child(
        |command| {
            command.env("PMA_DUMP_SIGNAL", "SIGUSR1").env(DIRECTORY, &directory);
        },
        || {
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                for thread in 0..3 {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut held: Vec<Vec<u8>> = vec![Vec::new(); 500];
                        let mut turn = thread;
                        while !stop.load(Ordering::Relaxed) {
                            turn = (turn * 31 + 7) % 100_003;
                            held[turn % 500] = vec![1; turn * 7 % 70_000];
                        }
                    });
                }
                for _ in 0..200 {
                    signal();
                    thread::sleep(Duration::from_micros(300));
                }
                dump(1);
                stop.store(true, Ordering::Relaxed);
            });
            HEAP.check().unwrap();
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_child_process_answers_the_signal_as_well() {
    let directory = directory("fork");
    let output = in_child(
        |command| {
            command.env("PMA_DUMP_SIGNAL", "USR1").env(DIRECTORY, &directory);
        },
        || {
            signal();
            dump(1);
            run_forked(|| {
                signal();
                // A slow path, on which the child finds that it has no thread for this yet.
                drop(black_box(vec![1u8; 1 << 20]));
                dump(1);
            })
            .unwrap();
        },
    );
    assert!(output.status.success(), "{output:?}");
}
