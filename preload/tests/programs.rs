//! Programs that run on the preloaded library: this one among others.

#[path = "../../tests/common/child.rs"]
mod child;
mod common;
#[path = "../../tests/common/fork_storm.rs"]
mod fork_storm;
#[path = "../../tests/common/forked.rs"]
mod forked;
#[path = "../../tests/common/pattern.rs"]
mod pattern;
#[path = "../../tests/common/random.rs"]
mod random;

use child::{assert_ended_well, in_child, text};
use core::ffi::{CStr, c_void};
use pattern::{fill, verify};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, mem, ptr, thread};

/// Has `command` run on the library, with `others` preloaded before it and after it.
fn preload(command: &mut Command, before: &[&Path], after: &[&Path]) {
    let all: Vec<_> = [before, &[common::library()], after].concat();
    command.env("LD_PRELOAD", env::join_paths(all).unwrap());
}

/// Runs a part of a test in this program, started anew on the library, and asserts that it ends well.
fn on_library<F: FnOnce()>(body: F) {
    assert_ended_well(&in_child(|command| preload(command, &[], &[]), body));
}

/// The file that the C function `malloc` of this process is in.
fn malloc_is_in() -> String {
    // SAFETY: zeros are a valid value, which dladdr may change.
    unsafe {
        let mut info: libc::Dl_info = mem::zeroed();
        let malloc = libc::dlsym(libc::RTLD_DEFAULT, c"malloc".as_ptr());
        assert_ne!(libc::dladdr(malloc, &mut info), 0);
        CStr::from_ptr(info.dli_fname).to_str().unwrap().to_string()
    }
}

#[test]
fn a_program_allocates_from_the_preloaded_library() {
    on_library(|| {
        assert!(malloc_is_in().ends_with("libpma.so"), "malloc is in {}", malloc_is_in());
        let words: HashMap<usize, String> = (0..10_000).map(|word| (word, "x".repeat(word % 100))).collect();
        assert!(words.iter().all(|(word, text)| text.len() == word % 100));
    });
}

/// How much of each mapping of the library's code a program has resident that writes out what it has mapped.
fn resident_code() -> Vec<usize> {
    let mut command = Command::new("cat");
    preload(command.arg("/proc/self/smaps"), &[], &[]);
    let output = command.output().unwrap();
    let mut resident = Vec::new();
    let mut is_ours = false;
    for line in text(&output.stdout).lines() {
        if line.contains('/') {
            is_ours = line.contains(" r-xp ") && line.ends_with("/libpma.so");
        } else if let Some(kib) = line.strip_prefix("Rss:").filter(|_| is_ours) {
            resident.push(kib.trim().trim_end_matches(" kB").parse().unwrap());
        }
    }
    resident
}

#[test]
fn code_that_few_programs_run_is_not_mapped() {
    let library = fs::read(common::library()).unwrap();
    if !library.windows(11).any(|at| at == b"Linker: LLD") {
        eprintln!("skipped: the library was linked by another linker than LLD, which lays out nothing apart");
        return;
    }
    let resident = resident_code();
    assert_eq!(resident.len(), 2, "{resident:?}");
    assert!(resident[0] == 0 && resident[1] > 0, "{resident:?} KiB");
}

/// Blocks that were allocated before any constructor of a library ran.
static EARLY: [AtomicPtr<c_void>; 500] = [const { AtomicPtr::new(ptr::null_mut()) }; 500];

fn early_size(number: usize) -> usize {
    1 + number * number % 70_000
}

extern "C" fn allocate_early() {
    for (number, block) in EARLY.iter().enumerate() {
        // SAFETY: malloc has no preconditions; the block is that long.
        unsafe {
            let early = libc::malloc(early_size(number));
            if !early.is_null() {
                fill(early.cast(), early_size(number), number);
            }
            block.store(early, Ordering::Relaxed);
        }
    }
}

#[used]
#[unsafe(link_section = ".preinit_array")]
static PREINIT: extern "C" fn() = allocate_early;

#[test]
fn memory_is_served_before_the_first_constructor() {
    on_library(|| {
        for (number, block) in EARLY.iter().enumerate() {
            let block = block.load(Ordering::Relaxed);
            assert!(!block.is_null());
            // SAFETY: the block is live and as long as that, and was filled.
            unsafe {
                verify(block.cast(), early_size(number), number);
                libc::free(block);
            }
        }
    });
}

#[test]
fn an_overflow_of_a_guarded_block_is_a_fault_and_a_line_says_of_what() {
    let guarded = |command: &mut Command| {
        preload(command, &[], &[]);
        command.env("PMA_GUARD_SAMPLE", "50");
    };
    let output = in_child(guarded, || {
        for _ in 0..5_000 {
            // SAFETY: none for the byte behind the block, which is the point: only a guarded one has room for no more.
            unsafe {
                let block = libc::malloc(4000).cast::<u8>();
                if libc::malloc_usable_size(block.cast()) == 4000 {
                    block.add(4000).read_volatile();
                }
            }
        }
    });
    let said = text(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{:?} {said}", output.status);
    assert!(said.contains("overflow at") && said.contains("0 bytes past a block of 4000 bytes"), "{said}");
}

#[test]
fn a_program_with_guarded_blocks_works_as_without() {
    let guarded = |command: &mut Command| {
        preload(command, &[], &[]);
        command.env("PMA_GUARD_SAMPLE", "10");
    };
    let output = in_child(guarded, || {
        let words: HashMap<usize, String> = (0..10_000).map(|word| (word, "x".repeat(word % 100))).collect();
        assert!(words.iter().all(|(word, text)| text.len() == word % 100));
        thread::spawn(move || drop(words)).join().unwrap();
    });
    assert_ended_well(&output);
}

/// Allocates when its thread ends.
struct Late(Vec<Vec<u8>>);

static LATE: AtomicUsize = AtomicUsize::new(0);

impl Drop for Late {
    fn drop(&mut self) {
        let more: Vec<Vec<u8>> = (0..500).map(|size| vec![7; 1 + size * 3]).collect();
        assert!(self.0.iter().chain(&more).all(|bytes| bytes.iter().all(|&byte| byte == 7)));
        LATE.fetch_add(1, Ordering::Relaxed);
    }
}

/// The destructor of a thread-specific value, which is called after that of the library's own key, and again in each
/// round in which there is a value.
unsafe extern "C" fn late_value(value: *mut c_void) {
    // SAFETY: the value is a Box that was given up for this.
    let late = unsafe { Box::from_raw(value.cast::<Late>()) };
    assert!(late.0.len() == 500);
    drop(late);
}

#[test]
fn threads_allocate_and_free_until_their_last_destructor() {
    std::thread_local! {
        static VALUE: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    on_library(|| {
        let mut key = 0;
        // SAFETY: the key is written; the destructor gets the values that are set below.
        assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(late_value)) }, 0);
        for _ in 0..50 {
            thread::spawn(move || {
                let late = || Late((0..500).map(|size| vec![7; 1 + size * 2]).collect());
                VALUE.with(|value| *value.borrow_mut() = Some(late()));
                // SAFETY: the key exists; its destructor takes the box.
                unsafe { libc::pthread_setspecific(key, Box::into_raw(Box::new(late())).cast()) };
            })
            .join()
            .unwrap();
        }
        assert_eq!(LATE.load(Ordering::Relaxed), 100);
    });
}

#[test]
fn children_forked_while_threads_allocate_allocate_too() {
    on_library(|| fork_storm::storm(|| ()));
}

#[test]
fn forks_do_not_wait_for_who_holds_a_stream_and_allocates() {
    const FORKS: usize = 400;
    fs::write(made("lines"), format!("{}\n", "x".repeat(300_000)).repeat(20)).unwrap();
    on_library(|| {
        let path = CString::new(made("lines").into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the stream is the thread's own, but that others flush it; the line is freed once.
        let read_lines = || unsafe {
            let stream = libc::fopen(path.as_ptr(), c"r".as_ptr());
            assert!(!stream.is_null());
            // The C library has the line grow while it holds the stream.
            let (mut line, mut size) = (ptr::null_mut(), 0);
            while libc::getline(&mut line, &mut size, stream) > 0 {
                libc::free(line.cast());
                (line, size) = (ptr::null_mut(), 0);
            }
            libc::free(line.cast());
            libc::fclose(stream);
        };
        // SAFETY: all streams are flushed, one after the other.
        let flush = || unsafe { libc::fflush(ptr::null_mut()) };
        let stop = AtomicBool::new(false);
        let until_stopped = |work: &dyn Fn()| {
            while !stop.load(Ordering::Relaxed) {
                work();
            }
        };
        thread::scope(|scope| {
            (0..3).for_each(|_| drop(scope.spawn(|| until_stopped(&read_lines))));
            (0..2).for_each(|_| drop(scope.spawn(|| until_stopped(&|| _ = flush()))));
            for _ in 0..FORKS {
                // SAFETY: the child ends at once.
                unsafe {
                    let child = libc::fork();
                    if child == 0 {
                        libc::_exit(0);
                    }
                    assert!(child > 0 && libc::waitpid(child, ptr::null_mut(), 0) == child);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn programs_started_by_a_program_whose_threads_allocate_run_on_the_library_too() {
    on_library(|| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let held: Vec<Vec<u8>> = (0..1000).map(|size| vec![1; size]).collect();
                        let output = Command::new("sh")
                            .args(["-c", "cat /proc/self/maps | grep libpma"])
                            .output()
                            .unwrap();
                        assert!(output.status.success(), "{output:?}");
                        drop(held);
                    }
                });
            }
        });
    });
}

/// Where compilers put what they make.
fn made(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Compiles a file of this directory; false, with a message, if there is no such compiler.
fn compile(compiler: &str, source: &str, arguments: &[&str], output: &Path) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
    // A child that comes by here again runs on the output.
    let new = output.with_extension(std::process::id().to_string());
    let mut command = Command::new(compiler);
    match command.args(["-O1", "-o"]).args([&new, &source]).args(arguments).status() {
        Ok(status) => {
            assert!(status.success(), "{command:?}: {status}");
            fs::rename(new, output).unwrap();
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no compiler {compiler}");
            false
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

#[test]
fn fork_handlers_of_libraries_that_are_up_earlier_allocate() {
    let early = made("early.so");
    if !compile("cc", "early.c", &["-shared", "-fPIC", "-ldl", "-pthread"], &early) {
        return;
    }
    for (before, after) in [(&[&*early][..], &[][..]), (&[], &[&*early])] {
        let output = in_child(
            |command| {
                preload(command, before, after);
                command.env("PMA_TEST_FORKS", "20");
            },
            || fork_storm::storm(|| ()),
        );
        assert_ended_well(&output);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_library_that_prefers_its_own_symbols_shares_the_allocator_all_the_same() {
    let module = made("module.so");
    if !compile("cc", "module.c", &["-shared", "-fPIC"], &module) {
        return;
    }
    on_library(|| {
        let path = CString::new(made("module.so").into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the library has no constructors, and these functions of these types; each block is freed once.
        unsafe {
            let flags = libc::RTLD_NOW | libc::RTLD_DEEPBIND;
            // Whoever opens it first decides.
            let module = libc::dlmopen(libc::LM_ID_BASE, path.as_ptr(), flags);
            assert!(!module.is_null() && libc::dlopen(path.as_ptr(), flags) == module);
            let function = |name: &CStr| {
                let function = libc::dlsym(module, name.as_ptr());
                assert!(!function.is_null());
                function
            };
            let give: extern "C" fn(usize) -> *mut c_void = mem::transmute(function(c"give"));
            let take: extern "C" fn(*mut c_void) = mem::transmute(function(c"take"));
            for size in (0..100_000).step_by(1111) {
                libc::free(give(size));
                take(libc::malloc(size));
                take(libc::strdup(c"duplicated by the C library".as_ptr()).cast());
            }
        }
    });
}

/// Runs a C program with the library, if there is a compiler.
fn run_c(name: &str, arguments: &[&str]) {
    run_c_with(name, arguments, &[]);
}

/// The same, in such an environment.
fn run_c_with(name: &str, arguments: &[&str], variables: &[(&str, &str)]) {
    let program = made(name);
    if compile("cc", &format!("{name}.c"), arguments, &program) {
        let mut command = Command::new(program);
        preload(command.envs(variables.iter().copied()), &[], &[]);
        assert_ended_well(&command.output().expect("the program can be started"));
    }
}

/// Options with which the allocator starts threads of its own.
const WITH_THREADS: [(&str, &str); 2] = [("PMA_BACKGROUND_PURGE", "1"), ("PMA_DUMP_SIGNAL", "USR1")];

#[test]
#[cfg(target_arch = "x86_64")]
fn no_thread_is_started_while_the_program_is_relocated() {
    run_c_with("resolver", &[], &WITH_THREADS);
}

#[test]
fn no_thread_is_started_while_the_c_library_frees_stacks() {
    run_c_with("stacks", &["-pthread"], &WITH_THREADS);
}

#[test]
fn a_thread_is_not_cancelled_in_malloc_nor_in_free() {
    run_c("cancelled", &["-pthread"]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn memory_is_served_while_the_program_is_relocated() {
    run_c("resolver", &[]);
}

#[test]
fn a_program_that_has_a_malloc_of_its_own_has_the_rest_by_that() {
    run_c("own_malloc", &[]);
}

#[test]
fn a_program_at_a_fixed_address_is_not_taken_for_one_with_a_malloc_of_its_own() {
    let program = made("fixed_address");
    if compile("cc", "fixed_address.c", &["-no-pie", "-fno-pie"], &program) {
        let mut command = Command::new(program);
        preload(&mut command, &[], &[]);
        let output = command.output().expect("the program can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("freed with a layout"), "{said}");
    }
}

#[test]
fn a_library_in_cpp_of_a_program_in_another_language_allocates_and_throws() {
    let plugin = made("plugin.so");
    if !compile("c++", "plugin.cc", &["-shared", "-fPIC", "-pthread"], &plugin) {
        return;
    }
    on_library(|| {
        let path = CString::new(made("plugin.so").into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the library has these functions of these types.
        unsafe {
            let plugin = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!plugin.is_null());
            for (name, size, result) in [
                (c"throws", 100, 0),
                (c"throws", isize::MAX as usize, 1),
                (c"is_null", 100, 0),
                (c"is_null", isize::MAX as usize, 1),
            ] {
                let function: extern "C" fn(usize) -> i32 =
                    mem::transmute(libc::dlsym(plugin, name.as_ptr()));
                assert_eq!(function(size), result, "{name:?} {size}");
            }
        }
    });
}

/// Runs a C++ program with the library, if there is a compiler.
fn run_cpp(name: &str) {
    let program = made(name);
    if !compile("c++", &format!("{name}.cc"), &["-std=c++17", "-pthread"], &program) {
        return;
    }
    let mut command = Command::new(program);
    preload(&mut command, &[], &[]);
    assert_ended_well(&command.output().expect("the program can be started"));
}

#[test]
fn cpp_allocates_from_the_library_and_throws_when_it_has_no_more() {
    run_cpp("operators");
}

#[test]
fn a_program_that_replaces_some_of_the_operators_of_cpp_has_all_of_them_to_itself() {
    run_cpp("operators_replaced");
}

#[test]
fn so_has_a_program_whose_library_replaces_some() {
    // With the library's own calls bound to what it has itself, as some systems do, and without.
    for binding in ["-Wl,-Bsymbolic-functions", "-Wl,-O1"] {
        let (library, program) = (made("libreplaced.so"), made("operators_from_library"));
        if !compile("c++", "operators_of_library.cc", &["-shared", "-fPIC", binding], &library) {
            return;
        }
        let library = library.to_str().expect("a path in UTF-8");
        let directory = made("").display().to_string();
        assert!(compile("c++", "operators_from_library.cc", &[library, "-Wl,-rpath", &directory], &program));
        let mut command = Command::new(program);
        preload(command.env("LD_LIBRARY_PATH", directory), &[], &[]);
        assert_ended_well(&command.output().expect("the program can be started"));
    }
}

/// A program that knows nothing of the library, on it; `None`, with a message, if it is not installed.
fn started(program: &[&str], variables: &[(&str, &str)]) -> Option<Child> {
    let mut command = Command::new(program[0]);
    preload(command.args(&program[1..]).envs(variables.iter().copied()), &[], &[]);
    match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
        Ok(child) => Some(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no {}", program[0]);
            None
        }
        Err(error) => panic!("{program:?}: {error}"),
    }
}

/// The path of Python itself: what is found by its name may be a script that looks for it.
fn python() -> String {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable, end='')"]).output();
    output.map_or("python3".to_string(), |output| text(&output.stdout).to_string())
}

/// Waits until `condition` holds.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process has a handler for the signal.
fn handles(process: u32, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
    u64::from_str_radix(caught.trim(), 16).unwrap() >> (signal - 1) & 1 == 1
}

#[test]
fn a_program_that_knows_nothing_of_the_library_dumps_its_heap_on_a_signal() {
    let directory = made("dumps");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let variables = [("PMA_DUMP_SIGNAL", "USR1"), ("PMA_DUMP_DIR", directory.to_str().unwrap())];
    for program in [
        &["sleep", "100"][..],
        &["perl", "-e", "@held = (1..10000); sleep 1 while 1"],
        &[&python(), "-c", "import time; held = [bytes(size) for size in range(1000)]; time.sleep(100)"],
    ] {
        let Some(mut child) = started(program, &variables) else { continue };
        wait_until("a handler", || handles(child.id(), libc::SIGUSR1));
        // SAFETY: the process is a child that was not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGUSR1) }, 0);
        let path = directory.join(format!("pma-{}-1", child.id()));
        let read = |extension| fs::read_to_string(path.with_extension(extension)).unwrap_or_default();
        wait_until("a dump", || read("html").ends_with("</html>\n"));
        assert!(read("txt").starts_with("Resident size:") && read("txt").contains(".Status: Divided;"));
        assert!(child.try_wait().unwrap().is_none(), "{program:?} does not go on");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_program_that_knows_nothing_of_the_library_reports_what_is_live_at_its_end() {
    for program in [
        // It closes its standard error before the library is asked.
        &["sleep", "0"][..],
        &["perl", "-e", "@held = (1..10000)"],
        &["python3", "-c", "held = [bytes(size) for size in range(1000)]"],
        &["git", "--version"],
    ] {
        let Some(child) = started(program, &[("PMA_REPORT", "exit")]) else { continue };
        let output = child.wait_with_output().unwrap();
        assert_ended_well(&output);
        let report = text(&output.stderr);
        let lines = report.split_once("page_memory_allocator: live at exit: ").map(|(_, lines)| lines);
        assert!(lines.is_some_and(|lines| lines.lines().count() > 5), "{program:?}: {report}");
    }
}

#[test]
fn a_program_that_knows_nothing_of_the_library_has_the_options_of_the_environment() {
    let Some(child) = started(&["sleep", "0"], &[("PMA_LIMIT", "much")]) else { return };
    let output = child.wait_with_output().unwrap();
    assert_ended_well(&output);
    assert!(text(&output.stderr).contains("PMA_LIMIT=much is ignored"), "{}", text(&output.stderr));
    let program = ["python3", "-c", "bytes(100_000_000)"];
    let Some(child) = started(&program, &[("PMA_LIMIT", "64M")]) else { return };
    let output = child.wait_with_output().unwrap();
    assert!(text(&output.stderr).contains("MemoryError"), "{}", text(&output.stderr));
}
